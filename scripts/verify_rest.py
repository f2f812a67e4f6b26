"""Verify what belongs to no tile: the regular tables, and that the store has no chunks which nobody has made.

Reads the arrays of the regular tables and the plan. Writes what was compared, what differs, and how many rows the store
shows of each chunk.
"""

from pathlib import Path

from skymill import facts
from skymill.config import Dataset
from skymill.files import read_json, write_json
from skymill.selection import expand_ranges
from skymill.step import Stopwatch, log, start_step
from skymill.stores.asking import Asker, open_asker
from skymill.truth import TruthTaker
from skymill.verification import differ
from skymill.visits import load_arrays


def verify_regular(
    dataset: Dataset, asker: Asker, folder: Path
) -> tuple[list[dict], int, dict[str, int], dict[str, int]]:
    """Compare the regular tables.

    Parameters
    ----------
    dataset : `Dataset`
    asker : `Asker`
    folder : `pathlib.Path`
        The folder of their arrays.

    Returns
    -------
    differences : `list` [`dict`]
    compared : `int`
        Facts that were compared.
    expected, found : `dict` [`str`, `int`]
        Rows of each table, found on the place that has the most.
    """
    differences, compared = [], 0
    expected, found = {}, {}
    taker = TruthTaker(dataset)
    for table in dataset.tables_of("regular"):
        if not table.ingest:
            continue
        truth = taker.regular(table, load_arrays(folder / f"{table.name}.npz", table))
        expected[table.name] = truth[facts.ROWS]
        for place, answers in asker.ask_regular(table, truth).items():
            compared += len(truth)
            differences += differ(table.name, None, place, truth, answers)
            found[table.name] = max(found.get(table.name, 0), answers[facts.ROWS])
    return differences, compared, expected, found


def planned_chunks(root: Path) -> set[int]:
    """All chunks that any plan holds."""
    plans = [read_json(path) for path in (root / "ingest").glob("plan_*.json")]
    return {
        chunk
        for plan in plans
        for tiles in plan["transactions"].values()
        for ranges in tiles.values()
        for chunk in expand_ranges(ranges).tolist()
    }


def verify_rest(dataset: Dataset, asker: Asker, root: Path) -> dict:
    """Compare the regular tables, and look for chunks that nobody has made; returns the record of it.

    Parameters
    ----------
    dataset : `Dataset`
    asker : `Asker`
    root : `pathlib.Path`
        ``results/<database>``.
    """
    known = planned_chunks(root)
    rows: dict[str, dict[str, dict[str, int]]] = {}
    differences, compared, expected, found = verify_regular(dataset, asker, root / "visits")
    for place, table, chunk, count in asker.chunk_rows(known):
        if chunk in known:
            rows.setdefault(place, {}).setdefault(table, {})[str(chunk)] = count
        else:
            differences += differ(table, chunk, place, {facts.ROWS: 0}, {facts.ROWS: count})
    return {"compared": compared, "expected": expected, "found": found, "rows": rows, "differences": differences}


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``verify_rest``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    with open_asker(dataset, dataset.results, snakemake.threads) as asker:
        record = verify_rest(dataset, asker, dataset.results)
    write_json(Path(snakemake.output[0]), {**record, **watch.read()})
    log.info("%d facts of regular tables: %d differ", record["compared"], len(record["differences"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
