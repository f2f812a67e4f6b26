"""The places of generated rows: what partitioning needs to know of them, so that it need not read their text.

Beside each CSV file of a director lies a ``.places.npy`` with a record a row: home chunk and sub-chunk, RA and Dec
[deg], and the offset of the byte behind the row's own columns, where its chunkId and subChunkId begin.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .columns import Rows
from .errors import SkymillError
from .files import written_aside

PLACE = np.dtype([("chunk", "<i4"), ("sub_chunk", "<i4"), ("ra_deg", "<f8"), ("dec_deg", "<f8"), ("end", "<i8")])


def places_of(rows: Rows) -> np.ndarray:
    """The places of the rows of a block, still without their ``end``."""
    places = np.zeros(rows.count, dtype=PLACE)
    places["chunk"], places["sub_chunk"] = rows.chunk, rows.sub_chunk
    places["ra_deg"], places["dec_deg"] = rows.ra_deg, rows.dec_deg
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
        Places, block by block; their ``end`` is filled.
    row_ends : `numpy.ndarray`, int64
        Offset behind each row, its line feed included.
    """
    if not len(row_ends):
        return
    head = {"descr": np.lib.format.dtype_to_descr(PLACE), "fortran_order": False, "shape": row_ends.shape}
    ends = np.split(row_ends, np.cumsum([len(part) for part in parts])[:-1])
    with written_aside(places_path(path), durable=False) as aside, open(aside, "wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        for places, end in zip(parts, ends, strict=True):
            places["end"] = end - (3 + digits(places["chunk"]) + digits(places["sub_chunk"]))
            file.write(places)


def load_places(path: Path, rows: int) -> np.ndarray:
    """The places of a CSV file's rows.

    Parameters
    ----------
    path : `pathlib.Path`
        The CSV file.
    rows : `int`
        How many rows it has; without any there is no file of places.

    Raises
    ------
    SkymillError
        If the file has places of fewer or of more rows.
    """
    source = places_path(path)
    places = np.load(source, allow_pickle=False) if source.exists() else np.empty(0, dtype=PLACE)
    if len(places) != rows:
        raise SkymillError(
            f"{source}: it has {len(places)} rows, {path.name} has {rows} by its manifest; run again, and if it stays so, remove {path.parent} first"
        )
    return places


def digits(numbers: np.ndarray) -> np.ndarray:
    """How many decimal digits each number (0 or above) has."""
    return np.searchsorted(10 ** np.arange(1, 10), numbers, side="right") + 1
