"""Which chunk numbers a partitioning has: stripes of equal height, each cut into chunks of equal width."""

from __future__ import annotations

import math
from functools import lru_cache

OVERFLOW_CHUNK = 1234567890


@lru_cache
def chunks_per_stripe(num_stripes: int) -> tuple[int, ...]:
    """Number of chunks in each stripe, from south to north.

    A stripe is cut into as many equal segments of right ascension as are at least a stripe's height wide at its
    declination nearest to a pole (the segmentation of lsst/sphgeom's Chunker).
    """
    height = math.pi / num_stripes
    counts = []
    for stripe in range(num_stripes):
        south, north = stripe * height - math.pi / 2, (stripe + 1) * height - math.pi / 2
        latitude = max(abs(south), abs(north))
        if height > math.pi or latitude > math.pi / 2 - 4.85e-6:
            counts.append(1)
            continue
        x = math.cos(height) - math.sin(latitude) ** 2
        u = math.cos(latitude) ** 2
        counts.append(int(2 * math.pi / abs(math.atan2(math.sqrt(abs(u * u - x * x)), x))))
    return tuple(counts)


def is_valid(chunk: int, num_stripes: int) -> bool:
    """Whether a partitioning has this chunk number; the overflow chunk's number passes as well."""
    stripe, position = divmod(chunk, 2 * num_stripes)
    return chunk == OVERFLOW_CHUNK or (stripe < num_stripes and position < chunks_per_stripe(num_stripes)[stripe])


def all_chunks(num_stripes: int) -> list[int]:
    """All chunk numbers of a partitioning, in order."""
    counts = chunks_per_stripe(num_stripes)
    return [stripe * 2 * num_stripes + i for stripe, count in enumerate(counts) for i in range(count)]
