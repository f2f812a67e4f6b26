"""The truth of generated rows: facts that are taken while they are made, before any text, partitioning or store has touched them.

Beside the manifest of a generated tile lies ``<tile>.truth.json.gz``. For each table and overlap table it has the chunk ids and, for each fact,
a list with a value for each chunk. What the facts are is told in `skymill.facts`. They stay when the bulk files go.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from . import facts
from .columns import Column, Rows, Strings, Values
from .config import Dataset, Table
from .errors import SkymillError
from .facts import Fact, TableFacts, table_facts
from .pairs import count_pairs
from .rowhash import RowHasher, add_hashes, hash_keys, is_fixed_char

log = logging.getLogger("skymill.truth")

#: Rows whose facts are taken at a time.
BLOCK_ROWS = 1 << 14
#: Neighbours are not counted in a chunk where each row would have to be compared with more than so many.
MOST_CANDIDATES = 4000
FORMAT = 1


class TruthTaker:
    """Takes the truth of a dataset's chunks, one after the other.

    Parameters
    ----------
    dataset : `Dataset`
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.kinds = {table.name: table_facts(dataset, table) for table in dataset.tables.values()}
        self.hashers = {name: RowHasher(kind.stored) for name, kind in self.kinds.items()}

    def chunk(self, director: Table, chunk: int) -> ChunkTruth:
        """The truth of a director and its children in a chunk, still without rows."""
        return ChunkTruth(self, director, chunk)

    def regular(self, table: Table, columns: dict[str, Values]) -> dict[str, Fact]:
        """The facts of a regular table."""
        truth = _TableTruth(self.kinds[table.name], self.hashers[table.name])
        for start in range(0, len(columns[table.columns[0].name]), BLOCK_ROWS):
            part = _plain({name: values[start : start + BLOCK_ROWS] for name, values in columns.items()})
            truth.take(part, self.hashers[table.name].keys(part, len(part[table.columns[0].name])))
        return truth.facts()


