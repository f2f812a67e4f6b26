"""Small files that must never look complete when they are not, and locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import SkymillError

log = logging.getLogger("skymill")


@contextlib.contextmanager
def written_aside(path: Path, durable: bool = True) -> Iterator[Path]:
    """Where to write a file so that it has its name only when it is whole: the block writes there, and the file is renamed at its end.

    Parameters
    ----------
    path : `pathlib.Path`
        Its name.
    durable : `bool`
        Whether it must be on the disk before it is renamed, since a power cut may leave a name without bytes. Not
        needed for what is compared with a record before it is used.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        if durable:
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that has its name only when it is whole; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write JSON like `write_text`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON file of ours.

    Raises
    ------
    SkymillError
        If it cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SkymillError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise SkymillError(
            f"cannot read {path}: it is no JSON object, so it was damaged after it was written; put it back from a copy, or begin in "
            "another folder (--directory)"
        )
    return content


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file systems differ or know no links."""
    import shutil

    with written_aside(target, durable=False) as aside:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock while the block runs; wait for whoever holds it.

    A job outlives a driver that was killed. The job that is started in its place must not meet it at work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning(
                "another job is still at work on the same files; waiting for %s (after a kill, make recover ends it)",
                path,
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
