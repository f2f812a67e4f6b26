"""The progress of a run: what the line says, where it goes, and that it never breaks anything."""

import copy
import json
import os
import pty
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from helpers import small_config
from skymill import progress
from skymill.config import Dataset
from skymill.files import write_json
from skymill.plan import State, plan_path
from skymill.progress import Line, Progress, Reporter, Sample, duration, short
from workflow import PROJECT, SMALL_SKY, snakemake, write_config


@pytest.fixture
def state(tmp_path):
    """Three tiles of 10, 10 and 3 chunks that are planned, in one transaction."""
    dataset = Dataset.from_config(small_config(chunks="324:346", chunks_per_tile=10), tmp_path)
    root = tmp_path / "results"
    write_json(plan_path(root, 0), State.read(root, dataset).new_wave)
    return State.read(root, dataset)


def put(root: Path, tile: str, *chunks: int) -> None:
    for chunk in chunks:
        sentinel = {"chunk": chunk, "transaction_id": "t000.0", "rows": {"Object": 7, "ForcedSource": 3}}
        write_json(root / "ingest" / "t000" / tile / f"chunk_{chunk}.json", sentinel)


def test_samples_count_what_the_records_say(state):
    root, counted = state.root, Progress(state)

    def sample() -> tuple[int, ...]:
        found = counted.sample()
        return found.generated, found.partitioned, found.loaded, found.rows, found.failed

    assert counted.total == 23 and sample() == (0, 0, 0, 0, 0)
    bulk = root / "generated" / "t000" / "s0009p00000"
    bulk.mkdir(parents=True)
    for chunk in (324, 325, 326):
        (bulk / f"chunk_{chunk}_Object.csv").touch()
        (bulk / f"chunk_{chunk}_ForcedSource.csv").touch()
    assert sample() == (2, 0, 0, 0, 0)  # the third is being made
    write_json(bulk.with_suffix(".json"), {})
    assert sample() == (10, 0, 0, 0, 0)
    write_json(root / "partitioned" / "t000" / "s0009p00000.json", {})
    assert sample() == (10, 10, 0, 0, 0)
    put(root, "s0009p00000", 324, 325)
    assert sample() == (10, 10, 2, 20, 0)
    put(root, "s0009p00000", 326)
    write_json(root / "ingest" / "t000" / "s0009p00000.json", {"chunks": 9, "rows": {"Object": 100}})
    assert sample() == (10, 10, 9, 100, 0)  # one has failed
    write_json(root / "failures" / "t000" / "s0009p00010" / "chunk_335.json", {})
    put(root, "s0009p00020", 344)
    assert sample() == (11, 11, 10, 110, 1)


def test_manifests_of_another_run_whose_files_are_gone_do_not_count(state):
    manifest = state.root / "generated" / "t000" / "s0009p00000.json"
    write_json(manifest, {})
    os.utime(manifest, (1e9, 1e9))
    assert Progress(state).sample().generated == 0
    manifest.with_suffix("").mkdir()
    assert Progress(state).sample().generated == 10


def test_committed_transactions_count_without_being_looked_at(state):
    record = state.root / "ingest" / "transactions" / "t000.committed.json"
    write_json(record, {"id": "t000.0", "rows": {"Object": 1000}})
    state.dataset.config["chunks"] = "0,324:346"
    counted = Progress(State.read(state.root, state.dataset))
    assert (counted.before, counted.total) == (23, 24)
    found = counted.sample()
    assert (found.loaded, found.rows) == (23, 1000)


