"""Generators that make a column from others: of the same row, of the director's row, of the visit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import exactmath
from .columns import (
    Column,
    Generator,
    Rows,
    Strings,
    Values,
    as_type,
    check_value,
    need_kind,
    need_numbers,
)
from .errors import ConfigError, show
from .sqltypes import parse_moment

if TYPE_CHECKING:
    from .config import Table


#: Units of a jitter's errors, in degrees.
UNITS_DEG = {"deg": 1.0, "arcmin": 1 / 60, "arcsec": 1 / 3600, "mas": 1 / 3.6e6}
#: Errors in RA grow as 1 / cos(Dec), but not for ever: nearer to a pole than 2 arcsec this is the cosine.
SMALLEST_COS = 1e-5
MICROSECONDS_PER_DAY = 86_400_000_000
#: The day with the number 0, and the numbers of the first and last day that a DATETIME holds.
MJD_EPOCH = np.datetime64("1858-11-17T00:00:00", "us")
FIRST_MJD, LAST_MJD = -313_698, 2_973_483


def _need_visits(table: Table) -> None:
    if table.visits is None:
        raise ValueError(f"{table.name} has no rows: {{visits: ...}}, which the generator takes its values from")


def _need_number(table: Table, option: str, name: str) -> Column | None:
    """The column of a table that an option names; refused if it holds no numbers, None if there is none (which is told elsewhere)."""
    column = next((column for column in table.columns if column.name == name), None)
    if column is not None and column.type.kind not in ("integer", "float"):
        raise ValueError(f"{option} = {show(name)}: it is {column.type.text}, not a number")
    return column


def _as_masked(values: np.ndarray, *sources: np.ndarray) -> np.ndarray:
    """Values that are NULL where any of the columns that they are made from is NULL."""
    null = [np.ma.getmaskarray(source) for source in sources if np.ma.isMaskedArray(source)]
    return np.ma.masked_array(values, np.logical_or.reduce(null)) if null else values


class DirectorColumn(Generator):
    """``director``: in a child, the value of ``column`` in the director's row."""

    def __init__(self, column: str):
        self.column = column

    def check(self, table: Table) -> None:
        if table.kind != "child":
            raise ValueError(f"{table.name} is no child table, and only such a table can have this generator")

    def director_columns(self, filters: Sequence[str]) -> Sequence[str]:
        return (self.column,)

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        return rows.director[self.column]


class VisitColumn(Generator):
    """``visit``: in a child, the value of ``column`` of the visit that sees the object; in a table of detectors, of their visit."""

    def __init__(self, column: str):
        self.column = column

    def check(self, table: Table) -> None:
        _need_visits(table)

    def visit_columns(self) -> Sequence[str]:
        return (self.column,)

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        return rows.visits[self.column]


class ForcedFlux(Generator):
    """``forced_flux``: the director's flux in the filter of the visit, plus Gaussian noise of the row's own ``sigma``.

    ``flux`` names the director's columns with ``{filter}`` for the filter; ``sigma`` names a column of this table.
    """

    def __init__(self, flux: str, sigma: str):
        self.flux, self.sigma = flux, sigma

    def check(self, table: Table) -> None:
        need_kind(self, "float")
        if "{filter}" not in self.flux:
            raise ValueError(f'flux = "{self.flux}": it must hold {{filter}}, as in "{{filter}}PsFlux"')
        _need_visits(table)

    def needs(self) -> Sequence[str]:
        return (self.sigma,)

    def director_columns(self, filters: Sequence[str]) -> Sequence[str]:
        return [self.flux.replace("{filter}", name) for name in filters]

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        sigma = rows.columns[self.sigma]
        values = random.standard_normal(rows.count)
        values *= np.ma.getdata(sigma)
        null = np.ma.getmaskarray(sigma).copy() if np.ma.isMaskedArray(sigma) else None
        codes = rows.visits["#filter"]
        for code, name in enumerate(self.director_columns(rows.filters)):
            seen = np.flatnonzero(codes == code)
            flux = rows.director[name][seen]
            values[seen] += np.ma.getdata(flux)
            if np.ma.isMaskedArray(flux):
                null = np.zeros(rows.count, dtype=bool) if null is None else null
                null[seen] |= np.ma.getmaskarray(flux)
        values = values.astype(self.columns[0].type.dtype, copy=False)
        return values if null is None else np.ma.masked_array(values, null)


