"""Random streams that are keyed by what they are for, never by the order in which they are used.

A key is (seed, table, column, chunk, box, cell). Each key gets the 256 bits of state of a PCG64-DXSM generator from
BLAKE2b, so that no arithmetic on seeds can make two streams alike.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.random.bit_generator import ISeedSequence

#: The chunk of tables that belong to no chunk (visits and other regular tables).
NO_CHUNK = -1


class _HashedKey(ISeedSequence):
    """Hands the hash of a key to a bit generator as its seed."""

    def __init__(self, key: bytes):
        self._key = key

    def generate_state(self, n_words: int, dtype: type = np.uint64) -> np.ndarray:
        dtype = np.dtype(dtype)
        digest = hashlib.blake2b(self._key, digest_size=n_words * dtype.itemsize).digest()
        return np.frombuffer(digest, dtype=dtype.newbyteorder("<")).astype(dtype)


def stream(seed: int, table: str, column: str, chunk: int, box: int = 0, cell: int = 0) -> np.random.Generator:
    """The random stream of a column in a box of a chunk.

    Parameters
    ----------
    seed : `int`
        Seed of the dataset.
    table, column : `str`
        Names; a column may also be the name of a purpose that begins with ``#``.
    chunk, box, cell : `int`
        The chunk (`NO_CHUNK` for a regular table), its box, and the cell of a density map.
    """
    names = f"{table}\0{column}\0".encode()
    return np.random.Generator(np.random.PCG64DXSM(_HashedKey(names + struct.pack("<Qqqq", seed, chunk, box, cell))))
