"""A load test for the dataset at hand: the kinds of queries that Qserv is measured with, as SQL with the answers that are expected.

A *class* is a template in two dialects, DuckDB's and Qserv's, with cases: values for its parameters, and what must come
out. Expected answers come from the truth of generation, and from chunks that are generated once more; the store is
never asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import facts
from .columns import Column, Rows, Strings, Values
from .config import Dataset, Table
from .facts import Fact, TableFacts, table_facts
from .queries import count_neighbours
from .rowmaker import BoxStreams, RowMaker
from .streams import stream

#: Chunks that are generated once more, for objects and small boxes.
SAMPLE_CHUNKS = 5
#: Objects of such a chunk whose ids are listed.
IDS_OF_CHUNK = 200
#: Objects that a small box is to hold, about.
BOX_OBJECTS = 50
#: Columns of an object that are asked for by its id.
SHOWN_COLUMNS = 12
#: Columns of a table that full scans look at.
SCANNED_COLUMNS = 3
#: The radius of the near-neighbour query, as a part of the overlap.
NEIGHBOUR_RADIUS = facts.PAIR_RADII[0]


@dataclass
class Sample:
    """What is known of a chunk that was generated once more.

    Attributes
    ----------
    chunk : `int`
    ids : `list` [`int`]
        Ids of some of its objects.
    objects : `list` [`tuple` [`int`, `list`]]
        Of a few of them the id and the values of the columns that are shown.
    box : `dict` [`str`, `float`]
        A small box in it: ra_min, dec_min, ra_max, dec_max [deg].
    in_box : `int`
        Objects in the box.
    children_in_box, children_of : `dict`
        For each child its rows of objects in the box; for each child and id its rows.
    """

    chunk: int
    ids: list[int]
    objects: list[tuple[int, list]]
    box: dict[str, float]
    in_box: int = 0
    children_in_box: dict[str, int] = field(default_factory=dict)
    children_of: dict[str, dict[int, int]] = field(default_factory=dict)


def choose_chunks(dataset: Dataset, director: Table, rows: Mapping[int, int]) -> list[int]:
    """The chunks to generate once more: some of those that have rows, by the seed of the dataset."""
    chunks = sorted(chunk for chunk, count in rows.items() if count)
    random = stream(dataset.seed, director.name, "#queries", 0)
    count = min(SAMPLE_CHUNKS, len(chunks))
    return sorted(int(chunk) for chunk in random.permutation(np.array(chunks, dtype=np.int64))[:count])


def shown_columns(director: Table) -> list[Column]:
    """The columns of an object that are asked for by its id: its key and place, and the first of the others."""
    first = [director.key, *director.position]
    others = [column for column in director.columns if column.name not in first]
    by_name = {column.name: column for column in director.stored_columns}
    return [*map(by_name.get, first), *others[: SHOWN_COLUMNS - 5], by_name["chunkId"], by_name["subChunkId"]]


def sample_chunk(maker: RowMaker, director: Table, chunk: int, rows: int) -> Sample:
    """Generate a chunk once more, and note what the queries need to know of it.

    Parameters
    ----------
    maker : `RowMaker`
    director : `Table`
    chunk : `int`
    rows : `int`
        Its objects.
    """
    dataset = maker.dataset
    sample = Sample(chunk, [], [], _small_box(dataset, chunk, rows))
    every = max(1, rows // IDS_OF_CHUNK)
    children = _joined_children(dataset, director)
    streams: dict[tuple[str, int], BoxStreams] = {}
    seen = 0
    for block in maker.director_blocks(director, chunk):
        ids = np.ma.getdata(block.columns[director.key])
        chosen = np.arange(-seen % every, block.count, every)
        seen += block.count
        sample.ids += ids[chosen].tolist()
        if len(chosen) and len(sample.objects) < 2:
            sample.objects.append((int(ids[chosen[0]]), _row(director, block, int(chosen[0]))))
        inside = _inside(block, sample.box)
        sample.in_box += int(inside.sum())
        wanted = [key for key, _ in sample.objects]
        for child in children:
            box_streams = streams.setdefault((child.name, block.box), BoxStreams(dataset.seed, child, chunk, block.box))
            held, of = sample.children_in_box, sample.children_of.setdefault(child.name, {})
            for part in maker.child_blocks(child, block, box_streams):
                keys = np.ma.getdata(part.columns[child.key])
                held[child.name] = held.get(child.name, 0) + int(np.isin(keys, ids[inside]).sum())
                for key in wanted:
                    of[key] = of.get(key, 0) + int((keys == key).sum())
    return sample


def _joined_children(dataset: Dataset, director: Table) -> list[Table]:
    """The children that are loaded and have their director's key."""
    return [child for child in dataset.children_of(director.name) if child.ingest and child.key is not None]


