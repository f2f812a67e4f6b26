"""A chunk of kpm50 against the limit: the time W that writing the same rows once takes, from memory, with the fastest writer."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

from . import KPM50, RUNS, figure, timed

CHUNK = 115600
BLOCK_BYTES = 1 << 19
#: Links that are made at a time: one alone takes too little time to measure.
LINKS = 200


def measure_chunk(folder: Path) -> Iterator[tuple[str, dict]]:
    """All that is done for a chunk, part by part; each round measures all parts, so that they see the same machine."""
    # One thread: it takes less processor time than several, and that is what counts here.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from generate_tile import generate_tile
    from partition_tile import partition_chunk
    from skymill import fact_kernels, kernels
    from skymill.config import load_dataset
    from skymill.files import link_or_copy
    from skymill.overlap import write_overlap
    from skymill.rowmaker import RowMaker, load_density
    from skymill.textfile import TableFile
    from skymill.truth import TileTruth
    from skymill.visits import Visits, make_regular_table

    dataset = load_dataset(KPM50)
    director = dataset.tables["Object"]
    densities = {"Object": load_density(director, dataset.folder)}
    table_of_visits = dataset.tables["CcdVisit"]
    visits = {"CcdVisit": Visits(make_regular_table(dataset, table_of_visits), table_of_visits)}
    tables = dataset.tables_of("director", "child")
    generated, partitioned, written = folder / "generated", folder / "partitioned", folder / "written"
    written.mkdir()

    def make_rows() -> dict[str, list]:
        """The rows of the chunk, its halo included, in memory."""
        return _rows(RowMaker(dataset, densities, visits), director)

    held = make_rows()
    widths = {"halo": len(director.stored_columns)} | {table.name: len(table.stored_columns) for table in tables}
    values = sum(widths[name] * len(rows["chunkId"]) for name, blocks in held.items() for rows in blocks)
    frames = {table.name: _frame(table, held[table.name]) for table in tables}

    def write_own() -> None:
        for table in tables:
            with TableFile(written / f"{table.name}.csv", table.stored_columns) as file:
                for rows in held[table.name]:
                    file.add(rows)

    made: dict = {}

    def generate(truth: TileTruth | None = None) -> None:
        maker = RowMaker(dataset, densities, visits)
        made.update(generate_tile(dataset, maker, [CHUNK], generated, truth=truth)[str(CHUNK)])

    def generate_with_truth() -> None:
        truth = TileTruth()
        generate(truth)
        truth.write(folder / "truth.json.gz", {})

    def partition() -> None:
        for table in tables:
            (partitioned / table.name).mkdir(parents=True)
        made["partitioned"] = partition_chunk(dataset, CHUNK, made, generated, partitioned)

    def partition_director() -> None:
        rows = {generated / f"chunk_{CHUNK}_{name}.csv": made[name]["rows"] for name in ("Object", "Object_halo")}
        link_or_copy(next(iter(rows)), written / "chunk.txt")
        write_overlap(dataset.chunker, CHUNK, rows, written / "overlap.txt")

    def link_child() -> None:
        for _ in range(LINKS):
            link_or_copy(generated / f"chunk_{CHUNK}_ForcedSource.csv", written / "chunk.txt")

    writers = {f"polars {table.name}": _polars(frames[table.name], written / "polars.csv") for table in tables}
    arrow = {f"pyarrow {table.name}": _arrow(frames[table.name], written / "arrow.csv") for table in tables}
    parts: dict[str, Callable[[], object]] = {
        **writers,
        "own writer": write_own,
        "own hash": lambda: [_hash(path) for path in written.glob("*.csv")],
        "make": make_rows,
        "plain": generate,
        "generate": generate_with_truth,
        "partition": partition,
        "hash": lambda: [_hash(path) for path in partitioned.glob("*/*.txt")],
        "partition Object": partition_director,
        "link ForcedSource": link_child,
    }
    rounds: list[dict[str, float]] = []
    for number in range(RUNS + 1):
        shutil.rmtree(partitioned, ignore_errors=True)
        rounds.append({})
        # The slower library is asked once.
        for name, part in (parts | arrow if not number else parts).items():
            if name in ("plain", "generate"):  # new files, as in a run
                shutil.rmtree(generated, ignore_errors=True)
            rounds[-1][name] = timed(part)
        (written / "polars.csv").unlink()
    shutil.rmtree(generated)
    shutil.rmtree(partitioned)
    nothing = {"load": lambda: None}
    with unittest.mock.patch.multiple(kernels, **nothing), unittest.mock.patch.multiple(fact_kernels, **nothing):
        uncompiled = timed(generate_with_truth) + timed(partition)
    arrow_seconds, rounds = sum(rounds[0][name] for name in arrow), rounds[1:]
    polars_seconds = statistics.median(sum(one[name] for name in writers) for one in rounds)
    library = "polars" if polars_seconds <= arrow_seconds else "pyarrow"
    for one in rounds:
        one["W"] = sum(one[name] for name in writers) if library == "polars" else arrow_seconds
        one["own"] = one["own writer"] - one["own hash"]
        one["chunk"] = one["generate"] + one["partition"]
    yield from _figures(rounds, library, values, made)
    seconds_of_w = statistics.median(one["W"] for one in rounds)
    yield "kpm50 chunk / W, without a C compiler (one run)", figure(uncompiled / seconds_of_w, "W")


def _figures(rounds: list[dict[str, float]], library: str, values: int, made: dict) -> Iterator[tuple[str, dict]]:
    def median(value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(value, rounds))

    text = {name: entry["bytes"] / 1e6 for name, entry in made.items() if name != "partitioned"}
    own_text = sum(size for name, size in text.items() if name != "Object_halo")
    halo_text = text["Object"] + text["Object_halo"]
    yield f"W: writing the rows of a kpm50 chunk once, {library}", figure(median(lambda one: one["W"]), "CPU-s")
    yield "W, text", figure(own_text / median(lambda one: one["W"]), "MB of text per CPU-s")
    yield "the same rows with our own writer", figure(median(lambda one: one["own"] / one["W"]), "W")
    yield (
        "kpm50 chunk: generate with halo and truth, write, partition, hash",
        figure(median(lambda one: one["chunk"]), "CPU-s", at_most=10),
    )
    yield "of which rows: random numbers, visits, halo", figure(median(lambda one: one["make"]), "CPU-s")
    yield "of which text and its files", figure(median(lambda one: one["own"]), "CPU-s")
    yield "of which hashes", figure(median(lambda one: one["hash"]), "CPU-s")
    yield "of which truth", figure(median(lambda one: one["generate"] - one["plain"]), "CPU-s")
    yield "of which overlap files", figure(median(lambda one: one["partition"]), "CPU-s")
    yield "kpm50 chunk / W", figure(median(lambda one: one["chunk"] / one["W"]), "W", at_most=2.0)
    bare = median(lambda one: (one["plain"] + one["partition"] - one["hash"]) / one["own"])
    yield "kpm50 chunk / our own writer, hashes and truth apart", figure(bare, "times our own writer", at_most=2.0)
    yield (
        "kpm50: hashes of the partitioned files",
        figure(median(lambda one: one["hash"] / one["W"]), "W", at_most=0.25),
    )
    truth = median(lambda one: (one["generate"] - one["plain"]) / one["W"])
    yield "kpm50: truth of the rows", figure(truth, "W", at_most=0.3)
    yield (
        "kpm50: generation alone",
        figure(values / 1e6 / median(lambda one: one["make"]), "million values per CPU-s", at_least=100),
    )
    rate = halo_text / median(lambda one: one["partition Object"])
    yield "partition step of the workflow on Object", figure(rate, "MB of text per CPU-s", at_least=300)
    rate = LINKS * text["ForcedSource"] / median(lambda one: one["link ForcedSource"])
    yield "partition step of the workflow on ForcedSource", figure(rate, "MB of text per CPU-s", at_least=300)


def _rows(maker, director) -> dict[str, list]:  # noqa: ANN001
    """Rows of each table of the chunk and of the halo, block by block, as they are stored."""
    from generate_tile import stored_values
    from skymill.rowmaker import BoxStreams

    children = maker.dataset.children_of(director.name)
    made: dict[str, list] = {name: [] for name in (director.name, "halo", *(child.name for child in children))}
    streams: dict[tuple[str, int], BoxStreams] = {}
    for rows in maker.director_blocks(director, CHUNK):
        made[director.name].append(stored_values(rows))
        for child in children:
            key = (child.name, rows.box)
            if key not in streams:
                streams[key] = BoxStreams(maker.dataset.seed, child, CHUNK, rows.box)
            made[child.name] += map(stored_values, maker.child_blocks(child, rows, streams[key]))
    made["halo"] += map(stored_values, maker.halo_blocks(director, CHUNK))
    return made


def _frame(table, blocks: list):  # noqa: ANN001, ANN202 - polars is imported only here
    """The rows of a table in one piece."""
    import polars as pl

    from skymill.textfile import _series

    parts = [pl.DataFrame({c.name: _series(c, rows[c.name]) for c in table.stored_columns}) for rows in blocks]
    return pl.concat(parts).rechunk()


def _polars(frame, path: Path) -> Callable[[], None]:  # noqa: ANN001
    return lambda: frame.write_csv(path, include_header=False, separator="\t", null_value="\\N", quote_style="never")


def _arrow(frame, path: Path) -> Callable[[], None]:  # noqa: ANN001
    import pyarrow.csv

    table = frame.to_arrow()
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none", batch_size=4096)
    return lambda: pyarrow.csv.write_csv(table, path, options)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(BLOCK_BYTES)
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()
