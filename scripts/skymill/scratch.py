"""Bulk files on a scratch disk, which may be a cluster node's own: a folder for each tile, which lives as long as one job.

Nothing outside of the job ever looks into it, so that it does not matter which node a job runs on, or whether the next
attempt runs on another one. A job that is killed cannot tidy up; the next job of the same run that comes to the disk
removes what it has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import ConfigError, SkymillError, show


def check_scratch(config: Mapping) -> None:
    """Refuse what cannot work with a scratch folder.

    Raises
    ------
    ConfigError
        If the path is not absolute, or something else than the job itself needs the bulk files.
    """
    scratch = config.get("scratch")
    if scratch is None:
        return
    if isinstance(scratch, str) and (not scratch.startswith("/") or "$" in scratch):
        raise ConfigError(
            f"scratch = {show(scratch)}: write an absolute path, as /scratch, or name a variable that holds one in the job's environment, as "
            "'{env: LOCAL_SCRATCH}'"
        )
    keys = [f"keep.{name}: true" for name, kept in config["keep"].items() if kept]
    ingest = config["ingest"]
    if ingest["store"] == "none":
        keys.append("ingest.store: none")
    send = ingest.get("qserv", {}).get("send", "push")
    if ingest["store"] == "qserv" and send != "push":
        keys.append(f"ingest.qserv.send: {send}")
    if keys:
        raise ConfigError(
            f"scratch = {show(scratch)}: the bulk files on a scratch disk vanish with their job, but {keys[0]} needs them later; drop one of the two"
        )


def scratch_base(scratch: str | Mapping) -> Path:
    """The scratch folder on this machine.

    Raises
    ------
    SkymillError
        If it does not exist; it is not made, since a wrong path would fill another disk.
    """
    path = scratch if isinstance(scratch, str) else os.environ.get(scratch["env"], "")
    where = f"scratch = {show(scratch)} on {socket.gethostname()}"
    if not path:
        raise SkymillError(
            f"{where}: the variable is not set in the job's environment; name a folder that every node has"
        )
    if not os.path.isdir(path):
        raise SkymillError(f"{where}: there is no folder {path}; make it, or name one that every node has")
    return Path(path)


@contextlib.contextmanager
def scratch_folder(scratch: str | Mapping, root: Path, name: str) -> Iterator[Path]:
    """A folder that nobody else uses and that is gone afterwards, however the block ends (but for SIGKILL).

    Parameters
    ----------
    scratch : `str` or `Mapping`
        The configuration's key.
    root : `pathlib.Path`
        ``results/<database>``: runs into other folders get other names.
    name : `str`
        Name of the tile in its transaction.
    """
    base = scratch_base(scratch)
    run = f"skymill-{root.name}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]}.{socket.gethostname()}"
    remove_dead(base, run)
    folder = base / f"{run}.{name}.{os.getpid()}"
    path = base / f"{folder.name}.lock"
    with _locked(path), _exit_on_terminate():
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a new file while the block runs."""
    while True:
        with open(path, "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Somebody who took it for that of a dead job, before it was locked, has removed it.
            if path.exists():
                yield
                return


def remove_dead(base: Path, run: str) -> None:
    """Remove what killed jobs of a run have left on this machine: nobody holds their locks."""
    for path in base.glob(f"{run}.*.lock"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _exit_on_terminate() -> Iterator[None]:
    """Let SIGTERM, with which a cluster ends jobs, unwind the stack."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
