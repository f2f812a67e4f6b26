"""Verify a tile: ask the store for the facts of its chunks, and compare them with the truth of generation.

Reads the plan, the tile's truth and the record of its committed transaction. Writes what was compared and what differs.
Differences are no failure here: all tiles are to be asked first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from skymill import facts
from skymill.config import Dataset
from skymill.errors import SkymillError
from skymill.files import read_json, write_json
from skymill.retries import planned_tiles
from skymill.selection import expand_ranges
from skymill.step import Stopwatch, log, start_step
from skymill.stores.asking import Asker, loaded_names, open_asker
from skymill.truth import TileTruth
from skymill.verification import compare_tile


def verify_tile(
    dataset: Dataset, asker: Asker, transaction_id: str, tile: str, truth: TileTruth, chunks: Sequence[int]
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
    chunks : sequence of `int`
        The chunks of the tile that are to be compared.

    Returns
    -------
    record : `dict`

    Raises
    ------
    SkymillError
        If the truth does not know one of them.
    """
    loaded = loaded_names(dataset)
    known = {chunk for found in truth.tables.values() for chunk in found}
    unknown = sorted(set(chunks) - known)
    if unknown:
        raise SkymillError(
            f"the truth of tile {tile} does not know {len(unknown)} of its chunks, {unknown[0]} among them: there is nothing to compare them with"
        )
    expected = {
        table: {chunk: values for chunk, values in found.items() if chunk in set(chunks)}
        for table, found in truth.tables.items()
        if table in loaded
    }
    answers = asker.ask_tile(transaction_id, tile, list(chunks), TileTruth(expected))
    differences, compared = compare_tile(expected, chunks, answers)
    rows = {
        place: {table: {str(c): v.get(facts.ROWS, 0) for c, v in held.items()} for table, held in found.items()}
        for place, found in answers.items()
    }
    return {
        "tile": tile,
        "chunks": list(chunks),
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
    name, tile = snakemake.wildcards.done, snakemake.wildcards.tile
    chunks = expand_ranges(planned_tiles(dataset.results, name)[tile])
    if snakemake.params.chunks:
        chunks = np.intersect1d(chunks, expand_ranges(snakemake.params.chunks))
    committed = read_json(snakemake.input.committed)
    with open_asker(dataset, dataset.results, snakemake.threads) as asker:
        record = verify_tile(dataset, asker, committed["id"], tile, truth, chunks.tolist())
    write_json(Path(snakemake.output[0]), {"transaction": name, **record, **watch.read()})
    log.info("%d facts of %d chunks: %d differ", record["compared"], len(record["chunks"]), len(record["differences"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
