"""Generate a tile: for each chunk a CSV file of each table, and the halo of each director.

Reads the chunk ids of the tile from the plan, the visits, and density maps. Writes, for each chunk and table,
``chunk_<id>_<Table>.csv``; for each director also ``chunk_<id>_<Table>_halo.csv`` (rows of neighbours in its overlap),
and beside both a small binary file of places (``.places.npy``, see `skymill.places`). Rows already end with their
chunkId and subChunkId, so that partitioning need not move them again. A table without rows in a chunk has no file.
Facts of all rows are taken on the way and written as the tile's truth, see `skymill.truth`. Last comes the manifest.

A chunk that fails, because a user's generator makes what it should not, does not stop the others: see
`skymill.failures`. Fails if all of them fail, or the disk is full; files then have not taken their names.
"""

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from skymill.blocks import Joiner
from skymill.columns import Rows, Values
from skymill.config import Dataset, Table
from skymill.density import HealpixDensity
from skymill.failures import TileFailures
from skymill.files import lock, write_json
from skymill.places import places_of, save_places
from skymill.plan import loaded_chunks, present_id
from skymill.retries import own_chunks
from skymill.rowmaker import BoxStreams, RowMaker, load_density
from skymill.step import Stopwatch, log, start_step
from skymill.textfile import TableFile
from skymill.truth import ChunkTruth, TileTruth, TruthTaker, keep_truth, known_chunks
from skymill.visits import load_visits


def stored_values(rows: Rows) -> dict[str, Values]:
    """The columns of rows as they are stored, chunkId and subChunkId included."""
    return {**rows.columns, "chunkId": np.full(rows.count, rows.chunk, np.int32), "subChunkId": rows.sub_chunk}


def generate_chunk(
    maker: RowMaker,
    director: Table,
    chunk: int,
    folder: Path,
    boxes: list[int] | None = None,
    halo: bool = True,
    truth: ChunkTruth | None = None,
) -> dict[str, TableFile]:
    """Generate a director, its halo and its children in a chunk.

    Parameters
    ----------
    maker : `RowMaker`
    director : `Table`
    chunk : `int`
    folder : `pathlib.Path`
        Where the files go.
    boxes : `list` [`int`], optional
        Numbers of the boxes to make; all by default.
    halo : `bool`
        Whether to make the halo, and the files of places.
    truth : `ChunkTruth`, optional
        Is given all rows.

    Returns
    -------
    files : `dict` [`str`, `TableFile`]
        The closed files by table; the halo's name is ``<Table>_halo``.
    """
    children = maker.dataset.children_of(director.name)
    with contextlib.ExitStack() as stack:

        def open_table(table: Table, take: Callable[[Rows], None] | None, suffix: str = "") -> _Output:
            path = folder / f"chunk_{chunk}_{table.name}{suffix}.csv"
            has_places = halo and table is director
            return _Output(stack.enter_context(TableFile(path, table.stored_columns, has_places)), has_places, take)

        outputs = {director.name: open_table(director, truth and truth.add_director)}
        outputs |= {child.name: open_table(child, truth and partial(truth.add_child, child)) for child in children}
        streams: dict[tuple[str, int], BoxStreams] = {}
        for rows in maker.director_blocks(director, chunk, boxes):
            outputs[director.name].add(rows)
            for child in children:
                key = (child.name, rows.box)
                if key not in streams:
                    streams[key] = BoxStreams(maker.dataset.seed, child, chunk, rows.box)
                for child_rows in maker.child_blocks(child, rows, streams[key]):
                    outputs[child.name].add(child_rows)
        for output in outputs.values():
            output.flush()
        if halo:
            output = outputs[f"{director.name}_halo"] = open_table(director, truth and truth.add_halo, "_halo")
            for rows in maker.halo_blocks(director, chunk):
                output.add(rows)
            output.flush()
    for output in outputs.values():
        if output.places:
            save_places(output.file.path, output.places, output.file.row_ends)
    return {name: output.file for name, output in outputs.items()}


