"""Counts pairs of points on the sky that are close together, by cells in space, so that neither poles nor RA 0 are special.

Separations are those of unit vectors, by their differences: an arc cosine of nearly 1 has lost its digits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

#: Pairs that are compared at a time.
BLOCK_PAIRS = 1 << 17
#: Points that are sorted into cells at a time, in a band of declination.
BAND_POINTS = 1 << 16
#: Cells are half as wide as the radius where they would hold more points than this.
DENSE = 16
#: Points are sought along one axis only if there are not more than so many for each.
SPARSE = 256
#: The smallest cell: the number of cells along an axis, cubed, must fit 63 bits.
SMALLEST = 2e-6


def chord_squared(angle_deg: float) -> float:
    """The square of the distance of two unit vectors that are ``angle_deg`` apart."""
    return 4.0 * math.sin(math.radians(angle_deg) / 2.0) ** 2


def _vectors(ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    """Unit vectors (3, n)."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    vectors = np.empty((3, len(ra)))
    np.sin(dec, out=vectors[2])
    np.cos(dec, out=dec)
    np.multiply(dec, np.cos(ra), out=vectors[0])
    np.multiply(dec, np.sin(ra), out=vectors[1])
    return vectors


def _turned(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points turned so that their middle lies on the third axis: they then lie flat in the other two, which makes for few cells."""
    middle = vectors.mean(axis=1)
    length = float(np.sqrt(middle @ middle))
    if length < 0.1:  # all around the sky
        return vectors, others
    third = middle / length
    first = np.cross(third, np.eye(3)[np.argmin(np.abs(third))])
    first /= np.sqrt(first @ first)
    turn = np.stack([first, np.cross(third, first), third])
    return turn @ vectors, turn @ others


class _Cells:
    """Points sorted by the cell of space that they lie in."""

    def __init__(self, vectors: np.ndarray, size: float):
        self.size = size
        self.along = math.ceil(2.0 / size) + 16
        keys = self.keys(vectors)
        order = np.argsort(keys)
        self.vectors = np.ascontiguousarray(vectors[:, order])
        self.points = keys[order]
        starts = np.flatnonzero(np.diff(self.points, prepend=self.points[:1] - 1))
        self.cells = self.points[starts]
        self._starts = np.append(starts, len(self.points))

    def keys(self, vectors: np.ndarray) -> np.ndarray:
        """The numbers of the cells that some points lie in (int64)."""
        x, y, z = np.floor(vectors * (1.0 / self.size)).astype(np.int64) + self.along // 2
        return (x * self.along + y) * self.along + z

    def between(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ranges of points in the cells from ``low`` to ``high``, both included."""
        first = np.searchsorted(self.cells, low)
        return self._starts[first], self._starts[np.searchsorted(self.cells, high, side="right")]


def count_pairs(
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    other_ra_deg: np.ndarray,
    other_dec_deg: np.ndarray,
    radii_deg: Sequence[float],
    most_candidates: int | None = None,
) -> list[int] | None:
    """Count ordered pairs of one of some points with another of them, or with one of others, that are closer than each of some radii.

    Parameters
    ----------
    ra_deg, dec_deg : `numpy.ndarray`, float64, (n,)
        The points.
    other_ra_deg, other_dec_deg : `numpy.ndarray`, float64, (m,)
        The others; pairs among themselves do not count.
    radii_deg : sequence of `float`
        Radii [deg].
    most_candidates : `int`, optional
        The most pairs that may be compared.

    Returns
    -------
    counts : `list` [`int`] or `None`
        The pairs for each radius; None if more would have to be compared than allowed.
    """
    limits = [chord_squared(radius) for radius in radii_deg]
    counts, candidates = np.zeros(len(limits), dtype=np.int64), 0
    for mine, *band in _bands(ra_deg, dec_deg, other_ra_deg, other_dec_deg, max(radii_deg)):
        left = None if most_candidates is None else most_candidates - candidates
        vectors = _vectors(*band)
        found, compared = _count_band(vectors[:, :mine], vectors[:, mine:], limits, left)
        candidates += compared
        if most_candidates is not None and candidates > most_candidates:
            return None
        counts += found
    return counts.tolist()


def _bands(
    ra_deg: np.ndarray, dec_deg: np.ndarray, other_ra_deg: np.ndarray, other_dec_deg: np.ndarray, radius_deg: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Points in bands of declination: how many they are, and the places of them and of all others that may be near.

    A pair across two bands is met in both.
    """
    if len(ra_deg) <= BAND_POINTS:
        if len(ra_deg):
            yield len(ra_deg), np.concatenate([ra_deg, other_ra_deg]), np.concatenate([dec_deg, other_dec_deg])
        return
    order = np.argsort(dec_deg)
    dec = dec_deg[order]
    bounds = np.linspace(0, len(dec), math.ceil(len(dec) / BAND_POINTS) + 1).astype(int).tolist()
    for start, stop in itertools.pairwise(bounds):
        # A little more than the radius, for what is rounded.
        low, high = dec[start] - radius_deg - 1e-9, dec[stop - 1] + radius_deg + 1e-9
        first, last = np.searchsorted(dec, (low, high))
        chosen = np.concatenate([order[start:stop], order[first:start], order[stop:last]])
        near = np.flatnonzero((other_dec_deg >= low) & (other_dec_deg <= high))
        yield (
            stop - start,
            np.concatenate([ra_deg[chosen], other_ra_deg[near]]),
            np.concatenate([dec_deg[chosen], other_dec_deg[near]]),
        )


def _count_band(
    vectors: np.ndarray, others: np.ndarray, limits: Sequence[float], most: int | None
) -> tuple[np.ndarray, int]:
    """Ordered pairs of points, and of points with others, below each limit (int64), and how many were compared: none if they are too many."""
    reach = max(math.sqrt(max(limits)) * (1.0 + 1e-9), SMALLEST)
    home, among, beside = _in_strips(vectors, others, reach)
    if _count(among) + _count(beside) > SPARSE * (vectors.shape[1] + others.shape[1]):
        vectors, others = _turned(vectors, others)
        home, among, beside = _in_cells(vectors, others, reach)
    compared = _count(among) + _count(beside)
    if most is not None and compared > most:
        return np.zeros(len(limits), dtype=np.int64), compared
    inside, outside = (_count_near(points, home, found, limits) for points, found in ((home, among), (others, beside)))
    return 2 * inside + outside, compared


def _count_near(points: np.ndarray, others: np.ndarray, ranges: _Ranges, limits: Sequence[float]) -> np.ndarray:
    """For each limit the pairs of points with the others of their ranges whose squared distance is below it (int64)."""
    from . import fact_kernels

    counts = np.zeros(len(limits), dtype=np.int64)
    kernels = fact_kernels.load()
    for part in ranges if kernels is not None else ():
        counts += kernels.count_near(points, others, part, np.array(limits))
    for distances in _distances(points, others, ranges) if kernels is None else ():
        counts += [int(np.count_nonzero(distances < limit)) for limit in limits]
    return counts


#: For each of some points (indices, repeated as need be) a range of others that may be near.
_Ranges = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _count(ranges: _Ranges) -> int:
    return sum(int((stop - start).sum()) for _, start, stop in ranges)


def _in_strips(vectors: np.ndarray, others: np.ndarray, reach: float) -> tuple[np.ndarray, _Ranges, _Ranges]:
    """Points sorted along the axis where they are the furthest apart, and what lies within reach of them and of others along it."""
    axis = int(np.argmax(vectors.max(axis=1) - vectors.min(axis=1)))
    vectors = vectors[:, np.argsort(vectors[axis])]
    along, itself = vectors[axis], np.arange(vectors.shape[1])
    among = (itself, itself + 1, np.searchsorted(along, along + reach, side="right"))
    low, high = others[axis] - reach, others[axis] + reach
    bounds = (np.searchsorted(along, low), np.searchsorted(along, high, side="right"))
    return vectors, [among], [(np.arange(others.shape[1]), *bounds)]


def _in_cells(vectors: np.ndarray, others: np.ndarray, reach: float) -> tuple[np.ndarray, _Ranges, _Ranges]:
    """Points sorted by cells, and what lies in the cells around them and around others."""
    parts, home = 1, _Cells(vectors, reach)
    if len(home.points) > DENSE * len(home.cells) and reach > 2 * SMALLEST:
        parts, home = 2, _Cells(vectors, reach / 2)
    steps = range(-parts, parts + 1)
    # Among the points themselves each pair once: cells before or beside, not both.
    half = [(x, y) for x, y in itertools.product(range(parts + 1), steps) if (x, y) > (0, 0)]
    among = list(_ranges(home, home.points, half, parts))
    # Within the column of its own cell: what stands behind the point itself.
    itself = np.arange(len(home.points))
    among.append((itself, itself + 1, home.between(home.points, home.points + parts)[1]))
    beside = []
    if others.shape[1]:
        beside = list(_ranges(home, home.keys(others), list(itertools.product(steps, steps)), parts))
    return home.vectors, among, beside


def _ranges(
    cells: _Cells, keys: np.ndarray, steps: Sequence[tuple[int, int]], parts: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The ranges of points in the columns of cells that lie some steps away from those of other points, and whose they are."""
    shifts = np.array([(x * cells.along + y) * cells.along for x, y in steps])
    together = max(1, BLOCK_PAIRS // len(keys))
    for first in range(0, len(shifts), together):
        shifted = shifts[first : first + together, None] + keys
        start, stop = cells.between(shifted - parts, shifted + parts)
        step, point = np.nonzero(stop > start)
        yield point, start[step, point], stop[step, point]


def _distances(points: np.ndarray, others: np.ndarray, ranges: _Ranges) -> Iterator[np.ndarray]:
    """The squared distances of points to the others of their ranges, block by block."""
    if not ranges:
        return
    point, start, stop = (np.concatenate(column) for column in zip(*ranges, strict=True))
    ends = np.cumsum(stop - start)
    first = 0
    while first < len(point):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + BLOCK_PAIRS, side="right")))
        part = slice(first, last)
        length = stop[part] - start[part]
        # The others of a point stand one behind the other, so that their places follow from where its range begins.
        other = np.repeat(start[part] - (ends[part] - length - done), length)
        other += np.arange(len(other))
        squares = None
        for axis, values in zip(points, others, strict=True):
            difference = np.repeat(axis[point[part]], length)
            difference -= values[other]
            difference *= difference
            squares = difference if squares is None else np.add(squares, difference, out=squares)
        yield squares
        first = last
