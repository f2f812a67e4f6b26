"""Measure the speed of the steps, and compare it with what is asked for.

    make bench

Prints a table and writes ``results/bench.json``: name -> value, unit, target, ok. Times are of the processor (user and system, children
included), medians of several runs; start-up of processes is included where the name says so.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
FAKEDB = PROJECT / "configs" / "fakedb" / "config.yaml"
RUNS = 5


def cpu_seconds() -> float:
    """Processor time of this process and of its finished children [s]."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def median_cpu(action: Callable[[], object], runs: int = RUNS) -> float:
    """Median processor time of an action, after one run that does not count [s]."""
    times = []
    for _ in range(runs + 1):
        start = cpu_seconds()
        action()
        times.append(cpu_seconds() - start)
    return statistics.median(times[1:])


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


def measure_fakedb(folder: Path) -> dict:
    """CPU per chunk to generate, partition and load a tile of 50 chunks of fakedb, each step a process of its own."""
    from skymill.config import load_dataset
    from skymill.files import write_json
    from skymill.plan import State
    from skymill.stores import open_store
    from skymill.visits import make_regular_table, save_arrays

    dataset = load_dataset(FAKEDB)
    dataset.config["chunks"] = "40000:40049"
    os.chdir(folder)
    root = dataset.results
    plan = root / "ingest" / "plan_0.json"
    write_json(plan, State.read(root, dataset).new_wave)
    (root / "visits").mkdir()
    save_arrays(root / "visits" / "CcdVisit.npz", make_regular_table(dataset, dataset.tables["CcdVisit"]))
    store = open_store(dataset, root)
    store.register(dataset, "")
    tile = {"txn": "t000", "tile": "s0100p00000"}

    def path(stage: str, end: str = "") -> str:
        return f"{root}/{stage}/t000/s0100p00000{end}"

    def run() -> None:
        for name in ("generated", "partitioned", "ingest/t000", "store/staging"):
            shutil.rmtree(root / name, ignore_errors=True)
        write_json(
            root / "started.json", {"transaction": "t000", "attempt": 0, "id": store.start_transaction("t000", 0, {})}
        )
        made = {
            stage: {"bulk": path(stage), "manifest": path(stage, ".json")} for stage in ("generated", "partitioned")
        }
        made["generated"]["truth"] = path("generated", ".truth.json.gz")
        jobs = {
            "generate_tile": ({"plan": str(plan)}, made["generated"]),
            "partition_tile": (made["generated"], made["partitioned"]),
            "ingest_tile": (
                {**made["partitioned"], "started": f"{root}/started.json"},
                {"manifest": path("ingest", ".json")},
            ),
        }
        for step, (inputs, outputs) in jobs.items():
            job = {
                "config": dataset.config, "rule": step, "wildcards": tile, "input": inputs, "output": outputs,
                "params": {"folder": str(FAKEDB.parent), "fingerprint": "", "lock": f"{root}/lock"}, "log": [f"{root}/{step}.log"],
            }  # fmt: skip
            code = _JOB.format(scripts=str(PROJECT / "scripts"), step=step, job=job)
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    value = median_cpu(run) / 50
    os.chdir(PROJECT)
    return {"value": round(value, 4), "unit": "CPU-s per chunk", "target": "<= 0.1", "ok": value <= 0.1}


def measure_locate() -> dict:
    """Points located per CPU-second, overlap included, uniform on the sphere."""
    from skymill.chunker import Chunker

    random = np.random.default_rng(1)
    ra, dec = 360 * random.random(2_000_000), np.degrees(np.arcsin(2 * random.random(2_000_000) - 1))
    chunker = Chunker(200, 5, 0.01667)
    rate = 2.0 / median_cpu(lambda: chunker.locate_overlap(ra, dec))
    return {"value": round(rate, 2), "unit": "million points per CPU-s", "target": ">= 5", "ok": rate >= 5}


def _wide_dataset() -> dict:
    """A dataset with an Object of 330 columns and a ForcedSource, one chunk of which is some 100 MB."""
    from skymill.schema import read_yaml

    config = read_yaml(FAKEDB)
    config["tables"]["Object"]["columns"] += [{"name": "x{0..320}", "type": "DOUBLE", "generator": "uniform"}]
    config["tables"]["Object"]["density"] = {"per_sq_deg": 18_000}
    config["tables"]["CcdVisit"]["rows"] = 150_000
    return config


