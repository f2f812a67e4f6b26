"""A chunk that fails stops nothing but itself: the others are loaded, and the next run makes only what failed."""

import copy
import errno
import json
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from generate_tile import generate_tile
from helpers import row_maker, small_dataset
from ingest_tile import GIVE_UP, load_each
from partition_tile import partition_chunk
from skymill.config import Dataset
from skymill.errors import PoisonedError, SkymillError
from skymill.failures import TileFailures, read_failures
from skymill.files import lock, write_json
from skymill.retries import own_chunks, plan_retry, with_retries
from skymill.step import start_step
from skymill.stores import Contribution
from test_restart import NOTHING, stored_rows
from workflow import SMALL_SKY, partitioned_files, snakemake, write_config

#: A generator of a child, so that it makes rows of no other chunk; it fails in the chunks that a file names.
FRAGILE = '''
import os
from pathlib import Path

from skymill.columns import Generator


class Fragile(Generator):
    """One, but in chunks that are to fail."""

    def draw(self, random, rows):
        path = Path(os.environ["SKYMILL_TEST_FAIL"])
        if path.exists() and str(rows.chunk) in path.read_text().split():
            raise ZeroDivisionError(f"no luck in chunk {rows.chunk}")
        return random.random(rows.count)
'''


def fragile_sky(folder: Path, **keys) -> Path:
    """A configuration with a generator that can be made to fail."""
    config = {**copy.deepcopy(SMALL_SKY), "chunks": "324:339", "chunks_per_tile": 8, **keys}
    column = {"name": "luck", "type": "DOUBLE", "generator": "fragile:Fragile"}
    config["tables"]["ForcedSource"]["columns"].append(column)
    (folder / "fragile.py").write_text(FRAGILE)
    return write_config(folder, config)


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Names the chunks that are to fail from now on."""
    path = tmp_path / "fail.txt"
    monkeypatch.setenv("SKYMILL_TEST_FAIL", str(path))
    return lambda *chunks: path.write_text(" ".join(map(str, chunks)))


def sentinels(root: Path) -> list[int]:
    return sorted(int(path.stem.split("_")[1]) for path in root.glob("ingest/t*/s*/chunk_*.json"))


def jobs(printed: str, rule: str) -> list[str]:
    """Messages of a rule's jobs."""
    verbs = {"generate": "generating", "partition": "partitioning", "ingest": "loading"}
    return sorted(
        line.split(": ", 1)[1]
        for line in printed.splitlines()
        if line.startswith("Job ") and f"{verbs[rule]} tile" in line
    )


def test_that_nothing_is_lost_is_told_when_a_generator_is_mended_that_has_made_nothing(tmp_path, fail):
    config = fragile_sky(tmp_path, chunks="324:325")
    fail(324, 325)
    snakemake(tmp_path, config=config, ok=False)
    (tmp_path / "fragile.py").write_text(FRAGILE + "# mended\n")
    nothing = "No chunk was generated yet: nothing is lost if you remove results/smallsky. Either undo"
    printed = snakemake(tmp_path, config=config, ok=False)
    assert "  the file fragile.py has changed\n" + nothing in printed
    (tmp_path / "fragile.py").write_text(FRAGILE)
    fail(324)
    snakemake(tmp_path, config=config, ok=False)
    (tmp_path / "fragile.py").write_text(FRAGILE + "# mended\n")
    printed = snakemake(tmp_path, config=config, ok=False)
    assert "the file fragile.py has changed" in printed and nothing not in printed


