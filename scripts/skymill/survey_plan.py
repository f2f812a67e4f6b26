"""The plan of a survey in numbers: rows and bytes of each table, disk, processor time, the hottest chunks.

Rows come from a census. Bytes come from a sample: some blocks of rows are made, written as text, and loaded into an
embedded store in a temporary folder; its times stand in for rates as long as no tile has been made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .census import Census, take_census
from .config import Dataset, Table
from .errors import ConfigError, SkymillError, counted
from .files import read_json
from .forecast import TileForecast
from .progress import duration
from .rowmaker import BoxStreams, RowMaker, load_density
from .selection import group_tiles
from .status import format_markdown
from .textfile import TableFile
from .visits import Visits, make_regular_table

log = logging.getLogger("skymill")

#: Chunks of which a sample is taken, and rows of a child in it.
SAMPLE_CHUNKS, SAMPLE_ROWS = 5, 40_000
#: Bytes of a DuckDB file for each byte of the Parquet files that are copied into it; 1.6 was seen.
DATABASE_BYTES = 1.7
#: Processor time [s] until the three jobs of a tile begin their work: the start of Python and what it imports, as `make
#: bench` measures it.
START_SECONDS = 3 * 0.35
STAGES = ("generated", "partitioned", "loaded")


@dataclasses.dataclass(frozen=True)
class Sample:
    """What rows of a table cost.

    Attributes
    ----------
    text_bytes, store_bytes : `float`
        Bytes of a row as text, and in the embedded store.
    seconds : `float`
        Processor time to make, write and load a row [s].
    """

    text_bytes: float
    store_bytes: float
    seconds: float


def make_survey_maker(dataset: Dataset) -> RowMaker:
    """A `RowMaker` that needs no files of an earlier step: visits and density maps are made or read here."""
    used = {child.visits for child in dataset.tables_of("child")}
    visits = {
        name: Visits(make_regular_table(dataset, dataset.tables[name]), dataset.tables[name]) for name in sorted(used)
    }
    densities = {table.name: load_density(table, dataset.folder) for table in dataset.tables_of("director")}
    return RowMaker(dataset, densities, visits)


def plan_survey(
    dataset: Dataset, root: Path, chunks: np.ndarray, transactions: int, jobs: int
) -> tuple[dict, dict[str, TileForecast]]:
    """Work out the plan of some chunks; see `describe_plan` for what it holds.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``; need not exist.
    chunks : `numpy.ndarray`, int64
    transactions, jobs : `int`
        How many transactions hold them, and how many jobs may run at a time.

    Returns
    -------
    plan : `dict`
    tiles : `dict` [`str`, `TileForecast`]
        What of it falls to each tile.

    Raises
    ------
    SkymillError
        If no chunk has a row.
    """
    maker = make_survey_maker(dataset)

    def progress(done: int, total: int) -> None:
        if done:
            log.info("counted the rows of %d of %d chunks", done, total)

    census = take_census(maker, chunks, progress)
    if not any(rows.any() for rows in census.rows.values()):
        raise SkymillError(
            f"chunks: the {len(chunks)} chunks that are selected have no row; raise the density, or select other chunks"
        )
    samples = _take_samples(dataset, maker, census)
    tables = _table_figures(dataset, census, samples)
    tiles = group_tiles(dataset.chunker, chunks, dataset.config["chunks_per_tile"])
    text = sum(census.rows[name] * samples[name].text_bytes for name in census.rows)
    halo = sum(rows * samples[name].text_bytes for name, rows in census.halo.items())
    firsts = np.cumsum([0, *map(len, tiles.values())])[:-1]
    tile_bytes = np.add.reduceat(text + halo, firsts)
    rates = _measured_rates(root)
    seconds = sum(rows.sum() * samples[name].seconds for name, rows in census.rows.items())
    if rates:
        seconds = sum(rates.values()) * text.sum()
    hottest = np.argsort(-text, kind="stable")[:10]
    names = np.repeat(list(tiles), list(map(len, tiles.values())))
    plan = {
        "database": dataset.database,
        "fingerprint": dataset.fingerprint(),
        "chunks": len(chunks),
        "chunks_with_rows": int((text > 0).sum()),
        "tiles": len(tiles),
        "transactions": transactions,
        "tables": tables,
        "total": {key: _total(tables, key) for key in next(iter(tables.values()))},
        "disk": _disk(dataset, root, tables, float(tile_bytes.max()), min(jobs + 1, len(tiles))),
        "core_hours": _core_hours(seconds + START_SECONDS * len(tiles)),
        "start_core_hours": _core_hours(START_SECONDS * len(tiles)),
        "rates": "measured with the tiles that were made" if rates else "measured with a sample of rows",
        "hottest_chunks": [
            {
                "chunk": int(chunks[i]),
                "tile": str(names[i]),
                "rows": {name: round(float(rows[i])) for name, rows in census.rows.items()},
                "text_bytes": round(float(text[i])),
            }
            for i in hottest.tolist()
        ],
    }
    directors = [name for table in dataset.tables_of("director") for name in (table.name, table.overlap_name)]
    largest = np.maximum.reduceat(halo + sum(census.rows[n] * samples[n].text_bytes for n in directors), firsts)
    columns = (np.add.reduceat(sum(census.rows.values()), firsts), np.add.reduceat(text, firsts), largest)
    figures = zip(*(np.rint(column).astype(np.int64).tolist() for column in columns), strict=True)
    forecasts = {
        name: TileForecast(len(ids), *numbers) for (name, ids), numbers in zip(tiles.items(), figures, strict=True)
    }
    return plan, forecasts


def _core_hours(seconds: float) -> float:
    """Three digits are enough."""
    return float(f"{seconds / 3600:.3g}")


def _total(tables: dict[str, dict], key: str) -> int:
    return sum(figures[key] for figures in tables.values())


def _table_figures(dataset: Dataset, census: Census, samples: dict[str, Sample]) -> dict[str, dict]:
    """Rows and bytes of each table: generated (the halo included), partitioned, and in the store."""
    embedded = dataset.config["ingest"]["store"] == "embedded"
    figures = {}
    for table in dataset.tables_of("regular"):
        sample = samples[table.name]
        stored = sample.store_bytes * table_rows(dataset, table) if embedded and table.ingest else 0
        text = round(sample.text_bytes * table_rows(dataset, table))
        figures[table.name] = {
            "rows": table_rows(dataset, table),
            "generated_bytes": text,
            "partitioned_bytes": 0,
            "store_bytes": round(stored),
        }
    for name, rows in census.rows.items():
        table, sample, total = _table_of(dataset, name), samples[name], float(rows.sum())
        own = name == table.name
        halo = float(census.halo[table.name].sum()) if own and table.kind == "director" else 0.0
        figures[name] = {
            "rows": round(total),
            "generated_bytes": round((total + halo) * sample.text_bytes) if own else 0,
            "partitioned_bytes": round(total * sample.text_bytes),
            "store_bytes": round(total * sample.store_bytes) if embedded and table.ingest else 0,
        }
    return figures


def table_rows(dataset: Dataset, table: Table) -> int:
    """Rows of a regular table."""
    return table.rows if table.rows is not None else len(next(iter(make_regular_table(dataset, table).values())))


def _table_of(dataset: Dataset, name: str) -> Table:
    """The table whose rows a table or an overlap table holds."""
    return next(table for table in dataset.tables.values() if name in (table.name, table.overlap_name))


# -- what a row costs -------------------------------------------------------------------------------------------------------


def _take_samples(dataset: Dataset, maker: RowMaker, census: Census) -> dict[str, Sample]:
    """What a row of each table costs, overlap tables included."""
    samples: dict[str, Sample] = {}
    with tempfile.TemporaryDirectory(prefix="skymill-plan-") as name:
        folder = Path(name)
        for table in dataset.tables_of("regular"):
            samples[table.name] = _measure(dataset, table, iter([make_regular_table(dataset, table)]), folder)
        for director in dataset.tables_of("director"):
            start = time.process_time()
            blocks = _sample_blocks(maker, director, census)
            made = time.process_time() - start
            own = ({**rows.columns, **_place(rows)} for rows in blocks)
            samples[director.name] = samples[director.overlap_name] = _measure(dataset, director, own, folder, made)
            for child in dataset.children_of(director.name):
                samples[child.name] = _measure(dataset, child, _child_values(maker, child, blocks), folder)
    return samples


def _place(rows) -> dict:  # noqa: ANN001 - skymill.columns.Rows
    return {"chunkId": np.full(rows.count, rows.chunk, np.int32), "subChunkId": rows.sub_chunk}


def _sample_blocks(maker: RowMaker, director: Table, census: Census) -> list:
    """A block of complete rows from each of some chunks, spread evenly over the rows."""
    ends = np.cumsum(census.rows[director.name])
    wanted = np.searchsorted(ends, (np.arange(SAMPLE_CHUNKS) + 0.5) * (ends[-1] / SAMPLE_CHUNKS), "right")
    blocks: list = []
    for i in np.unique(wanted[wanted < len(ends)]).tolist():
        chunk, box = int(census.chunks[i]), int(census.boxes[director.name][i])
        with _warning_only(f"a sample of {director.name} in chunk {chunk}"):
            blocks += itertools.islice(maker.director_blocks(director, chunk, [box]), 1)
    return blocks


@contextlib.contextmanager
def _warning_only(what: str) -> Iterator[None]:
    """Go on after an error: a generator of the user's may fail, and then its chunks are to tell, not the plan."""
    try:
        yield
    except Exception as error:
        log.warning("%s could not be made, its bytes are not in the plan: %s", what, error)


