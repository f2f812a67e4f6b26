"""A chunk that fails does not stop the others: its error is kept in a file of its own, and it is tried again by the next run."""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .errors import PoisonedError, SkymillError
from .files import read_json, write_json
from .retries import home_tile, plan_retry
from .selection import expand_ranges, format_ranges

log = logging.getLogger("skymill")

#: The stages that a chunk goes through, in order.
STAGES = ("generate", "partition", "load")
#: Errors of the machine, which the other chunks of the tile would meet as well.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}


def failure_folder(root: Path, transaction: str) -> Path:
    """Where the failure files of a transaction lie, in a folder for each tile."""
    return root / "failures" / transaction


def read_failures(root: Path, transaction: str) -> list[dict]:
    """The failures of a transaction, by chunk."""
    found = []
    for path in failure_folder(root, transaction).glob("*/chunk_*.json"):
        with contextlib.suppress(SkymillError):  # one that has just succeeded
            found.append(read_json(path))
    return sorted(found, key=lambda failure: failure["chunk"])


class TileFailures:
    """Catches the errors of single chunks of a tile in a stage.

    Parameters
    ----------
    root : `pathlib.Path`
        ``results/<database>``.
    transaction, tile : `str`
    stage : `str`
        One of `STAGES`.

    Attributes
    ----------
    failed : `dict` [`int`, `str`]
        The chunks that failed, with their errors.
    """

    def __init__(self, root: Path, transaction: str, tile: str, stage: str):
        self.root, self.transaction, self.tile, self.stage = root, transaction, tile, stage
        self.failed: dict[int, str] = {}
        self.folder = failure_folder(root, transaction) / home_tile(tile)
        self._known = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    @contextlib.contextmanager
    def catch(self, chunk: int) -> Iterator[None]:
        """Catch what goes wrong with a chunk in the block; what is no matter of the chunk goes on."""
        try:
            yield
        except (PoisonedError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _MACHINE:
                raise
            self._record(chunk, error)
        else:
            self.forget(chunk)

    def _record(self, chunk: int, error: Exception) -> None:
        expected = isinstance(error, SkymillError)
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        text = str(error) if expected else f"{type(error).__name__}: {error}{notes}"
        trace = None if expected else "".join(traceback.format_exception(error))
        # An error in the code of a generator fails many chunks in the same way; its traceback is needed once.
        shown = None if expected or text in self.failed.values() else error
        log.error("chunk %d failed: %s", chunk, text, exc_info=shown)
        self.failed[chunk] = text
        content = {
            "chunk": chunk,
            "transaction": self.transaction,
            "tile": self.tile,
            "stage": self.stage,
            "error": text,
            "traceback": trace,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(self._path(chunk), content)
        self._known.add(self._path(chunk).name)

    def forget(self, chunk: int) -> None:
        """Remove the failure file of a chunk that has got over this stage."""
        path = self._path(chunk)
        if path.name in self._known and (self.stage == STAGES[-1] or read_json(path)["stage"] == self.stage):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others have failed as well
                path.parent.rmdir()

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk_{chunk}.json"

    def settle(self, done: int) -> None:
        """Plan a retry of the chunks that failed.

        Parameters
        ----------
        done : `int`
            How many chunks of the tile did not fail.

        Raises
        ------
        SkymillError
            If all failed: the job itself fails then.
        """
        if not self.failed:
            return
        if not done:
            raise SkymillError(self._summary(f"no chunk of the tile could be done ({self.stage})"))
        name = plan_retry(self.root, self.transaction, self.tile, self.failed)
        say(self._summary("the others go on; the next run tries again those that failed") + f" (tile {name})")

    def refuse(self) -> None:
        """Fail if any chunk failed; what was done with the others stays.

        Raises
        ------
        SkymillError
            With the first error.
        """
        if self.failed:
            raise SkymillError(self._summary("the others are done; the next run tries again those that failed"))

    def _summary(self, outcome: str) -> str:
        chunk, text = next(iter(self.failed.items()))
        which = f"chunk {chunk}" if len(self.failed) == 1 else f"{len(self.failed)} chunks"
        first = text if len(self.failed) == 1 else f"chunk {chunk}: {text}"
        return f"{which} of tile {self.tile} of {self.transaction} failed: {first}; {outcome}; see {self.folder}"


def say(text: str) -> None:
    """Log a warning, and tell whoever looks at the run, too: the job goes on, so that Snakemake will not."""
    log.warning("%s", text)
    print(f"skymill: {text}", file=sys.stderr)


def refuse_missing(root: Path, transaction: str, planned: np.ndarray, done: Iterable[str]) -> None:
    """See that all chunks of a transaction are done.

    Parameters
    ----------
    root : `pathlib.Path`
        ``results/<database>``.
    transaction : `str`
    planned : `numpy.ndarray`
        The chunk ids that must be done.
    done : iterable of `str`
        Those that are, as ranges.

    Raises
    ------
    SkymillError
        If any is missing; with the reason of one.
    """
    found = [expand_ranges(ranges) for ranges in done]
    missing = np.setdiff1d(planned, np.concatenate(found)) if found else planned
    if not len(missing):
        return
    failures = {failure["chunk"]: failure for failure in read_failures(root, transaction)}
    known = [failures[chunk] for chunk in missing.tolist() if chunk in failures]
    why = f"; chunk {known[0]['chunk']}: {known[0]['error']}" if known else ""
    ids = format_ranges(missing)
    raise SkymillError(
        f"{len(missing)} of {len(planned)} chunks of {transaction} are missing ({ids if len(ids) < 100 else f'{ids[:100]}...'}){why}; "
        f"run again, which tries only these; all reasons are in {failure_folder(root, transaction)}"
    )