def test_a_chunk_that_fails_stops_no_other(tmp_path, fail):
    config = fragile_sky(tmp_path, keep={"partitioned": True})
    root = tmp_path / "results" / "smallsky"
    fail(326, 335)
    printed = snakemake(tmp_path, config=config, ok=False)
    assert sentinels(root) == [c for c in range(324, 340) if c not in (326, 335)]
    assert not (root / "ingest" / "transactions" / "t000.committed.json").exists()
    failures = read_failures(root, "t000")
    assert [(f["chunk"], f["stage"], f["tile"]) for f in failures] == [
        (326, "generate", "s0009p00000"),
        (335, "generate", "s0009p00008"),
    ]
    assert failures[0]["error"] == "ZeroDivisionError: no luck in chunk 326 (in the generator of ForcedSource.luck)"
    assert "fragile.py" in failures[0]["traceback"]
    assert (root / "failures" / "t000" / "s0009p00000" / "chunk_326.json").exists()
    log = (root / "logs" / "generate_tile" / "t000" / "s0009p00000.log").read_text()
    assert log.count("chunk 326 failed") == 1 and log.count("Traceback") == 1
    assert (
        "2 of 16 chunks of t000 are missing (326,335); chunk 326: ZeroDivisionError: no luck in chunk 326 (in the generator of "
        in printed
    )
    # What is left is said by a dry run, and is all that is done, as often as it fails again.
    fail(335)
    for _ in range(2):
        printed = snakemake(tmp_path, "-n", config=config)
        left = [c for c in (326, 335) if c not in sentinels(root)]
        tiles = ["s0009p00000r1"] * (326 in left) + ["s0009p00008r1"] * (335 in left)
        assert jobs(printed, "generate") == [f"generating tile {tile} of t000, missing chunks: 1" for tile in tiles]
        assert jobs(printed, "ingest") == [f"loading tile {tile} of t000, missing chunks: 1" for tile in tiles]
        before = {path: path.stat().st_mtime_ns for path in root.glob("partitioned/t000/*/*/*.txt")}
        snakemake(tmp_path, config=config, ok=False)
        assert sentinels(root) == [c for c in range(324, 340) if c != 335]
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert [failure["chunk"] for failure in read_failures(root, "t000")] == [335]
    fail()
    snakemake(tmp_path, config=config)
    assert not (root / "failures" / "t000").exists() or not list(root.glob("failures/t000/*"))
    assert NOTHING in snakemake(tmp_path, config=config)
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    snakemake(quiet, config=config)
    assert stored_rows(tmp_path, "smallsky") == stored_rows(quiet, "smallsky")
    assert partitioned_files(root) == partitioned_files(quiet / "results" / "smallsky")


def test_a_tile_of_which_all_fails_fails_and_no_other(tmp_path, fail):
    config = fragile_sky(tmp_path)
    root = tmp_path / "results" / "smallsky"
    fail(*range(324, 332))
    printed = snakemake(tmp_path, config=config, ok=False)
    assert "8 chunks of tile s0009p00000 of t000 failed: chunk 324: ZeroDivisionError: no luck in chunk 324" in printed
    assert "no chunk of the tile could be done (generate)" in printed
    assert sentinels(root) == list(range(332, 340))
    assert not (root / "ingest" / "retries").exists()
    log = (root / "logs" / "generate_tile" / "t000" / "s0009p00000.log").read_text()
    assert log.count("failed: ZeroDivisionError") == 8
    fail()
    dry = snakemake(tmp_path, "-n", config=config)
    assert jobs(dry, "generate") == ["generating tile s0009p00000 of t000, missing chunks: 8"]
    snakemake(tmp_path, config=config)
    assert sentinels(root) == list(range(324, 340)) and read_failures(root, "t000") == []


def test_without_a_store_a_failure_ends_the_run_with_an_error(tmp_path, fail):
    config = fragile_sky(tmp_path, ingest={"store": "none"})
    root = tmp_path / "results" / "smallsky"
    fail(330)
    printed = snakemake(tmp_path, config=config, ok=False)
    assert "1 of 16 chunks of t000 are missing (330); chunk 330: ZeroDivisionError" in printed
    files = partitioned_files(root)
    assert not any("chunk_330" in name for name in files) and any("chunk_331" in name for name in files)
    fail()
    dry = snakemake(tmp_path, "-n", config=config)
    assert jobs(dry, "partition") == ["partitioning tile s0009p00000r1 of t000, missing chunks: 1"]
    snakemake(tmp_path, config=config)
    assert NOTHING in snakemake(tmp_path, config=config)
    again = partitioned_files(root)
    assert any("chunk_330" in name for name in again) and {name: again[name] for name in files} == files
    # With a store, all that was partitioned is loaded, and nothing made again.
    printed = snakemake(tmp_path, "--config", "ingest={store: embedded}", config=config)
    assert jobs(printed, "generate") == [] and len(jobs(printed, "ingest")) == 3
    assert sentinels(root) == list(range(324, 340))


def test_load_says_that_a_chunk_has_failed(tmp_path, fail):
    config = fragile_sky(tmp_path)
    fail(326)
    assert "(326)" in snakemake(tmp_path, "load", "--config", "only=326", config=config, ok=False)
    snakemake(tmp_path, "load", "--config", "only=327", config=config)
    fail()
    printed = snakemake(tmp_path, "load", "--config", "only=326", config=config)
    assert jobs(printed, "generate") == ["generating tile s0009p00000r1 of t000, missing chunks: 1"]
    snakemake(tmp_path, config=config)
    assert len(sentinels(tmp_path / "results" / "smallsky")) == 16


