"""Regular tables, and the visits among them: made once for the whole sky, or read from a file, before any chunk.

A table of visits also goes into a binary file of arrays, which the tile jobs map into memory and search.
"""

from __future__ import annotations

import functools
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from . import exactmath
from .chunker import Box, max_alpha_deg
from .columns import Column, Rows, Strings, Values
from .config import Dataset, Table
from .density import UniformDensity
from .errors import ConfigError, SkymillError
from .rowmaker import BoxStreams, fill_columns
from .streams import NO_CHUNK, stream

WHOLE_SKY = Box(0.0, 360.0, -90.0, 90.0)
#: Pairs of a row and a visit that are compared at a time.
BLOCK_PAIRS = 1 << 20
#: Candidate visits are taken from a region wider than the radius by this, so that rounding cannot lose one.
MARGIN_DEG = 1e-6


def make_regular_table(
    dataset: Dataset, table: Table, visits: Mapping[str, dict[str, Values]] | None = None
) -> dict[str, Values]:
    """The columns of a regular table: generated, or read from its file.

    Parameters
    ----------
    dataset : `Dataset`
    table : `Table`
    visits : `dict` [`str`, `dict`], optional
        Columns of tables of visits, which are taken as they are; others are made if a table of detectors asks for them.

    Raises
    ------
    ConfigError
        If the file lacks a column, or visits have missing, wrong or double values.
    """
    if table.from_file is not None:
        columns = read_table_file(table)
    else:
        if table.visits is not None:
            rows = _detector_rows(dataset, table, visits or {})
        else:
            rows = Rows(table.rows, 0, NO_CHUNK, 0, {})
            if table.position is not None:
                random = stream(dataset.seed, table.name, "#position", NO_CHUNK)
                rows.ra_deg, rows.dec_deg = UniformDensity(0.0).sample(random, _sky_box(table), 0, table.rows)
                if table.region is not None:
                    rows.ra_deg = np.where(rows.ra_deg >= 360.0, rows.ra_deg - 360.0, rows.ra_deg)
        fill_columns(table, rows, BoxStreams(dataset.seed, table, NO_CHUNK, 0))
        columns = rows.columns
    if table.visit is not None:
        _check_visits(table, columns)
    return columns


def _sky_box(table: Table) -> Box:
    """The box that the positions of a regular table lie in."""
    if table.region is None:
        return WHOLE_SKY
    ra_min, ra_max, dec_min, dec_max = table.region
    return Box(ra_min, ra_max if ra_min <= ra_max else ra_max + 360.0, dec_min, dec_max)