class Jitter(Generator):
    """``jitter``: in a child, an angle ``column`` of the director's row plus Gaussian noise of the row's own error ``sigma``.

    ``sigma`` names a column of this table, whose ``unit`` is deg, arcmin, arcsec or mas. For a right ascension ``dec``
    names the director's declination [deg]: the noise is measured on the sky, and the sum stays in 0 to 360. Without it
    the column is a declination, and stays in -90 to 90.
    """

    def __init__(self, column: str, sigma: str, unit: str = "arcsec", dec: str | None = None):
        self.column, self.sigma, self.unit, self.dec = column, sigma, unit, dec

    def check(self, table: Table) -> None:
        if self.columns[0].type.dtype != np.float64:
            raise ValueError(f"{self.columns[0].type.text}: positions need DOUBLE")
        if table.kind != "child":
            raise ValueError(f"{table.name} is no child table, and only such a table can have this generator")
        if self.unit not in UNITS_DEG:
            raise ValueError(f"unit = {show(self.unit)}: it must be {', '.join(UNITS_DEG)}")
        _need_number(table, "sigma", self.sigma)

    def needs(self) -> Sequence[str]:
        return (self.sigma,)

    def director_columns(self, filters: Sequence[str]) -> Sequence[str]:
        return (self.column,) if self.dec is None else (self.column, self.dec)

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        angle, sigma = rows.director[self.column], rows.columns[self.sigma]
        dec = None if self.dec is None else rows.director[self.dec]
        for name, source in ((self.column, angle), (self.dec, dec)):
            if source is not None and (isinstance(source, Strings) or source.dtype.kind != "f"):
                raise ConfigError(f"column {self.columns[0].name}: jitter needs an angle, and {name} is none")
        values = random.standard_normal(rows.count)
        values *= np.ma.getdata(sigma)
        values *= UNITS_DEG[self.unit]
        if dec is None:
            values += np.ma.getdata(angle)
            # Beyond a pole Dec goes down again.
            values = np.where(np.abs(values) > 90.0, np.copysign(180.0, values) - values, values)
            return _as_masked(values, angle, sigma)
        values /= np.maximum(exactmath.cos_deg(np.ma.getdata(dec)), SMALLEST_COS)
        values += np.ma.getdata(angle)
        values %= 360.0
        values[values >= 360.0] = 0.0
        return _as_masked(values, angle, sigma, dec)


class DetectorNumber(Generator):
    """``detector``: in a table of detectors (``rows: {visits: ..., detectors: ...}``) the number of the detector, from 0."""

    def check(self, table: Table) -> None:
        need_kind(self, "integer")
        if table.detectors is None:
            raise ValueError(
                f"{table.name} has no rows: {{visits: ..., detectors: ...}}, whose detectors the generator numbers"
            )
        if table.detectors[0] * table.detectors[1] - 1 > np.iinfo(self.columns[0].type.dtype).max:
            raise ValueError(f"{self.columns[0].type.text} does not hold the numbers of {table.detectors} detectors")

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        return rows.visits["#detector"].astype(self.columns[0].type.dtype)


class Linear(Generator):
    """``linear``: another ``column`` of the row times ``factor``, plus ``offset``, plus Gaussian noise of ``sigma``.

    With the defaults it is a copy of the column.
    """

    def __init__(self, column: str, factor: float = 1.0, offset: float = 0.0, sigma: float = 0.0):
        self.column, self.factor, self.offset, self.sigma = column, factor, offset, sigma

    def check(self, table: Table) -> None:
        need_kind(self, "integer", "float")
        need_numbers(factor=self.factor, offset=self.offset, sigma=self.sigma)
        if not self.sigma >= 0:
            raise ValueError(f"sigma = {self.sigma}: it must be at least 0")
        source = _need_number(table, "column", self.column)
        if self.columns[0].type.kind == "integer" and not (
            (source is None or source.type.kind == "integer")
            and self.factor == int(self.factor)
            and self.offset == int(self.offset)
            and self.sigma == 0
        ):
            raise ValueError(
                f"{self.columns[0].type.text}: whole numbers need whole factor, offset and column, and no sigma"
            )

    def needs(self) -> Sequence[str]:
        return (self.column,)

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        source = rows.columns[self.column]
        if self.columns[0].type.kind == "integer":
            values = np.ma.getdata(source).astype(np.int64) * int(self.factor) + int(self.offset)
            return _as_masked(as_type(values, self.columns[0]), source)
        values = np.ma.getdata(source).astype(np.float64)
        values *= self.factor
        values += self.offset
        if self.sigma > 0:
            values += random.standard_normal(rows.count) * self.sigma
        return _as_masked(values.astype(self.columns[0].type.dtype, copy=False), source)


