"""How many rows a dataset will have, chunk by chunk, before any is made.

A director's rows are exact: the counts of its boxes are drawn from the same streams as in generation. Those of its
children and of its overlap are expected values: visits are counted around sample points, and areas of overlap follow
from the geometry.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .boxes import chunk_boxes
from .chunker import Chunker
from .columns import Rows
from .config import Table
from .density import UniformDensity
from .rowmaker import BoxStreams, RowMaker, choose_rows, fill_columns
from .tables import RowSelection
from .visits import Visits

#: Sample points of a chunk: as many as make about so many in all, within these limits.
ALL_POINTS, LEAST_POINTS, MOST_POINTS = 40_000, 16, 1024
#: Neighbouring chunks whose points are matched with visits together.
CHUNKS_TOGETHER = 8
#: Rows of which the share of chosen ones is taken, and rows that are made at a time: 10^6 rows are right within 0.2 %
#: of a share of 30 %.
SHARE_ROWS, SHARE_BLOCK = 1 << 20, 1 << 16
#: Steps of the additive sequence that fills a square evenly: powers of 1 / 1.3247..., the plastic number (Roberts
#: 2018).
_STEPS = (0.7548776662466927, 0.5698402909980532)
_DEG_PER_RAD = 180.0 / math.pi


@dataclass(frozen=True)
class Census:
    """Rows to come.

    Attributes
    ----------
    chunks : `numpy.ndarray`, int64, (n,)
    rows : `dict` [`str`, `numpy.ndarray`], float64, (n,)
        Rows of each chunk in each director, its overlap table, and each child.
    halo : `dict` [`str`, `numpy.ndarray`], float64, (n,)
        Rows of neighbours that are made again for a chunk's overlap, by director.
    boxes : `dict` [`str`, `numpy.ndarray`], int64, (n,)
        The box of each chunk with the most rows, by director.
    """

    chunks: np.ndarray
    rows: dict[str, np.ndarray]
    halo: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]


def take_census(maker: RowMaker, chunks: np.ndarray, progress: Callable[[int, int], None] = lambda *_: None) -> Census:
    """Count the rows of chunks.

    Parameters
    ----------
    maker : `RowMaker`
    chunks : `numpy.ndarray`, int64, (n,)
    progress : callable, optional
        Is told now and then how many of how many chunks are counted.
    """
    dataset, chunker = maker.dataset, maker.chunker
    census = Census(chunks, {}, {}, {})
    stripes = chunks // (2 * chunker.num_stripes)
    chunk_area, overlap_area, halo_area = (areas[stripes] for areas in stripe_areas(chunker))
    points_of_chunk = min(MOST_POINTS, max(LEAST_POINTS, ALL_POINTS // len(chunks)))
    for director in dataset.tables_of("director"):
        children = dataset.children_of(director.name)
        rows = np.zeros(len(chunks))
        boxes = np.zeros(len(chunks), dtype=np.int64)
        pairs = {(child.visits, child.radius_deg): np.zeros(len(chunks)) for child in children}
        for start in range(0, len(chunks), CHUNKS_TOGETHER):
            points = []
            for i, chunk in enumerate(chunks[start : start + CHUNKS_TOGETHER].tolist(), start):
                cells = _cells(maker, director, chunk)
                rows[i] = sum(count for _, _, count in cells)
                boxes[i] = max(cells, key=lambda cell: cell[2], default=(0,))[0]
                if pairs and rows[i]:
                    points.append((i, *_sample_points(maker, director, chunk, cells, points_of_chunk)))
            for (name, radius_deg), found in pairs.items():
                for i, mean in _mean_matches(maker.visits[name], points, radius_deg):
                    found[i] = mean * rows[i]
            if start % 4096 == 0:
                progress(start, len(chunks))
        census.rows[director.name], census.boxes[director.name] = rows, boxes
        census.rows[director.overlap_name] = rows * overlap_area / chunk_area
        census.halo[director.name] = rows * halo_area / chunk_area
        for child in children:
            share = 1.0 if child.select is None else chosen_share(maker, director, child.select, int(chunks[0]))
            census.rows[child.name] = pairs[child.visits, child.radius_deg] * share
    return census


def chosen_share(maker: RowMaker, director: Table, selection: RowSelection, chunk: int) -> float:
    """The share of a director's rows that have rows in a child, from `SHARE_ROWS` rows of its own in a chunk.

    Only the column that decides is made, and those that it needs.
    """
    entries, wanted = [], {selection.column}
    for entry in reversed(director.entries_in_order):
        if wanted & {column.name for column in entry.columns}:
            entries.append(entry)
            wanted |= set(entry.generator.needs())
    table = dataclasses.replace(director, name=f"{director.name}#share", entries=entries[::-1], order=None)
    streams = BoxStreams(maker.dataset.seed, table, chunk, 0)
    box, density = maker.chunker.chunk_box(chunk), UniformDensity(0.0)
    chosen = 0
    for first in range(0, SHARE_ROWS, SHARE_BLOCK):
        rows = Rows(SHARE_BLOCK, first, chunk, 0, {})
        rows.ra_deg, rows.dec_deg = density.sample(streams["#position"], box, 0, SHARE_BLOCK)
        fill_columns(table, rows, streams)
        chosen += len(choose_rows(selection, rows, streams["#select"]))
    return chosen / SHARE_ROWS


def stripe_areas(chunker: Chunker) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas in each stripe [square degrees], all of shape (stripes,): of a chunk; of the overlaps of its sub-chunks, so that a place that
    lies in two of them counts twice; and of its surroundings that lie in any of them.
    """
    overlap, n_sub = chunker.overlap_deg, chunker.num_sub_stripes
    edges = np.linspace(-90.0, 90.0, chunker.num_stripes * n_sub + 1)
    sines = np.sin(np.radians(edges))
    heights = np.diff(sines)
    below = sines[:-1] - np.sin(np.radians(np.maximum(edges[:-1] - overlap, -90.0)))
    above = np.sin(np.radians(np.minimum(edges[1:] + overlap, 90.0))) - sines[1:]
    alpha = chunker.alpha_deg
    chunks = np.repeat(chunker.chunks_in_stripe, n_sub)
    per_chunk = chunker.sub_chunks_in_chunk
    reach = np.minimum(360.0 / (chunks * per_chunk) + 2.0 * alpha, 360.0)
    own = np.where(chunks * per_chunk > 1, 2.0 * alpha, 0.0) * heights + reach * (below + above)
    overlap_area = (per_chunk * own).reshape(-1, n_sub).sum(axis=1)
    sides = (np.where(chunks > 1, 2.0 * alpha, 0.0) * heights).reshape(-1, n_sub).sum(axis=1)
    wide = np.minimum(360.0 / chunks + 2.0 * alpha, 360.0)
    halo_area = sides + (wide * below)[::n_sub] + (wide * above)[n_sub - 1 :: n_sub]
    chunk_area = 360.0 / chunker.chunks_in_stripe * heights.reshape(-1, n_sub).sum(axis=1)
    return chunk_area * _DEG_PER_RAD, overlap_area * _DEG_PER_RAD, halo_area * _DEG_PER_RAD