class ChunkTruth:
    """The truth of a director, its overlap and its children in a chunk.

    Parameters
    ----------
    taker : `TruthTaker`
    director : `Table`
    chunk : `int`
    """

    def __init__(self, taker: TruthTaker, director: Table, chunk: int):
        self._taker, self._chunk, self._director = taker, chunk, director
        self._chunker = taker.dataset.chunker
        tables = [director, *taker.dataset.children_of(director.name)]
        self._tables = {t.name: _TableTruth(taker.kinds[t.name], taker.hashers[t.name], chunk) for t in tables}
        self._waiting = _Waiting(director.columns)
        self._children = {table.name: _Waiting([*table.columns, *_FILTERS]) for table in tables[1:]}
        self._filters: dict[str, tuple[str, ...]] = {}
        self._home = 0
        self._places: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add_director(self, rows: Rows) -> None:
        """Take rows of the director that are at home in the chunk; all of them come before the halo."""
        self._home += rows.count
        for block in self._waiting.add(rows.columns, rows.ra_deg, rows.dec_deg, rows.sub_chunk):
            self._take_director(*block)

    def add_halo(self, rows: Rows, reaching: np.ndarray) -> None:
        """Take rows of neighbours that are in the chunk's overlap: those with the indices ``reaching``."""
        columns = {name: values[reaching] for name, values in rows.columns.items()}
        places = (values[reaching] for values in (rows.ra_deg, rows.dec_deg, rows.sub_chunk))
        for block in self._waiting.add(columns, *places):
            self._take_director(*block)

    def add_child(self, child: Table, rows: Rows) -> None:
        """Take rows of a child."""
        self._filters[child.name] = rows.filters
        columns = rows.columns | {_FILTERS[0].name: rows.visits["#filter"]}
        for values, sub_chunk in self._children[child.name].add(columns, rows.sub_chunk):
            self._take_child(child.name, values, sub_chunk)

    def facts(self) -> dict[str, dict[str, Fact]]:
        """All facts by table, when all rows have been added."""
        for block in self._waiting.rest():
            self._take_director(*block)
        for name, waiting in self._children.items():
            for block in waiting.rest():
                self._take_child(name, *block)
        found = {name: truth.facts() for name, truth in self._tables.items()}
        for name, filters in self._filters.items():
            if not self._taker.kinds[name].knows_visits:
                continue
            counts = self._tables[name].filters.tolist()
            found[name] |= {facts.seen(text): count for text, count in zip(filters, counts, strict=False)}
        found[self._director.name] |= self._pairs()
        return found | {self._director.overlap_name: self._overlap()}

    def _take_director(self, values: dict[str, Values], ra: np.ndarray, dec: np.ndarray, sub_chunk: np.ndarray) -> None:
        keys = self._taker.hashers[self._director.name].keys(values, len(ra))
        home = min(len(ra), self._home - sum(len(part[0]) for part in self._places))
        if home:
            at_home = values if home == len(ra) else {name: column[:home] for name, column in values.items()}
            self._tables[self._director.name].take(at_home, keys[:, :home], sub_chunk[:home])
        self._places.append((ra, dec, keys))

    def _take_child(self, name: str, values: dict[str, Values], sub_chunk: np.ndarray) -> None:
        truth = self._tables[name]
        truth.count_filters(values[_FILTERS[0].name])
        truth.take(values, self._taker.hashers[name].keys(values, len(sub_chunk)), sub_chunk)

    def _overlap(self) -> dict[str, Fact]:
        """The facts of the overlap table: of the chunk's own rows and those of its neighbours, once for each sub-chunk that they are near."""
        hasher = self._taker.hashers[self._director.name]
        rows, found = 0, (0, 0)
        for ra, dec, keys in self._places:
            overlap = self._chunker.locate_overlap(ra, dec)[2]
            mine = np.flatnonzero(overlap.chunk == self._chunk)
            moved = keys[:, overlap.row[mine]]
            hasher.add_key(moved, "chunkId", self._chunk)
            hasher.add_key(moved, "subChunkId", overlap.sub_chunk[mine])
            rows, found = rows + len(mine), add_hashes(found, hash_keys(moved))
        return {facts.ROWS: rows, **dict(zip(facts.HASH, found, strict=True))}

    def _pairs(self) -> dict[str, Fact]:
        """For each radius the fewest and the most ordered pairs of an object of the chunk with any object."""
        radii = self._taker.kinds[self._director.name].radii_deg
        if not radii:
            return {}
        ra, dec = (np.concatenate([part[i] for part in self._places] or [np.empty(0)]) for i in (0, 1))
        limits = [radius + sign * facts.PAIR_MARGIN_DEG for radius in radii for sign in (-1, 1)]
        home, most = self._home, MOST_CANDIDATES * max(self._home, 1000)
        counts = count_pairs(ra[:home], dec[:home], ra[home:], dec[home:], limits, most)
        if counts is None:
            log.warning("chunk %d: %s has too many neighbours to count them", self._chunk, self._director.name)
            return {}
        return {facts.pairs(radius): counts[2 * i : 2 * i + 2] for i, radius in enumerate(radii)}


#: The column of a child's rows that tells the filter of their visits.
_FILTERS = [Column("#filter", None)]


class _Waiting:
    """Blocks of rows that wait until there are enough to be worth a look."""

    def __init__(self, columns: list[Column]):
        self._names = [column.name for column in columns]
        self._parts: list[tuple] = []
        self._rows = 0

    def add(self, columns: dict[str, Values], *places: np.ndarray) -> Iterator[tuple]:
        """Add a block; yields what has waited, columns and places, if it is enough."""
        columns = _plain(columns)
        self._parts.append((columns, *places))
        self._rows += len(columns[self._names[0]])
        if self._rows >= BLOCK_ROWS:
            yield from self.rest()

    def rest(self) -> Iterator[tuple]:
        """Yields what has waited, if there is anything."""
        parts, self._parts, self._rows = self._parts, [], 0
        if len(parts) == 1:
            yield parts[0]
        elif parts:
            columns = {name: _joined([part[0][name] for part in parts]) for name in self._names}
            yield (columns, *(np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]))


def _plain(columns: dict[str, Values]) -> dict[str, Values]:
    """Columns with times as whole numbers: microseconds since 1970."""
    times = {name: values for name, values in columns.items() if getattr(values, "dtype", np.dtype("i8")).kind == "M"}
    return columns | {name: values.view(np.int64) for name, values in times.items()} if times else columns


