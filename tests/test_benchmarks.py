"""`make bench`: its parts, its rows, and what is written into the documents. The measurements are not tested for speed."""

import importlib
import json
import re
import shutil

import pytest

import measure_speed
import write_figures
from benchmarks import figure, run_command
from skymill.errors import SkymillError


def test_a_row_says_whether_its_target_is_met():
    assert figure(1.23456, "s", at_most=2) == {"value": 1.23, "unit": "s", "target": "<= 2", "ok": True}
    assert figure(3, "s", at_most=2)["ok"] is False
    assert figure(99, "MB", at_least=100) == {"value": 99.0, "unit": "MB", "target": ">= 100", "ok": False}
    assert figure(7, "s") == {"value": 7.0, "unit": "s", "target": "", "ok": True}


def test_parts_are_named_and_others_refused(capsys):
    assert measure_speed.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(measure_speed.PARTS)
    assert all(re.search(r" \(\d+ (s|min)\)$", line) for line in lines)
    for part in measure_speed.PARTS.values():
        assert callable(getattr(importlib.import_module(f"benchmarks.{part.module}"), part.function))
    with pytest.raises(SystemExit):
        measure_speed.main(["chunks"])
    assert "there is no part 'chunks'; there are fakedb, locate" in capsys.readouterr().err


def test_one_part_leaves_the_rows_of_the_others(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"old": {"part": "locate"}, "kept": {"part": "fakedb"}}))
    monkeypatch.setattr(measure_speed, "RESULTS", path)
    measure_speed.main(["locate"])
    assert "locate with overlap" in capsys.readouterr().out
    rows = json.loads(path.read_text())
    assert set(rows) == {"kept", "locate with overlap"}
    assert rows["locate with overlap"]["value"] > 0


def test_memory_is_that_of_the_command_and_not_of_who_starts_it():
    held = bytearray(300 << 20)
    assert run_command(["true"]).peak_mb < 100 < len(held)
    with pytest.raises(RuntimeError, match="failed"):
        run_command(["false"])


def test_figures_go_between_their_marks(tmp_path, capsys):
    rows = {name: {**figure(1234.5, "MB", at_most=2000), "part": "memory"} for name in write_figures.SHORT.values()}
    text = "before\n<!-- bench -->\nold\n<!-- /bench -->\nbetween\n<!-- bench memory -->\n<!-- /bench -->\nafter\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "bench.json").write_text(json.dumps(rows))
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(text)
    assert write_figures.main(tmp_path) == 0
    found = (tmp_path / "README.md").read_text()
    assert "| dry run of 146,332 chunks | 1,230 MB |" in found
    assert "| dry run of 146,332 chunks | 1,230 | MB | <= 2000 |" in found
    assert "old" not in found and found.startswith("before\n") and found.endswith("after\n")
    assert write_figures.fill(found, rows) == found
    other = text.replace("bench memory -->", "bench growth -->\nmeasured elsewhere")
    assert "measured elsewhere" in write_figures.fill(other, rows), "a part that was not measured loses its table"
    with pytest.raises(SkymillError, match="has not been measured; run `make bench`"):
        write_figures.fill(text, {})
    shutil.rmtree(tmp_path / "results")
    assert write_figures.main(tmp_path) == 1
    assert "bench.json" in capsys.readouterr().err
