"""What a second run does: nothing to finished work, all that is missing, and no row twice."""

import copy
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import yaml

from helpers import small_dataset
from skymill.files import write_json
from skymill.selection import expand_ranges
from skymill.stores.embedded import EmbeddedStore, write_parquet
from workflow import PROJECT, SMALL_SKY, partitioned_files, snakemake, write_config

NOTHING = "Nothing to be done"


def sparse_fakedb() -> dict:
    """fakedb with few rows, so that many chunks are quick."""
    config = yaml.safe_load((PROJECT / "configs" / "fakedb" / "config.yaml").read_text())
    config["tables"]["Object"]["density"] = {"per_sq_deg": 20}
    config["tables"]["CcdVisit"]["rows"] = 2000
    return config


def stored_rows(folder: Path, database: str) -> dict[str, list]:
    """All rows of a database, by table, sorted."""
    path = folder / "results" / database / f"{database}.duckdb"
    with duckdb.connect(str(path), read_only=True) as connection:
        names = [row[0] for row in connection.execute("SHOW TABLES").fetchall()]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in names}


def planned_chunks(root: Path, wave: int) -> int:
    plan = json.loads((root / "ingest" / f"plan_{wave}.json").read_text())
    return sum(len(expand_ranges(ranges)) for tiles in plan["transactions"].values() for ranges in tiles.values())


def small(chunks: str, **keys) -> dict:
    return {**copy.deepcopy(SMALL_SKY), "chunks": chunks, **keys}


def test_finished_work_is_never_done_again(tmp_path):
    """Neither with the default profile nor without one, nor with -F, nor after a script has been edited."""
    project = tmp_path / "project"
    for name in ("workflow", "scripts", "profiles"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "environment.yml", project)
    config = write_config(tmp_path, small("0:40"))

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "snakemake", "--configfile", str(config), "--cores", "2", *arguments]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    run()
    root = project / "results" / "smallsky"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert NOTHING in run()
    assert NOTHING in run("--workflow-profile", "none")
    for script in (project / "scripts").glob("*.py"):
        script.write_text(script.read_text() + "\n# edited\n")
    for rules in (project / "workflow" / "rules").glob("*.smk"):
        rules.write_text(rules.read_text().replace("RESOURCES.mem_mb", "1001"))
    assert NOTHING in run("--workflow-profile", "none")
    run("-F")
    run("-F", "--workflow-profile", "none")
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert after == before


def test_growth_makes_only_what_is_missing(tmp_path):
    config = write_config(tmp_path, sparse_fakedb())
    root = tmp_path / "results" / "fakedb"
    snakemake(tmp_path, "--config", "chunks=0:2000", config=config)
    first = {path: path.read_bytes() for path in (root / "store" / "committed").rglob("*.parquet")}
    before = stored_rows(tmp_path, "fakedb")
    assert planned_chunks(root, 0) == 62
    dry = snakemake(tmp_path, "--config", "chunks=0:4000", "-n", config=config)
    assert "planning 217 new chunks" in dry
    snakemake(tmp_path, "--config", "chunks=0:4000", config=config)
    assert planned_chunks(root, 1) == 217
    assert all(path.read_bytes() == content for path, content in first.items())
    grown = stored_rows(tmp_path, "fakedb")
    assert len({row[-2] for row in grown["Object"]}) > 250
    for name, rows in grown.items():
        assert len(set(rows)) == len(rows), f"{name} has a row twice"
        assert set(before[name]) <= set(rows)
    # The same as in one go, the files' order apart.
    whole = tmp_path / "whole"
    whole.mkdir()
    snakemake(whole, "--config", "chunks=0:4000", config=config)
    assert stored_rows(whole, "fakedb") == grown
    # A smaller selection and another size of tiles ask for nothing that is not there.
    assert NOTHING in snakemake(tmp_path, "--config", "chunks=0:400", config=config)
    assert NOTHING in snakemake(tmp_path, "--config", "chunks=0:4000", "chunks_per_tile=7", config=config)


