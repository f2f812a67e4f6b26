"""A hash of rows that does not depend on their order, and is the same in numpy, DuckDB and MariaDB.

A value is taken as 64 bits: an integer in two's complement, and a time as its microseconds since 1970; a float by the
IEEE bits of its double, with -0.0 as 0.0; a string by the first 16 hexadecimal digits of its MD5; NULL as `NULL_BITS`.
The halves of a row's values, each multiplied by a number of its own modulo 2^32, are added up, twice (the two *lanes*),
and each sum is mixed as in hash functions for 32-bit integers. The hash of a table is the two sums over its rows. A row
that is lost, doubled or changed in one bit changes both, but for a chance of 2^-64.

Only operations that all three do alike are used: products below 2^63, sums, shifts and bitwise logic.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from .columns import Column, Strings, Values

#: What stands for NULL: a NaN that no value has.
NULL_BITS = 0x7FF8000000000001
#: Rows that are hashed at a time: many, so that calls cost little, and few, so that their sums stay in the processor's
#: cache.
BLOCK_ROWS = 1 << 14
LANES = 2
_MASK = 0xFFFFFFFF
_HALF = np.uint64(32)
_GOLDEN = 0x9E3779B1
#: Multipliers of the mixing, by lane.
_MIX = ((0x2C1B3C6D, 0x297A2D39), (0x31848BAB, 0x2D2816FD))


def multiplier(column: int, k: int) -> int:
    """The number (odd, below 2^31) that a half of a column's value is multiplied by.

    Parameters
    ----------
    column : `int`
        The place of the column in the table, from 0.
    k : `int`
        0 and 1 for the low and high half in the first lane, 2 and 3 in the second.
    """
    return ((4 * column + k + 1) * _GOLDEN & 0x7FFFFFFF) | 1


# -- numpy ----------------------------------------------------------------------------------------------------------------


class RowHasher:
    """Hashes rows of a table, block by block.

    Parameters
    ----------
    columns : sequence of `Column`
        All columns of the table as the store holds them, in order.
    """

    def __init__(self, columns: Sequence[Column]):
        self.columns = list(columns)
        self._patterns = np.array(
            [
                [multiplier(j, 2 * lane) | multiplier(j, 2 * lane + 1) << 32 for lane in range(LANES)]
                for j in range(len(self.columns))
            ],
            dtype=np.uint64,
        )[:, :, None]
        #: The place of each column, by name.
        self.places = {column.name: j for j, column in enumerate(self.columns)}

    def keys(self, values: Mapping[str, Values], count: int) -> np.ndarray:
        """The sums of rows before they are mixed.

        Parameters
        ----------
        values : `Mapping` [`str`, `Values`]
            Columns; those that are missing add nothing, and may be added by `add_key`.
        count : `int`
            Rows.

        Returns
        -------
        keys : `numpy.ndarray`, uint64, (2, count)
        """
        keys = np.empty((LANES, count), dtype=np.uint64)
        present = [(j, column, values[column.name]) for j, column in enumerate(self.columns) if column.name in values]
        tables = {column.name: string_table(column, part) for _, column, part in present if isinstance(part, Strings)}
        rows = min(count, BLOCK_ROWS)
        work, product, pattern, low, high = np.empty(rows, np.uint64), *np.empty((4, LANES, rows), np.uint64)
        for start in range(0, count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, count)
            if stop - start < rows:
                rows = stop - start
                work, product, pattern, low, high = work[:rows], *np.empty((4, LANES, rows), np.uint64)
            low.fill(0)
            high.fill(0)
            factors, products = pattern.view(np.uint32), product.view(np.uint32)
            for j, column, part in present:
                bits = _bits(column, part, slice(start, stop), tables.get(column.name), work)
                # Both halves at once: two products of 32 bits, side by side in 64.
                np.copyto(pattern, self._patterns[j])
                np.multiply(bits.view(np.uint32), factors, out=products)
                low += product
                np.right_shift(product, _HALF, out=product)
                high += product
            # The first sum is that of the low halves, plus 2^32 times that of the high ones, modulo 2^64.
            np.left_shift(high, _HALF, out=product)
            low -= product
            np.add(low, high, out=keys[:, start:stop])
        return keys

    def add_key(self, keys: np.ndarray, column: str, value: int | np.ndarray) -> None:
        """Add a column of whole numbers, not negative and below 2^32, to the sums of rows, in place."""
        j = self.places[column]
        for lane in range(LANES):
            # In 32 bits, where a product is taken modulo 2^32 by itself.
            keys[lane] += np.asarray(value).astype(np.uint32) * np.uint32(multiplier(j, 2 * lane))


def hash_keys(keys: np.ndarray) -> tuple[int, int]:
    """The hash of rows, by their sums from `RowHasher.keys`."""
    found = []
    for lane, (first, second) in enumerate(_MIX):
        x = (keys[lane] ^ (keys[lane] >> _HALF)).astype(np.uint32)
        x *= np.uint32(first)
        x ^= x >> np.uint32(12)
        x *= np.uint32(second)
        x ^= x >> np.uint32(15)
        found.append(int(x.sum(dtype=np.uint64)))
    return found[0], found[1]


def hash_placed(
    hasher: RowHasher, keys: np.ndarray, chunk: int, sub_chunk: np.ndarray, index: np.ndarray | None = None
) -> tuple[int, int]:
    """The hash of rows of a chunk, by the sums of their own columns and their places.

    Parameters
    ----------
    hasher : `RowHasher`
    keys : `numpy.ndarray`, uint64, (2, n)
        The sums of the own columns.
    chunk : `int`
    sub_chunk : `numpy.ndarray`, int32
        The sub-chunk of each row.
    index : `numpy.ndarray`, int64, optional
        Which rows; by default all.
    """
    from . import fact_kernels

    kernels = fact_kernels.load()
    if kernels is None:
        placed = keys.copy() if index is None else keys[:, index]
        hasher.add_key(placed, "chunkId", chunk)
        hasher.add_key(placed, "subChunkId", sub_chunk)
        return hash_keys(placed)
    places = [hasher.places[name] for name in ("chunkId", "subChunkId")]
    terms, factors = ([multiplier(place, 2 * lane) for lane in range(LANES)] for place in places)
    constants = [chunk * factor & _MASK for factor in terms]
    return kernels.hash_rows(keys, constants, sub_chunk, factors, index)


def whole_numbers(values: np.ndarray) -> np.ndarray:
    """The data of values that are no strings; times as microseconds since 1970."""
    data = values.data if isinstance(values, np.ma.MaskedArray) else values
    return data.view(np.int64) if data.dtype.kind == "M" else data


def add_hashes(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """The hash of the rows of both."""
    return (one[0] + other[0]) % 2**64, (one[1] + other[1]) % 2**64


def is_fixed_char(column: Column) -> bool:
    """Whether the column is a CHAR, which loses the spaces at its end in MySQL."""
    return column.type.kind == "string" and column.type.text.startswith("CHAR")


def string_bits(text: str) -> int:
    """The 64 bits of a string."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:16], 16)


