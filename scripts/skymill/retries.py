"""Chunks that failed become a small tile of their own, a *retry*, so that nothing that has succeeded is touched.

The first retry of the tile ``s0100p00000`` is called ``s0100p00000r1``. It is planned by the job in which chunks
failed, in a file of the form of a plan file, which never changes. A chunk belongs to the last retry that holds it, else
to the tile. The tile and its retries share sentinels, failure files, the lock, and the name under which they are
loaded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .errors import SkymillError
from .files import read_json, write_json
from .selection import expand_ranges, format_ranges

#: Names of tiles, those of retries included.
TILE = r"s\d{4}p\d{5}(?:r\d+)?"
_RETRY = re.compile(r"(s\d{4}p\d{5})r(\d+)\.json")


def home_tile(tile: str) -> str:
    """The tile that a retry belongs to; a tile itself."""
    return tile.partition("r")[0] if tile.startswith("s") else tile


def retry_number(tile: str) -> int:
    """Which retry of its tile it is; 0 for a tile itself."""
    return int(tile.partition("r")[2] or 0)


def retry_path(root: Path, transaction: str, tile: str) -> Path:
    """The plan file of a retry."""
    return root / "ingest" / "retries" / transaction / f"{tile}.json"


def plan_path(root: Path, wave: int) -> Path:
    """The plan file of a wave."""
    return root / "ingest" / f"plan_{wave}.json"


def planned_tiles(root: Path, transaction: str) -> dict[str, str]:
    """The tiles of a transaction with all their chunks as ranges, from its plan file.

    Raises
    ------
    SkymillError
        If no plan file holds it.
    """
    for wave in itertools.count():
        if not plan_path(root, wave).exists():
            raise SkymillError(
                f"{root / 'ingest'}: no plan file holds the transaction {transaction}; run the workflow to plan it"
            )
        transactions = read_json(plan_path(root, wave))["transactions"]
        if transaction in transactions:
            return transactions[transaction]


def planned_chunks(root: Path, transaction: str) -> np.ndarray:
    """The chunk ids of a transaction, from its plan file (int64)."""
    return np.concatenate([expand_ranges(ranges) for ranges in planned_tiles(root, transaction).values()])


def _numbers(root: Path, transaction: str) -> dict[str, list[int]]:
    """The numbers of the retries of each tile of a transaction, ascending."""
    folder = retry_path(root, transaction, "").parent
    numbers: dict[str, list[int]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _RETRY.fullmatch(path.name)
        if match:
            numbers.setdefault(match[1], []).append(int(match[2]))
    return {tile: sorted(found) for tile, found in numbers.items()}


def _shares(root: Path, transaction: str, tile: str, numbers: list[int], planned: np.ndarray) -> dict[str, np.ndarray]:
    """What of a tile's chunks belongs to itself, and to each of its retries."""
    sets = {tile: planned}
    for number in numbers:
        name = f"{tile}r{number}"
        sets[name] = expand_ranges(read_json(retry_path(root, transaction, name))["transactions"][transaction][name])
    shares: dict[str, np.ndarray] = {}
    later = np.empty(0, np.int64)
    for name in reversed(sets):
        shares[name] = np.setdiff1d(sets[name], later)
        later = np.union1d(later, sets[name])
    return dict(reversed(shares.items()))


def with_retries(root: Path, transaction: str, tiles: dict[str, str]) -> dict[str, str]:
    """The tiles of a transaction with its retries behind them, each with the chunks that belong to it, as ranges."""
    numbers = _numbers(root, transaction)
    found: dict[str, str] = {}
    for tile, ranges in tiles.items():
        if tile in numbers:
            shares = _shares(root, transaction, tile, numbers[tile], expand_ranges(ranges))
            found |= {name: format_ranges(chunks) for name, chunks in shares.items()}
        else:
            found[tile] = ranges
    return found


def own_chunks(root: Path, transaction: str, tile: str) -> np.ndarray:
    """The chunk ids that belong to a tile or to a retry, from the plan files (int64)."""
    home = home_tile(tile)
    planned = expand_ranges(planned_tiles(root, transaction)[home])
    return _shares(root, transaction, home, _numbers(root, transaction).get(home, []), planned)[tile]


def plan_retry(root: Path, transaction: str, tile: str, chunks: Iterable[int]) -> str:
    """Plan a retry for chunks that failed; the caller holds the lock of the tile. Returns the name of the retry."""
    home = home_tile(tile)
    name = f"{home}r{max(_numbers(root, transaction).get(home, [0])) + 1}"
    content = {"transactions": {transaction: {name: format_ranges(np.unique(list(chunks)))}}}
    write_json(retry_path(root, transaction, name), content)
    return name
