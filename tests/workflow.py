"""Runs the real workflow on small configurations."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[1]

#: A small sky with both poles: 18 stripes, 4 sub-stripes, a wide overlap, and visits that cross the borders of chunks.
SMALL_SKY = {
    "database": "smallsky",
    "seed": 7,
    "partitioning": {"num_stripes": 18, "num_sub_stripes": 4, "overlap_deg": 0.5},
    "chunks": "all",
    "tables": {
        "Visit": {
            "kind": "regular",
            "rows": 1500,
            "visit": {"id": "visitId", "filter": "band"},
            "position": ["ra", "dec"],
            "columns": [
                {"name": "visitId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
                {"name": "band", "type": "CHAR(1)", "generator": {"choice": {"values": ["g", "r"]}}},
                {"name": ["ra", "dec"], "type": "DOUBLE", "generator": "position"},
            ],
        },
        "Object": {
            "kind": "director",
            "key": "objectId",
            "position": ["ra", "dec"],
            "density": {"per_sq_deg": 0.25},
            "columns": [
                {"name": "objectId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
                {"name": ["ra", "dec"], "type": "DOUBLE NOT NULL", "generator": "position"},
                {"name": "{g,r}Mag", "type": "FLOAT", "generator": {"magnitude": {"min": 14, "max": 25}}},
                {
                    "name": "note",
                    "type": "VARCHAR(8)",
                    "null_fraction": 0.3,
                    "generator": {"choice": {"values": ["a\tb", "c\\d"]}},
                },
                {
                    "name": "seen",
                    "type": "DATETIME(3)",
                    "null_fraction": 0.1,
                    "generator": {"time": {"start": "1995-01-01", "end": "2035-01-01"}},
                },
            ],
        },
        "ForcedSource": {
            "kind": "child",
            "director": "Object",
            "key": "objectId",
            "rows": {"visits": "Visit", "radius_deg": 3.0},
            "columns": [
                {"name": "objectId", "type": "BIGINT NOT NULL", "generator": {"director": "objectId"}},
                {"name": "visitId", "type": "BIGINT NOT NULL", "generator": {"visit": "visitId"}},
                {
                    "name": "mag",
                    "type": "DOUBLE",
                    "generator": {"forced_flux": {"flux": "{filter}Mag", "sigma": "magErr"}},
                },
                {"name": "magErr", "type": "DOUBLE", "generator": {"uniform": {"min": 0.01, "max": 0.1}}},
            ],
        },
    },
}


def write_config(folder: Path, config: dict) -> Path:
    """Write a configuration into a folder."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def snakemake(
    folder: Path,
    *arguments: str,
    config: Path | None = None,
    cores: int = 2,
    ok: bool = True,
    environment: dict | None = None,
) -> str:
    """Run snakemake on a folder of results; returns what it prints."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--configfile", str(config)] if config else []
    command += ["--directory", str(folder), "--cores", str(cores)]
    done = subprocess.run(
        [*command, *arguments],
        cwd=PROJECT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if ok:
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode != 0, done.stdout
    return done.stdout


def partitioned_files(root: Path) -> dict[str, str]:
    """The hashes of all partitioned files by table and name, whatever their tile and transaction."""
    found = {}
    for path in sorted((root / "partitioned").glob("*/*/*/chunk_*.txt")):
        name = f"{path.parent.name}/{path.name}"
        assert name not in found, f"{name} was made twice"
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
