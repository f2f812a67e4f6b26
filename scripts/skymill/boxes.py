"""The boxes that a chunk is made of, edges first, and the boxes of its neighbours that reach into its overlap.

Each box has random streams of its own, so that a neighbour's edge can be made again exactly, alone, in any process.
"""

from __future__ import annotations

import functools
import math

from .chunker import Box, Chunker

#: Numbers of the boxes of a chunk. A chunk that is too small for edges on all sides is one box, `WHOLE`.
SOUTH, NORTH, WEST, EAST, INNER, WHOLE = range(6)
#: Edges are wider than the overlap by this, so that rounding cannot lose a row at their inner border.
MARGIN_DEG = 1e-9


@functools.lru_cache(maxsize=4096)
def chunk_boxes(chunker: Chunker, chunk: int) -> dict[int, Box]:
    """The boxes of a chunk by number, edges first.

    The north and south strips span the whole RA range; the west and east boxes lie between them and are as wide as the
    overlap reaches in RA anywhere in the stripe. A chunk that is alone in its stripe has no neighbour west or east and
    no such boxes.
    """
    box = chunker.chunk_box(chunk)
    stripe = chunker.stripe_of(chunk)
    height = chunker.overlap_deg + MARGIN_DEG
    width = chunker.border_alpha_deg(stripe)[2] + MARGIN_DEG
    south, north = box.dec_min_deg + height, box.dec_max_deg - height
    west, east = box.ra_min_deg + width, box.ra_max_deg - width
    alone = int(chunker.chunks_in_stripe[stripe]) == 1
    if chunker.overlap_deg == 0.0 or south >= north or (west >= east and not alone):
        return {WHOLE: box}
    boxes = {SOUTH: box._replace(dec_max_deg=south), NORTH: box._replace(dec_min_deg=north)}
    middle = box._replace(dec_min_deg=south, dec_max_deg=north)
    if not alone:
        boxes[WEST] = middle._replace(ra_max_deg=west)
        boxes[EAST] = middle._replace(ra_min_deg=east)
        middle = middle._replace(ra_min_deg=west, ra_max_deg=east)
    boxes[INNER] = middle
    return boxes


def edge_boxes(chunker: Chunker, chunk: int) -> dict[int, Box]:
    """The boxes of a chunk that can reach into a neighbour's overlap."""
    return {number: box for number, box in chunk_boxes(chunker, chunk).items() if number != INNER}


def halo_boxes(chunker: Chunker, chunk: int) -> list[tuple[int, int]]:
    """Which boxes of which neighbours can hold rows of a chunk's overlap: (chunk, box), ascending, each once."""
    if chunker.overlap_deg == 0.0:
        return []
    stripe, position = chunker.stripe_of(chunk), chunker.position_of(chunk)
    found = set()
    if int(chunker.chunks_in_stripe[stripe]) > 1:
        for step, facing in ((-1, EAST), (1, WEST)):
            neighbour = chunker.chunk_at(stripe, position + step)
            found |= {(neighbour, number) for number in (SOUTH, NORTH, facing, WHOLE)}
    box = chunker.chunk_box(chunk)
    alpha_low, alpha_high, _ = chunker.border_alpha_deg(stripe)
    for other, alpha, facing in ((stripe - 1, alpha_low, NORTH), (stripe + 1, alpha_high, SOUTH)):
        if 0 <= other < chunker.num_stripes:
            found |= {(c, n) for c in _chunks_in_ra(chunker, other, box, alpha) for n in (facing, WHOLE)}
    found = {(c, n) for c, n in found if c != chunk and n in chunk_boxes(chunker, c)}
    return sorted(found)


def _chunks_in_ra(chunker: Chunker, stripe: int, box: Box, alpha_deg: float) -> list[int]:
    """Chunks of a stripe that meet the RA range of a box, widened by ``alpha_deg``."""
    count = int(chunker.chunks_in_stripe[stripe])
    width = 360.0 / count
    first = math.floor((box.ra_min_deg - alpha_deg - MARGIN_DEG) / width)
    last = math.floor((box.ra_max_deg + alpha_deg + MARGIN_DEG) / width)
    if last - first + 1 >= count:
        first, last = 0, count - 1
    return [chunker.chunk_at(stripe, position) for position in range(first, last + 1)]