def test_the_line(state):
    line = Line(Progress(state))
    line.add(Sample(100.0, 0, 0, 0, 0, 0))
    assert line.text() == "0 of 23 chunks loaded (0 %)"
    line.add(Sample(110.0, 12, 12, 10, 2_500_000, 2))
    assert line.text() == (
        "10 of 23 chunks loaded (43 %), 12 generated; 2.5M rows; 250k rows/s, 1 chunks/s; 10 s left; 2 failed"
    )
    # The speed is that of the last minutes, not of the beginning.
    for i in range(1, 8):
        line.add(Sample(110.0 + 100 * i, 12 + i, 12 + i, 10 + i, 2_500_000 + 1000 * i, 0))
    assert "17 of 23 chunks loaded" in line.text() and "10 rows/s, 0.6 chunks/min" in line.text()
    line.add(Sample(2000.0, 23, 23, 23, 3_000_000, 0))
    assert "23 of 23 chunks loaded (100 %); 3M rows" in line.text() and "left" not in line.text()


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (12_345, "12.3k"), (4.56e6, "4.56M"), (1.2e13, "12T")]
)
def test_short_numbers(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (720, "12 min"), (12_000, "3 h 20 min"), (353_000, "4 d 2 h"), (7190, "2 h 0 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_error_ends_the_reports_and_nothing_else(state, monkeypatch):
    monkeypatch.setattr(progress.Progress, "sample", lambda self: 1 / 0)
    reporter = Reporter(state, types.SimpleNamespace(quiet=None))
    reporter.start()
    reporter.stop()
    assert "ZeroDivisionError" in (state.root / "logs" / "progress.log").read_text()


def tiny(**keys) -> dict:
    return {**copy.deepcopy(SMALL_SKY), "chunks": "324:335", "chunks_per_tile": 3, **keys}


def test_lines_in_a_log(tmp_path):
    config = write_config(tmp_path, tiny())
    load = ("load", "--config", "only=324")
    assert "skymill:" not in snakemake(tmp_path, *load, config=config, environment={"SKYMILL_PROGRESS": "off"})
    printed = snakemake(
        tmp_path, "--quiet", "rules", "progress", config=config, environment={"SKYMILL_PROGRESS": "0.3"}
    )
    lines = re.findall(r"^skymill: (\d+) of 12 chunks loaded", printed, re.MULTILINE)
    assert len(lines) >= 3 and lines[0] == "3" and lines[-1] == "12" and lines == sorted(lines, key=int)
    assert "\r" not in printed and "\x1b" not in printed
    rows = json.loads((tmp_path / "results" / "smallsky" / "ingest" / "published.json").read_text())["rows"]
    assert f"12 of 12 chunks loaded (100 %); {short(sum(rows.values()) - rows['Visit'])} rows" in printed
    assert "skymill:" not in snakemake(tmp_path, "status", config=config, environment={"SKYMILL_PROGRESS": "0.3"})


def test_with_quiet_only_the_lines_and_errors_are_printed(tmp_path):
    quiet = ("--quiet", "rules", "progress", "host")
    config = write_config(tmp_path, tiny())
    printed = snakemake(tmp_path, *quiet, config=config)
    assert len(printed.splitlines()) < 10, printed
    assert "12 of 12 chunks loaded" in printed and "Select jobs" not in printed
    (log,) = (tmp_path / ".snakemake" / "log").glob("*.log")
    assert "Select jobs" in log.read_text()
    column = {"name": "x", "type": "FLOAT", "generator": {"oops:Oops": {}}}
    broken = tiny(database="broken")
    broken["tables"]["Object"]["columns"].append(column)
    (tmp_path / "oops.py").write_text(
        "from skymill.columns import Generator\n\n\nclass Oops(Generator):\n"
        "    def draw(self, random, rows):\n        raise ValueError('oops, a long explanation')\n"
    )
    printed = snakemake(tmp_path, *quiet, config=write_config(tmp_path, broken), ok=False)
    assert "oops, a long explanation" in printed and "RuleException" in printed
    assert "Removing output files of failed job" in printed


def test_a_live_line_in_a_terminal(tmp_path):
    config = write_config(tmp_path, tiny())
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--configfile", str(config), "--directory", str(tmp_path), "--cores", "2", "--quiet", "rules"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    driver = subprocess.Popen(command, cwd=PROJECT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:  # how Linux tells the end
        pass
    assert driver.wait(60) == 0
    printed = b"".join(parts).decode()
    # Shown on a line of its own, never in the middle of another, and removed before the last message.
    shown = re.findall(r"(.?)\r\x1b\[Kskymill: \d+ of 12 chunks[^\r\n]*\r", printed)
    assert shown and set(shown) <= {"\n", "\r", ""}, shown
    assert re.search(
        r"skymill: 12 of 12 chunks loaded \(100 %\); \S+ rows.* took ", printed.splitlines()[-3:][0] + printed
    )