def _cells(maker: RowMaker, director: Table, chunk: int) -> list[tuple[int, int, int]]:
    """Box, cell and rows of all cells of a chunk that have rows."""
    found = []
    for number in chunk_boxes(maker.chunker, chunk):
        cells, counts = maker.count_rows(director, chunk, number)
        found += zip(itertools.repeat(number), cells.tolist(), counts.tolist())
    return found


def _sample_points(
    maker: RowMaker, director: Table, chunk: int, cells: list[tuple[int, int, int]], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points in a chunk, spread as its rows are: RA and Dec [deg], float64."""
    density = maker.densities[director.name]
    nth = np.arange(count)
    if isinstance(density, UniformDensity):
        box = maker.chunker.chunk_box(chunk)
        east, north = ((nth + 0.5) * step % 1.0 for step in _STEPS)
        low, high = np.sin(np.radians((box.dec_min_deg, box.dec_max_deg)))
        ra = box.ra_min_deg + (box.ra_max_deg - box.ra_min_deg) * east
        return ra, np.degrees(np.arcsin(low + (high - low) * north))
    ends = np.cumsum([rows for _, _, rows in cells])
    cell, share = np.unique(np.searchsorted(ends, (nth + 0.5) * (ends[-1] / count), "right"), return_counts=True)
    boxes, random = chunk_boxes(maker.chunker, chunk), np.random.default_rng(chunk)
    drawn = [
        density.sample(random, boxes[cells[i][0]], cells[i][1], number)
        for i, number in zip(cell.tolist(), share.tolist(), strict=True)
    ]
    ra, dec = (np.concatenate(column) for column in zip(*drawn, strict=True))
    return ra, dec


def _mean_matches(
    visits: Visits, points: list[tuple[int, np.ndarray, np.ndarray]], radius_deg: float
) -> Iterator[tuple[int, float]]:
    """How many visits see a point, on average: for each group of points its number and the mean."""
    if not points:
        return
    ra, dec = (np.concatenate(column) for column in zip(*[(ra, dec) for _, ra, dec in points], strict=True))
    seen = np.zeros(len(ra))
    for row, _ in visits.match(ra, dec, radius_deg):
        seen += np.bincount(row, minlength=len(ra))
    ends = np.cumsum([len(ra) for _, ra, _ in points])
    for (i, *_), part in zip(points, np.split(seen, ends[:-1]), strict=True):
        yield i, float(part.mean())
