"""The tables of the workers and of the czar, and what is done to them.

The workers share one MariaDB: the databases of worker ``w1`` are called ``w1_<database>``. The czar's director index
lies in ``qservMeta``, its empty-chunk lists in ``qservCssData``, and its table templates in ``<database>``.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql

from .csv_rows import Dialect, load_columns
from .mariadb import MariaDB, quote
from .state import Record

DUMMY_CHUNK = 1234567890
TRANSACTION_COLUMN = "qserv_trans_id"
NO_SUCH_TABLE = 1146
NOT_PARTITIONED = 1505
NO_SUCH_PARTITION = 1735
DUPLICATE_INDEX = 1061

# How the job results of the controller name these errors.
STATUS_NAMES = {NO_SUCH_TABLE: "NO_SUCH_TABLE", NOT_PARTITIONED: "NOT_PARTITIONED_TABLE", 1061: "DUPLICATE_KEY"}
STATUS_NAMES |= {1091: "CANT_DROP_KEY", NO_SUCH_PARTITION: "NO_SUCH_PARTITION"}


def chunk_table(table: str, chunk: int, overlap: bool) -> str:
    """Name of the table of a chunk, or of its overlap."""
    return f"{table}{'FullOverlap' if overlap else ''}_{chunk}"


def error_code(error: Exception) -> int:
    """MariaDB's number of an error, or 0."""
    code = error.args[0] if isinstance(error, pymysql.MySQLError) and error.args else 0
    return code if isinstance(code, int) else 0


class SqlError(RuntimeError):
    """A statement that MariaDB refused, with its number and text as the server reports them."""

    def __init__(self, statement: str, error: pymysql.MySQLError) -> None:
        self.code = error_code(error)
        text = error.args[1] if len(error.args) > 1 else str(error)
        super().__init__(
            f"Connection[1]::execute(_inTransaction=1)  mysql_real_query failed, query: '{statement}',"
            f" error: {text}, errno: {self.code}"
        )


@dataclass
class Loaded:
    """The outcome of LOAD DATA."""

    rows: int = 0
    num_warnings: int = 0
    warnings: list[Record] = field(default_factory=list)


