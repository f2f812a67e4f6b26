"""Any selection over any state of a run: nothing is done again, lost, or loaded twice."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from helpers import small_config
from skymill.config import Dataset
from skymill.files import write_json
from skymill.plan import State, loaded_chunks, plan_path, present_id
from skymill.retries import home_tile, own_chunks, plan_retry
from skymill.selection import expand_ranges, format_ranges
from test_restart import stored_rows
from workflow import SMALL_SKY, partitioned_files, snakemake, write_config


def draw_selection(random: np.random.Generator, chunks: np.ndarray) -> np.ndarray:
    """Some runs of chunk ids: neighbours of what was there before, parts of it, or something else."""
    runs = []
    for _ in range(random.integers(1, 4)):
        first = random.integers(len(chunks))
        runs.append(chunks[first : first + random.integers(1, 40)])
    return np.unique(np.concatenate(runs))


class Worker:
    """Does what the jobs of a run do to the records, as far as it comes, and notes each load that counts."""

    def __init__(self, root: Path, random: np.random.Generator):
        self.root, self.random = root, random
        self.loads: dict[str, list[int]] = {}
        self.committed: dict[str, bytes] = {}

    def run(self, state: State, luck: float) -> None:
        """A run that stops anywhere, chunks of which fail; ``luck`` is the chance of everything to succeed."""
        if state.new_wave is not None:
            write_json(plan_path(self.root, state.new_wave["wave"]), state.new_wave)
        for transaction in state.pending.values():
            if self.random.random() > luck:
                continue
            self.start(transaction.name, transaction.attempt)
            done = [self.load_tile(transaction.name, tile, luck) for tile in transaction.tiles]
            if all(done) and self.random.random() < luck:
                self.commit(transaction.name)
            elif self.random.random() > luck:
                self.abort(transaction.name, transaction.attempt)

    def records(self, name: str) -> Path:
        return self.root / "ingest" / "transactions" / name

    def start(self, name: str, attempt: int) -> None:
        if not self.records(f"{name}.{attempt}.started.json").exists():
            write_json(self.records(f"{name}.{attempt}.started.json"), {"id": f"{name}.{attempt}"})
            self.loads[f"{name}.{attempt}"] = []

    def load_tile(self, name: str, tile: str, luck: float) -> bool:
        folder = self.root / "ingest" / name
        if (folder / f"{tile}.json").exists():
            return True
        transaction_id = present_id(self.root, name)
        own = own_chunks(self.root, name, tile).tolist()
        done = loaded_chunks(self.root, name, tile, transaction_id)
        failed = [chunk for chunk in own if chunk not in done and self.random.random() > 0.9 + luck / 10]
        if failed and len(failed) < len(own):
            plan_retry(self.root, name, tile, failed)
        elif failed:
            return False
        for chunk in own:
            if chunk not in done and chunk not in failed:
                if self.random.random() > 0.95 + luck / 20:
                    return False  # killed
                self.loads[transaction_id].append(chunk)
                sentinel = {"chunk": chunk, "transaction_id": transaction_id, "rows": {}}
                write_json(folder / home_tile(tile) / f"chunk_{chunk}.json", sentinel)
        write_json(folder / f"{tile}.json", {"ids": format_ranges(np.setdiff1d(own, failed))})
        return not failed

    def commit(self, name: str) -> None:
        write_json(self.records(f"{name}.committed.json"), {"id": present_id(self.root, name)})
        self.committed[name] = self.records(f"{name}.committed.json").read_bytes()

    def abort(self, name: str, attempt: int) -> None:
        write_json(self.records(f"{name}.{attempt}.poisoned.json"), {"id": f"{name}.{attempt}"})
        folder = self.root / "ingest" / name
        for path in sorted(folder.rglob("*"), reverse=True) if folder.exists() else ():
            path.rmdir() if path.is_dir() else path.unlink()
        write_json(self.records(f"{name}.aborted.{attempt}.json"), {})
        self.loads.pop(f"{name}.{attempt}")


@pytest.mark.parametrize("seed", range(12))
def test_records_of_any_sequence_of_selections(seed, tmp_path):
    """Selections, tile sizes, kills, failures and aborts at random; at the end all that was ever selected is there, once."""
    random = np.random.default_rng(seed)
    config = small_config(children=False)
    dataset = Dataset.from_config(config, tmp_path)
    root = tmp_path / "results"
    all_chunks = dataset.chunker.all_chunks()
    worker, wanted = Worker(root, random), np.empty(0, np.int64)
    for step in range(14):
        last = step >= 10
        # From some step on, all that was asked for is asked for again, and most things go well.
        selection = wanted if last else draw_selection(random, all_chunks)
        dataset.config["chunks"] = format_ranges(selection)
        dataset.config["chunks_per_tile"] = int(random.integers(1, 30))
        wanted = np.union1d(wanted, selection)
        state = State.read(root, dataset)
        assigned = np.concatenate([t.chunks() for t in state.transactions.values()])
        assert np.array_equal(np.sort(assigned), wanted), "a chunk is planned twice, or not at all"
        assert not set(state.pending) & set(worker.committed)
        for transaction in state.transactions.values():
            open_loads = next((root / "ingest" / transaction.name).glob("*/chunk_*.json"), None) is not None
            is_wanted = np.isin(transaction.chunks(), selection).any() or open_loads
            assert (transaction.name in state.pending) == (not transaction.committed and bool(is_wanted))
        missing = {t: sum(state.missing_chunks(t, tile) for tile in state.pending[t].tiles) for t in state.pending}
        for name, count in missing.items():
            loaded = worker.loads.get(f"{name}.{state.pending[name].attempt}", [])
            assert count == len(state.pending[name].chunks()) - len(loaded)
        worker.run(state, luck=1.0 if step == 13 else 0.9 if last else 0.6)
        for name, content in worker.committed.items():
            assert worker.records(f"{name}.committed.json").read_bytes() == content
    loads = sorted(itertools.chain.from_iterable(worker.loads.values()))
    assert loads == wanted.tolist()
    assert State.read(root, dataset).pending == {}


def test_any_sequence_of_selections_through_the_workflow(tmp_path):
    """Growth, shrinking, something else, another size of tiles: at the end the rows and files of one run."""
    random = np.random.default_rng(3)
    keys = {"keep": {"partitioned": True}, "ingest": {"tiles_per_transaction": 4}}
    config = write_config(tmp_path, {**SMALL_SKY, **keys})
    all_chunks = np.array([chunk for chunk in Dataset.from_config(SMALL_SKY, tmp_path).chunker.all_chunks()])
    root = tmp_path / "results" / "smallsky"
    wanted, before = np.empty(0, np.int64), {}
    for _ in range(4):
        selection = draw_selection(random, all_chunks)
        wanted = np.union1d(wanted, selection)
        size = f"chunks_per_tile={random.integers(2, 20)}"
        snakemake(tmp_path, "--quiet", "--config", f"chunks={format_ranges(selection)}", size, config=config)
        files = {path: path.stat().st_mtime_ns for path in root.rglob("*.txt")}
        files |= {path: path.stat().st_mtime_ns for path in (root / "store").rglob("*.parquet")}
        assert {path: files.get(path) for path in before} == before, "a file was made again, or is gone"
        before = files
        sentinels = [json.loads(path.read_text())["chunk"] for path in root.glob("ingest/t*/s*/chunk_*.json")]
        assert sorted(sentinels) == wanted.tolist()
    assert len(expand_ranges(format_ranges(wanted))) > len(selection)
    whole = tmp_path / "whole"
    whole.mkdir()
    snakemake(whole, "--quiet", "--config", f"chunks={format_ranges(wanted)}", config=config)
    assert partitioned_files(root) == partitioned_files(whole / "results" / "smallsky")
    assert stored_rows(tmp_path, "smallsky") == stored_rows(whole, "smallsky")
