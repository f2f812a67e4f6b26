"""The Qserv partitioning of the sky: stripes, chunks, sub-chunks and their overlap.

The sky is cut into stripes of equal height in declination, each stripe into chunks of equal width in right ascension,
each stripe into sub-stripes and each chunk into sub-chunks likewise. A sub-chunk's overlap is the set of points outside
of it that lie within ``overlap_deg`` of it (a little more: a box that certainly contains them).

Every formula is the one of the reference partitioner (``Chunker`` of the Qserv package *partition*), in the same order
of floating-point operations, because a point must be placed in exactly the same sub-chunk. The vectorised functions use
only operations that IEEE 754 rounds correctly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RAD_PER_DEG = math.pi / 180.0
DEG_PER_RAD = 180.0 / math.pi
ARCSEC_DEG = 1.0 / 3600.0
#: A longitude closer to 360 than this (1 mas) counts as 360, as in the reference.
EPSILON_DEG = 0.001 / 3600.0
#: Points that are worked on at a time: small enough for the processor's cache.
BLOCK_POINTS = 16384
MAX_OVERLAP_DEG = 10.0


class Box(NamedTuple):
    """A box in right ascension and declination [deg]; it never wraps around RA 0."""

    ra_min_deg: float
    ra_max_deg: float
    dec_min_deg: float
    dec_max_deg: float


class Placements(NamedTuple):
    """Where rows go: one entry for each copy of a row.

    Attributes
    ----------
    row : `numpy.ndarray`, int64, (n,)
        Index of the point that is placed.
    chunk, sub_chunk : `numpy.ndarray`, int32, (n,)
        The sub-chunk that gets a copy.
    """

    row: np.ndarray
    chunk: np.ndarray
    sub_chunk: np.ndarray


def count_segments(dec_min_deg: float, dec_max_deg: float, width_deg: float) -> int:
    """How many pieces of at least ``width_deg`` (on the sky) a band of declination is cut into."""
    dec = max(abs(dec_min_deg), abs(dec_max_deg))
    if dec > 90.0 - ARCSEC_DEG or width_deg >= 180.0:
        return 1
    width = max(width_deg, ARCSEC_DEG) * RAD_PER_DEG
    dec *= RAD_PER_DEG
    x = math.cos(width) - math.sin(dec) * math.sin(dec)
    u = math.cos(dec) * math.cos(dec)
    y = math.sqrt(abs(u * u - x * x))
    return math.floor(360.0 / abs(DEG_PER_RAD * math.atan2(y, x)))


def max_alpha_deg(radius_deg: float, dec_deg: float) -> float:
    """Half of the range of right ascension [deg] that a circle of ``radius_deg`` around a point at ``dec_deg`` covers."""
    if radius_deg == 0.0:
        return 0.0
    dec = min(max(dec_deg, -90.0), 90.0)
    if abs(dec) + radius_deg > 90.0 - ARCSEC_DEG:
        return 180.0
    radius = radius_deg * RAD_PER_DEG
    dec *= RAD_PER_DEG
    y = math.sin(radius)
    x = math.sqrt(abs(math.cos(dec - radius) * math.cos(dec + radius)))
    return DEG_PER_RAD * abs(math.atan(y / x))


class Chunker:
    """Places points in chunks, sub-chunks and their overlap.

    Parameters
    ----------
    num_stripes, num_sub_stripes : `int`
        Stripes of the sky, and sub-stripes of each stripe.
    overlap_deg : `float`
        Overlap radius [deg].

    Raises
    ------
    ValueError
        If the overlap is wider than 10 deg, a sub-stripe or a sub-chunk: the reference refuses these, too.
    """

    def __init__(self, num_stripes: int, num_sub_stripes: int, overlap_deg: float):
        if num_stripes < 1 or num_sub_stripes < 1:
            raise ValueError(
                f"num_stripes = {num_stripes} and num_sub_stripes = {num_sub_stripes}: both must be at least 1"
            )
        if not 0.0 <= overlap_deg <= MAX_OVERLAP_DEG:
            raise ValueError(f"overlap_deg = {overlap_deg}: it must be from 0 to {MAX_OVERLAP_DEG:g} deg")
        self.num_stripes = num_stripes
        self.num_sub_stripes = num_sub_stripes
        self.overlap_deg = float(overlap_deg)
        n_sub_stripes = num_stripes * num_sub_stripes
        stripe_height = 180.0 / num_stripes
        self.sub_stripe_height_deg = height = 180.0 / n_sub_stripes
        if height < overlap_deg:
            raise ValueError(
                f"overlap_deg = {overlap_deg}: it must not exceed the height of a sub-stripe, "
                f"180 / ({num_stripes} x {num_sub_stripes}) = {height:.6g} deg"
            )
        self.chunks_in_stripe = np.array(
            [
                count_segments(i * stripe_height - 90.0, (i + 1) * stripe_height - 90.0, stripe_height)
                for i in range(num_stripes)
            ],
            dtype=np.int32,
        )
        self.sub_chunks_in_chunk = np.empty(n_sub_stripes, dtype=np.int32)
        self._sub_chunk_width = np.empty(n_sub_stripes)
        self.alpha_deg = np.empty(n_sub_stripes)
        # Declinations at which a point of the sub-stripe belongs to the overlap of the one below or above it.
        self._below_deg = np.full(n_sub_stripes, -np.inf)
        self._above_deg = np.full(n_sub_stripes, np.inf)
        for s in range(n_sub_stripes):
            dec_min, dec_max = s * height - 90.0, (s + 1) * height - 90.0
            chunks = int(self.chunks_in_stripe[s // num_sub_stripes])
            per_chunk = count_segments(dec_min, dec_max, height) // chunks
            width = 360.0 / (per_chunk * chunks)
            alpha = max_alpha_deg(self.overlap_deg, max(abs(dec_min), abs(dec_max)))
            if alpha > width:
                raise ValueError(
                    f"overlap_deg = {overlap_deg}: in sub-stripe {s} (dec {dec_min:.6g} to {dec_max:.6g}) it spans {alpha:.6g} "
                    f"deg of RA, more than a sub-chunk's width of {width:.6g} deg; use a smaller overlap or fewer sub-stripes"
                )
            self.sub_chunks_in_chunk[s], self._sub_chunk_width[s], self.alpha_deg[s] = per_chunk, width, alpha
            if s > 0:
                self._below_deg[s] = max(dec_min, -90.0) + self.overlap_deg
            if s < n_sub_stripes - 1:
                self._above_deg[s] = min(dec_max, 90.0) - self.overlap_deg
        self._max_sub_chunks = int(self.sub_chunks_in_chunk.max())
        self._sub_chunks_in_stripe = self.sub_chunks_in_chunk * np.repeat(self.chunks_in_stripe, num_sub_stripes)
        sub_stripes = np.arange(n_sub_stripes, dtype=np.int32)
        self._first_chunk = (sub_stripes // num_sub_stripes) * (2 * num_stripes)
        self._first_sub_chunk = (sub_stripes % num_sub_stripes) * self._max_sub_chunks

    # -- chunks ---------------------------------------------------------------------------------------------------------

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole sky."""
        return int(self.chunks_in_stripe.sum())

    @property
    def last_chunk(self) -> int:
        """The highest chunk id."""
        return (self.num_stripes - 1) * 2 * self.num_stripes + int(self.chunks_in_stripe[-1]) - 1

    def all_chunks(self) -> np.ndarray:
        """Every chunk id of the sky, ascending (int64)."""
        counts = self.chunks_in_stripe.astype(np.int64)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        stripes = np.repeat(np.arange(self.num_stripes, dtype=np.int64), counts)
        return stripes * (2 * self.num_stripes) + np.arange(counts.sum()) - starts

    def is_chunk(self, chunks: np.ndarray) -> np.ndarray:
        """Whether each id is a chunk of this partitioning (bool, the shape of ``chunks``)."""
        chunks = np.asarray(chunks, dtype=np.int64)
        stripe, position = np.divmod(chunks, 2 * self.num_stripes)
        inside = (stripe >= 0) & (stripe < self.num_stripes)
        return inside & (position < self.chunks_in_stripe[np.where(inside, stripe, 0)])

    def stripe_of(self, chunk: int) -> int:
        """The stripe of a chunk."""
        return chunk // (2 * self.num_stripes)

    def position_of(self, chunk: int) -> int:
        """The place of a chunk in its stripe, counted from RA 0."""
        return chunk % (2 * self.num_stripes)

    def chunk_at(self, stripe: int, position: int) -> int:
        """The id of the chunk at a place of a stripe; the place is taken modulo the chunks of the stripe."""
        return stripe * 2 * self.num_stripes + position % int(self.chunks_in_stripe[stripe])

    def chunk_box(self, chunk: int) -> Box:
        """The bounds of a chunk."""
        stripe, position = self.stripe_of(chunk), self.position_of(chunk)
        width = 360.0 / int(self.chunks_in_stripe[stripe])
        ra_max = (position + 1) * width
        if ra_max > 360.0 - EPSILON_DEG:
            ra_max = 360.0
        dec_min = stripe * self.num_sub_stripes * self.sub_stripe_height_deg - 90.0
        dec_max = (stripe + 1) * self.num_sub_stripes * self.sub_stripe_height_deg - 90.0
        return Box(position * width, ra_max, max(dec_min, -90.0), min(dec_max, 90.0))

    def border_alpha_deg(self, stripe: int) -> tuple[float, float, float]:
        """Reach of the overlap in RA [deg]: in the lowest sub-stripe of a stripe, in its highest one, and the largest."""
        alpha = self.alpha_deg[stripe * self.num_sub_stripes : (stripe + 1) * self.num_sub_stripes]
        return float(alpha[0]), float(alpha[-1]), float(alpha.max())

    # -- points ---------------------------------------------------------------------------------------------------------

    def locate(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunk and sub-chunk in which each point lies.

        Parameters
        ----------
        ra_deg, dec_deg : `numpy.ndarray`, float64, (n,)
            RA in [0, 360] and Dec in [-90, 90].

        Returns
        -------
        chunk, sub_chunk : `numpy.ndarray`, int32, (n,)

        Raises
        ------
        ValueError
            If a coordinate is out of range or not a number; the message names the first such row.
        """
        chunk = np.empty(len(ra_deg), dtype=np.int32)
        sub_chunk = np.empty(len(ra_deg), dtype=np.int32)
        for start in range(0, len(ra_deg), BLOCK_POINTS):
            block = slice(start, start + BLOCK_POINTS)
            check_coordinates(ra_deg[block], dec_deg[block], start)
            place = self._locate_block(ra_deg[block], dec_deg[block])
            chunk[block], sub_chunk[block] = self._ids(place[0], place[1])
        return chunk, sub_chunk

    def locate_overlap(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray, Placements]:
        """The place of each point, and every sub-chunk whose overlap holds it.

        Parameters and errors are those of `locate`.

        Returns
        -------
        chunk, sub_chunk : `numpy.ndarray`, int32, (n,)
        overlap : `Placements`
            Ordered by row; within a row in the order of the reference: below, above, left, right.
        """
        chunk = np.empty(len(ra_deg), dtype=np.int32)
        sub_chunk = np.empty(len(ra_deg), dtype=np.int32)
        parts = []
        for start in range(0, len(ra_deg), BLOCK_POINTS):
            block = slice(start, start + BLOCK_POINTS)
            ra, dec = ra_deg[block], dec_deg[block]
            check_coordinates(ra, dec, start)
            place = self._locate_block(ra, dec)
            chunk[block], sub_chunk[block] = self._ids(place[0], place[1])
            if self.overlap_deg > 0.0:
                parts.append(self._overlap_block(ra, dec, *place, start))
        if not parts:
            return chunk, sub_chunk, Placements(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))
        return chunk, sub_chunk, Placements(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _locate_block(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sub-stripe, sub-chunk (counted along the whole stripe) and sub-chunk width of each point."""
        # Truncation is floor here: both quotients are at least 0.
        sub_stripe = ((dec + 90.0) / self.sub_stripe_height_deg).astype(np.int32)
        np.minimum(sub_stripe, len(self.alpha_deg) - 1, out=sub_stripe)
        width = self._sub_chunk_width[sub_stripe]
        along = (ra / width).astype(np.int32)
        np.minimum(along, self._sub_chunks_in_stripe[sub_stripe] - 1, out=along)
        return sub_stripe, along, width

    def _ids(self, sub_stripe: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chunk and sub-chunk ids of sub-chunks that are counted along their stripe."""
        position, sub_chunk = np.divmod(along, self.sub_chunks_in_chunk[sub_stripe])
        position += self._first_chunk[sub_stripe]
        sub_chunk += self._first_sub_chunk[sub_stripe]
        return position, sub_chunk

    def _overlap_block(
        self, ra: np.ndarray, dec: np.ndarray, sub_stripe: np.ndarray, along: np.ndarray, width: np.ndarray, offset: int
    ) -> Placements:
        """Overlap placements of a block of points whose first row is ``offset``."""
        below = np.flatnonzero(dec < self._below_deg[sub_stripe])
        above = np.flatnonzero(dec >= self._above_deg[sub_stripe])
        alpha = self.alpha_deg[sub_stripe]
        ra_min = along * width
        ra_max = ra_min + 0.0
        np.multiply(along + 1, width, out=ra_max)
        ra_max[ra_max > 360.0 - EPSILON_DEG] = 360.0
        left = np.flatnonzero(ra < ra_min + alpha)
        right = np.flatnonzero(ra > ra_max - alpha)
        beside = np.concatenate([sub_stripe[below] - 1, sub_stripe[above] + 1])
        across = self._across(ra, np.concatenate([below, above]), beside)
        rows, turned = np.concatenate([left, right]), np.concatenate([along[left] - 1, along[right] + 1])
        count = self._sub_chunks_in_stripe[sub_stripe[rows]]
        if len(count) and count.min() == 1:
            rows, turned, count = rows[count > 1], turned[count > 1], count[count > 1]
        found = (across, (rows, sub_stripe[rows], turned % count))
        rows, sub_stripes, alongs = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(rows, kind="stable")
        return Placements(rows[order] + offset, *self._ids(sub_stripes[order], alongs[order].astype(np.int32)))

    def _across(
        self, ra: np.ndarray, rows: np.ndarray, sub_stripe: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sub-chunks of an adjacent sub-stripe whose overlap holds the points ``rows``."""
        ra, width, alpha = ra[rows], self._sub_chunk_width[sub_stripe], self.alpha_deg[sub_stripe]
        count = self._sub_chunks_in_stripe[sub_stripe]
        first = np.floor((ra - alpha) / width).astype(np.int32)
        last = np.floor((ra + alpha) / width).astype(np.int32)
        first += count * (first < 0)
        last -= count * (last >= count)
        copies = last - first + 1 + count * (first > last)
        if not len(copies):
            return rows, sub_stripe, first
        nth = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
        return (
            np.repeat(rows, copies),
            np.repeat(sub_stripe, copies),
            (np.repeat(first, copies) + nth) % np.repeat(count, copies),
        )


def check_coordinates(ra_deg: np.ndarray, dec_deg: np.ndarray, offset: int = 0) -> None:
    """Refuse points that are not on the sky.

    Raises
    ------
    ValueError
        Naming the first bad row (counted from ``offset``) and its value.
    """
    for name, values, low, high in (("RA", ra_deg, 0.0, 360.0), ("Dec", dec_deg, -90.0, 90.0)):
        # A comparison with NaN is false, so that NaN is refused, too.
        if len(values) and not (values.min() >= low and values.max() <= high):
            row = int(np.flatnonzero(~((values >= low) & (values <= high)))[0])
            raise ValueError(f"row {offset + row}: {name} = {values[row]} deg: it must be from {low:g} to {high:g}")
