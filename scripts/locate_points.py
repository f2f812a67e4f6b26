"""Say in which chunk and sub-chunk points of the sky lie, and in which overlaps.

    python scripts/locate_points.py --num-stripes 200 --num-sub-stripes 5 --overlap-deg 0.01667 points.csv

Reads CSV with a header that has ra_deg and dec_deg, and may have point, a name for each point; other columns are
ignored, and so are lines in front of the header that begin with #. The file may be compressed (.gz); - is standard
input. Writes to standard output one line for each place of a point: point (its number, from 0, if it has no name),
ra_deg, dec_deg, chunkId, subChunkId, and overlap: 0 for the sub-chunk in which the point lies, then 1 for each
sub-chunk whose overlap it is in, in ascending order. Positions are written so that they read back as the same numbers.
Fails if a position is no number, RA is not in [0, 360] or Dec not in [-90, 90].
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from skymill.chunker import Chunker
from skymill.errors import SkymillError, in_words
from skymill.rows import Texts, join_parts

COLUMNS = "point,ra_deg,dec_deg,chunkId,subChunkId,overlap"


def read_points(text: bytes, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read points.

    Parameters
    ----------
    text : `bytes`
        CSV with a header.
    name : `str`
        What to call it in messages.

    Returns
    -------
    point : `numpy.ndarray`, bytes, (n,)
    ra_deg, dec_deg : `numpy.ndarray`, float64, (n,)

    Raises
    ------
    SkymillError
        If a column is missing, or a position is not on the sky.
    """
    import pyarrow as pa
    from pyarrow import csv

    start = first_line = 0
    while text.startswith(b"#", start):
        first_line += 1
        start = text.find(b"\n", start) + 1 or len(text)
    header = text[start:].partition(b"\n")[0].decode(errors="replace").strip().split(",")
    missing = [column for column in ("ra_deg", "dec_deg") if column not in header]
    if missing:
        raise SkymillError(
            f"{name}: the header {','.join(header)!r} has no column {missing[0]}; write one such as point,ra_deg,dec_deg"
        )
    wanted = [column for column in ("point", "ra_deg", "dec_deg") if column in header]
    types = {"point": pa.string(), "ra_deg": pa.float64(), "dec_deg": pa.float64()}
    try:
        table = csv.read_csv(
            io.BytesIO(text[start:]),
            read_options=csv.ReadOptions(use_threads=False),
            convert_options=csv.ConvertOptions(include_columns=wanted, column_types=types, null_values=[]),
        ).combine_chunks()
    except pa.ArrowInvalid as error:
        raise SkymillError(f"{name}: {error} (rows are counted from the header)") from None
    ra_deg, dec_deg = (_as_numpy(table[column].chunks) for column in ("ra_deg", "dec_deg"))
    for column, values, low, high in (("ra_deg", ra_deg, 0, 360), ("dec_deg", dec_deg, -90, 90)):
        wrong = ~((values >= low) & (values <= high))
        if wrong.any():
            row = int(np.argmax(wrong))
            line = first_line + 2 + row
            raise SkymillError(f"{name}, line {line}: {column} = {values[row]}: it must be from {low} to {high}")
    if "point" in wanted:
        point = np.array([value.encode() for value in table["point"].to_pylist()], dtype=np.bytes_)
    else:
        point = np.arange(len(ra_deg)).astype(np.bytes_)
    return point, ra_deg, dec_deg


def _as_numpy(chunks: list[Any]) -> np.ndarray:
    """Arrow arrays of float64 without NULL as one; their own conversion would import pandas."""
    parts = [np.frombuffer(one.buffers()[1], dtype=np.float64)[one.offset :][: len(one)] for one in chunks if len(one)]
    return np.concatenate([np.empty(0), *parts])


def write_places(file: BinaryIO, chunker: Chunker, point: np.ndarray, ra_deg: np.ndarray, dec_deg: np.ndarray) -> None:
    """Write the places of points; see the parameters of `read_points`."""
    chunk, sub_chunk, overlap = chunker.locate_overlap(ra_deg, dec_deg)
    is_overlap = np.repeat([0, 1], [len(point), len(overlap.row)])
    row = np.concatenate([np.arange(len(point)), overlap.row])
    chunk, sub_chunk = np.concatenate([chunk, overlap.chunk]), np.concatenate([sub_chunk, overlap.sub_chunk])
    order = np.lexsort((sub_chunk, chunk, is_overlap, row))
    file.write(
        f"# num_stripes={chunker.num_stripes} num_sub_stripes={chunker.num_sub_stripes} "
        f"overlap_deg={chunker.overlap_deg!r}; one line per placement of a point\n{COLUMNS}\n".encode()
    )
    if not len(point):
        return
    numbers = [np.array(list(map(repr, values.tolist())), dtype=np.bytes_) for values in (ra_deg, dec_deg)]
    comma = np.bytes_(b",")
    points = functools.reduce(np.strings.add, [point, comma, numbers[0], comma, numbers[1], comma])
    parts = [Texts.make(points, row[order])]
    for ids in (chunk[order], sub_chunk[order]):
        distinct, codes = np.unique(ids, return_inverse=True)
        parts.append(Texts.make(np.strings.add(distinct.astype(np.bytes_), comma), codes))
    parts.append(Texts.make([b"0\n", b"1\n"], is_overlap[order]))
    for text, _ in join_parts(np.empty(0, dtype=np.uint8), parts, order):
        file.write(text)


def read_input(name: str) -> bytes:
    """The text of a file, decompressed if need be, or of standard input."""
    if name == "-":
        return sys.stdin.buffer.read()
    data = Path(name).read_bytes()
    try:
        return gzip.decompress(data) if name.endswith(".gz") else data
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise SkymillError(f"{name}: it is damaged, or not compressed; then give it a name without .gz") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-stripes", type=int, required=True, help="stripes of the sky")
    parser.add_argument("--num-sub-stripes", type=int, required=True, help="sub-stripes of each stripe")
    parser.add_argument("--overlap-deg", type=float, required=True, help="overlap radius [deg]; 0: no overlap")
    parser.add_argument("file", help="CSV with ra_deg and dec_deg; -: standard input")
    options = parser.parse_args(arguments)
    try:
        chunker = Chunker(options.num_stripes, options.num_sub_stripes, options.overlap_deg)
        points = read_points(read_input(options.file), "standard input" if options.file == "-" else options.file)
        write_places(sys.stdout.buffer, chunker, *points)
        sys.stdout.buffer.flush()
    except (SkymillError, OSError, ValueError) as error:
        print(f"locate_points: {in_words(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
