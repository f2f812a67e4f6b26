"""Partition a tile: for each chunk its chunk file of each table, and the overlap file of each director.

Reads the CSV files and the files of places that generation has written, never a number in the text. A chunk file is the
generated file under a second name, since its rows were made for this chunk and end with their chunkId and subChunkId
already; here each row's place is computed once more, and a difference is an error. Overlap rows, of the chunk itself
and of the halo, are copied as bytes with the place that they have in the overlap, ordered by sub-chunk, home chunk, box
and row. Last comes the manifest.

A chunk that fails, because a generated file does not match its manifest or its places, does not stop the others: see
`skymill.failures`. Fails if all of them fail.
"""

from pathlib import Path

from skymill.config import Dataset
from skymill.errors import SkymillError
from skymill.failures import TileFailures
from skymill.files import link_or_copy, lock, read_json, write_json
from skymill.overlap import write_overlap
from skymill.retries import own_chunks
from skymill.step import Stopwatch, log, start_step


def partition_chunk(dataset: Dataset, chunk: int, generated: dict, source: Path, target: Path) -> dict:
    """Partition a chunk.

    Parameters
    ----------
    dataset : `Dataset`
    chunk : `int`
    generated : `dict`
        The chunk's entry in the manifest of generation.
    source, target : `pathlib.Path`
        Folders of the generated and the partitioned files.

    Returns
    -------
    entry : `dict`
        For the manifest: table or overlap table -> rows, bytes, sha256.

    Raises
    ------
    SkymillError
        If a file does not match the manifest or its places.
    """
    made = {}
    for table in dataset.tables_of("director", "child"):
        names = [table.name, f"{table.name}_halo"] if table.kind == "director" else [table.name]
        # A run that was killed while it removed the folder may have left a part of it.
        rows = {
            _whole(source / f"chunk_{chunk}_{name}.csv", generated[name]): generated[name]["rows"] for name in names
        }
        entry = made[table.name] = generated[table.name]
        if entry["rows"]:
            link_or_copy(next(iter(rows)), target / table.name / f"chunk_{chunk}.txt")
        if table.kind == "director":
            overlap = target / table.name / f"chunk_{chunk}_overlap.txt"
            made[table.overlap_name] = write_overlap(dataset.chunker, chunk, rows, overlap)
    return made


def _whole(path: Path, entry: dict) -> Path:
    """The path of a file that has as many bytes as its manifest says."""
    found = path.stat().st_size if path.exists() else 0
    if found != entry["bytes"]:
        raise SkymillError(
            f"{path}: it has {found} bytes, its manifest says {entry['bytes']}; run again, and if it stays so, remove {path.parent} first"
        )
    return path


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``partition_tile``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    source, target = Path(snakemake.input.bulk), Path(snakemake.output.bulk)
    with lock(Path(snakemake.params.lock)):
        generated = read_json(snakemake.input.manifest)
        for table in dataset.tables_of("director", "child"):
            (target / table.name).mkdir(parents=True, exist_ok=True)
        name, tile = snakemake.wildcards.txn, snakemake.wildcards.tile
        own = set(own_chunks(dataset.results, name, tile).tolist())
        failures = TileFailures(dataset.results, name, tile, "partition")
        made = {}
        for chunk in [int(chunk) for chunk in generated["chunks"] if int(chunk) in own]:
            with failures.catch(chunk):
                made[str(chunk)] = partition_chunk(dataset, chunk, generated["chunks"][str(chunk)], source, target)
            if str(chunk) not in made:
                for path in [*target.glob(f"*/chunk_{chunk}.txt"), *target.glob(f"*/chunk_{chunk}_overlap.txt")]:
                    path.unlink()
        failures.settle(len(made))
        manifest = {**generated, "stage": "partitioned", "chunks": made, **watch.read()}
        write_json(Path(snakemake.output.manifest), manifest)
    log.info("partitioned %d chunks in %.1f s", len(made), manifest["seconds"])


if "snakemake" in globals():
    main(globals()["snakemake"])