def _small_box(dataset: Dataset, chunk: int, rows: int) -> dict[str, float]:
    """A box in the middle of a chunk that holds about `BOX_OBJECTS` objects, with few digits."""
    box = dataset.chunker.chunk_box(chunk)
    part = math.sqrt(min(0.25, BOX_OBJECTS / max(rows, 1)))
    bounds = {}
    for name, low, high in (("ra", box.ra_min_deg, box.ra_max_deg), ("dec", box.dec_min_deg, box.dec_max_deg)):
        middle, half = (low + high) / 2, (high - low) * part / 2
        bounds[f"{name}_min"], bounds[f"{name}_max"] = round(middle - half, 5), round(middle + half, 5)
    return {name: bounds[name] for name in ("ra_min", "dec_min", "ra_max", "dec_max")}


def _inside(block: Rows, box: Mapping[str, float]) -> np.ndarray:
    ra, dec = block.ra_deg, block.dec_deg
    return (ra >= box["ra_min"]) & (ra <= box["ra_max"]) & (dec >= box["dec_min"]) & (dec <= box["dec_max"])


def _row(director: Table, block: Rows, i: int) -> list:
    """The values of an object that are shown."""
    places = {"chunkId": block.chunk, "subChunkId": int(block.sub_chunk[i])}
    return [
        places[column.name] if column.name in places else _value(column, block.columns[column.name], i)
        for column in shown_columns(director)
    ]


def _value(column: Column, values: Values, i: int) -> object:
    if isinstance(values, Strings):
        return values.to_list()[i]
    value = values[i]
    if value is np.ma.masked:
        return None
    return bool(value) if column.type.kind == "boolean" else value.item()


# -- classes --------------------------------------------------------------------------------------------------------------


def _class(
    name: str, kind: str, description: str, sql: str | dict[str, str], cases: Sequence[dict], **more: object
) -> dict:
    """A class of queries; ``sql`` has its names in backticks, or is a query for each dialect."""
    templates = sql if isinstance(sql, dict) else {"duckdb": sql.replace("`", '"'), "qserv": sql}
    return {"name": name, "kind": kind, "description": description, "sql": templates, **more, "cases": list(cases)}


def _in_box(director: Table, query: str, alias: str = "") -> dict[str, str]:
    """A query, in each dialect, that ends with the condition that a row of a director lies in a box."""
    ra, dec = (f'{alias}"{name}"' for name in director.position)
    return {
        "duckdb": query.replace("`", '"')
        + f"{ra} BETWEEN {{ra_min}} AND {{ra_max}} AND {dec} BETWEEN {{dec_min}} AND {{dec_max}}",
        "qserv": query + "qserv_areaspec_box({ra_min}, {dec_min}, {ra_max}, {dec_max})",
    }


def write_classes(
    dataset: Dataset, director: Table, tables: Mapping[str, Mapping[str, Fact]], samples: Sequence[Sample]
) -> Iterator[dict]:
    """The classes of queries about a director and its children.

    Parameters
    ----------
    dataset : `Dataset`
    director : `Table`
    tables : `Mapping` [`str`, `Mapping` [`str`, `Fact`]]
        The facts of each table over all chunks that are loaded.
    samples : sequence of `Sample`
        Chunks that were generated once more.
    """
    children = _joined_children(dataset, director)
    yield from _interactive(director, children, samples)
    for table in (director, *dataset.children_of(director.name)):
        if table.ingest:
            yield from _scans(table_facts(dataset, table), tables[table.name])
    for child in children:
        yield from _joins(dataset, director, child, tables[child.name])
    radius = NEIGHBOUR_RADIUS * dataset.chunker.overlap_deg
    pairs = tables[director.name].get(facts.pairs(radius))
    if pairs is not None:
        yield _neighbours(director, radius, pairs)


