"""Output files that get their names only when all of them are whole."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

from .errors import SkymillError


class StagedDirectory:
    """Output files that stand in a hidden directory until all are whole, and are then moved to their places.

    Parameters
    ----------
    out_dir : `Path`
        Made if it is not there.
    prefix : `str`
    append : `bool`
        Whether files of earlier runs may be there; rows are then added to copies of them.

    Raises
    ------
    SkymillError
        If there are output files and ``append`` is false, or if another run is writing here or was killed.
    """

    def __init__(self, out_dir: Path, prefix: str, append: bool) -> None:
        self._out_dir = out_dir
        self._stage = out_dir / f".{prefix}.partial"
        self._whole = out_dir / f".{prefix}.whole"
        self._append = append
        out_dir.mkdir(parents=True, exist_ok=True)
        name = re.compile(rf"{re.escape(prefix)}_(\d+(_overlap)?|object_index)\.txt")
        existing = next((path for path in out_dir.iterdir() if name.fullmatch(path.name)), None)
        if self._whole.exists():
            raise SkymillError(
                f"{self._whole}: an earlier run was stopped while it moved its finished files; "
                f"move all files from there to {out_dir} and remove the empty directory"
            )
        if existing is not None and not append:
            raise SkymillError(
                f"{existing} exists already; choose another --out.dir, or give --out.append to add rows to what is there"
            )
        try:
            self._stage.mkdir()
        except FileExistsError:
            raise SkymillError(
                f"{self._stage} exists: another run is writing to {out_dir}, or one was killed; if none is running, remove it"
            ) from None

    def open(self, name: str) -> BinaryIO:
        """Open a file to add to it."""
        # Not by pathlib: this is done for every chunk of every batch.
        path = f"{self._stage}/{name}"
        if self._append and not os.path.exists(path) and (self._out_dir / name).exists():
            shutil.copyfile(self._out_dir / name, path)
        return open(path, "ab")

    def path(self, name: str) -> Path:
        """Where a file stands for now."""
        return self._stage / name

    def commit(self) -> None:
        """Move all files to their places."""
        self._stage.rename(self._whole)
        for name in os.listdir(self._whole):
            os.replace(f"{self._whole}/{name}", f"{self._out_dir}/{name}")
        self._whole.rmdir()

    def discard(self) -> None:
        """Remove all files."""
        shutil.rmtree(self._stage, ignore_errors=True)
