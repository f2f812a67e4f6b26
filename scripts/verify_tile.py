"""Verify a tile: ask the store for the facts of its chunks, and compare them with the truth of generation.

Reads the tile's truth and the record of its committed transaction. Writes what was compared and what differs. Differences are no failure
here: all tiles are to be asked first.
"""

from pathlib import Path

from skymill import facts
from skymill.errors import SkymillError
from skymill.files import read_json, write_json
from skymill.selection import expand_ranges
from skymill.step import Stopwatch, log, start_step
from skymill.stores.asking import loaded_names, open_asker
from skymill.truth import TileTruth
from skymill.verification import compare_tile


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``verify_tile``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    name, tile = snakemake.wildcards.done, snakemake.wildcards.tile
    truth = TileTruth.read(Path(snakemake.input.truth))
    wanted = set(expand_ranges(snakemake.params.chunks).tolist()) if snakemake.params.chunks else None
    loaded = loaded_names(dataset)
    expected = {
        table: {chunk: values for chunk, values in found.items() if wanted is None or chunk in wanted}
        for table, found in truth.tables.items()
        if table in loaded
    }
    chunks = sorted({chunk for found in expected.values() for chunk in found})
    if not chunks:
        raise SkymillError(f"{snakemake.input.truth} knows none of the chunks that are to be verified")
    committed = read_json(snakemake.input.committed)
    with open_asker(dataset, dataset.results, snakemake.threads) as asker:
        answers = asker.ask_tile(committed["id"], tile, chunks, TileTruth(expected))
    differences, compared = compare_tile(expected, chunks, answers)
    rows = {
        place: {table: {c: v.get(facts.ROWS, 0) for c, v in held.items()} for table, held in found.items()}
        for place, found in answers.items()
    }
    write_json(
        Path(snakemake.output[0]),
        {
            "transaction": name,
            "tile": tile,
            "chunks": chunks,
            "compared": compared,
            "expected": {table: sum(v[facts.ROWS] for v in held.values()) for table, held in expected.items()},
            "rows": rows,
            "differences": differences,
            **watch.read(),
        },
    )
    log.info("compared %d facts of %d chunks: %d differ", compared, len(chunks), len(differences))


if "snakemake" in globals():
    main(globals()["snakemake"])
