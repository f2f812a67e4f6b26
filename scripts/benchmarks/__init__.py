"""What `make bench` measures, one module for each part, and what they share: processor time, jobs as processes, rows of the table."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FAKEDB = PROJECT / "configs" / "fakedb" / "config.yaml"
KPM50 = PROJECT / "configs" / "kpm50" / "config.yaml"
RUNS = 5

#: Starts a command from a small process, since a process inherits the peak memory of the one that starts it.
_LAUNCH = """
import json, resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""
#: What a job of a step is, without Snakemake's driver: the preamble of its scripts, and the step.
_JOB = """
import sys, types
from snakemake import script
sys.path.insert(0, {scripts!r})
import {step}
names = lambda values: types.SimpleNamespace(**values)
job = {job!r}
{step}.main(names({{key: names(value) if isinstance(value, dict) and key != "config" else value for key, value in job.items()}}))
"""


def figure(value: float, unit: str, at_most: float | None = None, at_least: float | None = None) -> dict:
    """A row of the table: value, unit, target, and whether it is met; a row without a target only tells."""
    ok = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    target = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}" if at_least is not None else ""
    return {"value": float(f"{value:.3g}"), "unit": unit, "target": target, "ok": bool(ok)}


def cpu_seconds() -> float:
    """Processor time of this process and of its finished children [s]."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(action: Callable[[], object]) -> float:
    """Processor time of an action [s]."""
    start = cpu_seconds()
    action()
    return cpu_seconds() - start


def median_cpu(action: Callable[[], object], runs: int = RUNS) -> float:
    """Median processor time of an action, after one run that does not count [s]."""
    return statistics.median([timed(action) for _ in range(runs + 1)][1:])


@dataclass(frozen=True)
class Usage:
    """What a process took: processor time [s] and its peak of memory [MB]."""

    cpu_seconds: float
    peak_mb: float


def run_command(command: list[str], folder: Path = PROJECT) -> Usage:
    """Run a command, and say what it took.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    done = subprocess.run([sys.executable, "-c", _LAUNCH, *command], cwd=folder, capture_output=True, text=True)
    status, cpu, peak = json.loads(done.stdout)
    if status:
        raise RuntimeError(f"a process that is measured failed: {done.stderr[-2000:]}")
    return Usage(cpu, peak)


class TileJobs:
    """The jobs of a tile, each a process of its own, as the workflow starts them, but for Snakemake's driver.

    Parameters
    ----------
    config : `dict`
        The configuration of the dataset.
    config_folder : `pathlib.Path`
        Its folder.
    folder : `pathlib.Path`
        The working directory; results go there.
    chunks : `str`
        The chunks of the tile, as ids and ranges.
    """

    TXN, TILE = "t000", "s0000p00000"

    def __init__(self, config: dict, config_folder: Path, folder: Path, chunks: str):
        from skymill.config import Dataset
        from skymill.files import write_json
        from skymill.stores import open_store
        from skymill.visits import make_regular_table, save_arrays

        self.dataset = Dataset.from_config(config, config_folder)
        self.folder = folder
        self.root = folder / self.dataset.results
        self._plan = self.root / "ingest" / "plan_0.json"
        write_json(self._plan, {"transactions": {self.TXN: {self.TILE: chunks}}})
        (self.root / "visits").mkdir(parents=True)
        for table in self.dataset.tables_of("regular"):
            save_arrays(self.root / "visits" / f"{table.name}.npz", make_regular_table(self.dataset, table))
        self.store = open_store(self.dataset, self.root)
        self.store.register(self.dataset, "")

    def _path(self, stage: str, end: str = "") -> str:
        return str(self.root / stage / self.TXN / f"{self.TILE}{end}")

    def clear(self) -> None:
        """Remove what the jobs have made."""
        import shutil

        for name in ("generated", "partitioned", f"ingest/{self.TXN}", "store/staging"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def run(self, steps: tuple[str, ...] = ("generate_tile", "partition_tile", "ingest_tile")) -> dict[str, Usage]:
        """Run the jobs anew."""
        from skymill.files import write_json

        self.clear()
        transaction = self.store.start_transaction(self.TXN, 0, {})
        started = self.root / "ingest" / "transactions" / f"{self.TXN}.0.started.json"
        write_json(started, {"transaction": self.TXN, "attempt": 0, "id": transaction})
        generated, partitioned = (
            {"bulk": self._path(stage), "manifest": self._path(stage, ".json")}
            for stage in ("generated", "partitioned")
        )
        generated["truth"] = self._path("generated", ".truth.json.gz")
        files = {
            "generate_tile": (
                {"plan": str(self._plan)},
                generated,
            ),
            "partition_tile": (generated, partitioned),
            "ingest_tile": ({**partitioned, "started": str(started)}, {"manifest": self._path("ingest", ".json")}),
        }
        return {step: self._run_job(step, *files[step]) for step in steps}

    def _run_job(self, step: str, inputs: dict, outputs: dict) -> Usage:
        job = {
            "config": self.dataset.config,
            "rule": step,
            "wildcards": {"txn": self.TXN, "tile": self.TILE},
            "input": inputs,
            "output": outputs,
            "params": {"folder": str(self.dataset.folder), "fingerprint": "", "lock": str(self.root / "lock")},
            "log": [str(self.root / f"{step}.log")],
        }
        code = _JOB.format(scripts=str(PROJECT / "scripts"), step=step, job=job)
        return run_command([sys.executable, "-c", code], self.folder)
