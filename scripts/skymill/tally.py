"""Takes the facts of the rows of a table, block by block; with compiled loops where there are any."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from . import fact_kernels, facts
from .columns import Column, Strings, Values
from .facts import Fact, TableFacts
from .rowhash import RowHasher, add_hashes, hash_keys, hash_placed, is_fixed_char, whole_numbers


class Tally:
    """The facts of the rows of a table that have been taken so far.

    Parameters
    ----------
    kind : `TableFacts`
    hasher : `RowHasher`
    chunk : `int`, optional
        The chunk that they belong to; None for a regular table.
    taker : optional
        What `make_taker` has made for the table; its rows of before are forgotten.

    Attributes
    ----------
    filters : `numpy.ndarray`, int64
        In a child, the rows of each filter of its visits.
    """

    def __init__(self, kind: TableFacts, hasher: RowHasher, chunk: int | None = None, taker: Taker | None = None):
        self._kind, self._hasher, self._chunk = kind, hasher, chunk
        self._rows, self._hash = 0, (0, 0)
        self._taker = taker or make_taker(kind, hasher)
        self._taker.reset()
        self._strings = {column.name: column for column in kind.columns if column.type.kind == "string"}
        self._counts: dict[str, dict[str | None, int]] = {name: {} for name in self._strings}
        self._keys: dict[str, list[np.ndarray]] = {name: [] for name in kind.keys}
        self.filters = np.zeros(0, dtype=np.int64)

    def take(self, values: Mapping[str, Values], count: int, sub_chunk: np.ndarray | None = None) -> np.ndarray:
        """Take a block of rows.

        Parameters
        ----------
        values : `Mapping` [`str`, `Values`]
            The table's own columns.
        count : `int`
            Rows.
        sub_chunk : `numpy.ndarray`, optional
            Their sub-chunks; not in a regular table.

        Returns
        -------
        keys : `numpy.ndarray`, uint64, (2, count)
            The sums of their own columns, see `RowHasher.keys`.
        """
        self._rows += count
        keys = self._taker.take(values, count)
        found = hash_keys(keys) if sub_chunk is None else hash_placed(self._hasher, keys, self._chunk, sub_chunk)
        self._hash = add_hashes(self._hash, found)
        for column in self._strings.values():
            self._count_strings(column, values[column.name])
        for name, parts in self._keys.items():
            held = values[name]
            parts.append(_different(held.compressed() if isinstance(held, np.ma.MaskedArray) else held))
        return keys

    def count_filters(self, codes: np.ndarray) -> None:
        """Count the rows of each filter, by the indices of their filters."""
        found = np.bincount(codes, minlength=len(self.filters))
        found[: len(self.filters)] += self.filters
        self.filters = found

    def _count_strings(self, column: Column, values: Strings) -> None:
        held = self._counts[column.name]
        counts = np.bincount(values.codes + 1, minlength=len(values.values) + 1)
        held[None] = held.get(None, 0) + int(counts[0])
        used = np.flatnonzero(counts[1:])
        # What is too much is not looked at any more, and `facts` sees that it is.
        for i in used[: facts.MOST_VALUES + 1].tolist() if len(held) <= facts.MOST_VALUES + 1 else ():
            text = values.values[i].rstrip(" ") if is_fixed_char(column) else values.values[i]
            held[text] = held.get(text, 0) + int(counts[i + 1])

    def facts(self) -> dict[str, Fact]:
        """The facts of all rows that were taken."""
        found: dict[str, Fact] = {facts.ROWS: self._rows, **dict(zip(facts.HASH, self._hash, strict=True))}
        found |= self._taker.facts()
        for name, counts in self._counts.items():
            texts = {text: count for text, count in counts.items() if text is not None}
            found[facts.nulls(name)] = counts.get(None, 0)
            if len(texts) <= facts.MOST_VALUES:
                found |= {facts.equal(name, text): count for text, count in texts.items()}
        for name, parts in self._keys.items():
            found[facts.distinct(name)] = len(_different(np.concatenate(parts))) if parts else 0
        return found | {facts.orphans(name, table): 0 for name, table, _ in self._kind.references}


def _different(data: np.ndarray) -> np.ndarray:
    """The different values. Keys come in ascending order mostly, and then need not be sorted."""
    before, behind = data[:-1], data[1:]
    if not (before <= behind).all():
        return np.unique(data)
    return data[np.concatenate([[True], before != behind])] if len(data) else data


class _NumpyTaker:
    """What `fact_kernels.ColumnTaker` does, without compiled loops."""

    def __init__(self, kind: TableFacts, hasher: RowHasher):
        self._kind, self._hasher = kind, hasher
        self.reset()

    def reset(self) -> None:
        self._facts: dict[str, Fact] = {}
        self._counts = {name: np.zeros(len(edges) + 1, np.int64) for name, edges in self._kind.edges.items()}

    def take(self, values: Mapping[str, Values], count: int) -> np.ndarray:
        own = {column.name: values[column.name] for column in self._kind.columns}
        for column in self._kind.columns:
            if column.type.kind != "string":
                self._take_column(column, own[column.name])
        return self._hasher.keys(own, count)

    def _take_column(self, column: Column, values: np.ndarray) -> None:
        name, data = column.name, whole_numbers(values)
        if np.ma.is_masked(values):
            data = data[~np.ma.getmaskarray(values)]
        self._add(facts.nulls(name), len(values) - len(data))
        if not len(data):
            return
        low, high = data.min().item(), data.max().item()
        self._add(facts.least(name), low)
        self._add(facts.greatest(name), high)
        if name not in self._counts:
            self._add(facts.total(name), _exact_sum(data, low, high))
            return
        above = len(data)
        for i, edge in enumerate(np.array(self._kind.edges[name], dtype=data.dtype)):
            # An edge outside of the values need not be compared with each of them.
            rest = above if edge <= low else 0 if edge > high else int(np.count_nonzero(data >= edge))
            self._counts[name][i] += above - rest
            above = rest
        self._counts[name][-1] += above

    def _add(self, fact: str, value: Fact) -> None:
        self._facts[fact] = facts.add_facts(fact, self._facts.get(fact), value)

    def facts(self) -> dict[str, Fact]:
        found: dict[str, Fact] = {}
        for column in self._kind.columns:
            name = column.name
            if column.type.kind != "string":
                names = (facts.nulls(name), facts.least(name), facts.greatest(name))
                found |= {fact: self._facts[fact] for fact in names if fact in self._facts}
                found.setdefault(facts.nulls(name), 0)
                if name in self._counts:
                    found |= zip(facts.bins(name, self._kind.edges[name]), self._counts[name].tolist(), strict=True)
                else:
                    found[facts.total(name)] = self._facts.get(facts.total(name), 0)
        return found


def _exact_sum(data: np.ndarray, low: int, high: int) -> int:
    """The sum of whole numbers, also where 64 bits do not hold it."""
    if max(abs(low), abs(high)) * len(data) < 2**63:
        return int(data.sum(dtype=np.int64))
    return (int((data >> 32).sum()) << 32) + int((data & 0xFFFFFFFF).sum())


Taker = _NumpyTaker | fact_kernels.ColumnTaker


def make_taker(kind: TableFacts, hasher: RowHasher) -> Taker:
    """What takes the facts of a table's columns: compiled, if possible."""
    kernels = fact_kernels.load()
    return _NumpyTaker(kind, hasher) if kernels is None else fact_kernels.ColumnTaker(kernels, kind, hasher)