def string_table(column: Column, strings: Strings) -> np.ndarray:
    """The bits of each value of a column of strings, as the store holds it; the last are those of NULL, whose code is -1."""
    texts = (text.rstrip(" ") if is_fixed_char(column) else text for text in strings.values)
    return np.array([*map(string_bits, texts), NULL_BITS], dtype=np.uint64)


def _bits(column: Column, values: Values, rows: slice, table: np.ndarray | None, work: np.ndarray) -> np.ndarray:
    """The bits of a column's values in some rows (uint64): a part of the values, or in ``work``."""
    if isinstance(values, Strings):
        return np.take(table, values.codes[rows], out=work, mode="wrap")
    part = whole_numbers(values)[rows]
    if column.type.kind == "float":
        # The sum makes a negative zero positive.
        np.add(part, 0.0, out=work.view(np.float64), dtype=np.float64, casting="same_kind")
    elif part.dtype.itemsize < 8:
        np.copyto(work.view(np.int64), part)
    else:
        work = np.ascontiguousarray(part).view(np.uint64)
    if isinstance(values, np.ma.MaskedArray):
        null = np.ma.getmaskarray(values)[rows]
        if null.any():
            return np.where(null, np.uint64(NULL_BITS), work)
    return work


# -- SQL ------------------------------------------------------------------------------------------------------------------


