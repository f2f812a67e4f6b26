"""The workflow on a real SLURM of four nodes, with jobs, nodes, the controller and Snakemake itself failing in mid-run.

Whatever happens, each run ends with the bytes and rows of a local run, every chunk loaded once, and with no step by
hand but those that the README names. The troubles come from a generator of the user's own, in the folder of the
dataset.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
import yaml

from skymill.forecast import BASE_MB, MEMORY_PER_BYTE
from slurm_cluster import Job, SlurmCluster, wait_until, why_not
from test_restart import stored_rows
from workflow import PROJECT, partitioned_files, snakemake, write_config

REASON = why_not()
if REASON and not os.environ.get("CI"):
    pytest.skip(REASON, allow_module_level=True)

#: All on one worker: they share the cluster.
pytestmark = pytest.mark.xdist_group("slurm")

TROUBLE = '''\
"""Makes trouble in chunks for which the folder SKYMILL_TROUBLE holds a file <chunk>.<kind>, and writes the job's id into it."""

import os
import time
from pathlib import Path

import numpy as np

from skymill.columns import Generator


class Trouble(Generator):
    """Uniform numbers, in the end."""

    def draw(self, random, rows):
        folder = Path(os.environ.get("SKYMILL_TROUBLE", "/nowhere"))
        if "SLURM_JOB_ID" not in os.environ:  # the plan makes a sample of rows, where Snakemake runs
            return random.random(rows.count)
        for kind in ("fail", "sleep", "memory"):
            mark = folder / f"{rows.chunk}.{kind}"
            if mark.exists() and mark.stat().st_size == 0:
                mark.write_text(os.environ["SLURM_JOB_ID"])
                if kind == "fail":
                    os._exit(3)
                if kind == "sleep":
                    time.sleep(600)
            if kind == "memory" and mark.exists():  # at every attempt: only a larger limit helps
                held = np.ones(650_000_000, dtype=np.uint8)
                time.sleep(4)
                del held
        return random.random(rows.count)
