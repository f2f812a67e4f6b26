"""Where chunks are loaded: one small interface, and the stores that have it.

Neither the rules nor the step scripts know which store they talk to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..config import Dataset, Table


@dataclass(frozen=True)
class Contribution:
    """A file that is sent to one table of one chunk.

    Attributes
    ----------
    table : `Table`
    chunk : `int` or `None`
        None for a regular table, which goes to every place.
    overlap : `bool`
        Whether it belongs to the overlap table.
    path : `pathlib.Path`
        The file, in the ingest dialect.
    rows, bytes : `int`
        What it must hold.
    """

    table: Table
    chunk: int | None
    overlap: bool
    path: Path
    rows: int
    bytes: int

    @property
    def table_name(self) -> str:
        """The table in the store that gets it."""
        return self.table.overlap_name if self.overlap else self.table.name


class Store(Protocol):
    """What skymill asks of a store. Each call may be repeated after a crash: it asks what is there first."""

    def register(self, dataset: Dataset, fingerprint: str) -> dict:
        """Make the database and its tables, or see that they are there and fit; returns what is worth recording."""

    def start_transaction(self, name: str, attempt: int, context: dict) -> str:
        """Start a transaction, or find the one that this attempt has started; returns the store's id of it.

        The context is kept with it, so that a person recognises it: the keys ``workflow``, ``fingerprint``,
        ``transaction`` and ``attempt`` are what it is found by.
        """

    def contribute(
        self, transaction_id: str, tile: str, contributions: Sequence[Contribution]
    ) -> Iterator[tuple[int | None, int]]:
        """Load files of a tile, each at most once, those of a chunk one behind the other.

        Yields each chunk (None for regular tables) with the rows that the store has of it, as soon as they are safe
        there. Raises `PoisonedError` if the transaction holds something that cannot be trusted.
        """

    def commit(self, transaction_id: str, rows: Mapping[str, int]) -> dict:
        """Make what a transaction has loaded final, if it holds just these rows of each table, overlap tables included.

        Returns what is worth recording. Raises `PoisonedError` if it does not hold them.
        """

    def abort(self, transaction_id: str) -> None:
        """Undo a transaction that is not committed."""

    def publish(self, committed: Sequence[Mapping]) -> dict:
        """Open the database to its users.

        Takes the ``id`` and the ``rows`` of each committed transaction. Returns what is worth recording: ``database``,
        a path in the results or a name; ``rows`` of each table; ``frozen``, whether nothing can be loaded from now on;
        ``absolute``, the place of the results if it must be published again once they have been moved; ``file``, what
        must be there if it is a file.
        """

    def check(self) -> list[tuple[str, bool, str]]:
        """Whether the store can be used, without changing anything: question, answer, detail."""

    def count_rows(self) -> dict[str, int]:
        """Rows of each published table."""


def open_store(dataset: Dataset, root: Path) -> Store:
    """The store that the configuration names.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.
    """
    if dataset.config["ingest"]["store"] == "qserv":
        from .qserv import QservStore

        return QservStore(dataset, root)
    from .embedded import EmbeddedStore

    return EmbeddedStore(dataset, root)
