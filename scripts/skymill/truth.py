"""The truth of generated rows: facts that are taken while they are made, before any text, partitioning or store has touched them.

Beside the manifest of a generated tile lies ``<tile>.truth.json.gz``. For each table and overlap table it has the chunk
ids and, for each fact, a list with a value for each chunk; and the SHA-256 of each generated file. What the facts are
is told in `skymill.facts`. The truth stays when the bulk files go. It is no declared output of the job: a job that
makes only some chunks of the tile adds to what others have written.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import ior
from pathlib import Path

import numpy as np

from . import facts
from .columns import Rows, Values
from .config import Dataset, Table
from .errors import SkymillError
from .facts import Fact, table_facts
from .files import written_aside
from .pairs import count_pairs
from .retries import home_tile
from .rowhash import RowHasher, add_hashes, hash_placed
from .tally import Tally, make_taker

log = logging.getLogger("skymill.truth")

#: Rows of a director whose overlap is looked for together.
OVERLAP_ROWS = 1 << 16
#: Rows of a regular table that are looked at together.
REGULAR_ROWS = 1 << 16
#: Neighbours are not counted in a chunk where each row would have to be compared with more than so many.
MOST_CANDIDATES = 4000
FORMAT = 1


class TruthTaker:
    """Takes the truth of a dataset's chunks, one after the other; a chunk is finished before the next is begun.

    Parameters
    ----------
    dataset : `Dataset`
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.kinds = {table.name: table_facts(dataset, table) for table in dataset.tables.values()}
        self.hashers = {name: RowHasher(kind.stored) for name, kind in self.kinds.items()}
        self.takers = {name: make_taker(kind, self.hashers[name]) for name, kind in self.kinds.items()}
        self._plain = {name: make_taker(kind, self.hashers[name]) for name, kind in self.kinds.items()}

    def keys(self, table: str, values: Mapping[str, Values], count: int) -> np.ndarray:
        """The sums of rows of which no facts are wanted, see `RowHasher.keys`."""
        return self._plain[table].take(values, count)

    def chunk(self, director: Table, chunk: int) -> ChunkTruth:
        """The truth of a director and its children in a chunk, still without rows."""
        return ChunkTruth(self, director, chunk)

    def regular(self, table: Table, columns: dict[str, Values]) -> dict[str, Fact]:
        """The facts of a regular table."""
        tally = Tally(self.kinds[table.name], self.hashers[table.name])
        for start in range(0, len(columns[table.columns[0].name]), REGULAR_ROWS):
            part = {name: values[start : start + REGULAR_ROWS] for name, values in columns.items()}
            tally.take(part, len(part[table.columns[0].name]))
        return tally.facts()


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
        self._tables = {
            t.name: Tally(taker.kinds[t.name], taker.hashers[t.name], chunk, taker.takers[t.name]) for t in tables
        }
        self._filters: dict[str, tuple[str, ...]] = {}
        self._home = 0
        self._places: list[tuple[np.ndarray, np.ndarray]] = []
        # Of the blocks that came last, whose overlap has not been looked for yet: the sums of their rows.
        self._keys: list[np.ndarray] = []
        self._overlap_rows, self._overlap_hash = 0, (0, 0)

    def add_director(self, rows: Rows) -> None:
        """Take rows of the director that are at home in the chunk; all of them come before the halo."""
        self._home += rows.count
        self._add_places(rows, self._tables[self._director.name].take(rows.columns, rows.count, rows.sub_chunk))

    def add_halo(self, rows: Rows) -> None:
        """Take rows of neighbours that are in the chunk's overlap."""
        self._add_places(rows, self._taker.keys(self._director.name, rows.columns, rows.count))

    def add_child(self, child: Table, rows: Rows) -> None:
        """Take rows of a child."""
        self._filters[child.name] = rows.filters
        self._tables[child.name].count_filters(rows.visits["#filter"])
        self._tables[child.name].take(rows.columns, rows.count, rows.sub_chunk)

    def facts(self) -> dict[str, dict[str, Fact]]:
        """All facts by table, when all rows have been added."""
        self._take_overlap()
        found = {name: tally.facts() for name, tally in self._tables.items()}
        for name, filters in self._filters.items():
            if not self._taker.kinds[name].by_filter:
                continue
            counts = self._tables[name].filters.tolist()
            found[name] |= {facts.seen(text): count for text, count in zip(filters, counts, strict=False)}
        found[self._director.name] |= self._pairs()
        overlap = {facts.ROWS: self._overlap_rows, **dict(zip(facts.HASH, self._overlap_hash, strict=True))}
        return found | {self._director.overlap_name: overlap}

    def _add_places(self, rows: Rows, keys: np.ndarray) -> None:
        self._places.append((rows.ra_deg, rows.dec_deg))
        self._keys.append(keys)
        if sum(part.shape[1] for part in self._keys) >= OVERLAP_ROWS:
            self._take_overlap()

    def _take_overlap(self) -> None:
        """Look where the rows are that came last: each is in the overlap table once for each sub-chunk of the chunk that it is near."""
        if not self._keys:
            return
        ra, dec = (np.concatenate(column) for column in zip(*self._places[-len(self._keys) :], strict=True))
        keys, self._keys = np.concatenate(self._keys, axis=1), []
        overlap = self._chunker.locate_overlap(ra, dec)[2]
        mine = np.flatnonzero(overlap.chunk == self._chunk)
        self._overlap_rows += len(mine)
        hasher, sub_chunks = self._taker.hashers[self._director.name], overlap.sub_chunk[mine]
        placed = hash_placed(hasher, keys, self._chunk, sub_chunks, overlap.row[mine])
        self._overlap_hash = add_hashes(self._overlap_hash, placed)

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


