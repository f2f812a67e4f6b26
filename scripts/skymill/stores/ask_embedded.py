"""Asks the embedded store the questions of verification.

Tables that lie in the DuckDB file are asked by their names. Where the file holds views of many Parquet files, only
those of the tile are read, so that a tile costs the same however large the survey is; that no other file holds rows of
its chunks is seen from `EmbeddedAsker.chunk_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..config import Dataset, Table
from ..errors import SkymillError
from ..facts import Fact
from ..questions import DUCKDB, ask_all, ask_regular, read_answer
from ..truth import TileTruth, TruthTables
from .embedded import EmbeddedStore, open_database


class EmbeddedAsker:
    """Answers of the embedded store.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.
    threads : `int`
        Threads that DuckDB may use.

    Raises
    ------
    SkymillError
        If the database is not there.
    """

    def __init__(self, dataset: Dataset, root: Path, threads: int = 1):
        self.dataset = dataset
        self.store = EmbeddedStore(dataset, root)
        if not self.store.database.exists():
            raise SkymillError(
                f"there is no {self.store.database}; run `snakemake` first, it ends with publishing the database"
            )
        self.connection = open_database(self.store.database, threads=threads)
        shown = self.connection.execute("SELECT table_name, table_type FROM information_schema.tables").fetchall()
        self.views = {name for name, kind in shown if kind == "VIEW"}
        self.tables = {name for name, _ in shown}

    def __enter__(self) -> EmbeddedAsker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, *_: object) -> None:
        import duckdb

        self.connection.close()
        if isinstance(error, duckdb.Error):
            raise SkymillError(
                f"{self.store.database} cannot answer: {str(error).splitlines()[0]}; put back what is missing or damaged, or make it again with `snakemake repair`"
            ) from error

    def ask_tile(self, transaction_id: str, tile: str, chunks: list[int], truth: TileTruth) -> dict[str, TruthTables]:
        """The facts of a tile's chunks, by the place that answers (here one, without a name)."""
        relations = {}
        for name in self.tables:
            table = self.dataset.tables.get(name)
            if table is not None and table.kind == "regular":
                relations[name] = f'"{name}"'
            elif name in self.views:
                files = sorted((self.store.committed / transaction_id / name).glob(f"{tile}.*.parquet"))
                listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
                # Without files there are no rows, but the columns are those of the view.
                relations[name] = f"read_parquet([{listed}])" if files else f'(SELECT * FROM "{name}" LIMIT 0)'
            else:
                held = f'"chunkId" BETWEEN {min(chunks)} AND {max(chunks)} AND "chunkId" IN ({", ".join(map(str, chunks))})'
                relations[name] = f'(SELECT * FROM "{name}" WHERE {held})'
        found: TruthTables = {}
        for name, question in ask_all(self.dataset, relations, truth.names(), chunks[0], DUCKDB, group=True):
            for chunk, *values in self.connection.execute(question.query).fetchall():
                answers = found.setdefault(name, {}).setdefault(chunk, {})
                answers |= zip(question.names, map(read_answer, values), strict=True)
        return {"": found}

    def ask_regular(self, table: Table, known: dict[str, Fact]) -> dict[str, dict[str, Fact]]:
        """The facts of a regular table, by the place that answers."""
        found: dict[str, Fact] = {}
        for question in ask_regular(self.dataset, table, f'"{table.name}"', known, DUCKDB):
            values = self.connection.execute(question.query).fetchone()
            found |= zip(question.names, map(read_answer, values), strict=True)
        return {"": found}

    def chunk_rows(self, known: set[int]) -> Iterator[tuple[str, str, int, int]]:
        """Place, table, chunk and rows of every chunk of every partitioned table, known or not."""
        for table in self.dataset.tables_of("director", "child"):
            names = [table.name, *([table.overlap_name] if table.kind == "director" else [])]
            for name in names if table.ingest else ():
                for chunk, rows in self.connection.execute(
                    f'SELECT chunkId, count(*) FROM "{name}" GROUP BY 1'
                ).fetchall():
                    yield "", name, chunk, rows