def _joined(parts: list[Values]) -> Values:
    """Values one behind the other."""
    if isinstance(parts[0], Strings):
        values = tuple(dict.fromkeys(text for part in parts for text in part.values))
        # The last entry is for NULL, whose code is -1.
        lookups = [np.array([*map(values.index, part.values), -1], dtype=np.int32) for part in parts]
        return Strings(np.concatenate([look[part.codes] for look, part in zip(lookups, parts, strict=True)]), values)
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        return np.ma.concatenate(parts)
    return np.concatenate(parts)


class _TableTruth:
    """The facts of the rows of a table, taken block by block."""

    def __init__(self, kind: TableFacts, hasher: RowHasher, chunk: int | None = None):
        self._kind, self._hasher, self._chunk = kind, hasher, chunk
        self._rows, self._hash = 0, (0, 0)
        self._facts: dict[str, Fact] = {}
        self._counts: dict[str, np.ndarray] = {name: np.zeros(len(e) + 1, np.int64) for name, e in kind.edges.items()}
        self._strings: dict[str, dict[str, int]] = {c.name: {} for c in kind.columns if c.type.kind == "string"}
        self._keys: dict[str, list[np.ndarray]] = {name: [] for name in kind.keys}
        self._floats = {
            c.name: np.array(kind.edges[c.name], c.type.dtype) for c in kind.columns if c.name in kind.edges
        }
        self.filters = np.zeros(0, dtype=np.int64)

    def take(self, values: dict[str, Values], keys: np.ndarray, sub_chunk: np.ndarray | None = None) -> None:
        """Take a block of rows, whose own columns add up to ``keys``, see `RowHasher.keys`."""
        self._rows += keys.shape[1]
        for column in self._kind.columns:
            self._take_column(column, values[column.name])
        if sub_chunk is not None:
            keys = keys.copy()
            self._hasher.add_key(keys, "chunkId", self._chunk)
            self._hasher.add_key(keys, "subChunkId", sub_chunk)
        self._hash = add_hashes(self._hash, hash_keys(keys))

    def count_filters(self, codes: np.ndarray) -> None:
        """Count the rows of each filter."""
        found = np.bincount(codes, minlength=len(self.filters))
        found[: len(self.filters)] += self.filters
        self.filters = found

    def facts(self) -> dict[str, Fact]:
        """The facts of all rows that were taken."""
        found: dict[str, Fact] = {facts.ROWS: self._rows, **dict(zip(facts.HASH, self._hash, strict=True))}
        for column in self._kind.columns:
            name = column.name
            found[facts.nulls(name)] = self._facts.get(facts.nulls(name), 0)
            if name in self._strings:
                if len(self._strings[name]) <= facts.MOST_VALUES:
                    found |= {facts.equal(name, text): count for text, count in self._strings[name].items()}
                continue
            for fact in (facts.least(name), facts.greatest(name)):
                found[fact] = self._facts.get(fact)
            if name in self._counts:
                found |= dict(zip(facts.bins(name, self._kind.edges[name]), self._counts[name].tolist(), strict=True))
            else:
                found[facts.total(name)] = self._facts.get(facts.total(name), 0)
        for name, parts in self._keys.items():
            found[facts.distinct(name)] = len(_different(np.concatenate(parts))) if parts else 0
        found |= {facts.orphans(name, table): 0 for name, table, _ in self._kind.references}
        return found

    def _take_column(self, column: Column, values: Values) -> None:
        name = column.name
        if isinstance(values, Strings):
            counts = np.bincount(values.codes + 1, minlength=len(values.values) + 1).tolist()
            self._add(facts.nulls(name), counts[0])
            held = self._strings[name]
            for text, count in zip(values.values, counts[1:], strict=True):
                if count and len(held) <= facts.MOST_VALUES:
                    text = text.rstrip(" ") if is_fixed_char(column) else text
                    held[text] = held.get(text, 0) + count
            return
        data = np.ma.getdata(values)
        if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
            data = values.compressed()
            self._add(facts.nulls(name), len(values) - len(data))
        if not len(data):
            return
        low, high = data.min().item(), data.max().item()
        self._add(facts.least(name), low)
        self._add(facts.greatest(name), high)
        if name in self._floats:
            self._count_bins(name, data, low, high)
        else:
            self._add(facts.total(name), _exact_sum(data, low, high))
        if name in self._keys:
            self._keys[name].append(_different(data))

    def _count_bins(self, name: str, data: np.ndarray, low: float, high: float) -> None:
        above = len(data)
        for i, edge in enumerate(self._floats[name]):
            # An edge outside of the values need not be compared with each of them.
            rest = above if edge <= low else 0 if edge > high else int(np.count_nonzero(data >= edge))
            self._counts[name][i] += above - rest
            above = rest
        self._counts[name][-1] += above

    def _add(self, fact: str, value: Fact) -> None:
        self._facts[fact] = facts.add_facts(fact, self._facts.get(fact), value)


