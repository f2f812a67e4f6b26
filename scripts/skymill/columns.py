"""What fills a column: generators, and those of them that look at no other column.

A generator is a class whose ``__init__`` takes its options and whose `Generator.draw` makes the values of a block of
rows from its own random stream. Blocks of a box come in order and share the stream, so that values do not depend on the
block size. Only + - * / sqrt, numpy's ``random``, ``standard_normal``, ``poisson`` and `skymill.exactmath` may touch a
value: other functions of numpy differ in the last bit between processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import exactmath, kernels
from .errors import ConfigError, show
from .sqltypes import SqlType, parse_moment

if TYPE_CHECKING:
    from .chunker import Placements
    from .config import Table

#: Bits of a unique id: chunk, box and row share 63 bits, so that ids are positive in a BIGINT.
ID_BOX_BITS, ID_ROW_BITS = 3, 35


@dataclass(frozen=True)
class Column:
    """A column of a table: its name and its SQL type."""

    name: str
    type: SqlType


@dataclass(frozen=True)
class Strings:
    """A column of strings: for each row (``codes``, integers) the index of its value in ``values``."""

    codes: np.ndarray
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: np.ndarray | slice) -> Strings:
        return Strings(self.codes[rows], self.values)

    def to_list(self) -> list[str | None]:
        """The values row by row; None for NULL."""
        return [self.values[code] if code >= 0 else None for code in self.codes.tolist()]


#: Values of a column; a masked array has NULLs.
Values = np.ndarray | Strings


@dataclass
class Rows:
    """A block of rows that is being filled.

    Attributes
    ----------
    count, first : `int`
        Rows in this block, and the place of its first row in its box.
    chunk, box : `int`
        Where the rows are at home. When blocks have been joined, ``chunk`` is an array with that of each row.
    columns : `dict` [`str`, `Values`]
        The columns made so far.
    ra_deg, dec_deg : `numpy.ndarray`, float64, (count,), or `None`
        Positions, in a table that has them.
    sub_chunk : `numpy.ndarray`, int32, (count,), or `None`
        Home sub-chunk of each row.
    overlap : `Placements` or `None`
        The sub-chunks whose overlap holds the rows, if somebody has asked for them.
    director, visits : `dict` [`str`, `Values`] or `None`
        In a child: columns of the director's row, and of the visit, of each row. In a table of detectors: columns of
        the visit.
    filters : `tuple` of `str`
        In a child: the names of the filters; ``visits["#filter"]`` holds indices into it.
    """

    count: int
    first: int
    chunk: int | np.ndarray
    box: int
    columns: dict[str, Values]
    ra_deg: np.ndarray | None = None
    dec_deg: np.ndarray | None = None
    sub_chunk: np.ndarray | None = None
    overlap: Placements | None = None
    director: dict[str, Values] | None = None
    visits: dict[str, Values] | None = None
    filters: tuple[str, ...] = ()


class Generator:
    """Fills columns; the base of all generators, those of a user's own module included.

    Attributes
    ----------
    joint : `bool`
        Whether the columns of an entry are made together; if not, each has a generator and a stream of its own.
    columns : `list` [`Column`]
        What it fills; set before `check` is called.
    """

    joint = False
    columns: list[Column]

    def check(self, table: Table) -> None:
        """Refuse options that do not fit the columns or the table.

        Raises
        ------
        ValueError
            With what is wrong and what is allowed.
        """

    def needs(self) -> Sequence[str]:
        """Columns of the same table that must be made before."""
        return ()

    def director_columns(self, filters: Sequence[str]) -> Sequence[str]:
        """Columns of the director's row that a child's column is made from."""
        return ()

    def visit_columns(self) -> Sequence[str]:
        """Columns of the visit that a column is made from, in a table whose rows follow visits."""
        return ()

    def draw(self, random: np.random.Generator, rows: Rows) -> Values | Sequence[Values]:
        """The values of the columns for a block of rows; a sequence of them if there are several columns.

        Parameters
        ----------
        random : `numpy.random.Generator`
            The stream of this column in this box.
        rows : `Rows`
            The block to fill.
        """
        raise NotImplementedError


def need_kind(generator: Generator, *kinds: str) -> None:
    """Refuse columns of other kinds."""
    for column in generator.columns:
        if column.type.kind not in kinds:
            raise ValueError(
                f"{column.type.text}: the generator fills columns of the kind {' or '.join(kinds)}; choose another one"
            )


def need_numbers(**options: object) -> None:
    """Refuse options that are no finite numbers."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(
                f"{name} = {show(value)}: it must be a finite number (YAML reads 1e5 as text; write 1.0e+5)"
            )


