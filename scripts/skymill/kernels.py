"""Compiled loops (``kernels.c``): numbers as text, and rows of text that are moved; what uses them can do without, only slower.

They are compiled when they are first needed, by the machine's own C compiler, and kept beside Python's compiled modules
(or below ``~/.cache/skymill`` if nothing can be written there). Without a compiler, or with ``SKYMILL_KERNELS=off`` in
the environment, `load` gives `None`. What comes out is the same, byte by byte.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import written_aside

log = logging.getLogger("skymill")

SOURCE = Path(__file__).with_name("kernels.c")
#: Every processor of the kind can run what this makes; the source itself chooses better instructions when it runs.
COMPILE = ("cc", "-O3", "-shared", "-fPIC", "-ffp-contract=off")
COMPILE_SECONDS = 120
#: How the C source numbers the kinds of columns.
KINDS = {name: i for i, name in enumerate(("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"))}
STRING_KIND = len(KINDS)
#: Most columns of a table, and bytes of the longest number with its separator: limits of the C source.
MAX_COLUMNS = 8192
SLOT_BYTES = 32
#: Powers of 10 that FLOAT and DOUBLE need, and the bits of each.
_POWERS = ((-31, 46, 64), (-292, 325, 128))


class _Column(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("null", ctypes.c_void_p),
        ("texts", ctypes.c_void_p),
        ("text_ends", ctypes.c_void_p),
    )


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("starts", ctypes.c_void_p), ("lengths", ctypes.c_void_p))


def _folders() -> list[Path]:
    """Where the compiled library may stand, best first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [Path(importlib.util.cache_from_source(__file__)).parent, cache / "skymill"]


