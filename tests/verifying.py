"""A sky with columns of all kinds, ways to damage what was loaded, and verification without Snakemake."""

import copy
import json
from pathlib import Path

from merge_verification import merge
from skymill.config import Dataset
from skymill.selection import expand_ranges
from skymill.stores.asking import Asker, open_asker
from skymill.truth import TileTruth, truth_path
from verify_rest import verify_rest
from verify_tile import verify_tile
from workflow import SMALL_SKY

#: Chunks at the south pole and on the equator, RA 0 among them.
CHUNKS = "0:40,324:330"


def all_kinds(database: str, **keys) -> dict:
    """The small sky, with columns of all kinds, NULLs among them, and more rows."""
    config = copy.deepcopy(SMALL_SKY)
    tables = config["tables"]
    tables["Object"]["density"] = {"per_sq_deg": 2}
    tables["Object"]["columns"][3]["generator"] = {"choice": {"values": ["ab", "Ab", "it's"]}}
    tables["Object"]["columns"] += [
        {"name": "small", "type": "TINYINT UNSIGNED", "generator": {"uniform": {"min": 0, "max": 200}}},
        {"name": "count", "type": "INT", "null_fraction": 0.2, "generator": {"poisson": {"mean": 3}}},
        {"name": "isStar", "type": "BOOLEAN", "null_fraction": 0.1, "generator": {"choice": {"values": [0, 1]}}},
        {"name": "shape", "type": "FLOAT", "null_fraction": 0.1, "generator": "normal"},
        {"name": "width", "type": "DOUBLE", "null_fraction": 0.1, "generator": {"uniform": {"min": -1, "max": 3}}},
        {"name": "kind", "type": "CHAR(3)", "generator": {"choice": {"values": ["a", "bcd"]}}},
    ]
    # A column with the name that the filter has in the table of visits, and times.
    tables["ForcedSource"]["columns"] += [
        {"name": "band", "type": "CHAR(1)", "generator": {"visit": "band"}},
        {"name": "seen", "type": "DATETIME(3)", "generator": {"director": "seen"}},
    ]
    return {**config, "database": database, "chunks": CHUNKS, "chunks_per_tile": 4, **keys}


def verify(root: Path, dataset: Dataset, asker: Asker | None = None) -> dict:
    """The record of a verification of all that was committed below ``root``."""
    with asker or open_asker(dataset, root) as opened:
        return merge(verify_rest(dataset, opened, root), list(tile_records(root, dataset, opened)))


def tile_records(root: Path, dataset: Dataset, asker: Asker):
    """The records of all tiles."""
    for plan in sorted((root / "ingest").glob("plan_*.json")):
        for name, tiles in json.loads(plan.read_text())["transactions"].items():
            committed = json.loads((root / "ingest" / "transactions" / f"{name}.committed.json").read_text())
            for tile, ranges in tiles.items():
                truth = TileTruth.read(truth_path(root, name, tile))
                yield verify_tile(dataset, asker, committed["id"], tile, truth, expand_ranges(ranges).tolist())


def facts_named(record: dict) -> dict[tuple[str, int | None], set[str]]:
    """The facts that differ, by table and chunk."""
    found: dict[tuple[str, int | None], set[str]] = {}
    for part in record["differences"]:
        found.setdefault((part["table"], part["chunk"]), set()).add(part["fact"])
    return found
