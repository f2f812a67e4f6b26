"""Errors that a person can act upon."""

from __future__ import annotations

import difflib
import errno
import json
import os
from collections.abc import Iterable

#: Longest text of a value in a message.
LONGEST = 200
_SPACE = "free some space, or take another disk (--directory, or the key scratch)"
_RIGHTS = "see who owns the file or folder, and may read and write it, or take another folder (--directory)"
_FILES = "raise the limit of open files (ulimit -n), or run fewer jobs at a time (--cores)"
_MEMORY = "run fewer jobs at a time (--cores), or on a machine with more memory"
_DISK = "see whether the disk, or the network to it, works"
#: What to do about errors of the machine.
MACHINE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
}


class SkymillError(Exception):
    """Something went wrong that a person can mend; the message says where, what was found, what is allowed, what to do."""


class ConfigError(SkymillError):
    """The configuration, or a file that it names, is wrong."""


class PoisonedError(SkymillError):
    """A transaction holds something that cannot be trusted: it must be aborted, and what it has loaded be loaded again."""


def show(value: object) -> str:
    """A value of a configuration as it is written there, cut short if it is long."""
    if value is None:
        return "null (no value)"
    text = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is much like it; empty if there is none."""
    close = difflib.get_close_matches(name, known, 1)
    return f'; did you mean "{close[0]}"?' if close else ""


def machine_error(error: BaseException) -> str | None:
    """An error of the machine with what to do about it; None for any other error."""
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if code not in MACHINE:
        return None
    path = getattr(error, "filename", None)
    return f"{os.strerror(code)}{f': {path}' if path else ''}; {MACHINE[code]}, and run again"


def counted(number: int, thing: str) -> str:
    """A number of things in words: 1 chunk, 2 chunks, 1,000 chunks."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def in_words(error: Exception) -> str:
    """An error for a person who has called a command: without the number and the notation that Python gives to errors of files."""
    if isinstance(error, OSError) and error.strerror:
        return machine_error(error) or f"{error.strerror}: {error.filename}"
    return str(error)