def test_damaged_files_are_made_again(tmp_path, fail):
    """A partitioned file that is cut before it is loaded costs its chunk a retry, and nothing else."""
    config = fragile_sky(tmp_path, ingest={"store": "none"})
    snakemake(tmp_path, config=config)
    root = tmp_path / "results" / "smallsky"
    before = partitioned_files(root)
    cut = next(root.glob("partitioned/t000/*/ForcedSource/chunk_327.txt"))
    cut.write_bytes(cut.read_bytes()[:-10])
    load = ("--config", "ingest={store: embedded}", "keep={partitioned: true}")
    printed = snakemake(tmp_path, *load, config=config, ok=False)
    assert "1 of 16 chunks of t000 are missing (327)" in printed and "run again, which makes it anew" in printed
    printed = snakemake(tmp_path, *load, config=config)
    assert jobs(printed, "ingest") == ["loading tile s0009p00000r1 of t000, missing chunks: 1"]
    assert partitioned_files(root) == before
    assert len(stored_rows(tmp_path, "smallsky")["Object"]) > 100


def test_each_generated_file_that_is_missing_fails_its_chunk(tmp_path):
    """As after a run was killed while it removed them; files of places, too, without which rows of the overlap would be missing unseen."""
    dataset = small_dataset(density=20.0)
    whole, chunk = tmp_path / "whole", 327
    made = generate_tile(dataset, row_maker(dataset), [chunk], whole)[str(chunk)]
    names = sorted(path.name for path in whole.iterdir())
    assert len([name for name in names if name.endswith(".places.npy")]) == 2 and len(names) >= 5
    for name in names:
        source, target = tmp_path / name, tmp_path / f"partitioned {name}"
        shutil.copytree(whole, source, ignore=shutil.ignore_patterns(name))
        for table in dataset.tables_of("director", "child"):
            (target / table.name).mkdir(parents=True)
        with pytest.raises(SkymillError, match=f"{re.escape(name)}.*its manifest"):
            partition_chunk(dataset, chunk, made, source, target)


def test_of_a_tile_whose_files_are_gone_only_what_is_not_loaded_is_made(tmp_path, fail):
    """As after a job was killed on a node with a scratch disk. The truth of all chunks is known in the end, that of a retry, too."""
    config = fragile_sky(tmp_path)
    root = tmp_path / "results" / "smallsky"
    fail(326)
    snakemake(tmp_path, "load", "--config", "only=324", config=config)
    (root / "ingest" / "t000" / "s0009p00000.json").unlink()
    for chunk in (328, 329):
        (root / "ingest" / "t000" / "s0009p00000" / f"chunk_{chunk}.json").unlink()
    fail()
    dry = snakemake(tmp_path, "-n", config=config)
    assert "generating tile s0009p00000 of t000, missing chunks: 2" in dry
    snakemake(tmp_path, config=config)
    made = json.loads((root / "generated" / "t000" / "s0009p00000.json").read_text())["chunks"]
    assert sorted(made) == ["328", "329"]
    snakemake(tmp_path, "verify", config=config)
    assert json.loads((root / "verify.json").read_text())["chunks"] == 16


# -- a store that refuses chunks --------------------------------------------------------------------------------------


class Refusing:
    """Stands where a store would: it refuses some chunks, as a worker of Qserv may."""

    def __init__(self, *refused: int, error: type[SkymillError] = SkymillError):
        self.refused, self.error, self.loaded = refused, error, []

    def contribute(self, transaction_id, tile, contributions):
        for contribution in contributions:
            if contribution.chunk in self.refused:
                raise self.error(f"chunk {contribution.chunk} is refused")
            self.loaded.append(contribution.chunk)
            yield contribution.chunk, contribution.rows


@pytest.fixture
def files(tmp_path, monkeypatch):
    path = tmp_path / "chunk.txt"
    path.write_text("1\t2\n")

    class Table:
        name = "Object"

    return {chunk: [Contribution(Table(), chunk, False, path, 1, 4)] for chunk in range(1, 11)}


