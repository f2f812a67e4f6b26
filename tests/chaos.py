"""Kill a run again and again, at random, and see that nothing is lost and nothing is there twice.

    make chaos
    python tests/chaos.py --kills 50 --seed 1

Runs fakedb, with fewer rows, on this machine: once undisturbed, then with SIGKILL for Snakemake or for one of its jobs
at random times, run again after each kill, until it is finished; then anew in another folder, until there were enough
kills. Each time the partitioned files are compared byte for byte, the rows of the database by hash, and the sentinels
are counted. Only processes that were started here are killed.
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import psutil
import yaml

from workflow import PROJECT, partitioned_files, write_config

#: Longest time that a run may take before its end is not waited for any more [s].
LIMIT_S = 3600.0
#: Between two kills there are so many seconds, on average.
PAUSE_S = 2.0
_MESSAGE = re.compile(
    r"^Job \d+: (generating|partitioning|loading) tile \S+ of \S+, missing chunks: (\d+)", re.MULTILINE
)


@dataclass
class Tally:
    """What has happened, and what was found.

    Attributes
    ----------
    kills : `collections.Counter`
        Of the driver, and of jobs by their script.
    chunks_begun : `collections.Counter`
        Chunks of the jobs that were started, by what they do.
    """

    kills: Counter = field(default_factory=Counter)
    restarts: int = 0
    rounds: int = 0
    chunks: int = 0
    chunks_begun: Counter = field(default_factory=Counter)
    files_differing: int = 0
    rows_lost: int = 0
    rows_twice: int = 0
    sentinels_wrong: int = 0
    leftovers: int = 0

    def lines(self) -> list[tuple[str, str]]:
        """What is printed."""
        jobs = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        redone = {verb: count - self.chunks for verb, count in sorted(self.chunks_begun.items())}
        return [
            ("kills", f"{self.kills.total()} ({jobs})"),
            ("restarts", str(self.restarts)),
            ("rounds", f"{self.rounds}, of {self.chunks // max(self.rounds, 1)} chunks"),
            ("chunks redone", ", ".join(f"{count} {verb}" for verb, count in redone.items())),
            ("files that differ", str(self.files_differing)),
            ("rows lost", str(self.rows_lost)),
            ("rows twice", str(self.rows_twice)),
            ("chunks without exactly one sentinel", str(self.sentinels_wrong)),
            ("files left behind", str(self.leftovers)),
        ]

    @property
    def good(self) -> bool:
        return not (self.files_differing or self.rows_lost or self.rows_twice or self.sentinels_wrong or self.leftovers)


def chaos_config(chunks: str, chunks_per_tile: int) -> dict:
    """Fakedb with few rows, in many tiles and several transactions, its partitioned files kept."""
    config = yaml.safe_load((PROJECT / "configs" / "fakedb" / "config.yaml").read_text())
    config["chunks"] = chunks
    config["chunks_per_tile"] = chunks_per_tile
    config["keep"] = {"partitioned": True}
    config["ingest"] = {"tiles_per_transaction": 12}
    config["tables"]["Object"]["density"] = {"per_sq_deg": 100}
    config["tables"]["CcdVisit"]["rows"] = 5000
    return config


class Run:
    """Runs the workflow in a folder, and kills it.

    Parameters
    ----------
    folder : `pathlib.Path`
    config : `pathlib.Path`
    cores : `int`
    """

    def __init__(self, folder: Path, config: Path, cores: int):
        self.folder, self.log = folder, folder / "snakemake.log"
        folder.mkdir()
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
        self.command = [*command, "--configfile", str(config), "--directory", str(folder), "--cores", str(cores)]

    def start(self) -> subprocess.Popen:
        with open(self.log, "a") as log:
            return subprocess.Popen(self.command, cwd=PROJECT, stdout=log, stderr=log)

    def unlock(self) -> None:
        subprocess.run([*self.command, "--unlock"], cwd=PROJECT, check=True, capture_output=True)

    def finish(self, driver: subprocess.Popen) -> bool:
        """Wait for the end of a run; whether it was successful."""
        return driver.wait(LIMIT_S) == 0

    def begun(self) -> Counter:
        """The chunks of all jobs that were started, by what they do."""
        counts: Counter = Counter()
        for verb, chunks in _MESSAGE.findall(self.log.read_text()):
            counts[verb] += int(chunks)
        return counts


def jobs_of(driver: subprocess.Popen) -> dict[psutil.Process, str]:
    """The processes of a driver's jobs, with the scripts that they run."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                script = re.search(r"tmp\w+\.(\w+)\.py", " ".join(process.cmdline()))
                found[process] = script[1] if script else "other"
    return found


def strike(driver: subprocess.Popen, chance: random.Random, tally: Tally) -> bool:
    """SIGKILL the driver, or one of its jobs if there is any; whether it was the driver."""
    jobs = jobs_of(driver)
    if jobs and chance.random() < 0.5:
        victim = chance.choice(sorted(jobs, key=lambda process: process.pid))
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            tally.kills[jobs[victim]] += 1
        return False
    if driver.poll() is None:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        tally.kills["driver"] += 1
    # Its jobs go on: the next run has to get along with them.
    return True


def wait_for_jobs(driver: subprocess.Popen) -> None:
    """Wait until a driver has a job, or has ended."""
    deadline = time.monotonic() + LIMIT_S
    while driver.poll() is None and not jobs_of(driver) and time.monotonic() < deadline:
        time.sleep(0.05)


