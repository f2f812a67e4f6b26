"""The overlap file of a chunk: which rows it holds, and their bytes."""

from __future__ import annotations

import hashlib
import itertools
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import kernels
from .chunker import Chunker
from .errors import SkymillError
from .files import written_aside
from .places import digits, load_places, places_path

if TYPE_CHECKING:
    import pyarrow as pa

LF = 10

#: Rows that are located at a time.
BLOCK_ROWS = 1 << 16
#: Bytes of rows that are moved at a time: small enough for the processor's cache.
BLOCK_BYTES = 1 << 19
#: The same without the kernels: each block costs time of its own.
ARROW_BLOCK_BYTES = 1 << 25
#: Text that is moved before the files are forgotten.
MAPPED_BYTES = 1 << 21


def overlap_rows(chunker: Chunker, chunk: int, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows go to the overlap file of a chunk.

    Parameters
    ----------
    chunker : `Chunker`
    chunk : `int`
    parts : sequence of `numpy.ndarray` of `skymill.places.PLACE`
        Places of the chunk's own rows and of its neighbours'.

    Returns
    -------
    row : `numpy.ndarray`, int64
        Indices into the parts, one behind the other, ordered by sub-chunk, home chunk, box and row.
    sub_chunk : `numpy.ndarray`, int32
        The sub-chunk whose overlap holds the row.

    Raises
    ------
    SkymillError
        If the locator does not find a row where its chunkId and subChunkId say.
    """
    if sum(map(len, parts)) <= BLOCK_ROWS:
        parts = [np.concatenate(parts)]
    found, before = [], 0
    for places in (part[start : start + BLOCK_ROWS] for part in parts for start in range(0, len(part), BLOCK_ROWS)):
        home, home_sub_chunk, overlap = chunker.locate_overlap(
            np.ascontiguousarray(places["ra_deg"]), np.ascontiguousarray(places["dec_deg"])
        )
        wrong = np.count_nonzero((home != places["chunk"]) | (home_sub_chunk != places["sub_chunk"]))
        if wrong:
            raise SkymillError(
                f"chunk {chunk}: {wrong} generated rows do not lie where their chunkId and subChunkId say; please report this"
            )
        mine = overlap.chunk == chunk
        row = overlap.row[mine]
        found.append((row + before, overlap.sub_chunk[mine], home[row]))
        before += len(places)
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    row, sub_chunk, home = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((row, home, sub_chunk))
    return row[order], sub_chunk[order]


def write_overlap(chunker: Chunker, chunk: int, sources: Mapping[Path, int], target: Path) -> dict:
    """Write the overlap file of a chunk; none if no row goes there.

    Parameters
    ----------
    chunker : `Chunker`
    chunk : `int`
    sources : `Mapping` [`pathlib.Path`, `int`]
        The generated files of the chunk's own rows and of its halo, and how many rows they have; a file without rows
        does not exist.
    target : `pathlib.Path`
        The overlap file.

    Returns
    -------
    entry : `dict`
        For the manifest: rows, bytes, sha256.

    Raises
    ------
    SkymillError
        If the places of a file are not those of its rows, a row of the first file does not belong to the chunk, or a
        row does not lie where it says.
    """
    home, halo = (load_places(path, rows) for path, rows in sources.items())
    if (home["chunk"] != chunk).any():
        source = next(iter(sources))
        raise SkymillError(
            f"{source}: it holds rows of other chunks than {chunk}; run again, and if it stays so, remove {source.parent} first"
        )
    row, sub_chunk = overlap_rows(chunker, chunk, (home, halo))
    digest, size = hashlib.sha256(), 0
    if len(row):
        texts = [_Source(path, places) for path, places in zip(sources, (home, halo), strict=True) if len(places)]
        with written_aside(target, durable=False) as aside, open(aside, "wb") as file:
            for block in _moved_rows(texts, row, chunk, sub_chunk):
                file.write(block)
                digest.update(block)
                size += memoryview(block).nbytes
    return {"rows": len(row), "bytes": size, "sha256": digest.hexdigest()}


class _Source:
    """The text of a generated file, mapped into memory, and where its rows lie.

    Raises
    ------
    SkymillError
        If the text does not end where the last row does.
    """

    def __init__(self, path: Path, places: np.ndarray):
        self.path = path
        with open(path, "rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.text = np.frombuffer(self.mapped, np.uint8)
        self.ends = np.ascontiguousarray(places["end"])
        self._after = self.ends + (3 + digits(places["chunk"]) + digits(places["sub_chunk"]))
        self.starts = np.concatenate([[0], self._after[:-1]])
        if self._after[-1] != len(self.text) or (self.ends <= self.starts).any():
            raise SkymillError(self._refusal())

    def check(self, rows: np.ndarray) -> None:
        """Refuse rows that do not begin and end with a line.

        Raises
        ------
        SkymillError
            If one of them does not.
        """
        if (self.text[self._after[rows] - 1] != LF).any() or (self.text[self.starts[rows[rows > 0]] - 1] != LF).any():
            raise SkymillError(self._refusal())

    def _refusal(self) -> str:
        return f"{self.path}: its rows do not end where {places_path(self.path).name} says; run again, and if it stays so, remove {self.path.parent} first"

    def forget(self) -> None:
        """Give back the memory of what has been read: it stays with the file, and need not count as ours."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def _moved_rows(
    sources: list[_Source], row: np.ndarray, chunk: int, sub_chunk: np.ndarray
) -> Iterator[pa.Buffer | np.ndarray]:
    """The bytes of rows with another place at their end, block by block; a block is good until the next one is asked for."""
    names, codes = np.unique(sub_chunk, return_inverse=True)
    suffixes = [f"\t{chunk}\t{name}\n".encode() for name in names.tolist()]
    lengths = np.concatenate([source.ends - source.starts for source in sources])
    first_rows = np.cumsum([0, *(len(source.ends) for source in sources)]).tolist()
    compiled = kernels.load()
    step = ARROW_BLOCK_BYTES if compiled is None else BLOCK_BYTES
    total = np.cumsum(lengths[row] + max(map(len, suffixes)))
    bounds = np.unique(np.r_[0, np.searchsorted(total, np.arange(step, total[-1], step)), len(row)]).tolist()
    if compiled is None:
        move = _arrow_mover(sources, suffixes)
    else:
        # A block begins with what was left over by the one before.
        move = _kernel_mover(compiled, sources, lengths, suffixes, step + int(lengths[row].max()))
    mapped_bytes = 0
    for start, stop in itertools.pairwise(bounds):
        chosen = row[start:stop]
        for source, (low, high) in zip(sources, itertools.pairwise(first_rows), strict=True):
            source.check(chosen[(chosen >= low) & (chosen < high)] - low)
        yield move(chosen, codes[start:stop])
        mapped_bytes += step
        if mapped_bytes >= MAPPED_BYTES:
            mapped_bytes = 0
            for source in sources:
                source.forget()