def need_range(column: Column, **options: float) -> None:
    """Refuse numbers that a float column cannot hold."""
    if column.type.kind == "float":
        largest = float(np.finfo(column.type.dtype).max)
        for name, value in options.items():
            if not abs(value) <= largest:
                raise ValueError(f"{name} = {value}: {column.type.text} holds numbers up to {largest:.4g}")


def as_type(values: np.ndarray, column: Column) -> np.ndarray:
    """Whole numbers in the column's type; an error if one does not fit."""
    limits = np.iinfo(column.type.dtype)
    if len(values) and (values.min() < limits.min or values.max() > limits.max):
        raise ConfigError(
            f"column {column.name}: values {values.min()} to {values.max()} do not fit {column.type.text}"
        )
    return values.astype(column.type.dtype)


class UniqueId(Generator):
    """``unique_id``: 64-bit ids, unique over the sky, packed from chunk, box and row; in a regular table they count from ``first``."""

    def __init__(self, first: int = 1):
        self.first = first

    def check(self, table: Table) -> None:
        need_kind(self, "integer")
        need_numbers(first=self.first)
        limits = np.iinfo(self.columns[0].type.dtype)
        if self.columns[0].type.dtype.itemsize < 8 and table.kind != "regular":
            raise ValueError(f"{self.columns[0].type.text}: ids need BIGINT")
        if self.first != 1 and table.kind != "regular":
            raise ValueError(f"first = {self.first}: only the ids of a regular table are counted")
        if self.first != int(self.first) or not limits.min <= self.first:
            raise ValueError(f"first = {self.first}: it must be a whole number that {self.columns[0].type.text} holds")
        if table.rows is not None and self.first + table.rows - 1 > limits.max:
            raise ValueError(f"{self.columns[0].type.text} does not hold {table.rows} ids; use BIGINT")

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        first = rows.first + int(self.first)
        if rows.chunk >= 0:
            first += ((rows.chunk << ID_BOX_BITS) | rows.box) << ID_ROW_BITS
        return np.arange(first, first + rows.count, dtype=np.int64).astype(self.columns[0].type.dtype)


class Position(Generator):
    """``position``: RA and Dec, uniform on the sphere; with ``error_deg: [low, high]`` four columns, each followed by its error.

    The values are drawn with the row's place; this only hands them on.
    """

    joint = True

    def __init__(self, error_deg: Sequence[float] | None = None):
        self.error_deg = error_deg

    def check(self, table: Table) -> None:
        need_kind(self, "float")
        if table.kind == "child":
            raise ValueError(f"position: {table.name} is a child; its rows lie where its director's rows lie")
        if self.error_deg is not None and not isinstance(self.error_deg, (list, tuple)):
            raise ValueError(f"error_deg = {self.error_deg}: write [low, high] with 0 <= low <= high")
        wanted = 2 if self.error_deg is None else 4
        if len(self.columns) != wanted:
            raise ValueError(
                f"{len(self.columns)} columns: it fills 2 (RA, Dec), or with error_deg 4 (RA, its error, Dec, its error)"
            )
        if self.error_deg is not None and not (
            len(self.error_deg) == 2 and 0 <= self.error_deg[0] <= self.error_deg[1]
        ):
            raise ValueError(f"error_deg = {self.error_deg}: write [low, high] with 0 <= low <= high")
        step = wanted // 2
        if table.position is not None and [self.columns[0].name, self.columns[step].name] != list(table.position):
            raise ValueError(
                f"the columns {', '.join(c.name for c in self.columns)}: RA and Dec must be the table's position, {', '.join(table.position)}"
            )
        for column in (self.columns[0], self.columns[step]):
            if column.type.dtype != np.float64:
                raise ValueError(f"{column.name} is {column.type.text}: positions need DOUBLE")

    def draw(self, random: np.random.Generator, rows: Rows) -> Sequence[Values]:
        if self.error_deg is None:
            return rows.ra_deg, rows.dec_deg
        low, high = self.error_deg
        # One pass of (count, 2) keeps the stream independent of the block size.
        errors = random.random((rows.count, 2)) * (high - low) + low
        ra_error, dec_error = (errors[:, i].astype(self.columns[2 * i + 1].type.dtype) for i in (0, 1))
        return rows.ra_deg, ra_error, rows.dec_deg, dec_error


