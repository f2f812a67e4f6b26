"""The overlap file of a chunk: which rows it holds, and their bytes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import kernels
from .chunker import Chunker
from .errors import SkymillError
from .places import digits, load_places, places_path

#: Bytes of rows that are moved at a time: small enough for the processor's cache.
BLOCK_BYTES = 1 << 19
#: The same without the kernels: each block costs time of its own.
ARROW_BLOCK_BYTES = 1 << 25


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
        sources = [(path, places) for path, places in ((source, home), (halo_source, halo)) if len(places)]
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with open(aside, "wb") as file:
                for block in _moved_rows(sources, row, chunk, sub_chunk):
                    file.write(block)
                    digest.update(block)
                    size += memoryview(block).nbytes
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    return {"rows": len(row), "bytes": size, "sha256": digest.hexdigest()}


def _moved_rows(
    sources: list[tuple[Path, np.ndarray]], row: np.ndarray, chunk: int, sub_chunk: np.ndarray
) -> Iterator[pa.Buffer | np.ndarray]:
    """The bytes of rows with another place at their end, block by block; a block is good until the next one is asked for.

    Raises
    ------
    SkymillError
        If rows do not end where their places say.
    """
    texts = [pa.memory_map(str(path)).read_buffer() for path, _ in sources]
    starts = [_row_starts(path, text, places) for (path, places), text in zip(sources, texts, strict=True)]
    lengths = [places["end"] - start for (_, places), start in zip(sources, starts, strict=True)]
    names, codes = np.unique(sub_chunk, return_inverse=True)
    suffixes = [f"\t{chunk}\t{name}\n".encode() for name in names.tolist()]
    compiled = kernels.load()
    step = ARROW_BLOCK_BYTES if compiled is None else BLOCK_BYTES
    total = np.cumsum(np.concatenate(lengths)[row] + max(map(len, suffixes)))
    bounds = np.unique(np.r_[0, np.searchsorted(total, np.arange(step, total[-1], step)), len(row)])
    move = _moved_by_arrow if compiled is None else functools.partial(_moved_by_kernels, compiled)
    yield from move(texts, starts, lengths, row, suffixes, codes, bounds.tolist())


def _row_starts(path: Path, text: pa.Buffer, places: np.ndarray) -> np.ndarray:
    """Offsets at which rows begin: behind the place of the one before."""
    after = places["end"] + (3 + digits(places["chunk"]) + digits(places["sub_chunk"]))
    data = np.frombuffer(text, np.uint8)
    if after[-1] != len(data) or (np.diff(after, prepend=0) <= 0).any() or (data[after - 1] != 10).any():
        raise SkymillError(f"{path}: its rows do not end where {places_path(path).name} says; generate the tile again")
    return np.concatenate([[0], after[:-1]])


def _moved_by_kernels(
    compiled: kernels.Kernels,
    texts: list[pa.Buffer],
    starts: list[np.ndarray],
    lengths: list[np.ndarray],
    row: np.ndarray,
    suffixes: list[bytes],
    codes: np.ndarray,
    bounds: list[int],
) -> Iterator[np.ndarray]:
    addresses = np.concatenate([text.address + start for text, start in zip(texts, starts, strict=True)])
    lengths = np.concatenate(lengths)
    width = max(map(len, suffixes))
    table = np.frombuffer(b"".join(suffix.ljust(width) for suffix in suffixes), np.uint8)
    suffix_lengths = np.array([len(suffix) for suffix in suffixes])
    # A block begins with what was left over by the one before.
    out = np.empty(BLOCK_BYTES + width + int(lengths[row].max()), dtype=np.uint8)
    for start, stop in itertools.pairwise(bounds):
        chosen, code = row[start:stop], codes[start:stop]
        parts = [
            (0, addresses[chosen], lengths[chosen]),
            (kernels.address(table), code * width, suffix_lengths[code]),
        ]
        yield out[: compiled.join_parts(parts, out)]


def _moved_by_arrow(
    texts: list[pa.Buffer],
    starts: list[np.ndarray],
    lengths: list[np.ndarray],
    row: np.ndarray,
    suffixes: list[bytes],
    codes: np.ndarray,
    bounds: list[int],
) -> Iterator[pa.Buffer]:
    parts = []
    for text, start, length in zip(texts, starts, lengths, strict=True):
        # Two values a row: its own columns, and its old place with the line feed.
        limits = np.empty(2 * len(start) + 1, dtype=np.int64)
        limits[:-1:2], limits[1::2], limits[-1] = start, start + length, text.size
        buffers = [None, pa.py_buffer(limits), text]
        parts.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 2 * len(start), buffers))
    rows, places = pa.chunked_array(parts), pa.array(suffixes, pa.large_binary())
    for start, stop in itertools.pairwise(bounds):
        own = rows.take(pa.array(2 * row[start:stop])).combine_chunks()
        new = places.take(pa.array(codes[start:stop]))
        yield pc.binary_join_element_wise(own, new, pa.scalar(b"", pa.large_binary())).buffers()[2]