# -- files ----------------------------------------------------------------------------------------------------------------


def truth_path(root: Path, transaction: str, tile: str) -> Path:
    """The file of the truth of a tile and its retries; ``root`` is ``results/<database>``."""
    return root / "generated" / transaction / f"{home_tile(tile)}.truth.json.gz"


#: Table -> chunk -> name of a fact -> its value.
TruthTables = dict[str, dict[int, dict[str, Fact]]]


class TileTruth:
    """Facts of the chunks of a tile: for each table a dictionary of chunk -> facts.

    Attributes
    ----------
    tables : `TruthTables`
    hashes : `dict` [`int`, `dict` [`str`, `str`]]
        For each chunk the SHA-256 of its generated files by table.
    """

    def __init__(self, tables: TruthTables | None = None, hashes: dict[int, dict[str, str]] | None = None):
        self.tables = tables or {}
        self.hashes = hashes or {}

    def add(self, chunk: int, found: Mapping[str, dict[str, Fact]], hashes: dict[str, str]) -> None:
        """Add the facts of a chunk by table, and the SHA-256 of its files."""
        for name, values in found.items():
            self.tables.setdefault(name, {})[chunk] = values
        self.hashes[chunk] = hashes

    def add_tile(self, other: TileTruth) -> None:
        """Add the chunks of another one; what it knows of a chunk counts."""
        for name, chunks in other.tables.items():
            self.tables.setdefault(name, {}).update(chunks)
        self.hashes |= other.hashes

    def names(self) -> dict[str, list[str]]:
        """The names of all facts of each table."""
        return {name: list(reduce(ior, chunks.values(), {})) for name, chunks in self.tables.items()}

    def write(self, path: Path, head: Mapping) -> None:
        """Write the file, aside first; ``head`` says what it belongs to."""
        tables = {}
        for name, names in self.names().items():
            chunks = self.tables[name]
            columns = {fact: [values.get(fact) for values in chunks.values()] for fact in names}
            tables[name] = {"chunks": list(chunks), "facts": columns}
        content = {**head, "format": FORMAT, "tables": tables, "sha256": self.hashes}
        text = json.dumps(content, separators=(",", ":"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            # Without a time in it: the same facts give the same bytes.
            aside.write_bytes(gzip.compress(text.encode(), 3, mtime=0))

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
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise SkymillError(
                f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is damaged'}; put it back from a copy: it was written when the tile was generated, and without it the tile "
                "cannot be verified"
            ) from None
        if content.get("format") != FORMAT:
            raise SkymillError(
                f"{path}: found format {content.get('format')}, this version of skymill reads {FORMAT}; use the version that made it"
            )
        tables = {}
        for name, table in content["tables"].items():
            columns = table["facts"]
            tables[name] = {
                chunk: {fact: values[i] for fact, values in columns.items() if values[i] is not None}
                for i, chunk in enumerate(table["chunks"])
            }
        return cls(tables, {int(chunk): files for chunk, files in content["sha256"].items()})


def keep_truth(root: Path, truth: TileTruth, head: Mapping) -> None:
    """Write the truth of chunks of a tile, with that of its other chunks if it is known; the caller holds the lock of the tile.

    Parameters
    ----------
    root : `pathlib.Path`
        ``results/<database>``.
    truth : `TileTruth`
    head : `Mapping`
        ``transaction``, ``tile`` and ``fingerprint``.
    """
    path = truth_path(root, head["transaction"], head["tile"])
    known = TileTruth.read(path) if path.exists() else TileTruth()
    known.add_tile(truth)
    known.write(path, {**head, "tile": home_tile(head["tile"])})


def known_chunks(root: Path, transaction: str, tile: str) -> set[int]:
    """The chunks of a tile whose truth is known."""
    path = truth_path(root, transaction, tile)
    return set(TileTruth.read(path).hashes) if path.exists() else set()


def add_up(tables: Iterable[Mapping[str, Fact]]) -> dict[str, Fact]:
    """The facts of several chunks of a table together."""
    found: dict[str, Fact] = {}
    for table in tables:
        for name, value in table.items():
            found[name] = facts.add_facts(name, found.get(name), value)
    return found