def _interactive(director: Table, children: Iterable[Table], samples: Sequence[Sample]) -> Iterator[dict]:
    """One object, and small boxes."""
    name, key = director.name, director.key
    columns = ", ".join(f"`{column.name}`" for column in shown_columns(director))
    yield _class(
        f"{name}_by_id",
        "interactive",
        f"One row of {name} by its id; any id of the file has one.",
        f"SELECT {columns} FROM {name} WHERE `{key}` = {{{key}}}",
        [{"parameters": {key: number}, "expected": {"rows": [row]}} for s in samples for number, row in s.objects],
        parameters={key: {"file": f"{name}_ids.txt"}},
        expected_rows=1,
    )
    yield _class(
        f"{name}_in_small_box",
        "interactive",
        f"Rows of {name} in a small box on the sky.",
        _in_box(director, f"SELECT count(*) FROM {name} WHERE "),
        [{"parameters": s.box, "expected": {"value": s.in_box}} for s in samples],
    )
    for child in children:
        yield _class(
            f"{child.name}_of_object",
            "interactive",
            f"Rows of {child.name} that belong to one object.",
            f"SELECT count(*) FROM {child.name} WHERE `{child.key}` = {{{key}}}",
            [
                {"parameters": {key: number}, "expected": {"value": s.children_of[child.name].get(number, 0)}}
                for s in samples
                for number, _ in s.objects
            ],
        )
        yield _class(
            f"{name}_{child.name}_in_small_box",
            "interactive",
            f"Rows of {child.name} whose object lies in a small box.",
            _in_box(
                director,
                f"SELECT count(*) FROM {name} AS o JOIN {child.name} AS s ON o.`{key}` = s.`{child.key}` WHERE ",
                "o.",
            ),
            [{"parameters": s.box, "expected": {"value": s.children_in_box.get(child.name, 0)}} for s in samples],
        )


