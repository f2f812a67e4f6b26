"""Which chunks to make, and the tiles they belong to.

A *tile* is a run of neighbouring chunk ids of one stripe. It is named by geometry, stripe and place in it, so that a
chunk's tile never depends on which chunks are asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .chunker import Chunker
from .errors import ConfigError, show

_ITEM = re.compile(r"^(\d+)(?:\s*:\s*(\d+))?$")


@dataclass(frozen=True)
class Selection:
    """The chunks that are asked for.

    Attributes
    ----------
    chunks : `numpy.ndarray`, int64
        Ids, ascending, each once.
    asked : `int`
        Ids that the ranges cover, those that the partitioning does not have included.
    """

    chunks: np.ndarray
    asked: int


def parse_ranges(text: str, chunker: Chunker, key: str = "chunks") -> tuple[np.ndarray, int]:
    """Ids of a text like ``"0:2000,40000"``; commas, blanks and new lines separate; ``#`` begins a comment.

    A range includes both ends, is turned round if need be, and skips ids that the partitioning does not have; a single
    id that it does not have is an error.

    Returns
    -------
    chunks : `numpy.ndarray`, int64
    asked : `int`
        Ids before any was skipped.

    Raises
    ------
    ConfigError
        If an item is no id and no range, a single id does not exist, or an id is above the last one.
    """
    parts, asked = [], 0
    for item in re.split(r"[,\n]", re.sub(r"#.*", "", text)):
        item = item.strip()
        if not item:
            continue
        match = _ITEM.match(item)
        if not match:
            raise ConfigError(
                f'{key}: "{item}" is neither a chunk id nor a range; write ids and ranges like "0:2000,40000"'
            )
        low = int(match[1])
        high = int(match[2]) if match[2] else low
        low, high = min(low, high), max(low, high)
        if high > chunker.last_chunk and (match[2] is None or low > chunker.last_chunk):
            raise ConfigError(
                f"{key}: {item} is above the last chunk id, {chunker.last_chunk}. If it was written as a range like 10:20, put "
                'quotes around it ("10:20"): YAML reads it as a number in base 60'
            )
        ids = np.arange(low, min(high, chunker.last_chunk) + 1)
        found = ids[chunker.is_chunk(ids)]
        if match[2] is None and not len(found):
            raise ConfigError(
                f"{key}: the partitioning has no chunk {low}; {chunks_near(chunker, low)}. If it was written as a range like 10:20, put "
                "quotes around it"
            )
        parts.append(found)
        asked += high - low + 1
    return (np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)), asked


def chunks_near(chunker: Chunker, chunk: int) -> str:
    """Which chunks there are in the stripe of an id that no chunk has, in words."""
    stripe = chunker.stripe_of(chunk)
    first = chunker.chunk_at(stripe, 0)
    return f"stripe {stripe} has the chunks {first} to {first + int(chunker.chunks_in_stripe[stripe]) - 1}"


def select_chunks(chunks: object, chunker: Chunker, folder: Path, key: str = "chunks") -> Selection:
    """The chunks that the value of the configuration's key ``chunks`` stands for.

    Parameters
    ----------
    chunks : `str`, `int`, `list` or `dict`
        See the schema.
    chunker : `Chunker`
        The partitioning.
    folder : `pathlib.Path`
        Folder in which files of ids are looked for first; then it is the working directory.
    key : `str`
        Name of the key in messages.

    Raises
    ------
    ConfigError
        If the value is wrong or selects no chunk.
    """
    if chunks == "all":
        ids = chunker.all_chunks()
        return Selection(ids, len(ids))
    if isinstance(chunks, dict) and "region" in chunks:
        ids = chunks_in_region(chunks["region"], chunker)
        asked = len(ids)
    elif isinstance(chunks, dict):
        ids, asked = _read_ids(chunks["from"], folder, chunker, f"{key}.from")
        if len(ids) and chunks.get("except"):
            left_out = [_read_ids(name, folder, chunker, f"{key}.except")[0] for name in chunks["except"]]
            ids = np.setdiff1d(ids, np.concatenate(left_out))
            if not len(ids):
                raise ConfigError(
                    f"{key}: {show(chunks)} selects no chunk, for the files under except leave nothing of {chunks['from']}; if they say what "
                    "is complete, nothing is left to do"
                )
    else:
        text = ",".join(str(item) for item in chunks) if isinstance(chunks, list) else str(chunks)
        ids, asked = parse_ranges(text, chunker, key)
    if not len(ids):
        raise ConfigError(
            f"{key}: {show(chunks)} selects no chunk of this partitioning (it has {chunker.num_chunks} chunks, 0 to "
            f"{chunker.last_chunk}); widen the selection"
        )
    return Selection(ids, asked)


def _read_ids(name: str, folder: Path, chunker: Chunker, key: str) -> tuple[np.ndarray, int]:
    # Beside the configuration, as all files that it names; or where results are, as on the command line.
    path = next((path for path in (folder / name, Path(name)) if path.exists()), folder / name)
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"{key}: cannot read the file of chunk ids {path}: {error.strerror}; it is looked for beside the configuration, then in "
            "the working directory"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {path} is no text file of chunk ids; write ids and ranges, one a line") from None
    return parse_ranges(text, chunker, f"{key} ({path.name})")


def check_region(region: list[float], key: str) -> None:
    """Refuse a box (ra_min, ra_max, dec_min, dec_max) [deg] that is empty or not on the sky.

    Raises
    ------
    ConfigError
        Saying how to write it.
    """
    ra_min, ra_max, dec_min, dec_max = region
    if not (0 <= ra_min <= 360 and 0 <= ra_max <= 360 and -90 <= dec_min <= dec_max <= 90):
        raise ConfigError(
            f"{key}: {region}: write [ra_min, ra_max, dec_min, dec_max] with RA from 0 to 360 and -90 <= dec_min <= dec_max <= 90"
        )


def chunks_in_region(region: list[float], chunker: Chunker) -> np.ndarray:
    """Chunks that meet a box (ra_min, ra_max, dec_min, dec_max) [deg]; ra_min > ra_max crosses RA 0.

    Raises
    ------
    ConfigError
        If the box is empty or not on the sky.
    """
    check_region(region, "chunks.region")
    ra_min, ra_max, dec_min, dec_max = region
    spans = [(ra_min, ra_max)] if ra_min <= ra_max else [(ra_min, 360.0), (0.0, ra_max)]
    parts = []
    for stripe in range(chunker.num_stripes):
        box = chunker.chunk_box(chunker.chunk_at(stripe, 0))
        if box.dec_max_deg < dec_min or box.dec_min_deg > dec_max:
            continue
        count = int(chunker.chunks_in_stripe[stripe])
        position = np.arange(count)
        low, high = position * (360.0 / count), (position + 1) * (360.0 / count)
        inside = np.zeros(count, dtype=bool)
        for span_min, span_max in spans:
            inside |= (high >= span_min) & (low <= span_max)
        parts.append(chunker.chunk_at(stripe, 0) + position[inside])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def format_ranges(chunks: np.ndarray) -> str:
    """Ids as compact ranges: ``"0:1,400:405"``."""
    chunks = np.asarray(chunks, dtype=np.int64)
    if not len(chunks):
        return ""
    breaks = np.flatnonzero(np.diff(chunks) != 1)
    first, last = chunks[np.r_[0, breaks + 1]], chunks[np.r_[breaks, len(chunks) - 1]]
    return ",".join(str(a) if a == b else f"{a}:{b}" for a, b in zip(first.tolist(), last.tolist(), strict=True))


def expand_ranges(text: str) -> np.ndarray:
    """The ids of a text that `format_ranges` wrote (int64)."""
    parts = [
        np.arange(int(a), int(b or a) + 1) for a, _, b in (item.partition(":") for item in text.split(",") if item)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def tile_name(chunker: Chunker, chunk: int, chunks_per_tile: int) -> str:
    """The tile of a chunk, named by its stripe and the place of its first chunk."""
    start = chunker.position_of(chunk) // chunks_per_tile * chunks_per_tile
    return f"s{chunker.stripe_of(chunk):04d}p{start:05d}"


def group_tiles(chunker: Chunker, chunks: np.ndarray, chunks_per_tile: int) -> dict[str, np.ndarray]:
    """The tiles of chunk ids (ascending), in order, with the chunk ids of each."""
    if not len(chunks):
        return {}
    stripe, position = np.divmod(chunks, 2 * chunker.num_stripes)
    start = position // chunks_per_tile
    firsts = np.flatnonzero(np.r_[True, (np.diff(stripe) != 0) | (np.diff(start) != 0)])
    return {tile_name(chunker, int(ids[0]), chunks_per_tile): ids for ids in np.split(chunks, firsts[1:])}