def disturb(run: Run, kills: int, chance: random.Random, tally: Tally) -> None:
    """Run until all is done, with at most so many kills more."""
    deadline = time.monotonic() + LIMIT_S
    before = tally.kills.total()
    while time.monotonic() < deadline:
        driver = run.start()
        # At times while it still reads its files, or ends what another run has begun; else when there are jobs.
        if chance.random() < 0.8:
            wait_for_jobs(driver)
        while tally.kills.total() - before < kills:
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(chance.expovariate(1 / PAUSE_S))
            if driver.poll() is not None or strike(driver, chance, tally):
                break
        if driver.poll() != -signal.SIGKILL and run.finish(driver):
            return
        tally.restarts += 1
        run.unlock()
    raise TimeoutError(f"the run is not finished after {LIMIT_S:.0f} s; see {run.log}")


def compare(run: Run, quiet: Run, tally: Tally) -> None:
    """Compare what a disturbed run and an undisturbed one have made."""
    root, quiet_root = run.folder / "results" / "fakedb", quiet.folder / "results" / "fakedb"
    files, expected = partitioned_files(root), partitioned_files(quiet_root)
    assert len(expected) > 20, "nothing was partitioned"
    tally.files_differing += sum(files.get(name) != expected.get(name) for name in files.keys() | expected.keys())
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{root}/fakedb.duckdb' AS run (READ_ONLY)")
        connection.execute(f"ATTACH '{quiet_root}/fakedb.duckdb' AS quiet (READ_ONLY)")
        tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'quiet'").fetchall()
        assert len(tables) == 4
        for (table,) in tables:
            lost, twice = connection.execute(
                f"""SELECT sum(greatest(expected - found, 0)), sum(greatest(found - expected, 0)) FROM (
                    SELECT coalesce(q.n, 0) AS expected, coalesce(r.n, 0) AS found
                    FROM (SELECT hash(t) AS h, count(*) AS n FROM quiet."{table}" AS t GROUP BY ALL) AS q
                    FULL JOIN (SELECT hash(t) AS h, count(*) AS n FROM run."{table}" AS t GROUP BY ALL) AS r USING (h))"""
            ).fetchone()
            tally.rows_lost += int(lost)
            tally.rows_twice += int(twice)
    # A sentinel counts if it is of the transaction that was committed.
    planned, sentinels = Counter(), Counter()
    for path in (root / "ingest").glob("plan_*.json"):
        for name, tiles in json.loads(path.read_text())["transactions"].items():
            record = json.loads((root / "ingest" / "transactions" / f"{name}.committed.json").read_text())
            planned.update(chunk for ranges in tiles.values() for chunk in expand(ranges))
            for sentinel in (root / "ingest" / name).glob("s*/chunk_*.json"):
                content = json.loads(sentinel.read_text())
                sentinels[content["chunk"]] += content["transaction_id"] == record["id"]
    assert planned and planned.total() == len(planned), "the plan is empty, or holds a chunk twice"
    tally.sentinels_wrong += sum(sentinels[chunk] != 1 for chunk in planned | sentinels)
    tally.chunks += len(planned)
    # Bulk files that vanish after use, and files aside that never got their names.
    left = [*root.glob("generated/*/*/"), *root.glob("store/**/.*"), *root.glob("partitioned/**/.*")]
    tally.leftovers += sum(path.name != ".snakemake_timestamp" for path in left)


def expand(ranges: str) -> list[int]:
    """The chunk ids of ranges in a plan file."""
    bounds = [item.partition(":") for item in ranges.split(",")]
    return [chunk for low, _, high in bounds for chunk in range(int(low), int(high or low) + 1)]


def run_chaos(folder: Path, kills: int, seed: int, chunks: str, chunks_per_tile: int, cores: int) -> Tally:
    """Do it all below a folder."""
    config = write_config(folder, chaos_config(chunks, chunks_per_tile))
    print("running fakedb with fewer rows once undisturbed, to compare with; this takes about a minute", flush=True)
    quiet = Run(folder / "quiet", config, cores)
    start = time.monotonic()
    assert quiet.finish(quiet.start()), quiet.log.read_text()
    print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
    chance, tally = random.Random(seed), Tally()
    while tally.kills.total() < kills:
        run = Run(folder / f"round{tally.rounds}", config, cores)
        disturb(run, kills - tally.kills.total(), chance, tally)
        tally.rounds += 1
        compare(run, quiet, tally)
        tally.chunks_begun += run.begun()
        print(
            f"round {tally.rounds}: {tally.kills.total()} of {kills} kills, {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if not tally.good:
            break
        shutil.rmtree(run.folder)
    return tally


def main() -> int:
    """Run the command; the exit code says whether all was well."""
    parser = argparse.ArgumentParser(
        description="Kill runs at random, and compare what they make with an undisturbed one."
    )
    parser.add_argument("--kills", type=int, default=50, help="how often to kill, in all (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the times and victims (default: 1)")
    parser.add_argument("--chunks", default="0:3400", help="the selection (default: 0:3400)")
    parser.add_argument("--chunks-per-tile", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="skymill-chaos-"))
    start = time.monotonic()
    tally = run_chaos(folder, options.kills, options.seed, options.chunks, options.chunks_per_tile, options.cores)
    for name, value in [*tally.lines(), ("time", f"{time.monotonic() - start:.0f} s")]:
        print(f"{name:36} {value}")
    if tally.good:
        shutil.rmtree(folder)
    else:
        print(f"Something is wrong; all files are in {folder}", file=sys.stderr)
    return 0 if tally.good else 1


if __name__ == "__main__":
    sys.exit(main())
