"""Writes rows as text in the ingest dialect: tab, ``\\N`` for NULL, backslash escape, LF, no header, booleans 1/0.

Numbers are as short as they read back exactly.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import kernels
from .blocks import concatenate
from .columns import Column, Strings, Values

#: Values that are held back until they are written in one go, where there are no kernels.
FLUSH_VALUES = 1 << 18
#: Text that is put together before it is written: small enough for the processor's cache.
BUFFER_BYTES = 1 << 19
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0"})


def _series(column: Column, values: Values):  # noqa: ANN202 - polars is imported only where there are no kernels
    import polars as pl

    if isinstance(values, Strings):
        names = pl.Series([text.translate(_ESCAPES) for text in values.values] + [None], dtype=pl.String)
        return names.gather(np.where(values.codes < 0, len(values.values), values.codes))
    series = pl.Series(np.ma.getdata(values))
    if column.type.kind == "datetime":
        # "2025-06-30 23:30:00", and behind it as many decimals as the column holds.
        length = 20 + column.type.length if column.type.length else 19
        series = series.dt.to_string("%Y-%m-%d %H:%M:%S%.6f").str.slice(0, length)
    if isinstance(values, np.ma.MaskedArray):
        null = pl.Series(np.ma.getmaskarray(values))
        series = pl.select(pl.when(null).then(None).otherwise(series)).to_series()
    return series


def format_rows(columns: Sequence[Column], values: dict[str, Values]) -> bytes:
    """The text of rows, without the kernels: by polars, which writes the same digits.

    Parameters
    ----------
    columns : sequence of `Column`
        Which columns, in order.
    values : `dict` [`str`, `Values`]
        Their values, all of the same length.
    """
    import io

    import polars as pl

    frame = pl.DataFrame({column.name: _series(column, values[column.name]) for column in columns})
    text = io.BytesIO()
    frame.write_csv(text, include_header=False, separator="\t", null_value="\\N", quote_style="never")
    return text.getvalue()


def _kernel_column(column: Column, values: Values) -> kernels.ColumnData:
    """A column as the kernels take it."""
    if isinstance(values, Strings):
        texts = [text.translate(_ESCAPES).encode() for text in values.values]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return kernels.ColumnData(values.codes.astype(np.int32, copy=False), texts=b"".join(texts), text_ends=ends)
    mask = np.ma.getmask(values)
    null = None if mask is np.ma.nomask else mask
    data = np.ma.getdata(values)
    if data.dtype.kind != "M":
        return kernels.ColumnData(data, null)
    # "2025-06-30 23:30:00", and behind it as many decimals as the column holds.
    width = 20 + column.type.length if column.type.length else 19
    text = np.datetime_as_string(data, unit="us").astype("S26").view(np.uint8).reshape(-1, 26)[:, :width].copy()
    text[:, 10] = ord(" ")
    codes = np.arange(len(text), dtype=np.int32)
    return kernels.ColumnData(codes, null, text.tobytes(), np.arange(1, len(text) + 1) * width)


class TableFile:
    """A text file of rows that is written aside and takes its name when it is closed.

    A file without rows is not made. On an error within a ``with`` block nothing is left.

    Parameters
    ----------
    path : `pathlib.Path`
        Its name.
    columns : sequence of `Column`
        Its columns.
    row_ends : `bool`
        Whether to note where each row ends.

    Attributes
    ----------
    rows, bytes : `int`
    sha256 : `str`
        Set when it has been closed.
    """

    def __init__(self, path: Path, columns: Sequence[Column], row_ends: bool = False):
        self.path = path
        self.columns = columns
        self.rows = self.bytes = 0
        self.sha256 = ""
        self._aside = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = None
        self._hash = hashlib.sha256()
        self._waiting: list[dict[str, Values]] = []
        self._held = 0
        self._ends: list[np.ndarray] | None = [] if row_ends else None
        self._kernels = kernels.load() if len(columns) <= kernels.MAX_COLUMNS else None
        self._buffer: np.ndarray | None = None
        self._used = 0

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if self._file is not None:
                self._file.close()
                self._aside.unlink(missing_ok=True)

    def add(self, values: dict[str, Values]) -> None:
        """Add rows."""
        count = len(values[self.columns[0].name])
        self.rows += count
        if self._kernels is not None:
            self._format(values, count)
            return
        self._waiting.append(values)
        self._held += count * len(self.columns)
        if self._held >= FLUSH_VALUES:
            self._flush()

    def _format(self, values: dict[str, Values], count: int) -> None:
        """Put the text of rows in the buffer, and write it whenever it is full."""
        formatter = self._kernels.formatter([_kernel_column(c, values[c.name]) for c in self.columns])
        room = max(BUFFER_BYTES, 16 * formatter.row_bytes)
        if self._buffer is None or len(self._buffer) < room:
            self._write()
            self._buffer = np.empty(room, dtype=np.uint8)
        ends = np.empty(count, dtype=np.int64)
        first = 0
        while first < count:
            free = self._buffer[self._used :]
            if len(free) < max(4 * formatter.row_bytes, room // 4):
                self._write()
                continue
            rows = formatter.format(first, free, ends[first:])
            written = int(ends[first + rows - 1])
            if self._ends is not None:
                ends[first : first + rows] += self.bytes + self._used
            self._used += written
            first += rows
        if self._ends is not None:
            self._ends.append(ends)

    def _flush(self) -> None:
        """Write the rows that are held back."""
        if self._waiting:
            values = self._waiting[0]
            if len(self._waiting) > 1:
                values = {c.name: concatenate([part[c.name] for part in self._waiting]) for c in self.columns}
            self._waiting, self._held = [], 0
            text = np.frombuffer(format_rows(self.columns, values), np.uint8)
            if self._ends is not None:
                self._ends.append(np.flatnonzero(text == 10) + (self.bytes + 1))
            self._buffer, self._used = text, len(text)
        self._write()

    def _write(self) -> None:
        """Write what is in the buffer."""
        if self._used:
            text = memoryview(self._buffer)[: self._used]
            if self._file is None:
                self._file = open(self._aside, "wb")  # noqa: SIM115 - closed by close()
            self._file.write(text)
            self._hash.update(text)
            self.bytes += self._used
            self._used = 0

    def close(self) -> None:
        """Write what is held back, and give the file its name."""
        self._flush()
        self.sha256 = self._hash.hexdigest()
        if self._file is not None:
            self._file.close()
            os.replace(self._aside, self.path)

    @property
    def row_ends(self) -> np.ndarray:
        """Offset of the byte behind each row (int64)."""
        return np.concatenate(self._ends) if self._ends else np.empty(0, np.int64)
