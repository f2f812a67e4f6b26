"""Put together what the verification of tiles has found.

Reads the records of the tiles and of the rest. Writes ``verify/<run>.json``, and the same as ``verify.json``, and
``verify.md`` in words. It does not fail if something differs: that is for the rule ``verify``, so that the records
stay.
"""

from collections.abc import Iterable
from pathlib import Path

from skymill.files import read_json, write_json, write_text
from skymill.step import log, start_step
from skymill.verification import differ, write_report

#: Rows of a chunk in the whole table; a tile is asked of its own files, where those are many.
EVERYWHERE = "rows in all files"


def rows_elsewhere(tile: dict, rest: dict) -> list[dict]:
    """Differences between the rows of chunks that a tile's own files hold, and those that the whole table shows."""
    differences = []
    for place, tables in rest["rows"].items():
        for table, counts in tables.items():
            own = tile["rows"].get(place, {}).get(table, {})
            for chunk in map(str, tile["chunks"]):
                if chunk in counts or chunk in own:
                    expected, found = {EVERYWHERE: own.get(chunk, 0)}, {EVERYWHERE: counts.get(chunk, 0)}
                    differences += differ(table, int(chunk), place, expected, found)
    return differences


def merge(rest: dict, tiles: Iterable[dict]) -> dict:
    """The record of a verification, by those of its parts.

    Parameters
    ----------
    rest : `dict`
        What `verify_rest` has found.
    tiles : iterable of `dict`
        What `verify_tile` has found, one after the other.
    """
    tables = {name: {"expected": rows, "found": rest["found"].get(name, 0)} for name, rows in rest["expected"].items()}
    differences, compared, chunks, count = list(rest["differences"]), rest["compared"], 0, 0
    for tile in tiles:
        differences += tile["differences"] + rows_elsewhere(tile, rest)
        compared += tile["compared"]
        chunks += len(tile["chunks"])
        count += 1
        for name, rows in tile["expected"].items():
            counted = tables.setdefault(name, {"expected": 0, "found": 0})
            counted["expected"] += rows
            # A chunk may be on several workers, each of which has been compared.
            held = [found.get(name, {}) for found in tile["rows"].values()]
            for chunk in map(str, tile["chunks"]):
                counted["found"] += max((rows_of.get(chunk, 0) for rows_of in held), default=0)
    return {"tiles": count, "chunks": chunks, "compared": compared, "tables": tables, "differences": differences}


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``merge_verification``."""
    dataset = start_step(snakemake)
    record = {
        "database": dataset.database,
        "fingerprint": snakemake.params.fingerprint,
        "only": snakemake.params.only,
        **merge(read_json(snakemake.input.rest), map(read_json, snakemake.input.tiles)),
    }
    write_json(dataset.results / "verify.json", record)
    write_text(dataset.results / "verify.md", write_report(record))
    write_json(Path(snakemake.output[0]), record)
    log.info("%d facts: %d differ", record["compared"], len(record["differences"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