def _ranges(kind: TableFacts, known: Mapping[str, Fact]) -> list[tuple[Column, dict, int]]:
    """For some float columns a range that few rows are in, for BETWEEN with both ends included, and how many there are."""
    found = []
    for column in kind.columns:
        edges = kind.edges.get(column.name, ())
        names = facts.bins(column.name, edges)[1:-1]
        counts = [(known.get(name, 0), i) for i, name in enumerate(names)]
        filled = sorted(pair for pair in counts if pair[0])
        if not filled or column.name in (kind.table.position or ()):
            continue
        # Neither the emptiest range nor the fullest.
        count, i = filled[len(filled) // 2]
        # BETWEEN includes its upper end, which is the last number below the edge.
        last = np.nextafter(column.type.dtype.type(edges[i + 1]), column.type.dtype.type(-np.inf))
        found.append((column, {"low": float(edges[i]), "high": float(last)}, int(count)))
    return found[:SCANNED_COLUMNS]


def _scans(kind: TableFacts, known: Mapping[str, Fact]) -> Iterator[dict]:
    """Full scans of a table."""
    name = kind.table.name
    for column, limits, count in _ranges(kind, known):
        yield _class(
            f"{name}_scan_{column.name}",
            "scan",
            f"A scan of {name} for a range of {column.name}, both ends included.",
            f"SELECT count(*) FROM {name} WHERE `{column.name}` BETWEEN {{low}} AND {{high}}",
            [{"parameters": limits, "expected": {"value": count}}],
        )
        extremes = [[known.get(facts.least(column.name)), known.get(facts.greatest(column.name))]]
        yield _class(
            f"{name}_extremes_{column.name}",
            "scan",
            f"The least and the greatest {column.name} of {name}.",
            f"SELECT min(`{column.name}`), max(`{column.name}`) FROM {name}",
            [{"parameters": {}, "expected": {"rows": extremes}}],
        )
    yield _class(
        f"{name}_by_chunk",
        "scan",
        f"Rows of {name} in each chunk; chunks without rows are not among them.",
        f"SELECT `chunkId`, count(*) FROM {name} GROUP BY `chunkId`",
        [{"parameters": {}, "expected": {"file": f"{name}_by_chunk.csv"}}],
    )


def _joins(dataset: Dataset, director: Table, child: Table, known: Mapping[str, Fact]) -> Iterator[dict]:
    """Joins of whole tables."""
    kind = table_facts(dataset, child)
    for column, limits, count in _ranges(kind, known)[:1]:
        yield _class(
            f"{director.name}_{child.name}_join",
            "join",
            f"{director.name} joined with {child.name} over the sky, for a range of {column.name}.",
            f"SELECT count(*) FROM {director.name} AS o JOIN {child.name} AS s ON o.`{director.key}` = s.`{child.key}` "
            f"WHERE s.`{column.name}` BETWEEN {{low}} AND {{high}}",
            [{"parameters": limits, "expected": {"value": count}}],
        )
    visits = dataset.tables[child.visits]
    reference = next((name for name, table, _ in kind.references if table == visits.name), None)
    start = facts.seen("")
    counts = [[n.removeprefix(start), c] for n, c in known.items() if n.startswith(start) and c]
    if reference is not None and counts and visits.ingest:
        shown, number = visits.visit["filter"], visits.visit["id"]
        yield _class(
            f"{child.name}_{visits.name}_by_filter",
            "join",
            f"Rows of {child.name} in each filter of {visits.name}.",
            f"SELECT v.`{shown}`, count(*) FROM {child.name} AS s JOIN {visits.name} AS v "
            f"ON s.`{reference}` = v.`{number}` GROUP BY v.`{shown}`",
            [{"parameters": {}, "expected": {"rows": sorted(counts)}}],
        )


def _neighbours(director: Table, radius_deg: float, pairs: Sequence[int]) -> dict:
    """The near-neighbour self-join."""
    ra, dec = director.position
    qserv = (
        f"SELECT count(*) FROM {director.name} AS o1, {director.name} AS o2 "
        f"WHERE scisql_angSep(o1.`{ra}`, o1.`{dec}`, o2.`{ra}`, o2.`{dec}`) < {{radius_deg}} "
        f"AND o1.`{director.key}` <> o2.`{director.key}`"
    )
    duckdb = count_neighbours(director, radius_deg).replace(repr(radius_deg), "{radius_deg}")
    return _class(
        f"{director.name}_neighbours",
        "neighbours",
        f"Ordered pairs of {director.name} closer than a radius, which is at most the overlap. Pairs just at the radius may count or "
        "not, by rounding.",
        {"duckdb": duckdb, "qserv": qserv},
        [{"parameters": {"radius_deg": radius_deg}, "expected": {"between": list(pairs)}}],
    )


# -- answers --------------------------------------------------------------------------------------------------------------


def is_expected(expected: Mapping, rows: Sequence[Sequence], by_file: Mapping[str, Sequence[Sequence]]) -> bool:
    """Whether the rows of an answer are those expected, in whatever order.

    Parameters
    ----------
    expected : `Mapping`
        ``value``, ``between``, ``rows`` or ``file``.
    rows : sequence of sequence
    by_file : `Mapping` [`str`, sequence of sequence]
        The rows of files that hold expected answers.
    """
    if "value" in expected or "between" in expected:
        low, high = expected.get("between", [expected.get("value")] * 2)
        return len(rows) == 1 and len(rows[0]) == 1 and low <= rows[0][0] <= high
    wanted = by_file[expected["file"]] if "file" in expected else expected["rows"]
    return sorted(map(list, rows), key=repr) == sorted(map(list, wanted), key=repr)
