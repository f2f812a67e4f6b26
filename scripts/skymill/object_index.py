"""The object index: in which chunk and sub-chunk each object is, looked up by the text of its id."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .csv_dialect import Fields
from .rows import padded_fields

WORD_BYTES = 8


class ObjectIndex:
    """Finds objects by id.

    Ids are compared as text, byte by byte (``7`` is not ``07``), by way of a 64-bit hash: a table says where the hashes
    that begin with the same bits start in the ascending list of all hashes.

    Parameters
    ----------
    parts : iterable of (`skymill.csv_dialect.Fields`, `numpy.ndarray`, `numpy.ndarray`)
        Ids of objects, and their chunks and sub-chunks.

    Raises
    ------
    ValueError
        If an object is listed with different places.
    """

    def __init__(self, parts: Iterable[tuple[Fields, np.ndarray, np.ndarray]]) -> None:
        ids, chunks, sub_chunks = [], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for fields, chunk, sub_chunk in parts:
            ids.append(_words(fields))
            chunks.append(chunk.astype(np.int32))
            sub_chunks.append(sub_chunk.astype(np.int32))
        self.num_words = max((words.shape[1] for words in ids), default=1)
        self._words = np.zeros((sum(map(len, ids)), self.num_words), dtype=np.uint64)
        row = 0
        for words in ids:
            self._words[row : row + len(words), : words.shape[1]] = words
            row += len(words)
        ids.clear()
        self.chunk, self.sub_chunk = np.concatenate(chunks), np.concatenate(sub_chunks)
        self._seed = 0
        while not self._sort():
            self._seed += 1
        bits = max(1, len(self._words).bit_length())
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((self._hashes >> self._shift).astype(np.int64), minlength=1 << bits)
        first = np.concatenate([[0], np.cumsum(counts)])
        self._first = first.astype(np.int32) if len(self._words) < 2**31 else first

    def __len__(self) -> int:
        return len(self._words)

    def find(self, fields: Fields) -> np.ndarray:
        """Where the objects with the given ids stand in ``chunk`` and ``sub_chunk`` (int64); -1 for those that are not listed.

        Rows of a child table mostly come in runs of the same object: each run is looked up once.
        """
        if not len(fields.starts):
            return np.empty(0, dtype=np.int64)
        width = self.num_words * WORD_BYTES
        too_long = fields.ends - fields.starts > width
        ends = np.where(too_long, fields.starts, fields.ends) if too_long.any() else fields.ends
        words = padded_fields(fields.data, fields.starts, ends, width).view(np.uint64)
        changes = np.zeros(len(words), dtype=bool)
        changes[0] = True
        for word in words.T:
            changes[1:] |= word[1:] != word[:-1]
        runs = np.flatnonzero(changes)
        found = np.repeat(self._find(words[runs]), np.diff(runs, append=len(words)))
        found[too_long] = -1
        return found

    def _find(self, words: np.ndarray) -> np.ndarray:
        """Where ids stand, as `find`."""
        hashes = _hash(words, self._seed)
        bucket = (hashes >> self._shift).astype(np.int64)
        place, stop = self._first[bucket], self._first[bucket + 1]
        found = np.full(len(words), -1, dtype=np.int64)
        pending = np.flatnonzero(place < stop)
        while len(pending):
            hit = self._hashes[place[pending]] == hashes[pending]
            found[pending[hit]] = place[pending[hit]]
            pending = pending[~hit]
            place[pending] += 1
            pending = pending[place[pending] < stop[pending]]
        hits = np.flatnonzero(found >= 0)
        other = (self._words[found[hits]] != words[hits]).any(axis=1)
        found[hits[other]] = -1
        return found

    def _sort(self) -> bool:
        """Bring the objects in the order of their hashes, each once; false if two ids have the same hash."""
        self._hashes = _hash(self._words, self._seed)
        order = np.argsort(self._hashes)
        self._hashes, self._words = self._hashes[order], self._words[order]
        self.chunk, self.sub_chunk = self.chunk[order], self.sub_chunk[order]
        same = self._hashes[1:] == self._hashes[:-1]
        if not same.any():
            return True
        pairs = np.flatnonzero(same)
        if (self._words[pairs] != self._words[pairs + 1]).any():
            return False
        for name, values in (("chunk", self.chunk), ("sub-chunk", self.sub_chunk)):
            differ = np.flatnonzero(values[pairs] != values[pairs + 1])
            if len(differ):
                pair = pairs[differ[0]]
                text = self._words[pair].tobytes().rstrip(b"\0").decode(errors="replace")
                raise ValueError(
                    f"the object {text!r} is listed twice, in {name} {values[pair]} and in {name} {values[pair + 1]}"
                )
        keep = np.concatenate([[True], ~same])
        self._hashes, self._words = self._hashes[keep], self._words[keep]
        self.chunk, self.sub_chunk = self.chunk[keep], self.sub_chunk[keep]
        return True


def _words(fields: Fields) -> np.ndarray:
    """Texts as rows of 64-bit words, padded with zeros (uint64, (n, words))."""
    longest = int((fields.ends - fields.starts).max(initial=1))
    width = -(-longest // WORD_BYTES) * WORD_BYTES
    return padded_fields(fields.data, fields.starts, fields.ends, width).view(np.uint64)


def _hash(words: np.ndarray, seed: int) -> np.ndarray:
    """Hash rows of words (uint64, (n,)): multiply and fold, as in the finaliser of MurmurHash3."""
    result = np.full(len(words), seed + 1, dtype=np.uint64)
    for word in words.T:
        result ^= word
        result *= np.uint64(0xFF51AFD7ED558CCD)
        result ^= result >> np.uint64(32)
    result *= np.uint64(0xC4CEB9FE1A85EC53)
    return result ^ (result >> np.uint64(29))
