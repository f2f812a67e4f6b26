"""Bulk files on a scratch disk, and what a job of a tile asks for."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from skymill.config import Dataset
from skymill.errors import ConfigError, SkymillError
from skymill.forecast import BASE_MB, UNKNOWN, TileForecast, TileResources, write_forecasts
from skymill.plan import State
from skymill.scratch import scratch_base, scratch_folder
from test_restart import NOTHING, stored_rows
from workflow import PROJECT, SMALL_SKY, snakemake, write_config


def small(**keys) -> dict:
    return {**SMALL_SKY, "chunks": "0:40,324:330", "chunks_per_tile": 4, **keys}


def test_a_run_with_a_scratch_disk_gives_the_same_rows_and_leaves_nothing_on_it(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "of somebody else").touch()
    config = write_config(tmp_path, small())
    snakemake(tmp_path, "--config", "scratch={env: FAST_DISK}", config=config, environment={"FAST_DISK": str(scratch)})
    assert [path.name for path in scratch.iterdir()] == ["of somebody else"]
    root = tmp_path / "results" / "smallsky"
    assert not list(root.glob("*/t*/s*/**/chunk_*.csv")) and not list(root.glob("partitioned/*/*/"))
    # What other steps and people read is where it always is.
    assert len(list(root.glob("ingest/t*/s*/chunk_*.json"))) == 13
    for stage in ("generated", "partitioned"):
        assert {json.loads(path.read_text())["stage"] for path in root.glob(f"{stage}/t*/*.json")} == {stage}
    assert NOTHING in snakemake(tmp_path, config=config)
    plain = tmp_path / "plain"
    plain.mkdir()
    snakemake(plain, config=config)
    assert stored_rows(tmp_path, "smallsky") == stored_rows(plain, "smallsky")


def test_what_was_begun_without_a_scratch_disk_is_finished_with_one(tmp_path):
    """And the other way round: the tiles that are loaded stay."""
    config = write_config(tmp_path, small())
    snakemake(tmp_path, "load", "--config", "only=325", config=config)
    root = tmp_path / "results" / "smallsky"
    before = {path: path.stat().st_mtime_ns for path in root.glob("ingest/t*/s*.json")}
    assert len(before) == 1
    snakemake(tmp_path, "load", "--config", "only=0", f"scratch={tmp_path}", config=config)
    snakemake(tmp_path, config=config)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(list(root.glob("ingest/t*/s*/chunk_*.json"))) == 13


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scratch": "scratch"}, "write an absolute path"),
        ({"scratch": "$TMPDIR"}, "name a variable"),
        ({"scratch": "/s", "keep": {"generated": True}}, "keep.generated: true needs them later"),
        ({"scratch": "/s", "keep": {"partitioned": True}}, "keep.partitioned: true needs them later"),
        ({"scratch": "/s", "ingest": {"store": "none"}}, "ingest.store: none needs them later"),
        (
            {"scratch": "/s", "ingest": {"store": "qserv", "qserv": {"url": "http://q:1", "send": "file"}}},
            "ingest.qserv.send: file needs them later",
        ),
    ],
)
def test_what_cannot_work_with_a_scratch_disk_is_refused(keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Dataset.from_config(small(**keys), tmp_path)


def test_a_scratch_folder_that_is_missing_here_is_told_before_any_job(tmp_path):
    config = write_config(tmp_path, small(chunks="0:3"))
    missing = f"scratch={tmp_path / 'nothing'}"
    printed = snakemake(tmp_path, "--config", missing, config=config, ok=False)
    assert printed.count("there is no folder") == 1 and not (tmp_path / "results").exists()
    snakemake(tmp_path, "-n", "--config", missing, config=config)


def test_what_works_with_a_scratch_disk_is_not_refused(tmp_path):
    for ingest in ({}, {"store": "qserv", "qserv": {"url": "http://q:1"}}):
        Dataset.from_config(small(scratch="/s", ingest=ingest, keep={"generated": False}), tmp_path)


def test_a_folder_that_a_node_does_not_have_is_not_made(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_SCRATCH", raising=False)
    with pytest.raises(SkymillError, match="the variable is not set in the job's environment"):
        scratch_base({"env": "LOCAL_SCRATCH"})
    with pytest.raises(SkymillError, match="there is no folder"):
        scratch_base(str(tmp_path / "scratch"))
    assert not (tmp_path / "scratch").exists()


HOLDER = """
import sys, time
from pathlib import Path
from skymill.scratch import scratch_folder
with scratch_folder(sys.argv[1], Path(sys.argv[2]), "t000.s0000p00000") as folder:
    (folder / "bulk").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def hold(scratch, root) -> tuple[subprocess.Popen, str]:
    """A job at work in a folder of the scratch disk, and the folder."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "scripts")}
    command = [sys.executable, "-c", HOLDER, str(scratch), str(root)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    return job, job.stdout.readline().strip()


def test_a_job_that_is_ended_tidies_up_and_one_that_is_killed_leaves_it_to_the_next(tmp_path):
    scratch, root = tmp_path / "scratch", tmp_path / "results" / "small"
    scratch.mkdir()
    ended, folder = hold(scratch, root)
    assert os.listdir(folder) == ["bulk"]
    ended.terminate()
    assert ended.wait(20) != 0 and list(scratch.iterdir()) == []
    killed, left = hold(scratch, root)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    working, folder = hold(scratch, root)
    try:
        assert not os.path.exists(left) and os.listdir(folder) == ["bulk"]
        # Another job of this run and one of another run take nobody's files away.
        for other in (root, tmp_path / "results" / "other"):
            with scratch_folder(str(scratch), other, "t000.s0001p00000"):
                assert os.listdir(folder) == ["bulk"]
    finally:
        working.terminate()
        working.wait(20)
    assert list(scratch.iterdir()) == []


# -- what a job asks for ---------------------------------------------------------------------------------------------------


def test_forecasts_of_tiles_are_what_is_made_and_requests_grow_with_the_attempt(tmp_path, monkeypatch):
    config = small(keep={"partitioned": True})
    path = write_config(tmp_path, config)
    snakemake(tmp_path, config=path)
    monkeypatch.chdir(tmp_path)
    dataset = Dataset.from_config(config, tmp_path)
    resources = TileResources(State.read(dataset.results, dataset))
    manifests = [json.loads(p.read_text()) for p in dataset.results.glob("partitioned/t*/s*.json")]
    assert len(manifests) > 3
    made_bytes = expected_bytes = 0
    for manifest in manifests:
        wildcards = SimpleNamespace(txn=manifest["transaction"], tile=manifest["tile"])
        tile = resources.forecast(wildcards)
        entries = [entry for chunk in manifest["chunks"].values() for entry in chunk.values()]
        assert tile.chunks == len(manifest["chunks"])
        assert tile.rows == pytest.approx(sum(entry["rows"] for entry in entries), rel=0.3)
        made_bytes += sum(entry["bytes"] for entry in entries)
        expected_bytes += tile.text_bytes
        directors = [
            chunk["Object"]["bytes"] + chunk["ObjectFullOverlap"]["bytes"] for chunk in manifest["chunks"].values()
        ]
        assert tile.largest_chunk_bytes > 0.7 * max(directors)
        assert resources.mem_mb(wildcards, 1) > BASE_MB
        for request in (resources.mem_mb, resources.runtime("generate"), resources.runtime("generate", "ingest")):
            assert [request(wildcards, attempt) for attempt in (2, 3)] == [
                2 * request(wildcards, 1),
                3 * request(wildcards, 1),
            ]
    assert expected_bytes == pytest.approx(made_bytes, rel=0.05)


def test_requests_follow_the_forecast(tmp_path):
    """A tile of 100 chunks of 1.3 GB with 331 columns, and one without a forecast."""
    state = SimpleNamespace(root=tmp_path, transactions={"t000": SimpleNamespace(wave=0)})
    resources = TileResources(state)
    wildcards = SimpleNamespace(txn="t000", tile="s0170p00000")
    assert resources.forecast(wildcards) == UNKNOWN
    tile = TileForecast(100, 170_000_000, 125 * 10**9, 910 * 10**6)
    write_forecasts(tmp_path / "ingest" / "forecast_0.json", {"s0170p00000": tile})
    assert resources.forecast(wildcards) == tile
    # Measured with such a chunk: 680 MB, and 250 MB for Snakemake; 8 s to generate without a compiler, 6 s to load.
    assert 680 + 250 < resources.mem_mb(wildcards, 1) < 3 * (680 + 250)
    assert 100 * 8 / 60 < resources.runtime("generate")(wildcards, 1) < 10 * 100 * 8 / 60
    assert 100 * 6 / 60 < resources.runtime("ingest")(wildcards, 1) < 15 * 100 * 6 / 60
    # 14 s to verify in DuckDB.
    committed = SimpleNamespace(done="t000", tile="s0170p00000")
    assert 100 * 14 / 60 < resources.runtime("verify_embedded")(committed, 1) < 10 * 100 * 14 / 60
    assert resources.forecast(SimpleNamespace(txn="t000", tile="s0001p00000")) == UNKNOWN