class _Output(Joiner):
    """Writes rows to a file, small blocks joined; keeps their places if need be, and gives them to the truth."""

    def __init__(self, file: TableFile, has_places: bool, take: Callable[[Rows], None] | None):
        super().__init__(self._write)
        self.file, self._has_places, self._give = file, has_places, take
        self.places: list[np.ndarray] = []

    def _write(self, rows: Rows) -> None:
        self.file.add(stored_values(rows))
        if self._has_places:
            self.places.append(places_of(rows))
        if self._give:
            self._give(rows)


def generate_tile(
    dataset: Dataset,
    maker: RowMaker,
    chunks: Iterable[int],
    folder: Path,
    failures: TileFailures | None = None,
    truth: TileTruth | None = None,
) -> dict:
    """Generate the chunks of a tile.

    Parameters
    ----------
    dataset : `Dataset`
    maker : `RowMaker`
    chunks : iterable of `int`
    folder : `pathlib.Path`
        Where the files go.
    failures : `TileFailures`, optional
        Takes the chunks that fail; without it their errors go on.
    truth : `TileTruth`, optional
        Takes the facts of the chunks.

    Returns
    -------
    chunks : `dict`
        For the manifest: chunk id -> table -> rows, bytes, sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, dict] = {}
    taker = TruthTaker(dataset) if truth is not None else None
    for chunk in chunks:
        with failures.catch(chunk) if failures else contextlib.nullcontext():
            entry, known = {}, {}
            for director in dataset.tables_of("director"):
                facts = taker.chunk(director, chunk) if taker is not None else None
                for name, file in generate_chunk(maker, director, chunk, folder, truth=facts).items():
                    entry[name] = {"rows": file.rows, "bytes": file.bytes, "sha256": file.sha256}
                known |= facts.facts() if facts is not None else {}
            made[str(chunk)] = entry
            if truth is not None:
                truth.add(chunk, known, {name: file["sha256"] for name, file in entry.items()})
        if str(chunk) not in made:
            for path in folder.glob(f"chunk_{chunk}_*"):
                path.unlink()
    return made


def make_maker(dataset: Dataset, visits_folder: Path, density_folder: Path) -> RowMaker:
    """A `RowMaker` that reads what the workflow has prepared: visits and density maps."""
    densities = {}
    for table in dataset.tables_of("director"):
        if "map" in table.density:
            densities[table.name] = HealpixDensity(np.load(density_folder / f"{table.name}.npy", mmap_mode="r"))
        else:
            densities[table.name] = load_density(table, dataset.folder)
    used = {child.visits for child in dataset.tables_of("child")}
    visits = {name: load_visits(visits_folder / f"{name}.npz", dataset.tables[name]) for name in sorted(used)}
    return RowMaker(dataset, densities, visits)


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``generate_tile``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    results, name, tile = dataset.results, snakemake.wildcards.txn, snakemake.wildcards.tile
    with lock(Path(snakemake.params.lock)):
        chunks = own_chunks(results, name, tile).tolist()
        if dataset.config["ingest"]["store"] != "none" and not any(dataset.config["keep"].values()):
            # What is loaded need not be made again, where a job before this one was killed and its files are gone; its
            # truth is kept.
            loaded = loaded_chunks(results, name, tile, present_id(results, name)).keys()
            known = known_chunks(results, name, tile) if loaded else set()
            chunks = [chunk for chunk in chunks if chunk not in loaded or chunk not in known]
        maker = make_maker(dataset, results / "visits", results / "density")
        failures = TileFailures(results, name, tile, "generate")
        truth = TileTruth()
        made = generate_tile(dataset, maker, chunks, Path(snakemake.output.bulk), failures, truth)
        failures.settle(len(made))
        columns = {t.name: [c.name for c in t.stored_columns] for t in dataset.tables_of("director", "child")}
        manifest = {
            "stage": "generated",
            "transaction": name,
            "tile": tile,
            "fingerprint": snakemake.params.fingerprint,
            "columns": columns,
            "chunks": made,
            **watch.read(),
        }
        keep_truth(results, truth, {key: manifest[key] for key in ("transaction", "tile", "fingerprint")})
        write_json(Path(snakemake.output.manifest), manifest)
    log.info("generated %d chunks in %.1f s", len(made), manifest["seconds"])


if "snakemake" in globals():
    main(globals()["snakemake"])
