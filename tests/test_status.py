"""What `snakemake status` says is what is there, at any time, and its files of chunk ids can be fed back."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skymill.errors import ConfigError
from skymill.files import write_json
from skymill.selection import expand_ranges
from test_failures import jobs
from workflow import PROJECT, SMALL_SKY, snakemake, write_config

#: Three tiles of a stripe, of 8, 8 and 4 chunks.
CHUNKS = "324:343"
SETS = ("selected", "target", "assigned", "generated", "partitioned", "loaded", "committed", "failed", "completed")


def small(**keys) -> dict:
    return {**copy.deepcopy(SMALL_SKY), "chunks": CHUNKS, "chunks_per_tile": 8, **keys}


def show(folder: Path, *arguments: str) -> dict:
    """What scripts/show_status.py writes, after it has been seen to print the same."""
    command = [sys.executable, str(PROJECT / "scripts" / "show_status.py"), "--config", str(folder / "config.yaml")]
    done = subprocess.run(
        [*command, "--directory", str(folder), *arguments], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return read(folder, done.stdout)


def read(folder: Path, printed: str) -> dict:
    root = folder / "results" / "smallsky"
    assert (root / "status.md").read_text().strip() in printed
    content = json.loads((root / "status.json").read_text())
    assert tuple(content["chunks"]) == SETS
    files = {"target": "target", "assigned": "assigned", "completed": "completed", "limbo": "failed"}
    for name, chunks in files.items():
        lines = (root / f"{name}.clg").read_text().splitlines()
        assert ",".join(lines) == content["chunks"][chunks]["ids"]
    return content


def counts(content: dict) -> list[int]:
    """Chunks that are target, assigned, generated, partitioned, loaded, committed, failed."""
    return [content["chunks"][name]["count"] for name in SETS[1:8]]


def test_status_before_during_and_after_a_run(tmp_path):
    write_config(tmp_path, small())
    root = tmp_path / "results" / "smallsky"
    # Nothing is there, and looking makes nothing but its own files.
    assert counts(show(tmp_path)) == [20, 0, 0, 0, 0, 0, 0]
    assert len(list(root.iterdir())) == 6
    snakemake(tmp_path, "load", "--config", "only=332", config=tmp_path / "config.yaml")
    records = {
        path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and "status" not in path.name
    }
    content = show(tmp_path)
    assert counts(content) == [20, 20, 8, 8, 8, 0, 0]
    assert content["chunks"]["loaded"]["ids"] == "332:339" and content["chunks"]["completed"]["ids"] == ""
    assert content["transactions"]["t000"]["state"] == "open" and not content["published"]
    held = sum(json.loads(p.read_text())["rows"].get("Object", 0) for p in root.glob("ingest/t000/s*/chunk_*.json"))
    assert content["tables"]["Object"]["loaded"] == {"chunks": 8, "rows": held} and held > 50
    assert {path: path.stat().st_mtime_ns for path in records if path.suffix != ".clg"} == {
        path: when for path, when in records.items() if path.suffix != ".clg"
    }
    # A dry run lists the tiles with missing chunks, and no other.
    dry = snakemake(tmp_path, "-n", config=tmp_path / "config.yaml")
    for rule, verb in (("generate", "generating"), ("partition", "partitioning"), ("ingest", "loading")):
        left = (("s0009p00000", 8), ("s0009p00016", 4))
        assert jobs(dry, rule) == [f"{verb} tile {tile} of t000, missing chunks: {count}" for tile, count in left]
    # A sentinel of another attempt does not count, and nothing does while the transaction waits for its end.
    sentinel = root / "ingest" / "t000" / "s0009p00008" / "chunk_333.json"
    whole = json.loads(sentinel.read_text())
    write_json(sentinel, {**whole, "transaction_id": "t000.7"})
    assert show(tmp_path)["chunks"]["loaded"]["ids"] == "332,334:339"
    write_json(sentinel, whole)
    started = json.loads((root / "ingest" / "transactions" / "t000.0.started.json").read_text())
    poisoned = root / "ingest" / "transactions" / "t000.0.poisoned.json"
    write_json(poisoned, {**started, "reason": "a test"})
    content = show(tmp_path)
    assert counts(content) == [20, 20, 0, 0, 0, 0, 0] and content["transactions"]["t000"]["state"] == "poisoned"
    poisoned.unlink()
    # Bulk files of a tile that is on its way.
    shutil.copytree(root / "visits", tmp_path / "visits")
    target = "results/smallsky/generated/t000/s0009p00016.json"
    snakemake(tmp_path, target, "--notemp", config=tmp_path / "config.yaml")
    assert counts(show(tmp_path)) == [20, 20, 12, 8, 8, 0, 0]
    shutil.rmtree(root / "generated" / "t000" / "s0009p00016")
    assert counts(show(tmp_path)) == [20, 20, 8, 8, 8, 0, 0]
    snakemake(tmp_path, config=tmp_path / "config.yaml")
    assert not list(root.glob("partitioned/*/*/")) and not list(root.glob("generated/*/*/"))
    content = show(tmp_path)
    assert counts(content) == [20, 20, 20, 20, 20, 20, 0] and content["up_to_date"] and content["published"]
    published = json.loads((root / "ingest" / "published.json").read_text())["rows"]
    assert {name: stages["committed"]["rows"] for name, stages in content["tables"].items()} == published
    assert "chunks" not in content["tables"]["Visit"]["committed"]
    # A larger selection is told apart from what is planned.
    content = show(tmp_path, "--chunks", "0:40")
    assert content["chunks"]["selected"]["count"] == 6 and counts(content) == [26, 20, 20, 20, 20, 20, 0]


def test_status_in_the_middle_of_a_run_leaves_its_lock_alone(tmp_path):
    config = write_config(tmp_path, small(chunks="0:40,324:343", chunks_per_tile=2))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--configfile", str(config), "--directory", str(tmp_path), "--cores", "1"]
    root = tmp_path / "results" / "smallsky"
    with open(tmp_path / "driver.log", "w") as log:
        driver = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while driver.poll() is None and not list(root.glob("ingest/t*/s*/chunk_*.json")):
            assert time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
            time.sleep(0.05)
        content = read(tmp_path, snakemake(tmp_path, "status", config=config))
        snakemake(tmp_path, "plan", config=config)
        assert list((tmp_path / ".snakemake" / "locks").iterdir()), "the lock of the run is gone"
        assert driver.poll() is None, "the run was too short for this test"
        _, _, generated, partitioned, loaded, committed, failed = counts(content)
        assert 26 > generated >= partitioned >= loaded > committed == failed == 0
        assert driver.wait(240) == 0, (tmp_path / "driver.log").read_text()
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
    assert counts(show(tmp_path)) == [26, 26, 26, 26, 26, 26, 0]


def test_files_of_chunk_ids_can_be_fed_back(tmp_path):
    config = write_config(tmp_path, small(chunks="324:330", keep={"partitioned": True}))
    root = tmp_path / "results" / "smallsky"
    snakemake(tmp_path, config=config)
    show(tmp_path, "--chunks", "324:335")
    assert (root / "target.clg").read_text() == "324:335\n" and (root / "completed.clg").read_text() == "324:330\n"
    rest = "chunks={from: results/smallsky/target.clg, except: [results/smallsky/completed.clg]}"
    assert "planning 5 new chunks" in snakemake(tmp_path, "-n", "--config", rest, config=config)
    snakemake(tmp_path, "--config", rest, config=config)
    plan = json.loads((root / "ingest" / "plan_1.json").read_text())["transactions"]
    assert [expand_ranges(ranges).tolist() for tiles in plan.values() for ranges in tiles.values()] == [
        [331],
        [332, 333, 334, 335],
    ]
    # The target stays what it was, though the selection is a part of it.
    snakemake(tmp_path, "status", "--config", rest, config=config)
    assert (root / "target.clg").read_text() == "324:335\n" and (root / "completed.clg").read_text() == "324:335\n"
    assert "nothing is left to do" in snakemake(tmp_path, "--config", rest, config=config, ok=False)
    # Copies beside the configuration come first, and may be edited.
    for name in ("target.clg", "completed.clg"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "target.clg").write_text("324:335\n340\n")
    beside = "chunks={from: target.clg, except: [completed.clg]}"
    assert "planning 1 new chunks" in snakemake(tmp_path, "-n", "--config", beside, config=config)


def test_what_was_planned_and_is_not_selected_any_more_is_told(tmp_path):
    config = write_config(tmp_path, small(chunks="324:339", ingest={"tiles_per_transaction": 1}))
    plan = "results/smallsky/ingest/plan_0.json"
    snakemake(tmp_path, plan, config=config)
    snakemake(tmp_path, "--config", "chunks=324:331", config=config)
    printed = snakemake(tmp_path, "status", "--config", "chunks=324:331", config=config)
    assert (
        "16 are the target. 8 are complete, 0 have failed. Nothing of this selection is left to do; 8 chunks" in printed
    )
    assert "8 chunks were planned and are not selected: 332:339." in printed
    printed = snakemake(tmp_path, "--config", "chunks=324:331", "only=332", config=config, ok=False)
    assert "only: it needs the target load or verify" in printed
    snakemake(tmp_path, "--config", "chunks=324:339", config=config)
    assert "Nothing is left to do." in snakemake(tmp_path, "status", config=config)


def test_status_of_another_dataset_is_refused(tmp_path):
    write_config(tmp_path, small())
    snakemake(tmp_path, "load", "--config", "only=332", config=tmp_path / "config.yaml")
    config = small()
    config["seed"] = 8
    write_config(tmp_path, config)
    with pytest.raises(AssertionError, match="seed: it was 7, now it is 8"):
        show(tmp_path)
    assert issubclass(ConfigError, Exception) and not os.path.exists(tmp_path / "results" / "smallsky" / "status.json")
