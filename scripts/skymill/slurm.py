"""What the workflow needs of SLURM beside the executor that Snakemake brings: whether it answers, finding and ending a run's jobs, status queries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

from .errors import SkymillError

#: Holds a stand-in for sacct.
STAND_INS = Path(__file__).resolve().parents[2] / "profiles" / "slurm" / "bin"
#: Longest that the controller may take to answer [s].
ANSWER_S = 60


@dataclass(frozen=True)
class SlurmJob:
    """A job as squeue shows it."""

    id: str
    name: str
    state: str
    folder: str


def ask(*command: str) -> str:
    """What a command of SLURM prints.

    Raises
    ------
    SkymillError
        With the command's own message, if it fails or does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"nothing came within {ANSWER_S:g} s"
        raise SkymillError(f"{command[0]} does not answer: {reason}") from None
    if done.returncode != 0:
        raise SkymillError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def jobs_of_run(folder: Path, prefix: str) -> list[SlurmJob]:
    """This user's jobs, waiting or at work, that Snakemake has submitted for a working directory.

    Parameters
    ----------
    folder : `pathlib.Path`
        The working directory. Nobody else's jobs have it: Snakemake locks it.
    prefix : `str`
        What the names of its jobs begin with (``slurm-jobname-prefix`` of the profile); behind it stands the id of the
        run.

    Raises
    ------
    SkymillError
        If the controller does not answer.
    """
    name = re.compile(re.escape(prefix) + r"_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    lines = ask("squeue", "--noheader", f"--user={getuser()}", "--format=%i|%j|%T|%Z").splitlines()
    jobs = [SlurmJob(*line.split("|", 3)) for line in lines]
    return [job for job in jobs if name.match(job.name) and job.folder == str(folder.resolve())]


def end_jobs(folder: Path, prefix: str, timeout_s: float) -> list[SlurmJob]:
    """End the jobs of `jobs_of_run`, and wait until they are gone; returns those that there were.

    Raises
    ------
    SkymillError
        If some are still there after ``timeout_s`` seconds, or the controller does not answer.
    """
    ended = left = jobs_of_run(folder, prefix)
    if ended:
        ask("scancel", *(job.id for job in ended))
    deadline = time.monotonic() + timeout_s
    while left:
        if time.monotonic() > deadline:
            raise SkymillError(
                f"jobs {', '.join(job.id for job in left)} of SLURM have not ended after {timeout_s:g} s; "
                "wait until squeue does not show them any more, and start again"
            )
        time.sleep(1)
        left = jobs_of_run(folder, prefix)
    return ended


def prepare_slurm() -> None:
    """Look whether the controller answers, and whether SLURM keeps accounts; if not, put a stand-in for sacct first in PATH.

    When the executor cannot ask for the partition of its first job, it forgets the job without an error, and the run
    never ends.

    It asks squeue how its jobs are. But when the controller does not answer, it turns to sacct for the next query, if
    there is one in PATH, and forgets all jobs for good if that query fails. Without accounts it could only fail.

    Raises
    ------
    SkymillError
        If the controller does not answer.
    """
    try:
        settings = ask("scontrol", "show", "config")
    except SkymillError as error:
        raise SkymillError(
            f"SLURM does not answer: {error}; start Snakemake where `sbatch --wrap true` works, or without the profile for SLURM"
        ) from None
    storage = re.search(r"^AccountingStorageType\s*=\s*(\S+)", settings, re.MULTILINE)
    if shutil.which("sacct") is not None and storage and "slurmdbd" not in storage[1]:
        os.environ["PATH"] = f"{STAND_INS}{os.pathsep}{os.environ['PATH']}"