class Lookup(Generator):
    """``lookup``: for each string in another ``column`` of the row its value in ``values``, as ``{g: green, r: red}``."""

    def __init__(self, column: str, values: dict):
        self.column, self.values = column, values

    def check(self, table: Table) -> None:
        if not isinstance(self.values, dict) or not self.values:
            raise ValueError(f"values = {show(self.values)}: write a mapping, as {{g: green, r: red}}")
        source = next((column for column in table.columns if column.name == self.column), None)
        if source is not None and source.type.kind != "string":
            raise ValueError(f"column = {show(self.column)}: it is {source.type.text}, not a string")
        for value in self.values.values():
            check_value(value, self.columns[0])

    def needs(self) -> Sequence[str]:
        return (self.column,)

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        source, column = rows.columns[self.column], self.columns[0]
        used = {source.values[code] for code in np.unique(source.codes).tolist() if code >= 0}
        unknown = sorted(used - self.values.keys())
        if unknown:
            raise ConfigError(
                f"column {column.name}: lookup has no value for {show(unknown[0])} of {self.column}; add one under values"
            )
        keys = list(self.values)
        codes = np.array([*(keys.index(text) if text in used else 0 for text in source.values), -1], dtype=np.int32)
        codes = codes[source.codes]
        if column.type.kind == "string":
            return Strings(codes, tuple(self.values.values()))
        values = np.array(list(self.values.values()), dtype=column.type.dtype)[codes]
        return np.ma.masked_array(values, codes < 0) if (codes < 0).any() else values


class Time(Generator):
    """``time``: a DATETIME, uniform from ``start`` to ``end``, or that of the modified Julian date in a column ``mjd`` of the row.

    Write ``start`` and ``end`` in quotes, as "2025-06-30" or "2025-06-30 23:30:00".
    """

    def __init__(self, start: str | None = None, end: str | None = None, mjd: str | None = None):
        self.start, self.end, self.mjd = start, end, mjd

    def check(self, table: Table) -> None:
        need_kind(self, "datetime")
        if (self.mjd is None) == (self.start is None or self.end is None) or (self.mjd and (self.start or self.end)):
            raise ValueError("give either start and end, or mjd")
        if self.mjd is None:
            first, last = (self._moment(name) for name in ("start", "end"))
            if first > last:
                raise ValueError(f"start = {show(self.start)}, end = {show(self.end)}: start must not be after end")
        source = next((column for column in table.columns if column.name == self.mjd), None)
        if source is not None and source.type.dtype != np.float64:
            raise ValueError(f"mjd = {show(self.mjd)}: it is {source.type.text}; times need DOUBLE")

    def _moment(self, name: str) -> int:
        """An end of the range in microseconds since 1970."""
        moment = parse_moment(getattr(self, name))
        if moment is None:
            raise ValueError(
                f'{name} = {show(getattr(self, name))}: write a time as "2025-06-30 23:30:00", in quotes, from the year 1000'
            )
        return int(moment.astype(np.int64))

    def needs(self) -> Sequence[str]:
        return () if self.mjd is None else (self.mjd,)

    def draw(self, random: np.random.Generator, rows: Rows) -> Values:
        step = 10 ** (6 - self.columns[0].type.length)
        if self.mjd is None:
            first, last = (self._moment(name) // step for name in ("start", "end"))
            moments = random.integers(first, last, size=rows.count, dtype=np.int64, endpoint=True) * step
            return moments.astype("datetime64[us]")
        source = rows.columns[self.mjd]
        mjd = np.where(np.ma.getmaskarray(source), 0.0, np.ma.getdata(source))
        if len(mjd) and not (mjd.min() >= FIRST_MJD and mjd.max() < LAST_MJD):
            raise ConfigError(
                f"column {self.columns[0].name}: {self.mjd} is {mjd.min()} to {mjd.max()}; a DATETIME holds {FIRST_MJD} to {LAST_MJD}"
            )
        day = np.floor(mjd)
        moments = np.rint((mjd - day) * (MICROSECONDS_PER_DAY / step)).astype(np.int64) * step
        moments += day.astype(np.int64) * MICROSECONDS_PER_DAY
        return _as_masked(MJD_EPOCH + moments.astype("timedelta64[us]"), source)