def test_a_killed_run_is_finished_by_the_next(tmp_path):
    """SIGKILL the driver with a job at work; its orphan may go on. Then run again: every row is there once."""
    config = write_config(tmp_path, small("0:200", chunks_per_tile=4))
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    snakemake(quiet, config=config)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--configfile", str(config), "--directory", str(tmp_path), "--cores", "2"]
    sentinels = tmp_path / "results" / "smallsky" / "ingest"
    for wanted in (1, 12, 25):
        with open(tmp_path / "driver.log", "w") as log:
            driver = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)
            deadline = time.monotonic() + 120
            while driver.poll() is None and len(list(sentinels.glob("t*/*/chunk_*.json"))) < wanted:
                assert time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
                time.sleep(0.05)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        snakemake(tmp_path, "--unlock", config=config)
    snakemake(tmp_path, config=config)
    assert stored_rows(tmp_path, "smallsky") == stored_rows(quiet, "smallsky")
    assert "agree with the truth of generation" in snakemake(tmp_path, "verify", config=config)


def test_another_dataset_of_the_same_name_is_refused(tmp_path):
    snakemake(tmp_path, config=write_config(tmp_path, small("0", ingest={"store": "none"})))
    config = small("0", ingest={"store": "none"})
    config["seed"] = 8
    config["tables"]["Object"]["density"]["per_sq_deg"] = 2
    printed = snakemake(tmp_path, "-n", config=write_config(tmp_path, config), ok=False)
    assert "seed: it was 7, now it is 8" in printed
    assert "tables.Object.density.per_sq_deg: it was 0.25, now it is 2" in printed
    assert "--directory" in printed


def test_bad_configuration_starts_nothing_and_leaves_nothing(tmp_path):
    config = small("0")
    config["partitioning"]["overlap_deg"] = 3.0
    printed = snakemake(tmp_path, config=write_config(tmp_path, config), ok=False)
    assert "overlap_deg = 3: it must not exceed the height of a sub-stripe" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "results").exists()


def test_a_bad_file_of_visits_is_refused_and_leaves_nothing(tmp_path):
    config = small("0")
    config["tables"]["Visit"].pop("rows")
    config["tables"]["Visit"]["from_file"] = "visits.csv"
    (tmp_path / "visits.csv").write_text("visitId,band,ra\n1,g,10\n")
    printed = snakemake(tmp_path, config=write_config(tmp_path, config), ok=False)
    assert "visits.csv" in printed and "the column dec is missing" in printed
    assert not (tmp_path / "results").exists()


def test_a_bad_density_map_is_refused_and_leaves_nothing(tmp_path):
    config = small("0")
    config["tables"]["Object"]["density"] = {"map": "map.npy"}
    np.save(tmp_path / "map.npy", np.ones(13))
    printed = snakemake(tmp_path, config=write_config(tmp_path, config), ok=False)
    assert "map.npy" in printed and "12" in printed
    assert not (tmp_path / "results").exists()


def test_without_a_store_the_partitioned_files_stay(tmp_path):
    config = write_config(tmp_path, small("0:40", ingest={"store": "none"}))
    snakemake(tmp_path, config=config)
    root = tmp_path / "results" / "smallsky"
    assert len(partitioned_files(root)) == 18
    assert not list(root.glob("generated/*/*/chunk_*")) and not (root / "store").exists()
    assert NOTHING in snakemake(tmp_path, config=config)


def test_load_only_some_tiles(tmp_path):
    config = write_config(tmp_path, small("0:40,324:330", chunks_per_tile=2))
    snakemake(tmp_path, "load", "--config", "only=325", config=config)
    root = tmp_path / "results" / "smallsky"
    assert sorted(path.name for path in root.glob("ingest/*/*/chunk_*.json")) == ["chunk_324.json", "chunk_325.json"]
    assert not (root / "smallsky.duckdb").exists()
    snakemake(tmp_path, config=config)
    assert len(list(root.glob("ingest/*/*/chunk_*.json"))) == 13
    printed = snakemake(tmp_path, "load", "--config", "only=325", config=config, ok=False)
    assert "none of these chunks is selected and still to be loaded" in printed


