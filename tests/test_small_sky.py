"""The whole of a small sky, made by the workflow tile by tile, against other ways to the same answer."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pytest

from skymill.chunker import Chunker
from skymill.config import Dataset
from skymill.queries import count_neighbours
from workflow import PROJECT, SMALL_SKY, partitioned_files, snakemake, write_config


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """The folder of results of the small sky, with all bulk files kept."""
    folder = tmp_path_factory.mktemp("sky")
    config = {**SMALL_SKY, "chunks_per_tile": 64, "keep": {"generated": True, "partitioned": True}}
    snakemake(folder, config=write_config(folder, config))
    return folder / "results" / "smallsky"


def manifests(root: Path, stage: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((root / stage).glob("*/*.json"))]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_every_chunk_is_made_once(sky):
    chunks = [int(chunk) for manifest in manifests(sky, "partitioned") for chunk in manifest["chunks"]]
    assert sorted(chunks) == Chunker(18, 4, 0.5).all_chunks().tolist()


def test_partitioning_the_whole_sky_at_once_gives_the_same_files(sky, tmp_path):
    for table in ("Object", "ForcedSource"):
        # In the order of home chunks, in which the rows of an overlap file stand.
        inputs = sorted(
            (sky / "generated").glob(f"*/*/chunk_*_{table}.csv"), key=lambda path: int(path.name.split("_")[1])
        )
        (tmp_path / "inputs.cfg").write_text(json.dumps({"in": {"path": [str(path) for path in inputs]}}))
        command = [sys.executable, str(PROJECT / "scripts" / "partition_csv.py"), "-c", str(tmp_path / "inputs.cfg")]
        command += ["-c", str(sky / "configs" / "partitioner" / f"{table}.cfg"), "--out.dir", str(tmp_path / table)]
        command += [f"--part.id-url=file://{tmp_path}/Object/chunk_object_index.txt"] if table == "ForcedSource" else []
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    made = {
        f"{table}/{path.name}": path.read_bytes()
        for table in ("Object", "ForcedSource")
        for path in (tmp_path / table).glob("chunk_[0-9]*.txt")
    }
    expected = {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in (sky / "partitioned").glob("*/*/*/*.txt")
    }
    assert len(expected) > 1000
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []


def test_manifests_say_what_the_files_hold(sky):
    hashes = partitioned_files(sky)
    for manifest in manifests(sky, "partitioned"):
        for chunk, tables in manifest["chunks"].items():
            for name, entry in tables.items():
                table = name.removesuffix("FullOverlap")
                file = f"{table}/chunk_{chunk}{'_overlap' if name != table else ''}.txt"
                assert hashes.get(file) == (entry["sha256"] if entry["rows"] else None), file


def test_database_holds_the_lines_of_the_files(sky):
    lines: Counter = Counter()
    for path in (sky / "partitioned").glob("*/*/*/*.txt"):
        table = path.parent.name + ("FullOverlap" if "overlap" in path.name else "")
        lines[table, int(path.stem.split("_")[1])] += count_lines(path)
    stated: Counter = Counter()
    for manifest in manifests(sky, "partitioned"):
        for chunk, tables in manifest["chunks"].items():
            stated.update({(name, int(chunk)): entry["rows"] for name, entry in tables.items() if entry["rows"]})
    held: Counter = Counter()
    with duckdb.connect(str(sky / "smallsky.duckdb"), read_only=True) as database:
        names = {row[0] for row in database.execute("SHOW TABLES").fetchall()}
        for name in ("Object", "ObjectFullOverlap", "ForcedSource"):
            for chunk, rows in database.execute(f"SELECT chunkId, count(*) FROM {name} GROUP BY chunkId").fetchall():
                held[name, chunk] = rows
        assert database.execute("SELECT count(*), count(DISTINCT visitId) FROM Visit").fetchone() == (1500, 1500)
        objects = sum(rows for (name, _), rows in lines.items() if name == "Object")
        assert database.execute("SELECT count(*), count(DISTINCT objectId) FROM Object").fetchone() == (
            objects,
            objects,
        )
    assert names == {"Visit", "Object", "ObjectFullOverlap", "ForcedSource"}
    assert lines == stated == held
    assert sum(held.values()) > 30_000


def test_values_arrive_as_they_were_made(sky):
    """Strings with escapes, NULLs and float32 survive the text."""
    with duckdb.connect(str(sky / "smallsky.duckdb"), read_only=True) as database:
        notes = dict(database.execute("SELECT note, count(*) FROM Object GROUP BY note").fetchall())
        types = dict(
            database.execute(
                "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'Object'"
            ).fetchall()
        )
    assert set(notes) == {"a\tb", "c\\d", None}
    assert types["gMag"] == "FLOAT" and types["ra"] == "DOUBLE" and types["objectId"] == "BIGINT"


def test_near_neighbours_through_the_overlap_equal_brute_force(sky):
    radius_deg = 0.5
    director = Dataset.from_config(SMALL_SKY, PROJECT).tables["Object"]
    with duckdb.connect(str(sky / "smallsky.duckdb"), read_only=True) as database:
        found = database.execute(count_neighbours(director, radius_deg)).fetchone()[0]
        rows = database.execute("SELECT ra, dec FROM Object").fetchnumpy()
    ra, dec = np.radians(rows["ra"]), np.radians(rows["dec"])
    points = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    limit = (2 * np.sin(np.radians(radius_deg) / 2)) ** 2
    expected = sum(
        int((((points[start : start + 500, None] - points[None]) ** 2).sum(axis=2) < limit).sum())
        for start in range(0, len(points), 500)
    ) - len(points)
    assert expected > 1000
    assert found == expected


def test_children_lie_with_their_director(sky):
    with duckdb.connect(str(sky / "smallsky.duckdb"), read_only=True) as database:
        astray = database.execute(
            "SELECT count(*) FROM ForcedSource AS f LEFT JOIN Object AS o USING (objectId) "
            "WHERE o.objectId IS NULL OR o.chunkId <> f.chunkId OR o.subChunkId <> f.subChunkId"
        ).fetchone()[0]
    assert astray == 0


def test_edges_alone_equal_the_edges_of_complete_chunks(sky):
    """Of those that are selected now, however often it is asked for."""
    for selection, found in (("chunks=0", "1 chunks"), ("chunks=all", "368 chunks")):
        printed = snakemake(sky.parents[1], "check_edges", "--config", selection, config=sky.parents[1] / "config.yaml")
        assert found in (sky / "check_edges.txt").read_text(), printed
