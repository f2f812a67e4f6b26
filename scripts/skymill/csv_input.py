"""Reading CSV files: blocks of whole rows, coordinates, and the object index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .csv_dialect import Dialect, Fields, field_starts
from .errors import SkymillError
from .object_index import ObjectIndex
from .rows import CR, LF, RowError, is_escaped, parse_ids, row_ends

#: Text that is read at a time: more of it if rows are long, so that there are always some to work on.
READ_BYTES = 1 << 20
MAX_READ_BYTES = 16 << 20
MIN_READ_ROWS = 2048
IS_BLANK = np.isin(np.arange(256), list(b" \t\v\f"))


class InputError(SkymillError):
    """Input that cannot be partitioned; the message names the file and the line."""


@dataclass(frozen=True)
class Block:
    """Whole rows of a file; line ends are LF.

    Attributes
    ----------
    path : `Path`
    line : `int`
        Number of the first line.
    data : `numpy.ndarray`, uint8
    dialect : `Dialect`
        Without quote and escape characters that do not occur.
    """

    path: Path
    line: int
    data: np.ndarray
    dialect: Dialect

    def error(self, row: int, message: str) -> InputError:
        """An error that names the line at which a row begins."""
        start = row_ends(self.data, self.dialect.escape)[row - 1] if row else 0
        return InputError(f"{self.path}, line {self.line + np.count_nonzero(self.data[:start] == LF)}: {message}")


def read_blocks(path: Path, dialect: Dialect) -> Iterator[Block]:
    """Read a file in blocks of whole rows, with line ends LF, CR LF or CR, of which the last may be missing.

    Raises
    ------
    InputError
        If a carriage return is escaped: it could not be told from the line end.
    """
    escape = dialect.escape
    line, rest, at_end, size = 1, b"", False, READ_BYTES
    with path.open("rb", buffering=0) as file:
        while not at_end:
            chunk = file.read(size)
            at_end = not chunk
            text = rest + chunk
            if at_end and text and not text.endswith((b"\n", b"\r")):
                text += b"\n"
            held = b""
            if b"\r" in text:
                if not at_end and text.endswith(b"\r"):
                    text, held = text[:-1], b"\r"
                data = np.frombuffer(text, dtype=np.uint8)
                returns = np.flatnonzero(data == CR)
                escaped = returns[is_escaped(data, returns, escape)]
                if len(escaped):
                    line += text.count(b"\n", 0, escaped[0])
                    raise InputError(
                        f"{path}, line {line}: an escaped carriage return; write it as escape character and r"
                    )
                text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            end = len(text) if at_end else _last_row_end(text, escape)
            if end:
                block = Block(path, line, np.frombuffer(text, dtype=np.uint8, count=end), dialect.reduced(text))
                yield block
                lines = int(np.count_nonzero(block.data == LF))
                line += lines
                if lines < MIN_READ_ROWS:
                    size = min(2 * size, MAX_READ_BYTES)
            rest = text[end:] + held


def _last_row_end(text: bytes, escape: int | None) -> int:
    """Offset after the last line end that is not escaped; 0 if there is none."""
    last = text.rfind(b"\n")
    while last >= 0:
        first = last
        while first > 0 and text[first - 1] == escape:
            first -= 1
        if (last - first) % 2 == 0:
            return last + 1
        last = text.rfind(b"\n", 0, last)
    return 0


def parse_coordinates(fields: Fields) -> np.ndarray:
    """Parse decimal numbers, rounded correctly; blanks around them and a plus sign are allowed.

    Returns
    -------
    values : `numpy.ndarray`, float64, (number of fields,)

    Raises
    ------
    RowError
        If a field is not a number; ``row`` is its index.
    """
    import pyarrow as pa

    data, starts, ends = fields.data, fields.starts.copy(), fields.ends.copy()
    while (leading := (starts < ends) & IS_BLANK[data[np.minimum(starts, len(data) - 1)]]).any():
        starts += leading
    while (trailing := (starts < ends) & IS_BLANK[data[ends - 1]]).any():
        ends -= trailing
    signed = np.flatnonzero((ends - starts > 1) & (data[np.minimum(starts, len(data) - 1)] == ord("+")))
    starts[signed] += data[starts[signed] + 1] != ord("-")
    packed = Fields(data, starts, ends).packed()
    offsets = np.concatenate([[0], packed.ends])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(packed.data)]
    texts = pa.Array.from_buffers(pa.large_binary(), len(starts), buffers)

    def parse(texts: pa.Array) -> pa.Array:
        return texts.cast(pa.large_string()).cast(pa.float64())

    try:
        # Not to_numpy(): it would import pandas.
        return np.frombuffer(parse(texts).buffers()[1], dtype=np.float64, count=len(starts))
    except pa.ArrowInvalid:
        good, bad = 0, len(starts)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                parse(texts[good:middle])
                good = middle
            except pa.ArrowInvalid:
                bad = middle
        raise RowError(good, f"{fields.value(good)!r} is not a number") from None


def read_index(path: Path, dialect: Dialect) -> ObjectIndex:
    """Read an object index: rows of id, chunk and sub-chunk.

    Raises
    ------
    InputError
        If the file cannot be read as such.
    """

    def parts() -> Iterator[tuple[Fields, np.ndarray, np.ndarray]]:
        for block in read_blocks(path, dialect):
            try:
                ends = block.dialect.field_ends(block.data, 3)
                starts = field_starts(ends)
                ids, chunk, sub_chunk = (Fields(block.data, starts[:, i], ends[:, i]) for i in range(3))
                decode = block.dialect.decode
                yield decode(ids), *(parse_ids(*decode(texts)) for texts in (chunk, sub_chunk))
            except RowError as error:
                message = f"{error}; the object index has rows of id, chunk and sub-chunk in the output dialect"
                raise block.error(error.row, message) from None

    try:
        return ObjectIndex(parts())
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