def test_a_poisoned_transaction_is_aborted_and_loaded_again(tmp_path):
    """The mark is what a job leaves that cannot trust what the store holds."""
    config = write_config(tmp_path, small("0:40,324:330", chunks_per_tile=4))
    snakemake(tmp_path, "load", "--config", "only=325", config=config)
    root = tmp_path / "results" / "smallsky"
    records = root / "ingest" / "transactions"
    started = json.loads((records / "t000.0.started.json").read_text())
    assert started["id"] == "t000.0"
    write_json(records / "t000.0.poisoned.json", {**started, "reason": "an upload was cut"})
    snakemake(tmp_path, config=config)
    assert json.loads((records / "t000.aborted.0.json").read_text())["reason"] == "an upload was cut"
    assert json.loads((records / "t000.committed.json").read_text())["id"] == "t000.1"
    sentinels = [json.loads(path.read_text()) for path in root.glob("ingest/t000/*/chunk_*.json")]
    assert len(sentinels) == 13 and {sentinel["transaction_id"] for sentinel in sentinels} == {"t000.1"}
    assert [path.name for path in (root / "store" / "staging").iterdir()] == []
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    snakemake(quiet, config=config)
    assert stored_rows(tmp_path, "smallsky") == stored_rows(quiet, "smallsky")


def test_views_are_readable_from_anywhere_and_move(tmp_path):
    config = write_config(tmp_path, small("0:40", ingest={"materialise_rows": 0}))
    snakemake(tmp_path, config=config)
    rows = stored_rows(tmp_path, "smallsky")
    assert len(rows["Object"]) > 100
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "results").rename(moved / "results")
    snakemake(moved, config=config)
    assert stored_rows(moved, "smallsky") == rows
    with duckdb.connect(str(moved / "results" / "smallsky" / "smallsky.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_views() WHERE NOT internal").fetchone()[0] == 4


def test_a_full_disk_leaves_no_file_that_looks_complete(tmp_path):
    """The limit on the size of a file stands in for a full disk: writing fails in the middle."""

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    config = PROJECT / "configs" / "fakedb" / "config.yaml"
    command = [sys.executable, str(PROJECT / "scripts" / "generate_chunk.py"), "-c", str(config), "--chunk", "40000"]
    command += ["--visits", "5000", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, preexec_fn=limit_files, capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert list((tmp_path / "out").glob("*ForcedSource*")) == [] and list((tmp_path / "out").glob(".*")) == []


def test_a_commit_takes_no_file_that_was_not_finished(tmp_path):
    dataset = small_dataset()
    store = EmbeddedStore(dataset, tmp_path)
    store.register(dataset, "")
    transaction = store.start_transaction("t000", 0, {})
    (store.staging / transaction / "Object").mkdir()
    (store.staging / transaction / "Object" / ".s0003p00010.1210.parquet.16221").write_bytes(b"PAR1")
    store.commit(transaction, {})
    assert [path.name for path in store.committed.rglob("*")] == [transaction, "Object"]


def test_small_files_are_written_aside(tmp_path):
    target = tmp_path / "record.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_records_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    """A power cut may otherwise leave a name without bytes."""
    done = []

    def note(name, act):
        monkeypatch.setattr(os, name, lambda *arguments: (done.append(name), act(*arguments)))

    note("fsync", os.fsync)
    note("replace", os.replace)
    write_json(tmp_path / "sentinel.json", {"chunk": 1})
    blocks = iter([("5", pa.table({"objectId": pa.array([1], pa.int64())}))])
    column = next(c for c in small_dataset().tables["Object"].columns if c.name == "objectId")
    assert write_parquet(tmp_path / "s0003p00010.5.parquet", [column], blocks) == {"5": 1}
    assert done == ["fsync", "replace"] * 2
