"""The MySQL column types that skymill writes, and what they are in numpy, Arrow and DuckDB."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

import numpy as np

_INTEGERS = {"TINYINT": 1, "SMALLINT": 2, "INT": 4, "INTEGER": 4, "BIGINT": 8}
_STRINGS = ("CHAR", "VARCHAR", "NATIONAL VARCHAR", "LONGTEXT")
_PATTERN = re.compile(
    r"^(TINYINT|SMALLINT|INTEGER|INT|BIGINT|FLOAT|DOUBLE|BOOLEAN|BOOL|CHAR|(?:NATIONAL\s+)?VARCHAR|LONGTEXT|DATETIME)"
    r"\s*(?:\(\s*(\d+)\s*\))?(\s+UNSIGNED)?(\s+NOT\s+NULL|\s+NULL)?$",
    re.IGNORECASE,
)
ALLOWED = (
    "TINYINT, SMALLINT, INT or BIGINT [UNSIGNED], FLOAT, DOUBLE, BOOLEAN, CHAR(n), [NATIONAL] VARCHAR(n), LONGTEXT, "
    "DATETIME[(0 to 6)], each with or without NOT NULL"
)


@dataclass(frozen=True)
class SqlType:
    """A column type.

    Attributes
    ----------
    text : `str`
        As MySQL reads it, ``NOT NULL`` included.
    kind : `str`
        ``integer``, ``float``, ``boolean``, ``string`` or ``datetime``.
    dtype : `numpy.dtype` or `None`
        None for strings; times are whole microseconds.
    length : `int`
        Most characters of a string, or decimals of a time's seconds; 0 for other kinds.
    nullable : `bool`
        Whether NULL is allowed.
    """

    text: str
    kind: str
    dtype: np.dtype | None
    length: int
    nullable: bool

    @property
    def duckdb(self) -> str:
        """The type in DuckDB, without its constraint."""
        if self.kind == "string":
            return "VARCHAR"
        if self.kind in ("boolean", "datetime"):
            return {"boolean": "BOOLEAN", "datetime": "TIMESTAMP"}[self.kind]
        return {
            "i1": "TINYINT", "i2": "SMALLINT", "i4": "INTEGER", "i8": "BIGINT", "f4": "FLOAT", "f8": "DOUBLE",
            "u1": "UTINYINT", "u2": "USMALLINT", "u4": "UINTEGER", "u8": "UBIGINT",
        }[self.dtype.str[1:]]  # fmt: skip

    @property
    def arrow(self) -> str:
        """The name of the type in Arrow."""
        named = {"string": "string", "boolean": "bool", "datetime": "timestamp[us]"}
        return named.get(self.kind) or {"f4": "float", "f8": "double"}.get(self.dtype.str[1:], self.dtype.name)


def parse_type(text: str) -> SqlType:
    """Read a MySQL column type.

    Raises
    ------
    ValueError
        If the type is none of `ALLOWED`.
    """
    match = _PATTERN.match(text.strip())
    base = " ".join(match[1].upper().split()) if match else ""
    is_string, is_time = base in _STRINGS, base == "DATETIME"
    wrong = not match or (match[3] and base not in _INTEGERS) or ("VARCHAR" in base and not match[2])
    if wrong or (match[2] and (base == "LONGTEXT" or (is_time and int(match[2]) > 6))):
        raise ValueError(f'type "{text}": allowed are {ALLOWED}')
    nullable = "NOT" not in (match[4] or "").upper()
    sized = match[2] and (is_string or is_time)
    canonical = base + (f"({match[2]})" if sized else "") + (" UNSIGNED" if match[3] else "")
    canonical += "" if nullable else " NOT NULL"
    if base == "LONGTEXT":
        return SqlType(canonical, "string", None, 2**32 - 1, nullable)
    if is_string:
        return SqlType(canonical, "string", None, int(match[2] or 1), nullable)
    if is_time:
        return SqlType(canonical, "datetime", np.dtype("datetime64[us]"), int(match[2] or 0), nullable)
    if base in ("BOOLEAN", "BOOL"):
        return SqlType(canonical, "boolean", np.dtype(np.uint8), 0, nullable)
    if base in _INTEGERS:
        return SqlType(canonical, "integer", np.dtype(f"{'u' if match[3] else 'i'}{_INTEGERS[base]}"), 0, nullable)
    return SqlType(canonical, "float", np.dtype(np.float32 if base == "FLOAT" else np.float64), 0, nullable)


def parse_moment(text: object) -> np.datetime64 | None:
    """A time like "2025-06-30 23:30:00", with the precision of a microsecond; None if it is no such text, or before the year 1000."""
    try:
        moment = datetime.datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    return None if moment is None or moment.tzinfo is not None or moment.year < 1000 else np.datetime64(moment, "us")