def _exact_sum(data: np.ndarray, low: int, high: int) -> int:
    """The sum of whole numbers, also where 64 bits do not hold it."""
    if max(abs(low), abs(high)) * len(data) < 2**63:
        return int(data.sum(dtype=np.int64))
    return (int((data >> 32).sum()) << 32) + int((data & 0xFFFFFFFF).sum())


def _different(data: np.ndarray) -> np.ndarray:
    """The different values. Keys come in ascending order mostly, and then need not be sorted."""
    before, behind = data[:-1], data[1:]
    if (before <= behind).all():
        return data[np.concatenate([[True], before != behind])] if len(data) else data
    return np.unique(data)


# -- files ----------------------------------------------------------------------------------------------------------------


def truth_path(root: Path, transaction: str, tile: str) -> Path:
    """The file of a tile's truth; ``root`` is ``results/<database>``."""
    return root / "generated" / transaction / f"{tile}.truth.json.gz"


#: Table -> chunk -> name of a fact -> its value.
TruthTables = dict[str, dict[int, dict[str, Fact]]]


class TileTruth:
    """Facts of the chunks of a tile: for each table a dictionary of chunk -> facts.

    Attributes
    ----------
    tables : `TruthTables`
    """

    def __init__(self, tables: TruthTables | None = None):
        self.tables = tables or {}

    def add(self, chunk: int, found: Mapping[str, dict[str, Fact]]) -> None:
        """Add the facts of a chunk, by table."""
        for name, values in found.items():
            self.tables.setdefault(name, {})[chunk] = values

    def names(self) -> dict[str, list[str]]:
        """The names of all facts of each table."""
        return {
            name: list(dict.fromkeys(fact for values in chunks.values() for fact in values))
            for name, chunks in self.tables.items()
        }

    def write(self, path: Path, head: Mapping) -> None:
        """Write the file, aside first; ``head`` says what it belongs to."""
        tables = {}
        for name, chunks in self.tables.items():
            names = dict.fromkeys(fact for values in chunks.values() for fact in values)
            columns = {fact: [values.get(fact) for values in chunks.values()] for fact in names}
            tables[name] = {"chunks": list(chunks), "facts": columns}
        text = json.dumps({**head, "format": FORMAT, "tables": tables}, separators=(",", ":"))
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            # Without a time in it: the same facts give the same bytes.
            aside.write_bytes(gzip.compress(text.encode(), 6, mtime=0))
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> TileTruth:
        """Read a file.

        Raises
        ------
        SkymillError
            If it cannot be read.
        """
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
        except (OSError, ValueError, EOFError) as error:
            raise SkymillError(
                f"cannot read {path}: {error}; it is written when the tile is generated, and nothing else knows what it said"
            ) from None
        if content.get("format") != FORMAT:
            raise SkymillError(f"{path}: format {content.get('format')}, this version of skymill reads {FORMAT}")
        tables = {}
        for name, table in content["tables"].items():
            columns = table["facts"]
            tables[name] = {
                chunk: {fact: values[i] for fact, values in columns.items() if values[i] is not None}
                for i, chunk in enumerate(table["chunks"])
            }
        return cls(tables)


def add_up(tables: Iterable[Mapping[str, Fact]]) -> dict[str, Fact]:
    """The facts of several chunks of a table together."""
    found: dict[str, Fact] = {}
    for table in tables:
        for name, value in table.items():
            found[name] = facts.add_facts(name, found.get(name), value)
    return found