'''


def survey_config() -> dict:
    """fakedb with few rows: a pole, and 50 chunks on the equator in tiles of 10; 7 tiles."""
    config = yaml.safe_load((PROJECT / "configs" / "fakedb" / "config.yaml").read_text())
    config["tables"]["Object"]["density"] = {"per_sq_deg": 50}
    config["tables"]["Object"]["columns"].append({"name": "x", "type": "DOUBLE", "generator": "trouble:Trouble"})
    config["tables"]["CcdVisit"]["rows"] = 2000
    return {**config, "chunks": "0:402,40000:40049", "chunks_per_tile": 10, "keep": {"partitioned": True}}


@pytest.fixture(scope="module")
def cluster():
    assert REASON is None, REASON
    folder = Path(tempfile.mkdtemp(prefix="skymill-slurm-"))
    try:
        with SlurmCluster(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The configuration, and what a local run of it makes."""
    folder = tmp_path_factory.mktemp("survey")
    (folder / "trouble.py").write_text(TROUBLE)
    config = write_config(folder, survey_config())
    snakemake(folder, config=config)
    root = folder / "results" / "fakedb"
    return config, partitioned_files(root), stored_rows(folder, "fakedb")


class Driver:
    """Snakemake with the profile for SLURM, in a folder of its own."""

    def __init__(self, cluster: SlurmCluster, config: Path, folder: Path):
        self.cluster, self.folder = cluster, folder
        self.trouble = folder / "trouble"
        self.trouble.mkdir()
        self.command = [sys.executable, "-m", "snakemake", "--configfile", str(config), "--directory", str(folder)]
        self.command += ["--slurm-init-seconds-before-status-checks", "2"]
        self.environment = {**os.environ, **cluster.environment, "SKYMILL_TROUBLE": str(self.trouble)}
        self.process = None

    def start(self, *options: str) -> None:
        # In a shell's background SIGINT would be ignored; so it is for whatever a test runner may have set.
        command = ["env", "--default-signal=INT", *self.command, *(options or ("--workflow-profile", "slurm"))]
        with open(self.folder / "driver.log", "a") as log:
            self.process = subprocess.Popen(
                command, cwd=PROJECT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()

    def finish(self, timeout_s: float) -> None:
        """Wait for the end, which must be a good one."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        assert self.process.poll() == 0, f"{self.log()[-6000:]}\n{self.cluster.jobs()}\n{self.cluster.log()}"

    def mark(self, chunk: int, kind: str) -> Path:
        """Ask for trouble."""
        path = self.trouble / f"{chunk}.{kind}"
        path.write_text("")
        return path

    def met(self, *marks: Path, count: int = 1, timeout_s: float = 200) -> list[str]:
        """Wait until some jobs are in trouble; returns their ids."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log()[-6000:]
            return sum(bool(mark.stat().st_size) for mark in marks) >= count

        try:
            wait_until(ready, timeout_s, "jobs in trouble")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.log()[-6000:]}") from None
        return [mark.read_text() for mark in marks if mark.stat().st_size]

    def jobs(self, *states: str) -> list[Job]:
        return [job for job in self.cluster.jobs(*states) if job.folder == str(self.folder)]


@pytest.fixture
def driver(cluster, survey, tmp_path):
    made = Driver(cluster, survey[0], tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        os.killpg(made.process.pid, signal.SIGKILL)
        made.process.wait()
    cluster.command("scancel", *(job.id for job in made.jobs("PENDING", "RUNNING")))


def states(cluster: SlurmCluster) -> dict[str, Job]:
    return {job.id: job for job in cluster.jobs()}


def assert_loaded_once(driver: Driver, survey) -> None:
    """The store has the rows of the local run, and each chunk has one sentinel."""
    assert stored_rows(driver.folder, "fakedb") == survey[2]
    sentinels = [path.name for path in driver.folder.glob("results/fakedb/ingest/*/*/chunk_*.json")]
    chunks = {name for name in survey[1] if name.startswith("Object/") and "overlap" not in name}
    assert len(sentinels) == len(set(sentinels)) and {f"Object/{Path(n).stem}.txt" for n in sentinels} >= chunks
    committed = driver.folder / "results" / "fakedb" / "ingest" / "transactions"
    assert sum(json.loads(p.read_text())["chunks"] for p in committed.glob("*.committed.json")) == len(sentinels)


def test_jobs_in_trouble_are_sent_again_and_give_the_bytes_of_a_local_run(cluster, survey, driver):
    """Over four nodes; one job fails, one is cancelled, one needs more memory than it has asked for, one more time."""
    failing, hungry = driver.mark(40005, "fail"), driver.mark(40015, "memory")
    slow, cancelled = driver.mark(40025, "sleep"), driver.mark(40035, "sleep")
    driver.start()
    (slow_job,) = driver.met(slow)
    # The limit is lowered for this attempt, so that nobody has to wait until the real one is reached.
    cluster.command("scontrol", "update", f"JobId={slow_job}", "TimeLimit=1")
    (cancelled_job,) = driver.met(cancelled)
    assert cluster.command("scancel", cancelled_job).returncode == 0
    driver.finish(300)
    ends = states(cluster)
    assert ends[failing.read_text()].state == "FAILED"
    assert ends[cancelled_job].state == "CANCELLED"
    assert ends[slow_job].state == "TIMEOUT"
    assert ends[hungry.read_text()].state in ("OUT_OF_MEMORY", "FAILED")
    # The node that the slow job held until its limit may have had no other.
    assert {job.node for job in driver.jobs("COMPLETED", "TIMEOUT")} == set(cluster.nodes)
    assert_requests_follow_the_forecast(driver)
    assert partitioned_files(driver.folder / "results" / "fakedb") == survey[1]
    assert_loaded_once(driver, survey)


def assert_requests_follow_the_forecast(driver: Driver) -> None:
    """Memory and time are those of the plan's forecast; the second attempt asks for twice as much."""
    forecast = json.loads((driver.folder / "results" / "fakedb" / "ingest" / "forecast_0.json").read_text())
    memory = {math.ceil(BASE_MB + MEMORY_PER_BYTE * largest / 1e6) for *_, largest in forecast.values()}
    done = driver.cluster.command("squeue", "--noheader", "--states=all", "--format=%Z|%m|%l")
    asked = [line.split("|")[1:] for line in done.stdout.splitlines() if line.startswith(f"{driver.folder}|")]
    assert {size for size, _ in asked} == {f"{mb * attempt}M" for mb in memory for attempt in (1, 2)}
    # Three steps of BASE_MIN and some seconds each; the time of one was lowered.
    assert {time for _, time in asked} == {"18:00", "36:00", "1:00"}


def test_a_node_and_the_controller_are_lost_with_bulk_files_on_the_nodes(cluster, survey, driver):
    asleep = driver.mark(40025, "sleep")
    options = ["--workflow-profile", "slurm", "--config", "keep={partitioned: false}", "scratch={env: LOCAL_SCRATCH}"]
    driver.start(*options)
    (job,) = driver.met(asleep)
    node = states(cluster)[job].node
    assert list((cluster.folder / f"scratch.{node}").iterdir()), "the bulk files are not on the node"
    cluster.kill_node(node)
    cluster.stop_controller()
    time.sleep(40)  # long enough that the executor asks for its jobs meanwhile
    cluster.start_controller()
    driver.finish(300)
    assert states(cluster)[job].state == "NODE_FAIL"
    assert not list(driver.folder.glob("results/fakedb/*/*/*/chunk_*.csv")) + list(
        driver.folder.glob("results/fakedb/partitioned/*/*/")
    )
    left = {name: os.listdir(cluster.folder / f"scratch.{name}") for name in cluster.nodes}
    assert [name for name in cluster.nodes if left[name]] == [node]
    assert_loaded_once(driver, survey)
    cluster.start_node(node)
    cluster.wait_for_nodes()


def test_snakemake_is_interrupted_and_killed(cluster, survey, driver, tmp_path):
    environment = {**driver.environment, "XDG_CONFIG_HOME": str(tmp_path / "home")}
    make = ["make", "-o", ".venv/bin/.ready"]
    subprocess.run([*make, "install-profile"], cwd=PROJECT, env=environment, check=True, timeout=60)
    driver.environment = environment
    # Ctrl-C: Snakemake ends its jobs itself, and leaves no lock.
    chunks = (40005, 40015, 40025, 40035, 40045)
    marks = [driver.mark(chunk, "sleep") for chunk in chunks]
    driver.start("--profile", "slurm")
    driver.met(*marks)
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(60) != 0
    wait_until(lambda: not driver.jobs("PENDING", "RUNNING", "COMPLETING"), 30, "the end of the jobs")
    # SIGKILL: its jobs run on.
    marks = [driver.mark(chunk, "sleep") for chunk in chunks]
    driver.start("--profile", "slurm")
    orphans = set(driver.met(*marks, count=2))
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.wait()
    assert orphans <= {job.id for job in driver.jobs("RUNNING")}
    others = [
        submit(cluster, tmp_path.parent, f"skymill_{uuid.uuid4()}"),  # another run of ours
        submit(cluster, tmp_path, "analysis"),  # something else in this folder
    ]
    printed = subprocess.run(
        [*make, "recover", f"DIRECTORY={driver.folder}"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert printed.returncode == 0, printed.stdout + printed.stderr
    assert re.search(r"ended \d+ jobs of SLURM", printed.stdout) and "unlocked the directory" in printed.stdout
    left = {job.id for job in cluster.jobs("RUNNING", "PENDING", "COMPLETING")}
    assert not orphans & left and set(others) <= left
    cluster.command("scancel", *others)
    for mark in marks:
        mark.unlink()
    driver.start("--profile", "slurm")
    driver.finish(200)
    assert partitioned_files(driver.folder / "results" / "fakedb") == survey[1]
    assert_loaded_once(driver, survey)


def submit(cluster: SlurmCluster, folder: Path, name: str) -> str:
    """Submit a job that only waits; returns its id."""
    command = [
        "sbatch",
        "--parsable",
        "--mem=50",
        "--oversubscribe",
        f"--chdir={folder}",
        f"--job-name={name}",
        "--output=/dev/null",
    ]
    done = cluster.command(*command, "--wrap=sleep 300")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