def _detector_rows(dataset: Dataset, table: Table, visits: Mapping[str, dict[str, Values]]) -> Rows:
    """Rows of a table of detectors, still without columns: the detectors of the first visit, then of the next.

    The detectors are a grid in the plane that touches the sky at the visit's centre, east and north along its sides;
    number 0 is in the south-east, and numbers grow westwards, then northwards.
    """
    source = dataset.tables[table.visits]
    columns = visits[source.name] if source.name in visits else make_regular_table(dataset, source)
    across, up = table.detectors
    ra, dec = (np.repeat(np.asarray(columns[name]), across * up) for name in source.position)
    detector = np.tile(np.arange(across * up), len(ra) // (across * up))
    visit = np.repeat(np.arange(len(ra) // (across * up)), across * up)
    rows = Rows(len(ra), 0, NO_CHUNK, 0, {})
    east = ((across - 1) / 2 - detector % across) * table.spacing_deg
    north = (detector // across - (up - 1) / 2) * table.spacing_deg
    rows.ra_deg, rows.dec_deg = _offset(ra, dec, east, north)
    names = {name for entry in table.entries for name in entry.generator.visit_columns()}
    rows.visits = {name: columns[name][visit] for name in names} | {"#detector": detector}
    return rows


def _offset(
    ra_deg: np.ndarray, dec_deg: np.ndarray, east_deg: np.ndarray, north_deg: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the planes that touch the sky at some points (gnomonic projection, Calabretta & Greisen 2002, A&A 395, 1077)."""
    xi, eta = (np.asarray(part) * (math.pi / 180.0) for part in (east_deg, north_deg))
    sin_dec, cos_dec = exactmath.sincos_deg(dec_deg)
    north = sin_dec + eta * cos_dec
    meridian = cos_dec - eta * sin_dec
    length = np.sqrt(1.0 + xi * xi + eta * eta)
    distance = np.sqrt(xi * xi + meridian * meridian)
    on_pole = distance == 0.0
    sine = np.clip(xi / np.where(on_pole, 1.0, distance), -1.0, 1.0)
    turn = exactmath.asin_deg(sine)
    turn = np.where(meridian < 0.0, 180.0 - turn, turn)
    ra = np.asarray(ra_deg) + turn
    ra = np.where(ra < 0.0, ra + 360.0, ra)
    ra = np.where(ra >= 360.0, ra - 360.0, ra)
    return ra, exactmath.asin_deg(np.clip(north / length, -1.0, 1.0))


def read_table_file(table: Table) -> dict[str, Values]:
    """Read a regular table from CSV (header optional, comma or tab) or Parquet.

    Raises
    ------
    ConfigError
        If a column is missing or holds values that do not fit its type.
    """
    import pandas as pd

    path, names = table.from_file, [column.name for column in table.columns]
    if not path.is_file():
        raise ConfigError(
            f"tables.{table.name}.from_file: there is no file {path}; paths are relative to the folder of the configuration"
        )
    where = f"tables.{table.name}.from_file ({path.name})"
    try:
        if path.suffix in (".parquet", ".parq"):
            frame = pd.read_parquet(path)
        else:
            with open(path, encoding="utf-8-sig") as file:
                first = file.readline().rstrip("\n")
            if not first.strip():
                raise ConfigError(
                    f"{where}: the file is empty, or begins with an empty line; write a header or a row there"
                )
            separator = "\t" if "\t" in first else ","
            fields = [field.strip().strip('"') for field in first.split(separator)]
            has_header = bool(set(fields) & set(names))
            if has_header and len(set(fields)) < len(fields):
                raise ConfigError(f"{where}: the header names a column twice: {', '.join(fields)}; drop one")
            if not has_header and {field.lower() for field in fields} & {name.lower() for name in names}:
                raise ConfigError(
                    f"{where}: the header ({', '.join(fields)}) differs by case from the table's columns: {', '.join(names)}; rename them"
                )
            if not has_header and len(fields) != len(names):
                raise ConfigError(
                    f"{where}: found no header and {len(fields)} fields in a row, but the table has {len(names)} columns: "
                    f"{', '.join(names)}; write a header, and commas or tabs between the fields"
                )
            frame = pd.read_csv(
                path,
                sep=separator,
                header=0 if has_header else None,
                names=None if has_header else names,
                skipinitialspace=True,
                na_values=["\\N"],
                keep_default_na=True,
                dtype_backend="numpy_nullable",  # whole numbers beside empty fields keep their digits
            )
            if not isinstance(frame.index, pd.RangeIndex):
                raise ConfigError(
                    f"{where}: the rows have more fields than the first line; name all columns in the header"
                )
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: cannot be read: it is no text in UTF-8; save it as CSV in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise ConfigError(f"{where}: cannot be read: {reason}; correct the file") from None
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ConfigError(
            f"{where}: the column {missing[0]} is missing; found are {', '.join(map(str, frame.columns))}"
        )
    return {column.name: _from_pandas(frame[column.name], column, where) for column in table.columns}


def _from_pandas(series, column: Column, where: str) -> Values:  # noqa: ANN001 - pandas is imported only when needed
    """A column of a file in the type of the schema."""
    null = series.isna().to_numpy()
    if null.any() and not column.type.nullable:
        raise ConfigError(
            f"{where}: {column.name} is NOT NULL, but row {int(np.flatnonzero(null)[0]) + 1} has no value; fill it in, or drop NOT NULL"
        )
    if column.type.kind == "string":
        try:
            values, codes = np.unique(series.where(~null, "").astype(str).to_numpy(dtype=str), return_inverse=True)
        except UnicodeDecodeError:
            raise ConfigError(f"{where}: {column.name} holds bytes that are no text in UTF-8") from None
        too_long = [value for value in values.tolist() if len(value) > column.type.length]
        if too_long:
            raise ConfigError(
                f'{where}: {column.name}: "{too_long[0]}" is longer than {column.type.text}; make the type longer'
            )
        return Strings(np.where(null, -1, codes).astype(np.int32), tuple(values.tolist()))
    if column.type.kind == "datetime":
        return _times_from_pandas(series, null, column, where)
    try:
        values = series.where(~null, 0).to_numpy()
        typed = values.astype(column.type.dtype)
        if column.type.kind != "float" and len(values) and not (typed == values).all():
            row = int(np.flatnonzero(typed != values)[0])
            raise ConfigError(f"{where}: {column.name}, row {row + 1}: {values[row]} does not fit {column.type.text}")
    except (ValueError, TypeError, OverflowError):
        import pandas as pd

        numbers = pd.to_numeric(series, errors="coerce").astype("float64")
        wrong = np.flatnonzero(~null & ~(numbers.abs() < 2.0**63).to_numpy())
        which = f", row {wrong[0] + 1}: {series.iloc[wrong[0]]}" if len(wrong) else ": a value"
        raise ConfigError(f"{where}: {column.name}{which} does not fit {column.type.text}") from None
    if not np.isfinite(typed.astype(np.float64)).all():
        raise ConfigError(f"{where}: {column.name} holds inf, which no database takes; leave the field empty for NULL")
    return np.ma.masked_array(typed, null) if null.any() else typed


def _times_from_pandas(series, null: np.ndarray, column: Column, where: str) -> Values:  # noqa: ANN001
    """A column of times of a file."""
    import pandas as pd

    values = np.zeros(len(series), dtype=column.type.dtype)
    try:
        values[~null] = pd.to_datetime(series[~null], format="ISO8601").to_numpy().astype(column.type.dtype)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{where}: {column.name}: {str(error).split('. ')[0]}; it must be {column.type.text}, as 2025-06-30 23:30:00"
        ) from None
    return np.ma.masked_array(values, null) if null.any() else values


def _check_visits(table: Table, columns: dict[str, Values]) -> None:
    """Visits must have an id each, a filter, and a place on the sky."""
    where = f"tables.{table.name}" + (f".from_file ({table.from_file.name})" if table.from_file else "")
    ids = columns[table.visit["id"]]
    for name in (table.visit["id"], *table.position):
        null = np.ma.getmaskarray(columns[name])
        if null.any():
            raise ConfigError(f"{where}: {name}: row {int(np.flatnonzero(null)[0]) + 1} is NULL or NaN; visits need it")
    if (columns[table.visit["filter"]].codes < 0).any():
        row = int(np.flatnonzero(columns[table.visit["filter"]].codes < 0)[0])
        raise ConfigError(f"{where}: {table.visit['filter']}: row {row + 1} has no filter; visits need it")
    if len(np.unique(np.asarray(ids))) < len(ids):
        raise ConfigError(f"{where}: {table.visit['id']}: an id stands twice; each visit needs its own")
    for name, low, high in zip(table.position, (0.0, -90.0), (360.0, 90.0), strict=True):
        values = np.asarray(columns[name])
        bad = np.flatnonzero((values < low) | (values > high))
        if len(bad):
            raise ConfigError(
                f"{where}: {name}: row {int(bad[0]) + 1} is {values[bad[0]]} deg; it must be from {low:g} to {high:g}"
            )


class Visits:
    """Visits that can be searched by place.

    Attributes
    ----------
    columns : `dict` [`str`, `Values`]
        The table's columns in ascending order of the visits' ids, and ``#filter``: indices into `filters`.
    filters : `tuple` of `str`
        Names of the filters.
    """

    def __init__(self, columns: dict[str, Values], table: Table):
        order = np.argsort(np.asarray(columns[table.visit["id"]]), kind="stable")
        self.columns = {name: values[order] for name, values in columns.items()}
        self.filters = self.columns[table.visit["filter"]].values
        self.columns["#filter"] = self.columns[table.visit["filter"]].codes
        self._ra_deg, self._dec_deg = (np.asarray(self.columns[name]) for name in table.position)
        self._vectors = np.stack(exactmath.unit_vectors(self._ra_deg, self._dec_deg))
        self._by_dec = np.argsort(self._dec_deg, kind="stable")
        self._sorted_dec = self._dec_deg[self._by_dec]

    def near(self, ra_deg: np.ndarray, dec_deg: np.ndarray, radius_deg: float) -> np.ndarray:
        """Visits that may see any of some points: indices, ascending (a few that see none are among them)."""
        reach = radius_deg + MARGIN_DEG
        low, high = float(dec_deg.min()), float(dec_deg.max())
        band = self._by_dec[
            np.searchsorted(self._sorted_dec, low - reach) : np.searchsorted(self._sorted_dec, high + reach, "right")
        ]
        alpha = max_alpha_deg(reach, max(abs(low), abs(high))) + MARGIN_DEG
        ra_low, ra_high = float(ra_deg.min()) - alpha, float(ra_deg.max()) + alpha
        if alpha < 180.0 and ra_high - ra_low < 360.0:
            ra = self._ra_deg[band]
            # The range may leave [0, 360] on either side.
            inside = ((ra >= ra_low) & (ra <= ra_high)) | (ra - 360.0 >= ra_low) | (ra + 360.0 <= ra_high)
            band = band[inside]
        return np.sort(band)

    def match(
        self, ra_deg: np.ndarray, dec_deg: np.ndarray, radius_deg: float
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of a point and a visit whose centre is within a radius of it.

        Parameters
        ----------
        ra_deg, dec_deg : `numpy.ndarray`, float64, (n,)
            The points.
        radius_deg : `float`
            Largest separation [deg], itself included.

        Yields
        ------
        row, visit : `numpy.ndarray`, int64
            Indices of points and of visits, ordered by point, then by visit id. The square of the chord decides: it is
            well conditioned at small separations, where an arc cosine is not.
        """
        if not len(ra_deg):
            return
        candidates = self.near(ra_deg, dec_deg, radius_deg)
        limit = _square_of_chord(radius_deg)
        points = exactmath.unit_vectors(ra_deg, dec_deg)
        centres = [axis[candidates] for axis in self._vectors]
        step = max(1, BLOCK_PAIRS // max(1, len(candidates)))
        for start in range(0, len(ra_deg), step):
            square = None
            for point, centre in zip(points, centres, strict=True):
                difference = np.subtract.outer(point[start : start + step], centre)
                difference *= difference
                square = difference if square is None else np.add(square, difference, out=square)
            row, candidate = np.nonzero(square <= limit)
            yield row + start, candidates[candidate]


@functools.lru_cache
def _square_of_chord(angle_deg: float) -> float:
    half_chord = float(exactmath.sin_deg(0.5 * angle_deg))
    return 4.0 * half_chord * half_chord


def save_arrays(path: Path, columns: dict[str, Values]) -> None:
    """Write columns to a binary file of arrays (``.npz``)."""
    arrays = {}
    for name, values in columns.items():
        if isinstance(values, Strings):
            arrays[f"codes:{name}"], arrays[f"values:{name}"] = values.codes, np.array(values.values)
        else:
            arrays[f"data:{name}"] = np.ma.getdata(values)
            if np.ma.is_masked(values):
                arrays[f"mask:{name}"] = np.ma.getmaskarray(values)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def load_visits(path: Path, table: Table) -> Visits:
    """Read the visits that `save_arrays` wrote."""
    return Visits(load_arrays(path, table), table)


def load_arrays(path: Path, table: Table) -> dict[str, Values]:
    """Read the columns that `save_arrays` wrote.

    Raises
    ------
    SkymillError
        If the file is damaged.
    """
    columns: dict[str, Values] = {}
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise SkymillError(
            f"cannot read {path}: it was damaged after it was written; remove it and run again"
        ) from None
    with file as arrays:
        for column in table.columns:
            name = column.name
            if f"codes:{name}" in arrays:
                columns[name] = Strings(arrays[f"codes:{name}"], tuple(arrays[f"values:{name}"].tolist()))
            elif f"mask:{name}" in arrays:
                columns[name] = np.ma.masked_array(arrays[f"data:{name}"], arrays[f"mask:{name}"])
            else:
                columns[name] = arrays[f"data:{name}"]
    return columns
