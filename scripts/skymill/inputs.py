"""Files beside the configuration, looked at before any job starts."""

from __future__ import annotations

from pathlib import Path

from .config import Dataset


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
        If a table lacks a column or a visit has no place; or a map has another length than a HEALPix map, or a negative value.
    """
    for table in dataset.tables_of("regular"):
        if table.from_file is not None and not (root / "visits" / f"{table.name}.npz").exists():
            from .visits import make_regular_table

            make_regular_table(dataset, table)
    for table in dataset.tables_of("director"):
        if "map" in table.density and not (root / "density" / f"{table.name}.npy").exists():
            from .rowmaker import load_density

            load_density(table, dataset.folder)