class Uniform(Generator):
    """``uniform``: from ``min`` to ``max``; whole numbers, both ends included, in an integer column."""

    def __init__(self, min: float = 0.0, max: float = 1.0):
        self.min, self.max = min, max

    def check(self, table: Table) -> None:
        need_kind(self, "integer", "float")
        need_numbers(min=self.min, max=self.max)
        need_range(self.columns[0], min=self.min, max=self.max)
        if self.columns[0].type.kind == "float" and not self.max - self.min <= float(
            np.finfo(self.columns[0].type.dtype).max
        ):
            raise ValueError(
                f"min = {self.min}, max = {self.max}: {self.columns[0].type.text} does not hold their difference"
            )
        if not self.min <= self.max:
            raise ValueError(f"min = {self.min}, max = {self.max}: min must not exceed max")
        column = self.columns[0]
        if column.type.kind == "integer":
            limits = np.iinfo(column.type.dtype)
            if self.min != int(self.min) or self.max != int(self.max) or self.min < limits.min or self.max > limits.max:
                raise ValueError(
                    f"min = {self.min}, max = {self.max}: {column.type.text} holds whole numbers in {limits.min}..{limits.max}"
                )

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        dtype = self.columns[0].type.dtype
        if dtype.kind != "f":
            # Numbers of 8 and 16 bits are drawn as wider ones: numpy keeps what is left of a word for one call only.
            wide = dtype if dtype.itemsize > 2 else np.dtype(np.int32)
            drawn = random.integers(int(self.min), int(self.max), size=rows.count, dtype=wide, endpoint=True)
            return drawn.astype(dtype, copy=False)
        compiled = kernels.load()
        values = None
        if compiled is not None:
            values = compiled.uniform(random, rows.count, dtype, self.max - self.min, self.min)
        if values is None:
            values = random.random(rows.count, dtype=dtype)
            values *= dtype.type(self.max - self.min)
            values += dtype.type(self.min)
        return values


class Normal(Generator):
    """``normal``: Gaussian with ``mean`` and ``sigma``."""

    def __init__(self, mean: float = 0.0, sigma: float = 1.0):
        self.mean, self.sigma = mean, sigma

    def check(self, table: Table) -> None:
        need_kind(self, "float")
        need_numbers(mean=self.mean, sigma=self.sigma)
        need_range(self.columns[0], mean=self.mean, sigma=10 * self.sigma)
        if not self.sigma >= 0:
            raise ValueError(f"sigma = {self.sigma}: it must be at least 0")

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        dtype = self.columns[0].type.dtype
        values = random.standard_normal(rows.count, dtype=dtype)
        values *= dtype.type(self.sigma)
        values += dtype.type(self.mean)
        return values


class Poisson(Generator):
    """``poisson``: counts with ``mean``."""

    def __init__(self, mean: float):
        self.mean = mean

    def check(self, table: Table) -> None:
        need_kind(self, "integer", "float")
        if not isinstance(self.mean, float) or math.isfinite(self.mean):
            need_numbers(mean=self.mean)
        if not 0 <= self.mean <= 1e15:
            raise ValueError(f"mean = {self.mean}: it must be from 0 to 1e15")

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        counts = random.poisson(self.mean, size=rows.count)
        column = self.columns[0]
        return counts.astype(column.type.dtype) if column.type.kind == "float" else as_type(counts, column)


class Magnitude(Generator):
    """``magnitude``: from ``min`` to ``max``, ``law: flat`` or ``law: power`` in counts (N(<m) grows as 10^(``slope`` m)).

    With ``unit: flux`` the column holds 10^(-0.4 (m - ``zero_point``)) instead of m; the zero point 31.4 gives nJy
    (AB).
    """

    def __init__(
        self,
        min: float = 0.0,
        max: float = 27.5,
        law: str = "flat",
        slope: float = 0.3,
        unit: str = "magnitude",
        zero_point: float = 31.4,
    ):
        self.min, self.max, self.law, self.slope, self.unit, self.zero_point = min, max, law, slope, unit, zero_point

    def check(self, table: Table) -> None:
        need_kind(self, "float")
        need_numbers(min=self.min, max=self.max, slope=self.slope, zero_point=self.zero_point)
        if not -100 <= self.min <= self.max <= 100:
            raise ValueError(f"min = {self.min}, max = {self.max}: -100 <= min <= max <= 100")
        if self.law not in ("flat", "power"):
            raise ValueError(f"law = {show(self.law)}: it must be flat or power")
        if self.unit not in ("magnitude", "flux"):
            raise ValueError(f"unit = {show(self.unit)}: it must be magnitude or flux")
        if self.law == "power" and not 0 < self.slope <= 2:
            raise ValueError(f"slope = {self.slope}: it must be above 0 and at most 2")
        if self.unit == "flux":
            brightest = -0.4 * (self.min - self.zero_point)
            if not abs(self.zero_point) <= 700 or brightest >= math.log10(
                float(np.finfo(self.columns[0].type.dtype).max)
            ):
                raise ValueError(
                    f"zero_point = {float(self.zero_point)}, min = {self.min}: the flux of the brightest, 10^{brightest:g}, does not fit {self.columns[0].type.text}"
                )

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        values = random.random(rows.count)
        if self.law == "power":
            # Inverse of the cumulative counts, relative to the faint end so that nothing overflows.
            bright = float(exactmath.exp10(self.slope * (self.min - self.max)))
            values *= 1.0 - bright
            values += bright
            values = exactmath.log(values)
            values /= self.slope * float(exactmath.log(10.0))
            values += self.max
        else:
            values *= self.max - self.min
            values += self.min
        if self.unit == "flux":
            values -= self.zero_point
            values *= -0.4
            values = exactmath.exp10(values)
        return values.astype(self.columns[0].type.dtype, copy=False)


