"""Whole jobs: what a tile of fakedb costs, start-up included, and how much memory tiles of kpm50 take."""

from __future__ import annotations

import copy
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from . import FAKEDB, KPM50, PROJECT, RUNS, TileJobs, figure, run_command

#: Limit of a job's memory [MB]; 4 times as many objects may cost this much more.
MAX_PEAK_MB = 1024
DENSER = 4
MAX_GROWTH = 1.25


def measure_fakedb(folder: Path) -> Iterator[tuple[str, dict]]:
    """CPU per chunk to generate, partition and load a tile of 50 chunks of fakedb, each step a process of its own."""
    from skymill.schema import read_yaml

    chunks = 50
    jobs = TileJobs(read_yaml(FAKEDB), FAKEDB.parent, folder, f"40000:{40000 + chunks - 1}")
    runs = [jobs.run() for _ in range(RUNS + 1)][1:]
    total = statistics.median(sum(usage.cpu_seconds for usage in run.values()) for run in runs)
    yield (
        "fakedb: generate, partition, load (start-up included)",
        figure(total / chunks, "CPU-s per chunk", at_most=0.1),
    )
    for step in runs[0]:
        seconds = statistics.median(run[step].cpu_seconds for run in runs)
        yield f"fakedb: {step} (start-up included)", figure(seconds / chunks, "CPU-s per chunk")
    empty = TileJobs(_density(read_yaml(FAKEDB), 0.0), FAKEDB.parent, folder / "empty", "40000")
    runs = [empty.run() for _ in range(RUNS + 1)][1:]
    for step in runs[0]:
        yield f"start-up of {step}", figure(statistics.median(run[step].cpu_seconds for run in runs), "CPU-s per job")
    nothing = [run_command([sys.executable, "-c", "from snakemake import script"]).cpu_seconds for _ in range(RUNS)]
    yield "of which Python and Snakemake's preamble", figure(statistics.median(nothing), "CPU-s per job")


def measure_memory(folder: Path) -> Iterator[tuple[str, dict]]:
    """The largest memory of the jobs of a tile of kpm50: one chunk, three chunks, and one that is 4 times as dense."""
    from skymill.schema import read_yaml

    config = read_yaml(KPM50)
    peaks = {}
    steps = ("generate_tile", "partition_tile", "ingest_tile")
    for name, chunks, factor in (
        ("1 chunk", "115600", 1),
        ("3 chunks", "115600:115602", 1),
        (f"{DENSER} times as dense", "115600", DENSER),
    ):
        place = folder / name.replace(" ", "_")
        jobs = TileJobs(
            _density(config, factor * config["tables"]["Object"]["density"]["per_sq_deg"]), KPM50.parent, place, chunks
        )
        run = jobs.run(steps)
        peaks[name] = max(usage.peak_mb for usage in run.values())
        for step in steps:
            yield f"kpm50, {name}: peak memory of {step}", figure(run[step].peak_mb, "MB", at_most=MAX_PEAK_MB)
        shutil.rmtree(place)
    yield "kpm50: peak memory of a job", figure(max(peaks.values()), "MB", at_most=MAX_PEAK_MB)
    growth = peaks[f"{DENSER} times as dense"] / peaks["1 chunk"]
    yield f"kpm50: peak memory, {DENSER} times as dense", figure(growth, "times that of one chunk", at_most=MAX_GROWTH)


def _density(config: dict, per_sq_deg: float) -> dict:
    """A configuration with another density of objects."""
    changed = copy.deepcopy(config)
    changed["tables"]["Object"]["density"] = {"per_sq_deg": per_sq_deg}
    return changed


def measure_dry_run(folder: Path) -> Iterator[tuple[str, dict]]:
    """A dry run for the whole sky at 340 stripes, with the default size of tiles."""
    import yaml

    from skymill.schema import read_yaml

    config = read_yaml(FAKEDB)
    config["database"] = "wholesky"
    config["partitioning"] = {"num_stripes": 340, "num_sub_stripes": 3, "overlap_deg": 0.01667}
    config["chunks"] = "all"
    path = folder / "wholesky.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--configfile", str(path), "--directory", str(folder), "--cores", "2", "-n", "--quiet", "all"]
    runs = [run_command(command) for _ in range(3)]
    yield "dry run of 146,332 chunks", figure(statistics.median(run.cpu_seconds for run in runs), "CPU-s", at_most=15)
    yield "dry run of 146,332 chunks, memory", figure(max(run.peak_mb for run in runs), "MB", at_most=400)
