"""The density of rows on the sky, uniform or from a HEALPix map: expected counts in a box, and positions in it.

A density cuts a box into cells in which it is constant: one for a uniform density, the pixels that meet the box for a
map. `expected_counts` gives the cells and how many rows each is expected to hold, `sample` gives positions in one cell.
Both have the same bits on every processor.

HEALPix (Gorski et al. 2005, ApJ 622, 759; as a projection: Calabretta & Roukema 2007, MNRAS 381, 865). The sphere is
mapped to a plane (x, y), in units of 45 degrees, that keeps areas up to a constant factor:

- equatorial zone, |sin Dec| <= 2/3, |y| <= 1:  x = RA / 45,  y = 3/2 sin Dec
- polar caps:  x = x_c + (RA / 45 - x_c) sigma,  y = +-(2 - sigma),  where sigma = sqrt(3 (1 - |sin Dec|)) and
  x_c = 1, 3, 5, 7 is the middle of the quarter of the cap.

In the plane every pixel is a square that stands on a corner, |x - x_pixel| + |y - y_pixel| <= 1 / nside, and lines of
constant RA and of constant Dec are straight within its upper half and within its lower half. So a box cuts a half into
trapezoids, whose areas are exact and in which a point can be drawn without rejection.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skymill.exactmath import asin_deg, cos_deg, sin_deg

if TYPE_CHECKING:
    from skymill.chunker import Box

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_DEG_PER_RAD = 57.29577951308232
_SQ_DEG_PER_UNIT = 1718.8733853924696  # 5400 / pi: area on the sky of a unit of area in the plane
_SQRT_6 = 2.449489742783178
_POLAR_DEC_DEG = 41.810314895778596  # asin(2/3)
_TINY = 1e-300  # keeps a divisor from being 0 where the quotient is not used
_BLOCK_PIXELS = 2048  # pixels worked on at a time; has no influence on the results

# x and y of the centres of the 12 base pixels: four around the north pole, four at the equator, four around the south
# pole. Base pixel 4 straddles RA 0, so it stands here a second time, as number 12, 360 deg further east.
_BASE_X = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7, 8], dtype=np.float64)
_BASE_Y = np.array([1, 1, 1, 1, 0, 0, 0, 0, -1, -1, -1, -1, 0], dtype=np.float64)

_HALF_SIGN = np.array([[-1.0], [1.0]])  # the lower and the upper half of a pixel


def box_area_sq_deg(box: Box) -> float:
    """Area of a box on the sphere, in square degrees."""
    return (box.ra_max_deg - box.ra_min_deg) * _sine_difference(box.dec_min_deg, box.dec_max_deg) * _DEG_PER_RAD


@functools.lru_cache(maxsize=1024)
def _sine_difference(dec_min_deg: float, dec_max_deg: float) -> float:
    """sin(dec_max) - sin(dec_min), without the cancellation; all chunks of a stripe ask for the same."""
    return 2.0 * sin_deg(0.5 * (dec_max_deg - dec_min_deg)) * cos_deg(0.5 * (dec_min_deg + dec_max_deg))


@functools.lru_cache(maxsize=1024)
def _sin_of_limit(dec_deg: float) -> float:
    """Sine of a limit of a box; those of a stripe are asked for again and again."""
    return sin_deg(dec_deg)


class UniformDensity:
    """The same density everywhere.

    Parameters
    ----------
    per_sq_deg : float
        Rows per square degree.

    Raises
    ------
    ValueError
        If it is negative or not finite.
    """

    def __init__(self, per_sq_deg: float):
        if not 0.0 <= per_sq_deg < np.inf:
            raise ValueError(f"density: found {per_sq_deg} per square degree; give a finite number >= 0")
        self.per_sq_deg = float(per_sq_deg)

    def expected_counts(self, box: Box) -> tuple[IntArray, FloatArray]:
        """The single cell 0, and the rows that are expected in the box: two arrays of length 1."""
        return np.zeros(1, dtype=np.int64), np.array([self.per_sq_deg * box_area_sq_deg(box)])

    def sample(self, rng: np.random.Generator, box: Box, cell: int, n: int) -> tuple[FloatArray, FloatArray]:
        """Positions that are uniform on the sphere inside a box.

        Takes n numbers from the stream for RA, then n for Dec; the cell is not used. By rounding a position may lie on
        the upper limit of the box, or pass a limit by about 1e-14 deg (1e-6 deg next to a pole).

        Returns
        -------
        ra_deg, dec_deg : arrays of length n
        """
        ra = rng.random(n)
        ra *= box.ra_max_deg - box.ra_min_deg
        ra += box.ra_min_deg
        z_min, z_max = _sin_of_limit(box.dec_min_deg), _sin_of_limit(box.dec_max_deg)
        z = rng.random(n)
        z *= z_max - z_min
        z += z_min
        return ra, asin_deg(np.minimum(z, z_max))


class HealpixDensity:
    """A density that is constant in each pixel of a HEALPix map, with RA and Dec as the coordinates of the map.

    Parameters
    ----------
    per_sq_deg_nested : array of length 12 nside**2
        Rows per square degree in each pixel, in NESTED order; nside is a power of 2.

    Raises
    ------
    ValueError
        If the length is wrong, or a value is negative or not finite.
    """

    def __init__(self, per_sq_deg_nested: ArrayLike):
        self.per_sq_deg = np.asarray(per_sq_deg_nested, dtype=np.float64)
        self.nside = _check_map(self.per_sq_deg, "density map")

    def expected_counts(self, box: Box) -> tuple[IntArray, FloatArray]:
        """The pixels that meet a box, and the rows that are expected in the part of each that is in the box.

        Returns
        -------
        cells : int64 array
            Numbers of the pixels in NESTED order, ascending. Pixels in which no row is expected are left out.
        expected : float64 array of the same length
        """
        nside = 1
        pixels = np.arange(len(_BASE_X))
        area = _areas_in_box(nside, pixels, box)
        # Down the tree of pixels, two levels at a time: to the descendants of those that meet the box.
        while nside < self.nside:
            step = min(4, self.nside // nside)
            nside *= step
            pixels = (pixels[area > 0.0, None] * step**2 + np.arange(step**2)).reshape(-1)
            area = _areas_in_box(nside, pixels, box)
        # Base pixel 12 is base pixel 4.
        pixels, part = np.unique(np.where(pixels < 12 * nside**2, pixels, pixels - 8 * nside**2), return_inverse=True)
        expected = self.per_sq_deg[pixels] * np.bincount(part, weights=area, minlength=len(pixels))
        is_used = expected > 0.0
        return pixels[is_used], expected[is_used]

    def sample(self, rng: np.random.Generator, box: Box, cell: int, n: int) -> tuple[FloatArray, FloatArray]:
        """Positions that are uniform on the sphere inside the part of a pixel that is in a box.

        Takes n numbers from the stream for y, then n for x. By rounding a position may lie on the upper limit of the
        box, or pass a limit of box or pixel by about 1e-13 deg.

        Parameters
        ----------
        rng : numpy.random.Generator
            The stream.
        box : Box
            The box.
        cell : int
            A pixel that meets the box, from `expected_counts`.
        n : int
            How many positions.

        Returns
        -------
        ra_deg, dec_deg : arrays of length n

        Raises
        ------
        ValueError
            If there is no such pixel, or it does not meet the box.
        """
        if not 0 <= cell < 12 * self.nside**2:
            raise ValueError(f"pixel {cell}: nside {self.nside} has the pixels 0 to {12 * self.nside**2 - 1}")
        # Of base pixel 4 both places (see _BASE_X) are looked at.
        pixels = [cell, cell + 8 * self.nside**2] if cell // self.nside**2 == 4 else [cell]
        cut = _cut(self.nside, np.array(pixels), box)
        area = cut.area.reshape(-1)
        ends = np.cumsum(area)  # of each trapezoid's share of [0, whole area); a cumulative sum has only one order
        if not ends[-1] > 0.0:
            raise ValueError(f"pixel {cell} (nside {self.nside}, NESTED) does not meet {box}; take a cell of the box")
        place = rng.random(n) * ends[-1]
        chosen = np.searchsorted(ends, place, side="right")
        fraction = _clip((place - (ends - area)[chosen]) / area[chosen], 0.0, 1.0)
        w0, w1, t0, t1, left0, left1 = cut.of_trapezoids(
            chosen, cut.width[:-1], cut.width[1:], cut.t[:-1], cut.t[1:], cut.left[:-1], cut.left[1:]
        )
        # The width goes from w0 to w1 linearly: solve (area below) = fraction * area for the height, in [0, 1].
        root = np.sqrt(w0 * w0 + fraction * ((w1 - w0) * (w1 + w0)))
        height = np.minimum(fraction * (w0 + w1) / np.maximum(w0 + root, _TINY), 1.0)
        t = t0 + height * (t1 - t0)
        x = left0 + height * (left1 - left0) + rng.random(n) * (w0 + height * (w1 - w0))

        # Back to the sphere.
        base_x, y, sign, squeeze, slope, ra_min, ra_max = cut.of_trapezoids(
            chosen, cut.base_x, cut.y, _HALF_SIGN, cut.squeeze, cut.squeeze_slope, cut.ra_min, cut.ra_max
        )
        ra = _clip(x / np.maximum(squeeze + slope * t, _TINY), ra_min, ra_max)
        y = y + sign * t
        distance = np.abs(y)
        is_polar = distance > 1.0
        angle = asin_deg(np.where(is_polar, (2.0 - distance) / _SQRT_6, distance / 1.5))
        return 45.0 * (base_x + ra), np.copysign(np.where(is_polar, 90.0 - 2.0 * angle, angle), y)


def read_density_map(path: str | Path, ordering: str = "ring", per_sq_deg_unit_scale: float = 1.0) -> FloatArray:
    """Read a HEALPix density map.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file (array of length 12 nside**2) or a ``.fits`` file (HEALPix binary table, its first column).
    ordering : "ring" or "nested"
        Order of the pixels. The keyword ORDERING in the header of a FITS file wins over it.
    per_sq_deg_unit_scale : float
        Factor that turns the unit of the map into rows per square degree.

    Returns
    -------
    per_sq_deg_nested : float64 array of length 12 nside**2, in NESTED order

    Raises
    ------
    ValueError
        If the file cannot be read, or is no map of finite densities >= 0 with nside a power of 2, or is a FITS file
        that says that its coordinates are not equatorial.
    """
    path = Path(path)
    if ordering not in ("ring", "nested"):
        raise ValueError(f'{path}: found the ordering "{ordering}"; allowed are "ring" and "nested"')
    if not 0.0 < per_sq_deg_unit_scale < np.inf:
        raise ValueError(f"{path}: found the unit scale {per_sq_deg_unit_scale}; give a finite number > 0")
    if path.suffix.lower() == ".npy":
        values = _read_npy(path)
    elif path.suffix.lower() == ".fits":
        values, ordering = _read_fits(path, ordering)
    else:
        raise ValueError(
            f'{path}: found the extension "{path.suffix}"; density maps are read from .npy and .fits files: '
            "convert the map, or rename the file"
        )
    values = values * per_sq_deg_unit_scale
    _check_map(values, str(path))
    if ordering == "ring":
        import healpy

        values = healpy.reorder(values, r2n=True)
    return values


@dataclass(frozen=True)
class _Cut:
    """What a box cuts out of pixels: 5 trapezoids (many of them empty) of each half of each pixel.

    In a half t = |y - y_pixel| goes from 0 (the middle of the pixel) to 1 / nside (its corner). x is relative to the
    centre of the base pixel, and so are the limits of the box in RA (units of 45 deg, in [-1, 1]).
    """

    base_x: FloatArray  # (pixels): x of the centre of the base pixel
    y: FloatArray  # (pixels): y of the centre of the pixel
    squeeze: FloatArray  # (2, pixels): x / RA at t = 0, and its slope with t:
    squeeze_slope: FloatArray  # (2, pixels): 1 and 0 in the equatorial zone, where sigma is in the caps
    ra_min: FloatArray  # (pixels)
    ra_max: FloatArray  # (pixels)
    t: FloatArray  # (6, 2, pixels), ascending: where the trapezoids begin and end
    left: FloatArray  # (6, 2, pixels): their left edge at t
    width: FloatArray  # (6, 2, pixels): their width in x at t
    area: FloatArray  # (5, 2, pixels)

    def of_trapezoids(self, numbers: IntArray, *columns: FloatArray) -> FloatArray:
        """Rows of values, one row for each column, of the trapezoids with these numbers (their place in `area`)."""
        table = np.empty((len(columns), *self.area.shape))
        for values, column in zip(table, columns, strict=True):
            values[...] = column
        return table.reshape(len(columns), -1)[:, numbers]


def _cut(nside: int, pixels: IntArray, box: Box) -> _Cut:
    """Cut the pixels of a map at the limits of a box."""
    size = 1.0 / nside
    base = pixels // nside**2
    column, row = _even_bits(np.array([pixels, pixels >> 1]) & (nside**2 - 1))  # to the north-east and north-west
    x = (column - row) * size
    y = (column + row + 1) * size + (_BASE_Y[base] - 1.0)
    base_x = _BASE_X[base]
    ra_min = _clip((box.ra_min_deg - 45.0 * base_x) / 45.0, -1.0, 1.0)
    ra_max = _clip((box.ra_max_deg - 45.0 * base_x) / 45.0, -1.0, 1.0)
    is_polar = np.abs(y + _HALF_SIGN * (0.5 * size)) > 1.0
    squeeze = np.where(is_polar, 2.0 - np.abs(y), 1.0)
    slope = np.where(is_polar, -_HALF_SIGN * np.sign(y), 0.0)

    # A trapezoid ends at a limit of the box in Dec, or where a limit in RA crosses an edge of the pixel.
    t = np.empty((6, 2, len(pixels)))
    for i, y_limit in enumerate(_plane_y(box)):
        t[i] = _clip(_HALF_SIGN * (y_limit - y), 0.0, size)
    lowest, highest = np.minimum(t[0], t[1]), np.maximum(t[0], t[1])
    for i, ra in ((2, ra_min), (4, ra_max)):
        at_0, rise = ra * squeeze, ra * slope  # |rise| <= 1
        t[i] = _clip((at_0 - x + size) / np.maximum(1.0 - rise, _TINY), lowest, highest)
        t[i + 1] = _clip((x + size - at_0) / np.maximum(1.0 + rise, _TINY), lowest, highest)
    t.sort(axis=0)

    squeeze_at_t = squeeze + slope * t
    left = np.maximum(x - (size - t), ra_min * squeeze_at_t)
    width = np.maximum(np.minimum(x + (size - t), ra_max * squeeze_at_t) - left, 0.0)
    area = (t[1:] - t[:-1]) * (0.5 * (width[1:] + width[:-1]))
    return _Cut(base_x, y, squeeze, slope, ra_min, ra_max, t, left, width, area)


def _areas_in_box(nside: int, pixels: IntArray, box: Box) -> FloatArray:
    """Area in square degrees of the part of each pixel that is in the box."""
    areas = np.zeros(len(pixels))
    for start in range(0, len(pixels), _BLOCK_PIXELS):
        block = slice(start, start + _BLOCK_PIXELS)
        parts = _cut(nside, pixels[block], box).area
        for part in parts.reshape(-1, parts.shape[-1]):  # in this order on every processor
            areas[block] += part
    areas *= _SQ_DEG_PER_UNIT
    return areas


@lru_cache(maxsize=8)
def _plane_y(box: Box) -> tuple[float, float]:
    """y in the plane of the lower and upper limit of a box in Dec."""
    dec = np.array([box.dec_min_deg, box.dec_max_deg])
    distance = np.abs(dec)
    # In the caps sigma = sqrt(6) sin((90 - |Dec|) / 2), which keeps its precision at the poles.
    is_polar = distance > _POLAR_DEC_DEG
    sine = sin_deg(np.where(is_polar, 0.5 * (90.0 - distance), distance))
    y_min, y_max = np.copysign(np.where(is_polar, 2.0 - _SQRT_6 * sine, 1.5 * sine), dec).tolist()
    return y_min, y_max


def _clip(values: FloatArray, low: FloatArray | float, high: FloatArray | float) -> FloatArray:
    return np.minimum(np.maximum(values, low), high)  # quicker than np.clip for small arrays


def _even_bits(number: IntArray) -> IntArray:
    """The number made of bits 0, 2, 4, ... of a number below 2**62."""
    number = number & 0x5555555555555555
    for shift, mask in (
        (1, 0x3333333333333333),
        (2, 0x0F0F0F0F0F0F0F0F),
        (4, 0x00FF00FF00FF00FF),
        (8, 0x0000FFFF0000FFFF),
        (16, 0x00000000FFFFFFFF),
    ):
        number = (number | (number >> shift)) & mask
    return number


def _check_map(values: FloatArray, name: str) -> int:
    """Return nside of a map; ValueError if it is no map of densities."""
    nside = 1
    while 12 * nside * nside < values.size:
        nside *= 2
    if values.ndim != 1 or values.size != 12 * nside * nside:
        raise ValueError(
            f"{name}: found an array of shape {values.shape}; a HEALPix map is one row of 12 nside^2 values with nside"
            " a power of 2 (12, 48, 192, 768, ... values): resample the map (healpy.ud_grade)"
        )
    for is_bad, what, remedy in (
        (~np.isfinite(values), "not a finite number", "set such pixels to 0 if there is nothing"),
        (values < 0.0, "negative", "set such pixels (healpy's UNSEEN is -1.6375e+30) to 0 if there is nothing"),
    ):
        if is_bad.any():
            first = int(is_bad.argmax())
            raise ValueError(
                f"{name}: found {int(is_bad.sum())} of {values.size} pixels {what}, the first is pixel {first}:"
                f" {values[first]}; densities are finite and >= 0: {remedy}"
            )
    return nside


def _read_npy(path: Path) -> FloatArray:
    try:
        return np.load(path, allow_pickle=False).astype(np.float64, casting="same_kind")
    except Exception as error:  # numpy raises many kinds, with advice that does not help here
        found = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise ValueError(
            f"{path}: cannot be read as a .npy file of numbers{found}; write it with numpy.save"
        ) from error


def _read_fits(path: Path, ordering: str) -> tuple[FloatArray, str]:
    """Values of the first map of a FITS file and their ordering."""
    import healpy

    try:
        values, header = healpy.read_map(path, dtype=np.float64, nest=None, h=True)
    except Exception as error:  # healpy and astropy raise many kinds
        raise ValueError(
            f"{path}: cannot be read as a HEALPix map in FITS ({str(error).split('. ')[0]}); it must be a table behind the first header, "
            "with 12 nside^2 pixels, as healpy.write_map writes it"
        ) from error
    header = {key: str(value).strip().upper() for key, value in header}
    coordinates = header.get("COORDSYS", "")
    if coordinates in ("G", "GALACTIC", "E", "ECLIPTIC"):
        raise ValueError(
            f"{path}: found COORDSYS = {coordinates}; the map must be in equatorial coordinates (C):"
            " rotate it (healpy.Rotator)"
        )
    found = header.get("ORDERING", ordering.upper())
    if found not in ("RING", "NESTED", "NEST"):
        raise ValueError(f"{path}: found ORDERING = {found}; allowed are RING and NESTED: correct the header")
    return values, "ring" if found == "RING" else "nested"