def check_value(value: object, column: Column) -> None:
    """Refuse a value that a column cannot hold."""
    kind = column.type.kind
    if kind == "datetime":
        fits = parse_moment(value) is not None
    else:
        fits = isinstance(value, str) if kind == "string" else isinstance(value, (bool, int, float))
    if kind in ("integer", "boolean"):
        limits = np.iinfo(column.type.dtype)
        fits = fits and value == int(value) and limits.min <= value <= (1 if kind == "boolean" else limits.max)
    if kind == "string":
        fits = fits and len(value) <= column.type.length and value.isascii()
    if kind == "float":
        fits = fits and bool(np.isfinite(value)) and abs(value) <= np.finfo(column.type.dtype).max
    if not fits:
        hint = ""
        if kind == "datetime":
            hint = ' (write "2025-06-30 23:30:00", in quotes, from the year 1000)'
        elif kind == "string" and not isinstance(value, str):
            hint = " (put quotes around it)"
        raise ValueError(f"value {show(value)} does not fit {column.type.text}{hint}")


class Choice(Generator):
    """``choice``: one of ``values``, with ``probabilities`` (equal if not given)."""

    def __init__(self, values: Sequence, probabilities: Sequence[float] | None = None):
        self.values = values
        self.probabilities = probabilities

    def check(self, table: Table) -> None:
        if not isinstance(self.values, (list, tuple)):
            raise ValueError(f"values = {show(self.values)}: write a list, as [a, b]")
        if self.probabilities is not None and not isinstance(self.probabilities, (list, tuple)):
            raise ValueError(f"probabilities = {show(self.probabilities)}: write a list of {len(self.values)} numbers")
        if not self.values:
            raise ValueError("values: at least one is needed")
        for value in self.values:
            check_value(value, self.columns[0])
        if self.probabilities is not None:
            total = sum(self.probabilities)
            if len(self.probabilities) != len(self.values) or min(self.probabilities) < 0 or not abs(total - 1) <= 1e-9:
                raise ValueError(
                    f"probabilities {self.probabilities}: there must be {len(self.values)}, none negative, with the sum 1 (it is {total:g})"
                )

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        if self.probabilities is None:
            codes = random.integers(0, len(self.values), size=rows.count, dtype=np.int32)
        else:
            edges = np.array(self.probabilities, dtype=np.float64)
            for i in range(1, len(edges)):
                edges[i] += edges[i - 1]
            codes = np.searchsorted(edges[:-1], random.random(rows.count), side="right").astype(np.int32)
        if self.columns[0].type.kind == "string":
            return Strings(codes, tuple(self.values))
        return np.array(self.values, dtype=self.columns[0].type.dtype)[codes]


class Constant(Generator):
    """``constant``: the same ``value`` in every row; ``value: null`` for NULL."""

    def __init__(self, value: object):
        self.value = value

    def check(self, table: Table) -> None:
        if self.value is None:
            if not self.columns[0].type.nullable:
                raise ValueError(f"value null: {self.columns[0].name} is NOT NULL")
        else:
            check_value(self.value, self.columns[0])

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        column = self.columns[0]
        if column.type.kind == "string":
            codes = np.zeros(rows.count, dtype=np.int32)
            return Strings(codes if self.value is not None else codes - 1, (self.value or "",))
        values = np.full(rows.count, self.value or 0, dtype=column.type.dtype)
        return np.ma.masked_all(rows.count, column.type.dtype) if self.value is None else values


class Text(Generator):
    """``text``: random lower-case letters, ``length`` of them (by default as many as the column holds, at most 8)."""

    def __init__(self, length: int | None = None):
        self.length = length

    def check(self, table: Table) -> None:
        need_kind(self, "string")
        most = min(self.columns[0].type.length, 1000)
        if self.length is not None:
            need_numbers(length=self.length)
            if self.length != int(self.length) or not 0 <= self.length <= most:
                raise ValueError(f"length = {self.length}: it must be a whole number from 0 to {most}")

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        length = min(self.columns[0].type.length, 8) if self.length is None else int(self.length)
        codes = np.arange(rows.count, dtype=np.int32)
        if length == 0:
            return Strings(codes * 0, ("",))
        letters = random.integers(ord("a"), ord("z"), size=(rows.count, length), dtype=np.int32, endpoint=True)
        texts = letters.astype(np.uint8).tobytes().decode("ascii")
        return Strings(codes, tuple(texts[i : i + length] for i in range(0, len(texts), length)))