def _child_values(maker: RowMaker, child: Table, blocks: list) -> Iterator[dict]:
    """Rows of a child that belong to sample blocks of its director, at most `SAMPLE_ROWS` for each block."""
    for block in blocks:
        streams, made = BoxStreams(maker.dataset.seed, child, block.chunk, block.box), 0
        for rows in maker.child_blocks(child, block, streams):
            yield {**rows.columns, **_place(rows)}
            made += rows.count
            if made >= SAMPLE_ROWS:
                break


def _measure(dataset: Dataset, table: Table, values: Iterator[dict], folder: Path, made: float = 0.0) -> Sample:
    """What a row of a table costs, by rows that are written and loaded; ``made`` is the time [s] that making them took before."""
    from .stores import Contribution
    from .stores.embedded import EmbeddedStore

    start = time.process_time()
    with (
        TableFile(folder / f"{table.name}.csv", table.stored_columns) as file,
        _warning_only(f"a sample of {table.name}"),
    ):
        for part in values:
            file.add(part)
    if not file.rows:
        return Sample(0.0, 0.0, 0.0)
    store = EmbeddedStore(dataset, folder)
    store.register(dataset, "")
    transaction = store.start_transaction("sample", 0, {})
    sent = Contribution(table, 0, False, file.path, file.rows, file.bytes)
    list(store.contribute(transaction, table.name, [sent]))
    stored = sum(path.stat().st_size for path in (store.staging / transaction / table.name).glob("*.parquet"))
    seconds = made + time.process_time() - start
    return Sample(file.bytes / file.rows, stored / file.rows, seconds / file.rows)