def _compile(source: Path, target: Path) -> None:
    """Compile a source, aside; whoever comes second replaces the file by an equal one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(target) as aside:
        subprocess.run(
            [*COMPILE, "-o", str(aside), str(source)], check=True, capture_output=True, timeout=COMPILE_SECONDS
        )


@functools.cache
def library(source: Path = SOURCE) -> Path | None:
    """The compiled library of a source, compiled now if need be; `None` if that cannot be done."""
    if os.environ.get("SKYMILL_KERNELS") == "off" or sys.byteorder != "little":
        return None
    key = hashlib.sha256(source.read_bytes() + " ".join((*COMPILE, sys.platform, platform.machine())).encode())
    name = f"{source.stem}.{key.hexdigest()[:16]}.so"
    for folder in _folders():
        if (folder / name).exists():
            return folder / name
    for folder in _folders():
        try:
            _compile(source, folder / name)
            return folder / name
        except subprocess.SubprocessError as error:
            log.warning("%s cannot be compiled, what it does will be slower: %s", source.name, error)
            return None
        except OSError as error:  # no compiler, or the folder cannot be written
            reason = error
    log.info("%s is not compiled: %s", source.name, reason)
    return None


@functools.cache
def load() -> Kernels | None:
    """The kernels; `None` if there are none on this machine."""
    path = library()
    if path is None:
        return None
    try:
        return Kernels(ctypes.CDLL(str(path)))
    except OSError as error:
        log.warning("%s cannot be loaded, what it does will be slower: %s", path, error)
        return None


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def address(array: np.ndarray) -> int:
    """Where the values of an array begin."""
    return array.__array_interface__["data"][0]


class Kernels:
    """The functions of ``kernels.c``."""

    def __init__(self, functions: ctypes.CDLL):
        self.format_rows = functions.format_rows
        self.format_rows.restype = ctypes.c_int64
        self.format_rows.argtypes = [
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
        ]
        self._join_parts = functions.join_parts
        self._join_parts.restype = ctypes.c_int64
        self._join_parts.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        self._find_bytes = functions.find_bytes
        self._find_bytes.restype = ctypes.c_int64
        self._find_bytes.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p]
        self._fill = {
            np.dtype(np.float32): functions.fill_floats_uniform,
            np.dtype(np.float64): functions.fill_doubles_uniform,
        }
        for function in self._fill.values():
            function.restype = None
            function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_double, ctypes.c_void_p]
        self.powers = [_scaled_powers(*limits) for limits in _POWERS]

    def formatter(self, columns: Sequence[ColumnData]) -> Formatter:
        """What writes the rows of some columns as text; see `Formatter`."""
        return Formatter(self, columns)

    def uniform(
        self, random: np.random.Generator, count: int, dtype: np.dtype, width: float, low: float
    ) -> np.ndarray | None:
        """What ``random.random(count, dtype) * width + low`` gives, and leaves of the stream; `None` if numpy must do it."""
        if not self._knows_numpy or type(random.bit_generator) is not np.random.PCG64DXSM:
            return None
        out = np.empty(count, dtype)
        self._fill[dtype](
            _capsule_pointer(random.bit_generator.capsule, b"BitGenerator"), count, width, low, address(out)
        )
        return out

    @functools.cached_property
    def _knows_numpy(self) -> bool:
        """Whether numpy keeps and steps its generator as the C source does."""
        self._knows_numpy = True  # for the draws that find it out
        random = [np.random.Generator(np.random.PCG64DXSM(1)) for _ in range(2)]
        for dtype, count in ((np.float32, 3), (np.float64, 2), (np.float32, 6), (np.float32, 1)):
            expected = random[0].random(count, dtype) * dtype(0.7) + dtype(0.1)
            if not np.array_equal(self.uniform(random[1], count, np.dtype(dtype), 0.7, 0.1), expected):
                return False
        return random[0].bit_generator.state == random[1].bit_generator.state

    def find_bytes(self, data: np.ndarray, one: int, other: int, base: int = 0) -> np.ndarray:
        """Offsets (int64) of the bytes of a text that are one of two values, ascending, each plus ``base``."""
        found = np.empty(len(data) + 8, dtype=np.int64)
        count = self._find_bytes(address(data), len(data), one, other, base, address(found))
        return found[:count].copy()

    def join_parts(self, parts: Sequence[tuple[int, np.ndarray, np.ndarray]], out: np.ndarray) -> int:
        """Join, row by row, what the parts have for it; returns the bytes.

        Parameters
        ----------
        parts : sequence of (`int`, `numpy.ndarray`, `numpy.ndarray`)
            An address, and for each row the offset from there (int64) and the bytes to take (int64), contiguous.
        out : `numpy.ndarray`, uint8
            Where the text goes; it must be large enough.
        """
        table = (_Part * len(parts))(*[(base, address(starts), address(lengths)) for base, starts, lengths in parts])
        return self._join_parts(ctypes.addressof(table), len(parts), len(parts[0][1]), address(out))


class ColumnData(NamedTuple):
    """A column to be written.

    Attributes
    ----------
    values : `numpy.ndarray`
        Numbers, or, of strings, which of the texts each row has (int32), -1 for NULL.
    null : `numpy.ndarray`, bool, or `None`
        Which rows are NULL.
    texts : `bytes` or `None`
        Of strings: the texts, one behind the other.
    text_ends : `numpy.ndarray`, int64, or `None`
        Where each of them ends.
    """

    values: np.ndarray
    null: np.ndarray | None = None
    texts: bytes | None = None
    text_ends: np.ndarray | None = None


def _column_table(columns: Sequence[ColumnData]) -> tuple[ctypes.Array, list[np.ndarray | bytes]]:
    """Columns as the C code takes them, and what it points into, which must be held as long."""
    table, held = (_Column * len(columns))(), []
    for item, column in zip(table, columns, strict=True):
        values = np.ascontiguousarray(column.values)
        item.kind = KINDS[values.dtype.str[1:]] if column.texts is None else STRING_KIND
        item.values = address(values)
        held.append(values)
        if column.null is not None:
            null = np.ascontiguousarray(column.null)
            item.null = address(null)
            held.append(null)
        if column.texts is not None:
            item.texts = ctypes.cast(ctypes.c_char_p(column.texts), ctypes.c_void_p).value
            item.text_ends = address(column.text_ends)
            held += [column.texts, column.text_ends]
    return table, held


class Formatter:
    """Writes rows of columns as text: numbers as short as they read back exactly, tabs between them, NULL as the ingest dialect has it.

    Parameters
    ----------
    kernels : `Kernels`
    columns : sequence of `ColumnData`

    Attributes
    ----------
    row_bytes : `int`
        More than a row can have.
    """

    def __init__(self, kernels: Kernels, columns: Sequence[ColumnData]):
        self._kernels = kernels
        self._table, self._held = _column_table(columns)
        self.row_bytes = SLOT_BYTES * len(columns)
        for column in columns:
            if column.texts is not None:
                longest = int(np.diff(column.text_ends, prepend=0).max(initial=0))
                self.row_bytes += max(0, longest + 1 - SLOT_BYTES)
        self._num_columns = len(columns)

    def format(self, first: int, out: np.ndarray, ends: np.ndarray) -> int:
        """Write rows until all are written, or the next ones might not fit; returns how many.

        Parameters
        ----------
        first : `int`
            The first of them.
        out : `numpy.ndarray`, uint8
            Where the text goes; at least ``2 * row_bytes + SLOT_BYTES``.
        ends : `numpy.ndarray`, int64, (rows that are left,)
            Gets the offset behind each row, from the beginning of ``out``.
        """
        powers = self._kernels.powers
        return self._kernels.format_rows(
            ctypes.addressof(self._table), self._num_columns, first, len(ends), self.row_bytes,
            address(out), len(out), address(ends), address(powers[0]), address(powers[1]),
        )  # fmt: skip


def _scaled_powers(low: int, high: int, bits: int) -> np.ndarray:
    """Powers of 10, each scaled by a power of 2 to some bits, rounded down, plus 1 (uint64, the higher word first)."""
    scaled = []
    for power in range(low, high):
        numerator, denominator = 10 ** max(power, 0), 10 ** max(-power, 0)
        shift = bits - 1 - (numerator.bit_length() - 1 if power >= 0 else -denominator.bit_length())
        scaled.append((numerator << max(shift, 0)) // (denominator << max(-shift, 0)) + 1)
    words = [number >> 64 & 0xFFFFFFFFFFFFFFFF for number in scaled], [n & 0xFFFFFFFFFFFFFFFF for n in scaled]
    return np.array(words[1] if bits == 64 else list(zip(*words, strict=True)), dtype=np.uint64).ravel()
