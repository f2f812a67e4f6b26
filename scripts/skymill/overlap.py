"""The overlap file of a chunk: which rows it holds, and their bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .chunker import Chunker
from .errors import SkymillError
from .places import load_places

#: Bytes of rows that are moved at a time.
BLOCK_BYTES = 1 << 25


def overlap_rows(chunker: Chunker, chunk: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows go to the overlap file of a chunk.

    Parameters
    ----------
    chunker : `Chunker`
    chunk : `int`
    places : `numpy.ndarray` of `skymill.places.PLACE`
        Places of the chunk's own rows and, behind them, of its neighbours'.

    Returns
    -------
    row : `numpy.ndarray`, int64
        Indices into ``places``, ordered by sub-chunk, home chunk, box and row.
    sub_chunk : `numpy.ndarray`, int32
        The sub-chunk whose overlap holds the row.

    Raises
    ------
    SkymillError
        If the locator does not find a row where its chunkId and subChunkId say.
    """
    home, home_sub_chunk, overlap = chunker.locate_overlap(
        np.ascontiguousarray(places["ra_deg"]), np.ascontiguousarray(places["dec_deg"])
    )
    wrong = np.flatnonzero((home != places["chunk"]) | (home_sub_chunk != places["sub_chunk"]))
    if len(wrong):
        raise SkymillError(
            f"chunk {chunk}: {len(wrong)} generated rows do not lie where their chunkId and subChunkId say"
        )
    mine = overlap.chunk == chunk
    row, sub_chunk = overlap.row[mine], overlap.sub_chunk[mine]
    order = np.lexsort((row, places["chunk"][row], sub_chunk))
    return row[order], sub_chunk[order]


def write_overlap(chunker: Chunker, chunk: int, source: Path, halo_source: Path, target: Path) -> dict:
    """Write the overlap file of a chunk; none if no row goes there.

    Parameters
    ----------
    chunker : `Chunker`
    chunk : `int`
    source, halo_source : `pathlib.Path`
        The generated files of the chunk's own rows and of its halo; a file without rows does not exist.
    target : `pathlib.Path`
        The overlap file.

    Returns
    -------
    entry : `dict`
        For the manifest: rows, bytes, sha256.

    Raises
    ------
    SkymillError
        If a row of ``source`` does not belong to the chunk, or a row does not lie where it says.
    """
    home, halo = load_places(source), load_places(halo_source)
    if (home["chunk"] != chunk).any():
        raise SkymillError(f"{source.name}: it holds rows of other chunks than {chunk}")
    row, sub_chunk = overlap_rows(chunker, chunk, np.concatenate([home, halo]))
    digest, size = hashlib.sha256(), 0
    if len(row):
        sources = [(path, places["end"]) for path, places in ((source, home), (halo_source, halo)) if len(places)]
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with open(aside, "wb") as file:
                for block in _moved_rows(sources, row, chunk, sub_chunk):
                    file.write(block)
                    digest.update(block)
                    size += block.size
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    return {"rows": len(row), "bytes": size, "sha256": digest.hexdigest()}


def _moved_rows(
    sources: list[tuple[Path, np.ndarray]], row: np.ndarray, chunk: int, sub_chunk: np.ndarray
) -> Iterator[pa.Buffer]:
    """The bytes of rows with another place at their end, block by block."""
    parts, lengths = [], []
    for path, ends in sources:
        text = pa.memory_map(str(path)).read_buffer()
        # Two values a row: its own columns, and its old place with the line feed.
        bounds = np.empty(2 * len(ends) + 1, dtype=np.int64)
        bounds[1::2] = ends
        bounds[0], bounds[-1] = 0, text.size
        bounds[2:-1:2] = _line_starts(text, ends)
        parts.append(
            pa.LargeBinaryArray.from_buffers(pa.large_binary(), 2 * len(ends), [None, pa.py_buffer(bounds), text])
        )
        lengths.append(bounds[1::2] - bounds[:-1:2])
    rows = pa.chunked_array(parts)
    names, codes = np.unique(sub_chunk, return_inverse=True)
    places = pa.array([f"\t{chunk}\t{name}\n".encode() for name in names.tolist()], pa.large_binary())
    total = np.cumsum(np.concatenate(lengths)[row])
    bounds = np.unique(np.r_[0, np.searchsorted(total, np.arange(BLOCK_BYTES, total[-1], BLOCK_BYTES)), len(row)])
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        own = rows.take(pa.array(2 * row[start:stop])).combine_chunks()
        new = places.take(pa.array(codes[start:stop]))
        yield pc.binary_join_element_wise(own, new, pa.scalar(b"", pa.large_binary())).buffers()[2]


def _line_starts(text: pa.Buffer, ends: np.ndarray) -> np.ndarray:
    """Offsets at which the rows behind the first begin: behind the line feed of the one before."""
    data = np.frombuffer(text, np.uint8)
    # A place is "\t<chunk>\t<sub-chunk>\n": at most 1 + 10 + 1 + 10 + 1 bytes.
    tail = data[np.minimum(ends[:-1, None] + np.arange(23), len(data) - 1)]
    return ends[:-1] + np.argmax(tail == 10, axis=1) + 1