def _measured_rates(root: Path) -> dict[str, float]:
    """Processor time for each byte of text by stage [s], from the manifests of tiles that were made; empty if a stage has none."""
    rates = {}
    for stage, folder in zip(STAGES, ("generated", "partitioned", "ingest"), strict=True):
        seconds = size = 0.0
        for path in itertools.islice((root / folder).glob("*/s*.json"), 200):
            manifest = read_json(path)
            made = root / "partitioned" / manifest["transaction"] / path.name
            if made.exists():
                chunks = read_json(made)["chunks"].values()
                size += sum(entry["bytes"] for chunk in chunks for entry in chunk.values())
                seconds += manifest["cpu_seconds"]
        if not size:
            return {}
        rates[stage] = seconds / size
    return rates


# -- disk -------------------------------------------------------------------------------------------------------------------


def _disk(dataset: Dataset, root: Path, tables: dict[str, dict], tile_bytes: float, tiles_at_once: int) -> dict:
    """The most bytes that the run holds on the disk at a time, by what for, and the bytes that are free."""
    config = dataset.config
    keep, store = config["keep"], config["ingest"]["store"]
    generated, partitioned, stored = (
        _total(tables, key) for key in ("generated_bytes", "partitioned_bytes", "store_bytes")
    )
    regular = sum(tables[table.name]["generated_bytes"] for table in dataset.tables_of("regular"))
    overlap = sum(tables[table.overlap_name]["partitioned_bytes"] for table in dataset.tables_of("director"))
    # A chunk file and its generated file are one file with two names.
    kept = generated - regular if keep["generated"] else 0
    if keep["partitioned"] or store == "none":
        kept += overlap if keep["generated"] else partitioned
    rows = _total(tables, "rows")
    database = DATABASE_BYTES * stored if store == "embedded" and rows <= config["ingest"]["materialise_rows"] else 0
    needed = {
        "regular_tables": 2 * regular,
        "kept_files": kept,
        "tiles_at_work": 0 if "scratch" in config else round(tile_bytes * tiles_at_once),
        "store": stored + round(database),
    }
    parent = next(path for path in (Path(root).resolve(), *Path(root).resolve().parents) if path.exists())
    return {**needed, "peak": sum(needed.values()), "free": shutil.disk_usage(parent).free}


