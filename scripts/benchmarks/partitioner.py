"""The locator, and the partitioner for any CSV."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import KPM50, PROJECT, figure, median_cpu, run_command

CHUNK = 115600
#: Rows of the file that shows what start-up takes.
FEW_ROWS = 1000


def measure_locate(folder: Path) -> Iterator[tuple[str, dict]]:
    """Points located per CPU-second, overlap included, uniform on the sphere."""
    from skymill.chunker import Chunker

    random = np.random.default_rng(1)
    ra, dec = 360 * random.random(2_000_000), np.degrees(np.arcsin(2 * random.random(2_000_000) - 1))
    chunker = Chunker(200, 5, 0.01667)
    rate = 2.0 / median_cpu(lambda: chunker.locate_overlap(ra, dec))
    yield "locate with overlap", figure(rate, "million points per CPU-s", at_least=5)


def measure_partition_csv(folder: Path) -> Iterator[tuple[str, dict]]:
    """Text partitioned per CPU-second by ``partition_csv.py``, which has to read it, start-up apart."""
    from generate_tile import generate_chunk
    from skymill.config import load_dataset
    from skymill.derived import partitioner_config
    from skymill.rowmaker import RowMaker, load_density
    from skymill.visits import Visits, make_regular_table

    dataset = load_dataset(KPM50)
    director, visits = dataset.tables["Object"], dataset.tables["CcdVisit"]
    densities = {"Object": load_density(director, dataset.folder)}
    maker = RowMaker(dataset, densities, {"CcdVisit": Visits(make_regular_table(dataset, visits), visits)})
    generate_chunk(maker, director, CHUNK, folder, halo=False)
    index = folder / "Object.out" / "chunk_object_index.txt"
    for name, wanted in (("Object", 300), ("ForcedSource", 80)):
        config, source, out = folder / f"{name}.cfg", folder / f"chunk_{CHUNK}_{name}.csv", folder / f"{name}.out"
        config.write_text(json.dumps(partitioner_config(dataset, dataset.tables[name])))
        command = [sys.executable, str(PROJECT / "scripts" / "partition_csv.py"), "-c", str(config)]
        command += [f"--part.id-url=file://{index}"] if name == "ForcedSource" else []

        def run(path: Path, out: Path, command: list[str] = command) -> float:
            shutil.rmtree(out, ignore_errors=True)
            return run_command([*command, "--out.dir", str(out), "--in.path", str(path)]).cpu_seconds

        few = folder / "few.csv"
        with open(source, "rb") as file:
            few.write_bytes(b"".join(file.readline() for _ in range(FEW_ROWS)))
        seconds = np.median([run(source, out) for _ in range(6)][1:])
        start_up = np.median([run(few, folder / "few.out") for _ in range(6)][1:])
        rate = source.stat().st_size / 1e6 / (seconds - start_up)
        yield f"partition_csv on {name}", figure(rate, "MB of text per CPU-s", at_least=wanted)
        yield f"partition_csv, start-up on {name}", figure(float(start_up), "CPU-s")