def hash_query(columns: Sequence[Column], relation: str, dialect: str, group: str | None = None) -> str:
    """A query for the hash of a relation's rows.

    Parameters
    ----------
    columns : sequence of `Column`
        All columns of the table, in order.
    relation : `str`
        What stands behind FROM.
    dialect : `str`
        ``duckdb`` or ``mysql`` (MariaDB, too; it is much faster with ``optimizer_switch='derived_merge=off'``).
    group : `str`, optional
        A column, quoted: one hash for each of its values, which stands first. Without it there is one hash.

    Returns
    -------
    query : `str`
        Its last two columns are the sums; NULL if there are no rows.
    """
    duckdb = dialect == "duckdb"
    first = f"{group} AS g, " if group else ""
    kept = "g, " if group else ""

    def number(value: int) -> str:
        return f"{value}::UBIGINT" if duckdb else str(value)

    def xor(one: str, other: str) -> str:
        return f"xor({one}, {other})" if duckdb else f"({one} ^ {other})"

    mask, half = number(_MASK), "32"
    bits = ", ".join(f"{_sql_bits(column, dialect)} AS b{j}" for j, column in enumerate(columns))
    lanes = []
    for lane in range(LANES):
        terms = []
        for j in range(len(columns)):
            low, high = (number(multiplier(j, 2 * lane + i)) for i in (0, 1))
            terms += [f"((b{j} & {mask}) * {low} & {mask})", f"((b{j} >> {half}) * {high} & {mask})"]
        lanes.append(_sum(terms))
    lanes_of = [f"k{lane}" for lane in range(LANES)]
    folded = ", ".join(f"({xor(k, f'({k} >> {half})')} & {mask}) AS {k}" for k in lanes_of)
    query = f"SELECT {first}{bits} FROM {relation} AS t"
    query = f"SELECT {kept}{lanes[0]} AS k0, {lanes[1]} AS k1 FROM ({query}) AS q0"
    query = f"SELECT {kept}{folded} FROM ({query}) AS q1"
    for step, shift in enumerate((12, 15)):
        multiplied = ", ".join(f"({k} * {number(_MIX[i][step])} & {mask}) AS {k}" for i, k in enumerate(lanes_of))
        mixed = ", ".join(f"{xor(k, f'({k} >> {shift})')} AS {k}" for k in lanes_of)
        query = f"SELECT {kept}{multiplied} FROM ({query}) AS q{2 * step + 2}"
        query = f"SELECT {kept}{mixed} FROM ({query}) AS q{2 * step + 3}"
    return f"SELECT {kept}sum(k0), sum(k1) FROM ({query}) AS q6{' GROUP BY g' if group else ''}"


def _sum(terms: Sequence[str]) -> str:
    """A sum as a balanced tree: databases limit how deep an expression may be."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return f"({_sum(terms[:middle])} + {_sum(terms[middle:])})"


@functools.cache
def _sql_bits(column: Column, dialect: str) -> str:
    """The expression for the 64 bits of a column's value, NULL included."""
    kind = column.type.kind
    if dialect == "duckdb":
        name = f'"{column.name}"'
        if kind == "string":
            text = f"rtrim({name}, ' ')" if is_fixed_char(column) else name
            bits = f"('0x' || left(md5({text}), 16))::UBIGINT"
        elif kind == "float":
            bits = f"({name}::DOUBLE + 0.0)::BIT::UBIGINT"
        elif kind == "datetime":
            bits = f"epoch_us({name})::BIT::UBIGINT"
        elif kind == "integer" and column.type.dtype.kind == "u":
            bits = f"{name}::UBIGINT"
        else:
            bits = f"{name}::BIGINT::BIT::UBIGINT"
        return f"coalesce({bits}, {NULL_BITS}::UBIGINT)" if column.type.nullable else bits
    name = f"`{column.name}`"
    if kind == "string":
        bits = f"CAST(CONV(LEFT(MD5({name}), 16), 16, 10) AS UNSIGNED)"
    elif kind == "float":
        # The eight bytes of a double behind the head of a point; the lowest is the first.
        bits = f"CAST(CONV(HEX(REVERSE(SUBSTR(ST_AsWKB(POINT(0e0 + {name}, 0)), 6, 8))), 16, 10) AS UNSIGNED)"
    else:
        number = f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {name})" if kind == "datetime" else name
        bits = f"({number} & 18446744073709551615)"
    return f"COALESCE({bits}, {NULL_BITS})" if column.type.nullable else bits