def refuse_full_disk(plan: dict, check: bool) -> None:
    """Refuse a run that will not fit on the disk.

    Raises
    ------
    ConfigError
        With what is needed and what is free.
    """
    disk = plan["disk"]
    if disk["peak"] <= disk["free"]:
        return
    parts = ", ".join(f"{key.replace('_', ' ')} {_size(disk[key])}" for key in ("kept_files", "tiles_at_work", "store"))
    text = f"the run needs about {_size(disk['peak'])} at a time on the disk of the results ({parts}), and {_size(disk['free'])} are free"
    if check:
        raise ConfigError(
            f"{text}; select fewer chunks, keep fewer files (key keep), use smaller tiles (key chunks_per_tile) or another disk "
            "(--directory), or run it all the same with check_disk: false"
        )
    log.warning("%s; check_disk is false", text)


# -- for people -------------------------------------------------------------------------------------------------------------


def write_plan(root: Path, plan: dict) -> str:
    """Write ``plan.json`` and ``plan.md``; returns the latter's text."""
    from .files import write_text

    text = describe_plan(plan)
    write_text(root / "plan.json", json.dumps(plan, indent=1) + "\n")
    write_text(root / "plan.md", text)
    return text


def describe_plan(plan: dict) -> str:
    """A plan as Markdown."""
    head = ["table", "rows", "generated", "partitioned", "store"]
    lines = [
        [
            name,
            f"{figures['rows']:,}",
            *(_size(figures[f"{key}_bytes"]) for key in ("generated", "partitioned", "store")),
        ]
        for name, figures in [*plan["tables"].items(), ("in all", plan["total"])]
    ]
    disk = plan["disk"]
    hottest = [
        [str(chunk["chunk"]), chunk["tile"], f"{sum(chunk['rows'].values()):,}", _size(chunk["text_bytes"])]
        for chunk in plan["hottest_chunks"]
    ]
    verdict = "it fits" if disk["peak"] <= disk["free"] else "IT DOES NOT FIT"
    return "\n\n".join(
        [
            f"# Plan of {plan['database']}",
            f"{counted(plan['chunks'], 'chunk')} ({plan['chunks_with_rows']:,} with rows) in {counted(plan['tiles'], 'tile')} and "
            f"{counted(plan['transactions'], 'transaction')}.",
            f"Processor time: about {plan['core_hours']:.2g} core-hours ({_time(plan['core_hours'])}). Of these the start of jobs takes "
            f"{_time(plan['start_core_hours'])}; the rest was {plan['rates']}.",
            format_markdown(head, lines, 1),
            f"Disk: at most about {_size(disk['peak'])} at a time, {_size(disk['free'])} are free: {verdict}. Of these "
            f"{_size(disk['store'])} are for the store, {_size(disk['tiles_at_work'])} for tiles at work, {_size(disk['kept_files'])} "
            f"for files that are kept, {_size(disk['regular_tables'])} for regular tables.",
            "The hottest chunks:",
            format_markdown(["chunk", "tile", "rows", "text"], hottest, 1),
            "Rows of directors are exact; those of children and overlap tables, and all bytes, are expected values.\n",
        ]
    )


def _time(hours: float) -> str:
    """Core-hours as a time."""
    return duration(3600 * hours)


def _size(size: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.0f} PB"