class Layout:
    """The tables in a MariaDB."""

    def __init__(self, mariadb: MariaDB) -> None:
        self.mariadb = mariadb
        self._lock = threading.Lock()
        # Chunks that have their tables and partitions: asking MariaDB each time would wait for running loads.
        self._prepared: set[tuple[Any, ...]] = set()
        self._preparing: defaultdict[tuple[Any, ...], threading.Lock] = defaultdict(threading.Lock)

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement.

        Raises
        ------
        SqlError
            If MariaDB refuses it.
        """
        try:
            return self.mariadb.execute(statement)
        except pymysql.MySQLError as error:
            raise SqlError(statement, error) from error

    # Workers ---------------------------------------------------------------------------------------------------

    def create_database(self, worker: str, database: str) -> None:
        self.run(f"CREATE DATABASE IF NOT EXISTS {quote(f'{worker}_{database}')}")

    def drop_database(self, worker: str, database: str) -> None:
        self.run(f"DROP DATABASE IF EXISTS {quote(f'{worker}_{database}')}")
        self.forget()

    def forget(self, transaction_id: int | None = None) -> None:
        """Forget which partitions exist, of one transaction or of all."""
        with self._lock:
            self._prepared = {p for p in self._prepared if transaction_id is not None and p[3] != transaction_id}

    @staticmethod
    def _create(name: str, table: Record) -> str:
        columns = ",".join(f"{quote(column['name'])} {column['type']}" for column in table["columns"])
        options = f"ENGINE=MyISAM DEFAULT CHARSET={table['charset_name']} COLLATE={table['collation_name']}"
        return f"CREATE TABLE IF NOT EXISTS {name} ({columns}) {options}"

    def create_table(self, worker: str, table: Record, name: str) -> None:
        """Create a worker's template, dummy or chunk table, partitioned by transaction."""
        statement = self._create(quote(f"{worker}_{table['database']}", name), table)
        self.run(f"{statement} PARTITION BY LIST ({quote(TRANSACTION_COLUMN)}) (PARTITION p0 VALUES IN (0))")

    def drop_tables(self, worker: str, database: str, names: list[str]) -> None:
        for name in names:
            self.run(f"DROP TABLE IF EXISTS {quote(f'{worker}_{database}', name)}")
        self.forget()

    def prepare_chunk(self, worker: str, database: str, tables: list[Record], chunk: int, transaction_id: int) -> None:
        """Create the tables of a chunk, of all partitioned tables, and add the transaction's partition to each."""
        key = (worker, database, chunk, transaction_id, tuple((t["name"], t["is_published"]) for t in tables))
        with self._lock:
            turn = self._preparing[key]
        with turn:
            if key in self._prepared:
                return
            for table in tables:
                template = quote(f"{worker}_{database}", table["name"])
                for number in (chunk, DUMMY_CHUNK):
                    for overlap in (False, True):
                        name = quote(f"{worker}_{database}", chunk_table(table["name"], number, overlap))
                        self.run(f"CREATE TABLE IF NOT EXISTS {name} LIKE {template}")
                        # Published tables have no partitions.
                        if number == chunk and not table["is_published"]:
                            self.add_partition(name, transaction_id)
            with self._lock:
                self._prepared.add(key)
                self._preparing.pop(key, None)

    def add_partition(self, name: str, transaction_id: int) -> None:
        """Add a transaction's partition to a table, unless it is there; ``name`` is quoted."""
        part = f"PARTITION p{transaction_id} VALUES IN ({transaction_id})"
        self.run(f"ALTER TABLE {name} ADD PARTITION IF NOT EXISTS ({part})")

    def drop_partition(self, worker: str, database: str, name: str, transaction_id: int) -> None:
        """Drop a transaction's partition, and its rows, if it is there."""
        target = quote(f"{worker}_{database}", name)
        self.run(f"ALTER TABLE {target} DROP PARTITION IF EXISTS p{transaction_id}")

    def remove_partitioning(self, worker: str, database: str, name: str) -> None:
        """Make a table an ordinary one; one that is already is left alone."""
        try:
            self.run(f"ALTER TABLE {quote(f'{worker}_{database}', name)} REMOVE PARTITIONING")
        except SqlError as error:
            if error.code != NOT_PARTITIONED:
                raise

    def load(
        self, target: str, columns: list[str], path: Path, dialect: Dialect, prefixed: bool, trans: int, limit: int
    ) -> Loaded:
        """Load a file into a table; ``limit`` is how many warnings are kept.

        The server reads the file itself (no LOCAL): only so does strict mode fail on a bad first row.
        """
        with self.mariadb.session() as cursor:
            cursor.execute(f"SET SESSION max_error_count = {int(limit)}")
            # Latin1, whatever the request says: that is all the real server ever uses.
            statement = f"LOAD DATA INFILE {cursor.connection.escape(str(path))} INTO TABLE {target}"
            statement += f" CHARACTER SET 'latin1' {dialect.sql}{load_columns(columns, prefixed, trans)}"
            try:
                rows = cursor.execute(statement)
            except pymysql.MySQLError as error:
                raise SqlError(statement, error) from error
            loaded = Loaded(rows, cursor.warning_count)
            if loaded.num_warnings:
                cursor.execute("SHOW WARNINGS")
                keys = ("level", "code", "message")
                loaded.warnings = [dict(zip(keys, row, strict=True)) for row in cursor.fetchall()][:limit]
            return loaded

    def row_counts(self, worker: str, database: str, name: str) -> dict[int, int]:
        """Rows of a table by transaction."""
        target = quote(f"{worker}_{database}", name)
        statement = f"SELECT {TRANSACTION_COLUMN}, COUNT(*) FROM {target} GROUP BY {TRANSACTION_COLUMN}"
        return {int(transaction): int(rows) for transaction, rows in self.run(statement)}

    # Czar ------------------------------------------------------------------------------------------------------

    def create_czar(self) -> None:
        """Create the databases that the czar always has."""
        for name in ("qservMeta", "qservCssData"):
            self.run(f"CREATE DATABASE IF NOT EXISTS {name}")

    @staticmethod
    def index_name(table: Record) -> str:
        return quote("qservMeta", f"{table['database']}__{table['name']}")

    @staticmethod
    def _key_type(table: Record) -> str:
        return next(c["type"] for c in table["columns"] if c["name"] == table["director_key"])

    def create_director_index(self, table: Record) -> None:
        """Create the index of a director table that is filled at each commit."""
        key, name = quote(table["director_key"]), self.index_name(table)
        unique = "UNIQUE KEY" if table["unique_primary_key"] else "KEY"
        self.run(f"DROP TABLE IF EXISTS {name}")
        self.run(
            f"CREATE TABLE {name} ({TRANSACTION_COLUMN} INT NOT NULL, {key} {self._key_type(table)}, chunkId INT,"
            f" subChunkId INT, {unique} ({TRANSACTION_COLUMN}, {key}), KEY ({key})) ENGINE=InnoDB"
            f" PARTITION BY LIST ({TRANSACTION_COLUMN}) (PARTITION p0 VALUES IN (0))"
        )

    def rebuild_director_index(self, table: Record, chunks: list[tuple[int, str]], unique: bool, drop: bool) -> None:
        """Create the index of a published director table and fill it from all chunks."""
        key, name = quote(table["director_key"]), self.index_name(table)
        if drop:
            self.run(f"DROP TABLE IF EXISTS {name}")
        self.run(
            f"CREATE TABLE {name} ({key} {self._key_type(table)}, chunkId INT, subChunkId INT,"
            f" {'UNIQUE KEY' if unique else 'KEY'} ({key})) ENGINE=InnoDB"
        )
        for chunk, worker in chunks:
            source = quote(f"{worker}_{table['database']}", chunk_table(table["name"], chunk, False))
            self.run(f"INSERT INTO {name} SELECT {key}, {chunk}, subChunkId FROM {source}")

    def index_chunk(self, table: Record, worker: str, chunk: int, transaction_id: int) -> None:
        """Copy the keys of a chunk that a transaction has loaded into the director index.

        Raises
        ------
        SqlError
            If a key occurs twice, or the index has no partition for the transaction.
        """
        source = quote(f"{worker}_{table['database']}", chunk_table(table["name"], chunk, False))
        statement = (
            f"INSERT INTO {self.index_name(table)} SELECT {TRANSACTION_COLUMN}, {quote(table['director_key'])},"
            f" {chunk}, subChunkId FROM {source} PARTITION (p{transaction_id})"
        )
        try:
            self.run(statement)
        except SqlError as error:
            if error.code != NO_SUCH_PARTITION:  # the transaction has no rows in this chunk
                raise

    def publish_on_czar(self, database: str, tables: list[Record], empty_chunks: list[int]) -> None:
        """Create the table templates and the list of empty chunks."""
        self.run(f"CREATE DATABASE IF NOT EXISTS {quote(database)}")
        for table in tables:
            self.run(self._create(quote(database, table["name"]), table))
        name = quote("qservCssData", f"{database}_EmptyChunks")
        self.run(f"DROP TABLE IF EXISTS {name}")
        self.run(f"CREATE TABLE {name} (chunkId INT NOT NULL PRIMARY KEY) ENGINE=InnoDB")
        for first in range(0, len(empty_chunks), 10_000):
            values = ",".join(f"({chunk})" for chunk in empty_chunks[first : first + 10_000])
            self.run(f"INSERT INTO {name} VALUES {values}")

    def drop_on_czar(self, database: str, directors: list[Record], tables: list[str], whole: bool) -> None:
        """Drop what the czar has of some tables, or of the ``whole`` database."""
        for table in directors:
            self.run(f"DROP TABLE IF EXISTS {self.index_name(table)}")
        for table_name in tables:
            self.run(f"DROP TABLE IF EXISTS {quote('qservMeta', f'{database}__{table_name}__rows')}")
        if whole:
            self.run(f"DROP TABLE IF EXISTS {quote('qservCssData', f'{database}_EmptyChunks')}")
            self.run(f"DROP DATABASE IF EXISTS {quote(database)}")
        else:
            for table_name in tables:
                self.run(f"DROP TABLE IF EXISTS {quote(database, table_name)}")

    def deploy_row_counters(self, database: str, table: str, rows: dict[int, int]) -> None:
        """Put the rows of each chunk where the czar looks for them."""
        name = quote("qservMeta", f"{database}__{table}__rows")
        self.run(
            f"CREATE TABLE IF NOT EXISTS {name} (chunk INT UNSIGNED NOT NULL, num_rows BIGINT UNSIGNED DEFAULT 0,"
            " UNIQUE KEY (chunk)) ENGINE=InnoDB"
        )
        self.run(f"DELETE FROM {name}")
        for chunk, count in rows.items():
            self.run(f"INSERT INTO {name} VALUES ({chunk}, {count})")
