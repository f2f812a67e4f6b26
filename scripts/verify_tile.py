"""Verify a tile: ask the store for the facts of its chunks, and compare them with the truth of generation.

Reads the tile's truth and the record of its committed transaction. Writes what was compared and what differs. Differences are no failure
here: all tiles are to be asked first.
"""

from pathlib import Path

from skymill import facts
from skymill.config import Dataset
from skymill.errors import SkymillError
from skymill.files import read_json, write_json
from skymill.selection import expand_ranges
from skymill.step import Stopwatch, log, start_step
from skymill.stores.asking import Asker, loaded_names, open_asker
from skymill.truth import TileTruth
from skymill.verification import compare_tile


def verify_tile(
    dataset: Dataset, asker: Asker, transaction_id: str, tile: str, truth: TileTruth, wanted: set[int] | None = None
) -> dict:
    """Compare the chunks of a tile.

    Parameters
    ----------
    dataset : `Dataset`
    asker : `Asker`
    transaction_id : `str`
        The store's id of the transaction.
    tile : `str`
    truth : `TileTruth`
    wanted : `set` [`int`], optional
        Only these chunks.

    Returns
    -------
    record : `dict`

    Raises
    ------
    SkymillError
        If the truth knows none of the chunks that are wanted.
    """
    loaded = loaded_names(dataset)
    expected = {
        table: {chunk: values for chunk, values in found.items() if wanted is None or chunk in wanted}
        for table, found in truth.tables.items()
        if table in loaded
    }
    chunks = sorted({chunk for found in expected.values() for chunk in found})
    if not chunks:
        raise SkymillError(f"the truth of tile {tile} knows none of the chunks that are to be verified")
    answers = asker.ask_tile(transaction_id, tile, chunks, TileTruth(expected))
    differences, compared = compare_tile(expected, chunks, answers)
    rows = {
        place: {table: {str(c): v.get(facts.ROWS, 0) for c, v in held.items()} for table, held in found.items()}
        for place, found in answers.items()
    }
    return {
        "tile": tile,
        "chunks": chunks,
        "compared": compared,
        "expected": {table: sum(values[facts.ROWS] for values in held.values()) for table, held in expected.items()},
        "rows": rows,
        "differences": differences,
    }


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``verify_tile``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    truth = TileTruth.read(Path(snakemake.input.truth))
    wanted = set(expand_ranges(snakemake.params.chunks).tolist()) if snakemake.params.chunks else None
    committed = read_json(snakemake.input.committed)
    with open_asker(dataset, dataset.results, snakemake.threads) as asker:
        record = verify_tile(dataset, asker, committed["id"], snakemake.wildcards.tile, truth, wanted)
    write_json(Path(snakemake.output[0]), {"transaction": snakemake.wildcards.done, **record, **watch.read()})
    log.info("%d facts of %d chunks: %d differ", record["compared"], len(record["chunks"]), len(record["differences"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
