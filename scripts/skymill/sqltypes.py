"""The MySQL column types that skymill writes, and what they are in numpy, Arrow and DuckDB."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_INTEGERS = {"TINYINT": 1, "SMALLINT": 2, "INT": 4, "INTEGER": 4, "BIGINT": 8}
_PATTERN = re.compile(
    r"^(TINYINT|SMALLINT|INTEGER|INT|BIGINT|FLOAT|DOUBLE|BOOLEAN|BOOL|CHAR|VARCHAR)\s*(?:\(\s*(\d+)\s*\))?(\s+UNSIGNED)?"
    r"(\s+NOT\s+NULL|\s+NULL)?$",
    re.IGNORECASE,
)
ALLOWED = "TINYINT, SMALLINT, INT or BIGINT [UNSIGNED], FLOAT, DOUBLE, BOOLEAN, CHAR(n), VARCHAR(n), each with or without NOT NULL"


@dataclass(frozen=True)
class SqlType:
    """A column type.

    Attributes
    ----------
    text : `str`
        As MySQL reads it, ``NOT NULL`` included.
    kind : `str`
        ``integer``, ``float``, ``boolean`` or ``string``.
    dtype : `numpy.dtype` or `None`
        None for strings.
    length : `int`
        Most characters of a string; 0 for other kinds.
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
        if self.kind == "boolean":
            return "BOOLEAN"
        return {
            "i1": "TINYINT", "i2": "SMALLINT", "i4": "INTEGER", "i8": "BIGINT", "f4": "FLOAT", "f8": "DOUBLE",
            "u1": "UTINYINT", "u2": "USMALLINT", "u4": "UINTEGER", "u8": "UBIGINT",
        }[self.dtype.str[1:]]  # fmt: skip

    @property
    def arrow(self) -> str:
        """The name of the type in Arrow."""
        if self.kind == "string":
            return "string"
        return (
            "bool"
            if self.kind == "boolean"
            else {"f4": "float", "f8": "double"}.get(self.dtype.str[1:], self.dtype.name)
        )


def parse_type(text: str) -> SqlType:
    """Read a MySQL column type.

    Raises
    ------
    ValueError
        If the type is none of `ALLOWED`.
    """
    match = _PATTERN.match(text.strip())
    base = match[1].upper() if match else ""
    is_string = base in ("CHAR", "VARCHAR")
    if not match or (match[3] and base not in _INTEGERS) or (base == "VARCHAR" and not match[2]):
        raise ValueError(f'type "{text}": allowed are {ALLOWED}')
    nullable = "NOT" not in (match[4] or "").upper()
    canonical = base + (f"({match[2]})" if match[2] and is_string else "") + (" UNSIGNED" if match[3] else "")
    canonical += "" if nullable else " NOT NULL"
    if is_string:
        return SqlType(canonical, "string", None, int(match[2] or 1), nullable)
    if base in ("BOOLEAN", "BOOL"):
        return SqlType(canonical, "boolean", np.dtype(np.uint8), 0, nullable)
    if base in _INTEGERS:
        return SqlType(canonical, "integer", np.dtype(f"{'u' if match[3] else 'i'}{_INTEGERS[base]}"), 0, nullable)
    return SqlType(canonical, "float", np.dtype(np.float32 if base == "FLOAT" else np.float64), 0, nullable)
