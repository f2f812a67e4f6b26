"""How stores are asked what they hold: one interface, and who has it.

An asker has ``ask_tile`` (the facts of some chunks), ``ask_regular`` (those of a regular table) and ``chunk_rows``
(which chunks there are), and is closed at the end of a ``with`` block. Each answer names the place that gave it, since
Qserv's workers each have their own tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, Self

from ..config import Dataset, Table
from ..facts import Fact
from ..truth import TileTruth, TruthTables


class Asker(Protocol):
    """What verification asks of a store."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def ask_tile(self, transaction_id: str, tile: str, chunks: list[int], truth: TileTruth) -> dict[str, TruthTables]:
        """The facts of chunks of a tile, by place: of all tables for a chunk that the place has, and none for another."""

    def ask_regular(self, table: Table, known: Mapping[str, Fact]) -> dict[str, dict[str, Fact]]:
        """The facts of a regular table, by place."""

    def chunk_rows(self, known: set[int]) -> Iterator[tuple[str, str, int, int]]:
        """Place, table, chunk and rows of the chunks of all partitioned tables; at least of those that are not ``known``."""


def open_asker(dataset: Dataset, root: Path, threads: int = 1) -> Asker:
    """Who asks the store that the configuration names.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.
    threads : `int`
        Threads that may be used.
    """
    if dataset.config["ingest"]["store"] == "qserv":
        from .ask_mysql import MysqlAsker

        return MysqlAsker(dataset)
    from .ask_embedded import EmbeddedAsker

    return EmbeddedAsker(dataset, root, threads)


def loaded_names(dataset: Dataset) -> list[str]:
    """The partitioned tables that are loaded, overlap tables included."""
    tables = [table for table in dataset.tables_of("director", "child") if table.ingest]
    return [name for t in tables for name in (t.name, *([t.overlap_name] if t.kind == "director" else []))]