def _kernel_mover(
    compiled: kernels.Kernels, sources: list[_Source], lengths: np.ndarray, suffixes: list[bytes], most_bytes: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What joins rows and suffixes, by the compiled loop."""
    addresses = np.concatenate([kernels.address(source.text) + source.starts for source in sources])
    width = max(map(len, suffixes))
    table = np.frombuffer(b"".join(suffix.ljust(width) for suffix in suffixes), np.uint8)
    suffix_lengths = np.array([len(suffix) for suffix in suffixes])
    out = np.empty(most_bytes + width, dtype=np.uint8)

    def move(row: np.ndarray, code: np.ndarray) -> np.ndarray:
        own, place = (0, addresses[row], lengths[row]), (kernels.address(table), code * width, suffix_lengths[code])
        return out[: compiled.join_parts([own, place], out)]

    return move


def _arrow_mover(sources: list[_Source], suffixes: list[bytes]) -> Callable[[np.ndarray, np.ndarray], pa.Buffer]:
    """The same by Arrow."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = []
    for source in sources:
        # Two values a row: its own columns, and its old place with the line feed.
        limits = np.empty(2 * len(source.ends) + 1, dtype=np.int64)
        limits[:-1:2], limits[1::2], limits[-1] = source.starts, source.ends, len(source.text)
        buffers = [None, pa.py_buffer(limits), pa.py_buffer(source.text)]
        parts.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 2 * len(source.ends), buffers))
    rows, places = pa.chunked_array(parts), pa.array(suffixes, pa.large_binary())

    def move(row: np.ndarray, code: np.ndarray) -> pa.Buffer:
        own, new = rows.take(pa.array(2 * row)).combine_chunks(), places.take(pa.array(code))
        return pc.binary_join_element_wise(own, new, pa.scalar(b"", pa.large_binary())).buffers()[2]

    return move
