"""The profiles: that they are whole and explained, and what the make targets around them do."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from test_restart import stored_rows
from workflow import PROJECT, SMALL_SKY, snakemake, write_config

PROFILES = PROJECT / "profiles"
README = (PROFILES / "README.md").read_text(encoding="utf-8")
#: The environment is there; nothing is to be installed for a test.
MAKE = ["make", "--assume-old", ".venv/bin/.ready"]


def read_profile(name: str) -> dict:
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def section(name: str) -> str:
    """A part of the README, between its heading and the next one of the same level."""
    return re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def test_slurm_loses_no_setting_of_the_default():
    """A profile that is named replaces profiles/default. Cores are the cluster's there."""
    default, slurm = read_profile("default"), read_profile("slurm")
    assert {key: slurm.get(key) for key in default if key != "cores"} == {
        key: value for key, value in default.items() if key != "cores"
    }
    assert "cores" in slurm


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_every_setting_is_explained(name):
    text = section(name)
    shared = section("default") if name == "slurm" else ""
    missing = [key for key in read_profile(name) if f"`{key}" not in text and f"`{key}" not in shared]
    assert missing == []


def test_the_slurm_profile_is_found_and_complete(tmp_path):
    """By its name from the project's folder. A dry run asks no cluster."""
    printed = subprocess.run(
        [sys.executable, "-m", "snakemake", "--workflow-profile", "slurm", "--directory", str(tmp_path), "-n"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert printed.returncode == 0, printed.stderr
    assert "profiles/slurm" in printed.stderr and "generate_tile" in printed.stdout


DEAD_CLUSTER = """\
ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=1
AuthType=auth/none
MessageTimeout=2
NodeName=n1
PartitionName=main Nodes=ALL
"""


def test_without_a_controller_no_job_is_started_and_what_needs_none_works(tmp_path):
    """The executor would forget its jobs without a word, and the run never end."""
    if shutil.which("scontrol") is None and not os.environ.get("CI"):
        pytest.skip("scontrol is not installed (Debian: apt install slurm-client)")
    (tmp_path / "slurm.conf").write_text(DEAD_CLUSTER)
    environment = {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    options = ["--workflow-profile", "slurm"]
    config = write_config(tmp_path, {**SMALL_SKY, "chunks": "0:40"})
    printed = snakemake(tmp_path, *options, config=config, ok=False, environment=environment)
    assert "SLURM does not answer: scontrol failed: slurm_load_ctl_conf error: Unable to contact slurm" in printed
    assert "`sbatch --wrap true` works" in printed and not (tmp_path / "results").exists()
    snakemake(tmp_path, *options, "-n", config=config, environment=environment)
    assert "0 are complete" in snakemake(tmp_path, *options, "status", config=config, environment=environment)


# -- make install-profile ------------------------------------------------------------------------------------------------


def install_profile(home: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(home)}
    return subprocess.run([*MAKE, "install-profile"], cwd=PROJECT, env=environment, capture_output=True, text=True)


def test_install_profile_makes_a_link_once(tmp_path):
    link = tmp_path / "snakemake" / "slurm"
    for _ in range(2):
        done = install_profile(tmp_path)
        assert done.returncode == 0, done.stderr
        assert link.is_symlink() and link.resolve() == PROFILES / "slurm"


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link"])
def test_install_profile_overwrites_nothing_of_somebody_else(tmp_path, kind):
    link = tmp_path / "snakemake" / "slurm"
    link.parent.mkdir()
    if kind == "folder":
        link.mkdir()
    else:
        link.symlink_to(tmp_path if kind == "link" else tmp_path / "nothing")
    before = os.readlink(link) if link.is_symlink() else None
    done = install_profile(tmp_path)
    assert done.returncode != 0 and "is not our link" in done.stderr
    assert (os.readlink(link) if link.is_symlink() else None) == before


# -- make recover --------------------------------------------------------------------------------------------------------

SLEEPER = """\
import os
import time
from pathlib import Path

from skymill.columns import Generator


class Sleeper(Generator):
    def draw(self, random, rows):
        mark = Path(os.environ.get("SKYMILL_SLEEP", "/nowhere"))
        # The plan makes a sample of rows first, which must not sleep.
        if mark.exists() and Path("results/smallsky/ingest/plan_0.json").exists():
            mark.rename(mark.with_suffix(".asleep"))
            until = time.monotonic() + 120
            while time.monotonic() < until and not mark.with_suffix(".awake").exists():
                time.sleep(0.1)
        return random.random(rows.count)
"""


def recover(folder: Path, awake: Path | None = None) -> subprocess.CompletedProcess:
    """Run ``make recover``; once it waits for a job, wake that job by making the file ``awake``."""
    command = [*MAKE, "recover", f"DIRECTORY={folder}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=PROJECT, stdout=pipe, stderr=pipe, text=True) as process:
        told = ""
        while awake and "waiting for" not in told and (line := process.stdout.readline()):
            told += line
        if awake:
            awake.touch()
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, told + out, err)


def test_recover_waits_for_what_has_outlived_snakemake_and_unlocks(tmp_path):
    config = {**SMALL_SKY, "chunks": "0:40"}
    objects = {**config["tables"]["Object"]}
    objects["columns"] = [*objects["columns"], {"name": "x", "type": "DOUBLE", "generator": "sleeper:Sleeper"}]
    config["tables"] = {**config["tables"], "Object": objects}
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    path = write_config(tmp_path, config)
    mark = tmp_path / "mark"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--configfile", str(path), "--directory", str(tmp_path), "--cores", "1"]
    with open(tmp_path / "driver.log", "w") as log:
        mark.touch()
        environment = {**os.environ, "SKYMILL_SLEEP": str(mark)}
        driver = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, env=environment)
        asleep = mark.with_suffix(".asleep")
        deadline = time.monotonic() + 60
        while not asleep.exists():
            assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
            time.sleep(0.1)
        refused = recover(tmp_path)
        assert refused.returncode != 0 and f"process {driver.pid}" in refused.stderr and driver.poll() is None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    done = recover(tmp_path, awake=mark.with_suffix(".awake"))
    assert done.returncode == 0, done.stderr
    assert "waiting for 1 jobs" in done.stdout and "unlocked the directory" in done.stdout
    snakemake(tmp_path, config=path)
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    snakemake(quiet, config=path)
    assert stored_rows(tmp_path, "smallsky") == stored_rows(quiet, "smallsky")


def test_recover_says_that_there_is_nothing_to_do(tmp_path):
    assert "Snakemake has never run there" in recover(tmp_path).stderr
    (tmp_path / ".snakemake").mkdir()
    done = recover(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no job of SLURM was left" in done.stdout and "the directory was not locked" in done.stdout


def test_recover_unlocks_nothing_while_jobs_may_be_at_work(tmp_path):
    """Something was submitted here, and the controller does not answer."""
    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("results/x\n")
    (tmp_path / ".snakemake" / "slurm_logs").mkdir()
    (tmp_path / "bin").mkdir()
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    command = [sys.executable, str(PROJECT / "scripts" / "recover_run.py"), "--directory", str(tmp_path)]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Unable to contact slurm controller. Jobs may still be at work" in done.stderr
    assert lock.exists()
