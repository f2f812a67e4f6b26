"""Make a working directory ready for the next run after Snakemake was killed there: ``make recover``.

Snakemake cannot tidy up after a SIGKILL or a power cut. Its jobs run on, and the directory stays locked. This ends the
jobs of SLURM that it had submitted (known by their name and their working directory; nobody else's are touched), waits
for jobs on this machine that have outlived it, and unlocks the directory. It removes nothing that was made, and says
what it did.

Fails if Snakemake still runs there, or SLURM does not answer.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from skymill.errors import SkymillError
from skymill.slurm import SlurmJob, end_jobs


def running_drivers(folder: Path) -> list[int]:
    """Process ids of the Snakemakes that run a workflow in a working directory on this machine; those inside of jobs do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                here = os.readlink(entry / "cwd") == str(folder)
            except OSError:
                continue  # it has ended, or is somebody else's
            is_snakemake = any(Path(word).name == "snakemake" for word in words[:4])
            if here and is_snakemake and "--mode" not in words:
                found.append(int(entry.name))
    return sorted(found)


def end_cluster_jobs(folder: Path, prefix: str, timeout_s: float) -> list[SlurmJob]:
    """End the jobs of SLURM, see `skymill.slurm.end_jobs`; none if nothing was ever submitted and there is no cluster.

    Raises
    ------
    SkymillError
        If there may be jobs, but the cluster does not answer, or they do not end.
    """
    try:
        return end_jobs(folder, prefix, timeout_s)
    except SkymillError as error:
        if not (folder / ".snakemake" / "slurm_logs").exists():
            return []
        raise SkymillError(
            f"{error}. Jobs may still be at work; nothing was unlocked. Start again when SLURM answers"
        ) from None


def held_locks(folder: Path) -> Iterator[Path]:
    """The locks of tiles that a job on this machine holds."""
    for path in sorted(folder.glob("results/*/locks/*/*")):
        with open(path, "a", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path


def wait_for_orphans(folder: Path, timeout_s: float) -> int:
    """Wait for jobs that have outlived Snakemake; returns how many there were.

    Raises
    ------
    SkymillError
        If some still work after ``timeout_s`` seconds.
    """
    seen: set[Path] = set()
    deadline = time.monotonic() + timeout_s
    while held := list(held_locks(folder)):
        if not seen.issuperset(held):
            print(f"waiting for {len(held)} jobs that outlived Snakemake: {_tiles(held)}", flush=True)
        seen.update(held)
        if time.monotonic() > deadline:
            raise SkymillError(
                f"still at work after {timeout_s:g} s: {_tiles(held)}; wait for them with a longer --timeout, or end them"
            )
        time.sleep(0.5)
    return len(seen)


def _tiles(locks: list[Path]) -> str:
    names = [f"{path.parent.name}/{path.name}" for path in locks]
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def unlock(folder: Path) -> bool:
    """Unlock a working directory as Snakemake does; returns whether it was locked.

    Raises
    ------
    SkymillError
        With Snakemake's message, if it cannot.
    """
    if not any((folder / ".snakemake" / "locks").glob("*")):
        return False
    # Locks do not depend on a workflow; without one, no configuration can be in the way.
    command = [sys.executable, "-m", "snakemake", "--snakefile", os.devnull, "--workflow-profile", "none", "--unlock"]
    done = subprocess.run([*command, "--directory", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SkymillError(f"snakemake --unlock failed: {done.stderr.strip()}")
    return True


def recover(folder: Path, prefix: str, timeout_s: float) -> None:
    """Do all of it.

    Raises
    ------
    SkymillError
        If Snakemake still runs there, or something does not end.
    """
    drivers = running_drivers(folder)
    if drivers:
        raise SkymillError(
            f"Snakemake (process {', '.join(map(str, drivers))}) still runs in {folder}; nothing was done. Stop it first, "
            f"with Ctrl-C or kill -INT {drivers[0]}: then there is nothing to recover"
        )
    ended = end_cluster_jobs(folder, prefix, timeout_s)
    shown = ", ".join(f"{job.id} ({job.state.lower()})" for job in ended[:10]) + (" ..." if len(ended) > 10 else "")
    print(f"ended {len(ended)} jobs of SLURM: {shown}" if ended else "no job of SLURM was left", flush=True)
    orphans = wait_for_orphans(folder, timeout_s)
    print(f"{orphans} jobs that outlived Snakemake have ended" if orphans else "no job on this machine was left")
    print("unlocked the directory" if unlock(folder) else "the directory was not locked")
    print("Run snakemake again: it goes on where it was.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--directory", type=Path, default=Path(), help="the working directory (default: this one)")
    parser.add_argument("--prefix", default="skymill", help="slurm-jobname-prefix of the profile (default: skymill)")
    parser.add_argument("--timeout", type=float, default=600, help="longest wait for jobs to end [s] (default: 600)")
    options = parser.parse_args(arguments)
    folder = options.directory.resolve()
    try:
        if not (folder / ".snakemake").is_dir():
            raise SkymillError(
                f"{folder}: Snakemake has never run there; name its working directory (make recover DIRECTORY=...)"
            )
        recover(folder, options.prefix, options.timeout)
    except SkymillError as error:
        print(f"recover_run: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
