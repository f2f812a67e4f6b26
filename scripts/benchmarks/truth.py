"""What truth costs: taking the facts of rows, compared with writing the same rows as text."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from . import FAKEDB, KPM50, RUNS, figure, timed
from .chunk import CHUNK as KPM50_CHUNK

if TYPE_CHECKING:
    from skymill.columns import Rows
    from skymill.config import Dataset


def make_rows(dataset: Dataset, chunks: list[int]) -> dict[int, list[tuple]]:
    """All rows of chunks as generation writes them: for each chunk the kind, the table and the block."""
    from skymill.blocks import Joiner
    from skymill.rowmaker import BoxStreams, RowMaker, load_density
    from skymill.visits import Visits, make_regular_table

    director, visits = dataset.tables["Object"], dataset.tables["CcdVisit"]
    maker = RowMaker(
        dataset,
        {"Object": load_density(director, dataset.folder)},
        {"CcdVisit": Visits(make_regular_table(dataset, visits), visits)},
    )
    made: dict[int, list[tuple]] = {}
    for chunk in chunks:
        blocks: dict[tuple[str, str], list[Rows]] = {}
        streams = {}
        for rows in maker.director_blocks(director, chunk):
            blocks.setdefault(("home", director.name), []).append(rows)
            for child in dataset.children_of("Object"):
                key = (child.name, rows.box)
                box = streams.setdefault(key, BoxStreams(dataset.seed, child, chunk, rows.box))
                blocks.setdefault(("child", child.name), []).extend(maker.child_blocks(child, rows, box))
        blocks["halo", director.name] = list(maker.halo_blocks(director, chunk))
        events = made[chunk] = []
        for (kind, name), parts in blocks.items():
            table = dataset.tables[name]
            joiner = Joiner(lambda rows, kind=kind, table=table, events=events: events.append((kind, table, rows)))
            for rows in parts:
                joiner.add(rows)
            joiner.flush()
    return made


def write_rows(made: dict[int, list[tuple]], folder: Path) -> None:
    """Write the rows as text, as generation does."""
    from generate_tile import stored_values
    from skymill.textfile import TableFile

    folder.mkdir()
    for chunk, events in made.items():
        files: dict[tuple[str, str], TableFile] = {}
        for kind, table, rows in events:
            key = (table.name, kind)
            if key not in files:
                path = folder / f"{chunk}_{table.name}_{kind}.csv"
                files[key] = TableFile(path, table.stored_columns, row_ends=kind != "child")
            files[key].add(stored_values(rows))
        for file in files.values():
            with file:
                pass
    shutil.rmtree(folder)


def take_truth(dataset: Dataset, made: dict[int, list[tuple]], folder: Path) -> None:
    """Take the facts of the rows, and write them, as generation does."""
    from skymill.truth import TileTruth, TruthTaker

    taker, tile = TruthTaker(dataset), TileTruth()
    for chunk, events in made.items():
        truth = taker.chunk(dataset.tables["Object"], chunk)
        for kind, table, rows in events:
            if kind == "home":
                truth.add_director(rows)
            elif kind == "child":
                truth.add_child(table, rows)
            else:
                truth.add_halo(rows)
        tile.add(chunk, truth.facts(), {})
    tile.write(folder / "truth.json.gz", {})


def measure_truth(folder: Path) -> Iterator[tuple[str, dict]]:
    """The cost of truth for a tile of fakedb and for a chunk of kpm50."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from skymill.config import load_dataset

    for name, path, chunks in (("fakedb", FAKEDB, list(range(40000, 40050))), ("kpm50", KPM50, [KPM50_CHUNK])):
        dataset = load_dataset(path)
        made = make_rows(dataset, chunks)
        rounds = []
        for _ in range(RUNS + 1):
            writing = timed(lambda made=made: write_rows(made, folder / "rows"))
            rounds.append(timed(lambda dataset=dataset, made=made: take_truth(dataset, made, folder)) / writing)
        ratio = statistics.median(rounds[1:])
        yield f"truth of {name}", figure(ratio, "of writing its rows with our own writer", at_most=0.3)
