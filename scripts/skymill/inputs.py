"""Files beside the configuration, and what else jobs need, looked at before any job starts."""

from __future__ import annotations

from pathlib import Path

from .config import Dataset
from .plan import State
from .scratch import scratch_base
from .stores import open_store
from .stores.asking import open_asker

#: Rules whose jobs speak with the store, for which they may need a key; and those that ask it what it holds.
LOADING = {
    *("register_database", "abort_transaction", "start_transaction", "commit_transaction", "publish_database"),
    *("ingest_tile", "ingest_regular", "make_tile"),
}
ASKING = {"verify_tile", "verify_rest"}


def check_files(dataset: Dataset, root: Path) -> None:
    """Read the tables and density maps that the configuration names, unless an earlier run has taken them over already.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.

    Raises
    ------
    ConfigError
        If a table lacks a column or a visit has no place; or a map has another length than a HEALPix map, or a negative
        value.
    """
    for table in dataset.tables_of("regular"):
        if table.from_file is not None and not (root / "visits" / f"{table.name}.npz").exists():
            from .visits import make_regular_table

            make_regular_table(dataset, table)
    for table in dataset.tables_of("director"):
        if "map" in table.density and not (root / "density" / f"{table.name}.npy").exists():
            from .rowmaker import load_density

            load_density(table, dataset.folder)


def check_needs(state: State, here: set[str], elsewhere: set[str]) -> None:
    """See that the jobs of a run will find what they need, so that what is missing is told once and not by each of them.

    Parameters
    ----------
    state : `State`
    here, elsewhere : `set` [`str`]
        The rules that have jobs to do: on this machine, and on others.

    Raises
    ------
    SkymillError
        If a key or an address of the store is missing, the database to be asked is not there, or the scratch folder of
        this machine is not.
    """
    rules = here | elsewhere
    if rules & LOADING:
        open_store(state.dataset, state.root)
    if rules & ASKING and "publish_database" not in rules:
        with open_asker(state.dataset, state.root):
            pass
    if "make_tile" in here:
        scratch_base(state.dataset.config["scratch"])
