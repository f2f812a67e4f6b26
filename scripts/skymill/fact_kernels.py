"""Compiled loops (``facts.c``) that take the facts of columns, hash rows, and compare pairs of points.

They are compiled and kept like those of `skymill.kernels`, and what uses them can do without, only slower; the facts
are the same.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import facts
from .columns import Strings, Values
from .facts import Fact, TableFacts
from .kernels import KINDS, STRING_KIND, address, library
from .rowhash import LANES, RowHasher, multiplier, string_table, whole_numbers

log = logging.getLogger("skymill")

SOURCE = Path(__file__).with_name("facts.c")


_Lanes = ctypes.c_uint64 * LANES


class _Column(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("null", ctypes.c_void_p),
        ("string_bits", ctypes.c_void_p),
        ("factors", ctypes.c_uint64 * (2 * LANES)),
        ("edges", ctypes.c_void_p),
        ("num_edges", ctypes.c_int64),
        ("counts", ctypes.c_void_p),
        ("nulls", ctypes.c_int64),
        ("filled", ctypes.c_int64),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        ("least", ctypes.c_int64),
        ("greatest", ctypes.c_int64),
        ("sum_low", ctypes.c_int64),
        ("sum_high", ctypes.c_int64),
    )


@functools.cache
def load() -> FactKernels | None:
    """The kernels; `None` if there are none on this machine."""
    path = library(SOURCE)
    if path is None:
        return None
    try:
        return FactKernels(ctypes.CDLL(str(path)))
    except OSError as error:
        log.warning("%s cannot be loaded, what it does will be slower: %s", path, error)
        return None


class FactKernels:
    """The functions of ``facts.c``."""

    def __init__(self, functions: ctypes.CDLL):
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.take_columns = functions.take_columns
        self.take_columns.restype = None
        self.take_columns.argtypes = [pointer, number, number, pointer]
        self._hash_rows = functions.hash_rows
        self._hash_rows.restype = None
        self._hash_rows.argtypes = [*(pointer, number, pointer, number), *4 * [pointer]]
        self._count_near = functions.count_near
        self._count_near.restype = None
        self._count_near.argtypes = [
            *(pointer, number, pointer, number, pointer, pointer, pointer, number, pointer, number, pointer)
        ]

    def hash_rows(
        self,
        keys: np.ndarray,
        constants: Sequence[int],
        numbers: np.ndarray,
        factors: Sequence[int],
        index: np.ndarray | None,
    ) -> tuple[int, int]:
        """The hash of rows by the sums of their columns.

        Parameters
        ----------
        keys : `numpy.ndarray`, uint64, (2, n)
            The sums.
        constants : sequence of `int`, (2,)
            What is added to each row's sums.
        numbers : `numpy.ndarray`, int32
            Whole numbers, one for each row; times ``factors``, modulo 2^32, they are added, too.
        factors : sequence of `int`, (2,)
        index : `numpy.ndarray`, int64, or `None`
            Which rows; by default all.
        """
        keys, numbers = np.ascontiguousarray(keys), np.ascontiguousarray(numbers, dtype=np.int32)
        index = None if index is None else np.ascontiguousarray(index, dtype=np.int64)
        sums = _Lanes()
        self._hash_rows(
            address(keys), keys.shape[1], None if index is None else address(index), len(numbers),
            _Lanes(*constants), address(numbers), _Lanes(*factors), sums,
        )  # fmt: skip
        return sums[0], sums[1]

    def count_near(
        self, points: np.ndarray, others: np.ndarray, ranges: Sequence[np.ndarray], limits: np.ndarray
    ) -> np.ndarray:
        """For each limit the pairs of a point with another of its range whose squared distance is below it (int64)."""
        points, others = np.ascontiguousarray(points), np.ascontiguousarray(others)
        point, start, stop = (np.ascontiguousarray(part, dtype=np.int64) for part in ranges)
        counts = np.zeros(len(limits), dtype=np.int64)
        self._count_near(
            address(points), points.shape[1], address(others), others.shape[1], address(point), address(start),
            address(stop), len(point), address(limits), len(limits), address(counts),
        )  # fmt: skip
        return counts


class ColumnTaker:
    """Takes the facts of a table's own columns, block by block, and the sums of its rows for the hash.

    Parameters
    ----------
    kernels : `FactKernels`
    kind : `TableFacts`
    hasher : `RowHasher`
    """

    def __init__(self, kernels: FactKernels, kind: TableFacts, hasher: RowHasher):
        self._kernels, self._kind = kernels, kind
        self._table = (_Column * len(kind.columns))()
        self._counts: dict[str, np.ndarray] = {}
        self._held: list[np.ndarray] = []
        for item, column in zip(self._table, kind.columns, strict=True):
            is_string = column.type.kind == "string"
            is_time = column.type.kind == "datetime"
            item.kind = STRING_KIND if is_string else KINDS["i8" if is_time else column.type.dtype.str[1:]]
            place = hasher.places[column.name]
            item.factors = (ctypes.c_uint64 * (2 * LANES))(*(multiplier(place, k) for k in range(2 * LANES)))
            if column.name in kind.edges:
                edges = np.array(kind.edges[column.name], dtype=np.float64)
                counts = self._counts[column.name] = np.zeros(len(edges) + 1, dtype=np.int64)
                item.edges, item.num_edges, item.counts = address(edges), len(edges), address(counts)
                self._held.append(edges)
        names = (facts.nulls, facts.least, facts.greatest, facts.total)
        self._names = [[fact(column.name) for fact in names] for column in kind.columns]
        self._blank = bytes(self._table)

    def reset(self) -> None:
        """Forget all rows."""
        ctypes.memmove(self._table, self._blank, len(self._blank))
        for counts in self._counts.values():
            counts.fill(0)

    def take(self, values: Mapping[str, Values], count: int) -> np.ndarray:
        """Take a block of rows; returns the sums of their columns, see `RowHasher.keys`."""
        keys = np.zeros((LANES, count), dtype=np.uint64)
        held = []  # what the C code points into
        for item, column in zip(self._table, self._kind.columns, strict=True):
            part = values[column.name]
            null = None
            if isinstance(part, Strings):
                bits = np.roll(string_table(column, part), 1)  # from the code -1 on
                data = np.ascontiguousarray(part.codes, dtype=np.int32)
                held.append(bits)
                item.string_bits = address(bits)
            else:
                data = np.ascontiguousarray(whole_numbers(part))
                if isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part):
                    null = np.ascontiguousarray(np.ma.getmaskarray(part))
            item.values = address(data)
            item.null = None if null is None else address(null)
            held += [data, null]
        self._kernels.take_columns(ctypes.addressof(self._table), len(self._table), count, address(keys))
        return keys

    def facts(self) -> dict[str, Fact]:
        """The facts of columns that are no strings, of all rows that were taken; those of columns without values are left out."""
        found: dict[str, Fact] = {}
        for item, column, (nulls, least, greatest, total) in zip(
            self._table, self._kind.columns, self._names, strict=True
        ):
            if item.kind == STRING_KIND:
                continue
            found[nulls] = item.nulls
            if column.name in self._counts:
                if item.filled:
                    found[least], found[greatest] = item.low, item.high
                bins = facts.bins(column.name, self._kind.edges[column.name])
                found.update(zip(bins, self._counts[column.name].tolist(), strict=True))
                continue
            turned = 2**63 if column.type.dtype == np.uint64 else 0
            if item.filled:
                found[least], found[greatest] = item.least + turned, item.greatest + turned
            found[total] = (item.sum_high << 32) + item.sum_low
        return found