def test_a_refused_chunk_does_not_stop_the_others(tmp_path, files):
    store = Refusing(3, 5)
    failures = TileFailures(tmp_path, "t000", "s0000p00000", "load")
    assert [chunk for chunk, _ in load_each(store, "1", "s0000p00000", files, failures)] == [1, 2, 4, 6, 7, 8, 9, 10]
    assert store.loaded == [1, 2, 4, 6, 7, 8, 9, 10]
    with pytest.raises(SkymillError, match=r"2 chunks .* chunk 3: chunk 3 is refused; the others are done"):
        failures.refuse()
    assert [failure["error"] for failure in read_failures(tmp_path, "t000")] == [
        "chunk 3 is refused",
        "chunk 5 is refused",
    ]
    # The failure files go when the chunks are loaded.
    left = {chunk: files[chunk] for chunk in (3, 5)}
    again = TileFailures(tmp_path, "t000", "s0000p00000", "load")
    assert [chunk for chunk, _ in load_each(Refusing(), "1", "s0000p00000", left, again)] == [3, 5]
    assert read_failures(tmp_path, "t000") == []


def test_a_store_that_refuses_everything_is_not_asked_for_ever(tmp_path, files):
    failures = TileFailures(tmp_path, "t000", "s0000p00000", "load")
    store = Refusing(*range(4, 11))
    with pytest.raises(SkymillError, match=f"{GIVE_UP} chunks have failed one after the other, the other 4 were not"):
        list(load_each(store, "1", "s0000p00000", files, failures))
    assert store.loaded == [1, 2, 3]
    assert len(failures.failed) == GIVE_UP


def test_a_poisoned_transaction_is_no_failure_of_a_chunk(tmp_path, files):
    failures = TileFailures(tmp_path, "t000", "s0000p00000", "load")
    with pytest.raises(PoisonedError):
        list(load_each(Refusing(3, error=PoisonedError), "1", "s0000p00000", files, failures))
    assert failures.failed == {}


# -- retries ----------------------------------------------------------------------------------------------------------


def test_each_chunk_belongs_to_one_tile_or_retry(tmp_path):
    """Whatever fails where and in which order: retries share out the chunks of their tile."""
    random = np.random.default_rng(5)
    for case in range(30):
        root = tmp_path / str(case)
        write_json(root / "ingest" / "plan_0.json", {"transactions": {"t000": {"s0001p00000": "36:70"}}})
        expected = dict.fromkeys(range(36, 71), "s0001p00000")
        for number in range(1, 13):
            tile = random.choice(sorted(set(expected.values())))
            own = [chunk for chunk, owner in expected.items() if owner == tile]
            assert own_chunks(root, "t000", tile).tolist() == own
            failed = random.choice(own, random.integers(1, len(own) + 1), replace=False)
            name = plan_retry(root, "t000", tile, failed.tolist())
            assert name == f"s0001p00000r{number}"
            expected |= dict.fromkeys(sorted(failed.tolist()), name)
            found = with_retries(root, "t000", {"s0001p00000": "36:70"})
            shares = {tile: own_chunks(root, "t000", tile).tolist() for tile in found}
            assert shares == {tile: [c for c, owner in expected.items() if owner == tile] for tile in found}
    assert json.loads((root / "ingest" / "retries" / "t000" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device; free some space, or take another disk"),
        (PermissionError(errno.EACCES, "x", "a/b"), "Permission denied: a/b; see who owns the file or folder"),
        (MemoryError(), "Cannot allocate memory; run fewer jobs at a time"),
    ],
)
def test_an_error_of_the_machine_ends_a_step_in_words(tmp_path, monkeypatch, capsys, error, message):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    config = Dataset.from_config(SMALL_SKY, Path()).config
    step = SimpleNamespace(log=[tmp_path / "log"], rule="make", config=config, params=SimpleNamespace(folder="."))
    start_step(step)
    sys.excepthook(type(error), error, None)
    printed = capsys.readouterr().err
    assert f"make: {message}" in printed and "Traceback" not in printed


def test_a_job_that_waits_for_another_says_so(tmp_path, caplog):
    path = tmp_path / "locks" / "s0000p00000"

    def wait():
        with lock(path):
            pass

    waiting = threading.Thread(target=wait)
    with lock(path):
        waiting.start()
        until = time.monotonic() + 10
        while not caplog.text and time.monotonic() < until:
            time.sleep(0.01)
    waiting.join()
    assert "another job is still at work on the same files; waiting for" in caplog.text and str(path) in caplog.text
