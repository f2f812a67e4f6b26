"""The places of generated rows: what partitioning needs to know of them, so that it need not read their text.

Beside each CSV file of a director lies a ``.places.npy`` with a record a row: home chunk and sub-chunk, RA and Dec [deg], and the
offset of the byte behind the row's own columns, where its chunkId and subChunkId begin.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from .columns import Rows

PLACE = np.dtype([("chunk", "<i4"), ("sub_chunk", "<i4"), ("ra_deg", "<f8"), ("dec_deg", "<f8"), ("end", "<i8")])


def places_of(rows: Rows, chosen: slice | np.ndarray) -> np.ndarray:
    """The places of some rows of a block, still without their ``end``."""
    ra = rows.ra_deg[chosen]
    places = np.zeros(len(ra), dtype=PLACE)
    places["chunk"] = rows.chunk
    places["sub_chunk"] = rows.sub_chunk[chosen]
    places["ra_deg"], places["dec_deg"] = ra, rows.dec_deg[chosen]
    return places


def places_path(path: Path) -> Path:
    """The file of places of a CSV file."""
    return path.with_suffix(".places.npy")


def save_places(path: Path, parts: list[np.ndarray], row_ends: np.ndarray) -> None:
    """Write the places of a CSV file's rows beside it; nothing if there are no rows.

    Parameters
    ----------
    path : `pathlib.Path`
        The CSV file.
    parts : `list` [`numpy.ndarray`]
        Places, block by block.
    row_ends : `numpy.ndarray`, int64
        Offset behind each row, its line feed included.
    """
    if not len(row_ends):
        return
    places = np.concatenate(parts)
    places["end"] = row_ends - (3 + digits(places["chunk"]) + digits(places["sub_chunk"]))
    target = places_path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    with open(aside, "wb") as file:
        try:
            np.save(file, places)
        except OSError as error:
            # Of a disk that is full numpy says only how many items it has written.
            code = error.errno or errno.ENOSPC
            raise OSError(code, os.strerror(code), str(aside)) from error
    os.replace(aside, target)


def load_places(path: Path) -> np.ndarray:
    """The places of a CSV file's rows; none if it does not exist."""
    source = places_path(path)
    return np.load(source, allow_pickle=False) if source.exists() else np.empty(0, dtype=PLACE)


def digits(numbers: np.ndarray) -> np.ndarray:
    """How many decimal digits each number (0 or above) has."""
    return np.searchsorted(10 ** np.arange(1, 10), numbers, side="right") + 1
