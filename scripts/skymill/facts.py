"""What is known of a table's rows in a chunk: which facts there are, and their names.

Generation takes them from the rows that it makes, and verification asks the store for the same. Counts, sums and hashes
add up over chunks; of minima and maxima the least and the greatest counts. What lies between two edges is counted, so
that the answer to a question with BETWEEN is a sum of facts.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .columns import Column, Position, UniqueId
from .config import Dataset, filter_names
from .linked_columns import DirectorColumn, ForcedFlux, VisitColumn
from .tables import Entry, Table

#: Strings are counted one by one if a column has at most so many different ones in a chunk.
MOST_VALUES = 32
#: Bins of a float column whose range is known, at most.
MOST_BINS = 8
#: Edges of a float column of which nothing is known.
PLAIN_EDGES = (-1048576.0, -32768.0, -1024.0, -32.0, -1.0, 0.0, 1.0, 32.0, 1024.0, 32768.0, 1048576.0)
#: Radii within which neighbours are counted, as parts of the overlap.
PAIR_RADII = (0.5, 0.9)
#: Pairs this close to a radius [deg] may count or not: positions are rounded differently in different places.
PAIR_MARGIN_DEG = 1e-11

ROWS, HASH = "rows", ("hash 1", "hash 2")

#: The value of a fact: None where there is nothing to say, two numbers where a range is allowed.
Fact = int | float | str | None | Sequence[int]


def nulls(column: str) -> str:
    """Rows in which a column is NULL."""
    return f"NULLs of {column}"


def least(column: str) -> str:
    """The minimum of a column."""
    return f"minimum of {column}"


def greatest(column: str) -> str:
    """The maximum of a column."""
    return f"maximum of {column}"


def total(column: str) -> str:
    """The exact sum of a column of whole numbers."""
    return f"sum of {column}"


def equal(column: str, value: str) -> str:
    """Rows in which a column of strings has a value."""
    return f"rows with {column} = {value!r}"


def distinct(column: str) -> str:
    """Different values of a column."""
    return f"different {column}"


def orphans(column: str, table: str) -> str:
    """Rows whose key no row of another table has, in the same sub-chunk if that is partitioned."""
    return f"{column} without a row in {table}"


def seen(filter_name: str) -> str:
    """Rows of a child that belong to visits in a filter."""
    return f"rows of visits in {filter_name}"


def pairs(radius_deg: float) -> str:
    """Ordered pairs of rows that are closer than a radius."""
    return f"pairs closer than {radius_deg!r} deg"


@functools.lru_cache(maxsize=8192)
def bins(column: str, edges: tuple[float, ...]) -> tuple[str, ...]:
    """Rows in each bin of a column: below the first edge, between two of them, from the last one on."""
    if not edges:
        return ()
    middle = [f"rows with {low!r} <= {column} < {high!r}" for low, high in itertools.pairwise(edges)]
    return (f"rows with {column} < {edges[0]!r}", *middle, f"rows with {column} >= {edges[-1]!r}")


def add_facts(name: str, one: Fact, other: Fact) -> Fact:
    """The fact of two sets of rows together."""
    if one is None or other is None:
        return other if one is None else one
    if name.startswith("minimum of "):
        return min(one, other)
    if name.startswith("maximum of "):
        return max(one, other)
    if isinstance(one, (list, tuple)):
        return [a + b for a, b in zip(one, other, strict=True)]
    return (one + other) % 2**64 if name in HASH else one + other


@dataclass(frozen=True)
class TableFacts:
    """Which facts a table has, but for those that depend on the values found.

    Attributes
    ----------
    table : `Table`
    columns : `list` [`Column`]
        The table's own columns, of which facts are known.
    stored : `list` [`Column`]
        All columns, which the hash covers.
    edges : `dict` [`str`, `tuple` [`float`]]
        The edges of the bins of each float column.
    keys : `list` [`str`]
        Columns whose different values are counted.
    references : `list` [`tuple` [`str`, `str`, `str`]]
        Column, other table and its column: each value of the column must be found there.
    radii_deg : `list` [`float`]
        Radii within which neighbours are counted; empty but for directors.
    by_filter : `bool`
        Whether rows are counted by the filter of their visits: those of a child that names them, if the visits are
        loaded.
    """

    table: Table
    columns: list[Column]
    stored: list[Column]
    edges: dict[str, tuple[float, ...]]
    keys: list[str]
    references: list[tuple[str, str, str]]
    radii_deg: list[float]
    by_filter: bool = False


def table_facts(dataset: Dataset, table: Table) -> TableFacts:
    """Which facts a table of a dataset has."""
    edges: dict[str, tuple[float, ...]] = {}
    keys: list[str] = []
    references: list[tuple[str, str, str]] = []
    visits = dataset.tables.get(table.visits) if table.visits else None
    for entry in table.entries:
        for i, column in enumerate(entry.columns):
            if column.type.kind == "float":
                edges[column.name] = _edges(column, _range(dataset, table, entry, i))
            elif column.name == table.key or isinstance(entry.generator, UniqueId):
                keys.append(column.name)
            if table.kind == "child" and column.name == table.key:
                references.append((column.name, table.director, dataset.tables[table.director].key))
            elif isinstance(entry.generator, VisitColumn) and entry.generator.column == visits.visit["id"]:
                references.append((column.name, visits.name, visits.visit["id"]))
    overlap_deg = dataset.chunker.overlap_deg
    radii = [part * overlap_deg for part in PAIR_RADII] if table.kind == "director" and overlap_deg > 0 else []
    by_filter = table.kind == "child" and visits.ingest and any(name == visits.name for _, name, _ in references)
    return TableFacts(table, table.columns, table.stored_columns, edges, keys, references, radii, by_filter)


def _range(dataset: Dataset, table: Table, entry: Entry, i: int) -> tuple[float, float] | None:
    """Where most values of a float column lie, as far as its generator says."""
    generator = entry.generator
    if isinstance(generator, Position):
        places = {0: (0.0, 360.0), len(entry.columns) // 2: (-90.0, 90.0)}
        return places.get(i, generator.error_deg)
    source = None
    if isinstance(generator, DirectorColumn):
        source, names = dataset.tables[table.director], [generator.column]
    elif isinstance(generator, VisitColumn):
        source, names = dataset.tables[table.visits], [generator.column]
    elif isinstance(generator, ForcedFlux):
        filters = filter_names(dataset.tables[table.visits])
        source, names = dataset.tables[table.director], list(generator.director_columns(filters))
    if source is not None:
        found = [
            _range(dataset, source, other, j)
            for other in source.entries
            for j, column in enumerate(other.columns)
            if column.name in names
        ]
        return None if not found or None in found else (min(f[0] for f in found), max(f[1] for f in found))
    return _said_range(generator)


def _said_range(generator: object) -> tuple[float, float] | None:
    """The range that the options of a generator say: its minimum and maximum, or its mean and sigma, or its values."""
    low, high = getattr(generator, "min", None), getattr(generator, "max", None)
    mean, sigma = getattr(generator, "mean", None), getattr(generator, "sigma", None)
    values = getattr(generator, "values", None)
    if _are_numbers(low, high) and getattr(generator, "unit", None) != "flux":
        return low, high
    if _are_numbers(mean, sigma):
        return mean - 3 * sigma, mean + 3 * sigma
    if _are_numbers(mean) and mean >= 0:
        return mean - 3 * math.sqrt(mean), mean + 3 * math.sqrt(mean)
    if isinstance(values, (list, tuple)) and values and _are_numbers(*values):
        return min(values), max(values)
    return None


def _are_numbers(*values: object) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def _edges(column: Column, span: tuple[float, float] | None) -> tuple[float, ...]:
    """Edges of bins: multiples of a power of two, which a float holds exactly, so that no rounding moves a value to another bin."""
    if span is not None and span[1] > span[0]:
        width = 2.0 ** math.ceil(math.log2((span[1] - span[0]) / MOST_BINS))
        first, last = math.floor(span[0] / width) + 1, math.ceil(span[1] / width)
        edges = tuple(k * width for k in range(first, last))
        exact = np.array(edges, dtype=column.type.dtype).astype(np.float64).tolist() == list(edges)
        if edges and exact and abs(first) < 2**50 and abs(last) < 2**50:
            return edges
    return PLAIN_EDGES