def measure_partition(folder: Path) -> dict[str, dict]:
    """Text partitioned per CPU-second: the workflow's step, and the partitioner on any CSV, which has to read it."""
    from generate_tile import generate_tile
    from partition_tile import partition_chunk
    from skymill.config import Dataset
    from skymill.derived import partitioner_config
    from skymill.rowmaker import RowMaker, load_density
    from skymill.visits import Visits, make_regular_table

    dataset = Dataset.from_config(_wide_dataset(), FAKEDB.parent)
    director, visits = dataset.tables["Object"], dataset.tables["CcdVisit"]
    maker = RowMaker(
        dataset,
        {"Object": load_density(director, dataset.folder)},
        {"CcdVisit": Visits(make_regular_table(dataset, visits), visits)},
    )
    generated, chunk = folder / "generated", 40000
    made = generate_tile(dataset, maker, [chunk], generated)[str(chunk)]
    text = sum(made[name]["bytes"] for name in ("Object", "ForcedSource")) / 1e6
    target = folder / "partitioned"

    def step() -> None:
        shutil.rmtree(target, ignore_errors=True)
        for name in ("Object", "ForcedSource"):
            (target / name).mkdir(parents=True)
        partition_chunk(dataset, chunk, made, generated, target)

    results = {}
    rate = text / median_cpu(step)
    results["partition step of the workflow"] = {
        "value": round(rate), "unit": "MB of text per CPU-s", "target": ">= 300", "ok": rate >= 300,
    }  # fmt: skip
    for name, wanted in (("Object", 300), ("ForcedSource", 80)):
        config = folder / f"{name}.cfg"
        config.write_text(json.dumps(partitioner_config(dataset, dataset.tables[name])))
        inputs = [generated / f"chunk_{chunk}_{name}.csv"]
        index = folder / "Object.out" / "chunk_object_index.txt"

        def run(name: str = name, config: Path = config, inputs: list[Path] = inputs, index: Path = index) -> None:
            out = folder / f"{name}.out"
            shutil.rmtree(out, ignore_errors=True)
            command = [
                sys.executable,
                str(PROJECT / "scripts" / "partition_csv.py"),
                "-c",
                str(config),
                "--out.dir",
                str(out),
            ]
            command += [f"--part.id-url=file://{index}"] if name == "ForcedSource" else []
            for path in inputs:
                command += ["--in.path", str(path)]
            subprocess.run(command, check=True, capture_output=True)

        # The first 1,000 rows: what is left is start-up, reported apart.
        seconds = median_cpu(run)
        small = folder / f"small_{name}.csv"
        with open(inputs[0], "rb") as file:
            small.write_bytes(b"".join(file.readline() for _ in range(1000)))
        kept = shutil.copytree(folder / f"{name}.out", folder / f"{name}.kept")
        start_up = median_cpu(lambda run=run, small=small: run(inputs=[small]))
        shutil.rmtree(folder / f"{name}.out")
        kept.rename(folder / f"{name}.out")
        rate = inputs[0].stat().st_size / 1e6 / (seconds - start_up)
        results[f"partition_csv on {name}"] = {
            "value": round(rate), "unit": "MB of text per CPU-s", "target": f">= {wanted}", "ok": rate >= wanted,
        }  # fmt: skip
        results[f"partition_csv, start-up on {name}"] = {
            "value": round(start_up, 2),
            "unit": "CPU-s",
            "target": "",
            "ok": True,
        }
    return results


def measure_dry_run(folder: Path) -> dict[str, dict]:
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
    peaks = []

    def run() -> None:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, "the dry run failed"
        peaks.append(usage.ru_maxrss / 1024)

    seconds, peak = median_cpu(run, 3), 0.0
    peak = statistics.median(peaks)
    return {
        "dry run of 146,332 chunks": {
            "value": round(seconds, 1),
            "unit": "CPU-s",
            "target": "<= 15",
            "ok": seconds <= 15,
        },
        "dry run of 146,332 chunks, memory": {
            "value": round(peak),
            "unit": "MB",
            "target": "<= 400",
            "ok": peak <= 400,
        },
    }


def main() -> int:
    """Measure everything; the exit code says whether all targets are met."""
    from summarize_run import format_table

    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="skymill-bench-") as name:
        folder = Path(name)
        start = time.monotonic()
        results["fakedb: generate, partition, load (start-up included)"] = measure_fakedb(folder)
        results["locate with overlap"] = measure_locate()
        results |= measure_partition(folder)
        results |= measure_dry_run(folder)
    print(format_table(["what", "value", "unit", "target", "ok"], [
        [key, f"{r['value']:g}", r["unit"], r["target"], "yes" if r["ok"] else "NO"] for key, r in results.items()
    ]))  # fmt: skip
    print(f"\n{time.monotonic() - start:.0f} s")
    path = PROJECT / "results" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(r["ok"] for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
