"""The CSV dialect of contributions, and the temporary file that the rows of one are collected in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .protocol import Body, InvalidArgument

MAX_ROW = 16 * 1024 * 1024

_ALLOWED = {
    "fields_terminated_by": ("\\t", ","),
    "fields_enclosed_by": ("\\0", "'", '"'),
    "fields_escaped_by": ("\\\\",),
    "lines_terminated_by": ("\\n",),
}
_SQL_ENCLOSED = {"'": "\\'", '"': '"'}
_UNESCAPED_LINE = re.compile(rb"(?:[^\\\n]|\\.)*\n", re.DOTALL)


def dialect_input(body: Body) -> dict[str, str]:
    """The dialect that a request asks for; a missing or empty value is the default."""
    return {key: body.optional(key, "str", "") or values[0] for key, values in _ALLOWED.items()}


DEFAULT_DIALECT = dialect_input(Body())


@dataclass(frozen=True)
class Dialect:
    """A legal dialect: values are the escaped, two-character texts of the protocol, not the characters."""

    separator: str
    enclosure: str

    @classmethod
    def parse(cls, given: dict[str, str]) -> Dialect:
        for key, allowed in _ALLOWED.items():
            if given[key] not in allowed:
                first, *words = key.split("_")
                name = first + "".join(word.capitalize() for word in words)
                raise InvalidArgument(
                    f"Csv::Parser: the value '{given[key]}' of the parameter '{name}'"
                    " is not allowed for the given parameter."
                )
        enclosure = given["fields_enclosed_by"]
        return cls(given["fields_terminated_by"], "" if enclosure == "\\0" else enclosure)

    @property
    def sql(self) -> str:
        """The clauses of LOAD DATA."""
        enclosed = f" ENCLOSED BY '{_SQL_ENCLOSED[self.enclosure]}'" if self.enclosure else ""
        return f"FIELDS TERMINATED BY '{self.separator}'{enclosed} ESCAPED BY '\\\\' LINES TERMINATED BY '\\n'"


class RowFile:
    """Collects the rows of a contribution in a file that the database loads.

    The real server writes the transaction's id before each row. Where fields are not enclosed, LOAD DATA can set the
    column itself with the same result, and the bytes go to the file as they came (``prefixed`` is false). Inside an
    enclosure a line end is data for LOAD DATA but ends a row for the server: there the id is written, too.

    Attributes
    ----------
    rows, bytes
        How many rows and bytes were given. A line end after a backslash does not end a row.
    """

    def __init__(self, path: Path, dialect: Dialect, transaction_id: int) -> None:
        self.path = path
        self.prefixed = bool(dialect.enclosure)
        self.rows = 0
        self.bytes = 0
        self._file = path.open("wb", buffering=0)
        separator = "\t" if dialect.separator == "\\t" else dialect.separator
        self._prefix = f"{dialect.enclosure}{transaction_id}{dialect.enclosure}{separator}".encode()
        self._pending = b""
        self._escaped = False  # the last byte was a backslash that escapes the next one
        self._complete = 0  # offset of the end of the last whole row

    def write(self, block: bytearray, start: int, end: int) -> None:
        """Take ``block[start:end]``.

        Raises
        ------
        RuntimeError
            If a row is longer than 16 MiB.
        """
        if self.prefixed:
            self._write_prefixed(bytes(block[start:end]))
        else:
            view = memoryview(block)[start:end]
            while view:
                view = view[self._file.write(view) :]
            self._count(block, start, end)
        self.bytes += end - start
        if self.bytes - self._complete > MAX_ROW:
            raise RuntimeError(f"Csv::Parser: input line {self.rows} exceeds the limit of {MAX_ROW} bytes.")

    def _count(self, block: bytearray, start: int, end: int) -> None:
        rows = block.count(b"\n", start, end)
        last = block.rfind(b"\n", start, end)
        if self._escaped or block.find(b"\\\n", start, end) >= 0:
            at = start - 1
            last = -1
            rows = 0
            while (at := block.find(b"\n", at + 1, end)) >= 0:
                if not self._is_escaped(block, start, at):
                    rows += 1
                    last = at
        if end > start:
            self._escaped = self._is_escaped(block, start, end)
        self.rows += rows
        if last >= 0:
            self._complete = self.bytes + last + 1 - start

    def _is_escaped(self, block: bytearray, start: int, at: int) -> bool:
        """Whether the byte at ``at`` follows an odd number of backslashes, those of the block before included."""
        first = at
        while first > start and block[first - 1] == 0x5C:
            first -= 1
        return bool((at - first) % 2) != (first == start and self._escaped)

    def _write_prefixed(self, data: bytes) -> None:
        data = self._pending + data
        at = 0
        out: list[bytes] = []
        for match in _UNESCAPED_LINE.finditer(data):
            if match.start() != at:
                break
            out += (self._prefix, match[0])
            at = match.end()
            self.rows += 1
        self._complete = self.bytes - len(self._pending) + at
        self._pending = data[at:]
        self._file.write(b"".join(out))

    def finish(self, drop_partial_row: bool = False) -> None:
        """End the file: a last row without its line end counts as a row, unless it is to be dropped."""
        partial = self.bytes - self._complete
        if drop_partial_row and not self.prefixed:
            self._file.truncate(self._complete)
        elif partial and not drop_partial_row:
            if self.prefixed:
                self._file.write(self._prefix + self._pending)
            self.rows += 1
        self._file.close()

    def discard(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def load_columns(names: list[str], prefixed: bool, transaction_id: int) -> str:
    """The column clause of LOAD DATA for a :class:`RowFile`; ``names`` are the table's, ``qserv_trans_id`` first."""
    if prefixed:
        return ""
    columns = ", ".join("`" + name.replace("`", "``") + "`" for name in names[1:])
    return f" ({columns}) SET {names[0]} = {int(transaction_id)}"


def error_ext(http_error: int = 0, system_error: int = 0) -> dict[str, Any]:
    """``error_ext`` of a failure to read that may be tried again."""
    return {"http_error": http_error, "system_error": system_error, "retry_allowed": 1}
