"""What a job of a tile asks a cluster for: memory and time, from the rows and bytes that the plan forecasts for the tile.

``ingest/forecast_<wave>.json`` stands beside the plan file of a wave and holds, for each tile, `TileForecast`. The
numbers below turn it into requests with a margin; a job that needs more all the same is killed by the cluster, sent
again, and asks for more.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

from .files import read_json, write_text
from .plan import State
from .retries import home_tile

#: Memory [MB] of the two Snakemakes around a step and of what a step imports; 350 were seen.
BASE_MB = 600
#: Memory for each byte of the largest chunk's text of a director, its overlap and halo. Seen were 0.9 in partitioning
#: (10 columns, 1.6 million rows) and 0.6 in loading (331 columns, 92,000 rows).
MEMORY_PER_BYTE = 1.3
#: Time [min] that even an empty tile may take: slow file systems, many jobs that start at once.
BASE_MIN = 5
#: Time [s] that each chunk may take whatever its size; 0.1 was seen.
CHUNK_S = 1.0
#: Text [bytes/s] that a step is sure to do; several times as much was seen. MariaDB takes longer to answer the
#: questions of verification.
STEP_RATES = {"generate": 20e6, "partition": 60e6, "ingest": 20e6, "verify_embedded": 20e6, "verify_qserv": 5e6}


@dataclasses.dataclass(frozen=True)
class TileForecast:
    """What a tile is expected to hold.

    Attributes
    ----------
    chunks, rows : `int`
    text_bytes : `int`
        Text of all its rows, overlap included.
    largest_chunk_bytes : `int`
        Text of the directors, with overlap and halo, in its largest chunk.
    """

    chunks: int
    rows: int
    text_bytes: int
    largest_chunk_bytes: int


#: Of a tile without a forecast, as plans of an earlier version have none.
UNKNOWN = TileForecast(100, 10_000_000, 10**10, 5 * 10**8)


def forecast_path(root: Path, wave: int) -> Path:
    """The forecasts of a wave."""
    return root / "ingest" / f"forecast_{wave}.json"


def write_forecasts(path: Path, tiles: dict[str, TileForecast]) -> None:
    """Write the forecasts of a wave, one line a tile."""
    lines = [f"{json.dumps(name)}: {json.dumps(dataclasses.astuple(tile))}" for name, tile in tiles.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


class TileResources:
    """The resources of the rules that work on a tile, as functions of its wildcards and of the attempt.

    Parameters
    ----------
    state : `State`
        It says which wave a transaction belongs to.
    """

    def __init__(self, state: State):
        self._state = state
        self._read = functools.lru_cache(maxsize=4)(lambda wave: read_json(forecast_path(state.root, wave)))

    def forecast(self, wildcards) -> TileForecast:  # noqa: ANN001 - made by Snakemake
        """What a tile is expected to hold."""
        # A committed transaction is another wildcard, see rules/verify.smk.
        wave = self._state.transactions[getattr(wildcards, "txn", None) or wildcards.done].wave
        if not forecast_path(self._state.root, wave).exists():
            return UNKNOWN
        found = self._read(wave).get(
            home_tile(wildcards.tile)
        )  # a retry is smaller, but by how much is not worth knowing
        return TileForecast(*found) if found else UNKNOWN

    def mem_mb(self, wildcards, attempt: int) -> int:  # noqa: ANN001 - made by Snakemake
        """Memory [MB]: by the largest chunk, and more with each attempt."""
        return attempt * math.ceil(BASE_MB + MEMORY_PER_BYTE * self.forecast(wildcards).largest_chunk_bytes / 1e6)

    def runtime(self, *steps: str) -> Callable[..., int]:
        """Time [min] of some steps: by the tile's text, and more with each attempt."""

        def minutes(wildcards, attempt: int) -> int:  # noqa: ANN001 - made by Snakemake
            tile = self.forecast(wildcards)
            seconds = sum(CHUNK_S * tile.chunks + tile.text_bytes / STEP_RATES[step] for step in steps)
            return attempt * math.ceil(BASE_MIN + seconds / 60)

        return minutes
