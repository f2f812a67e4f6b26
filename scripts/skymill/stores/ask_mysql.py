"""Asks the workers of Qserv the questions of verification, in the MySQL databases where they keep their chunks.

The czar is not asked: it answers for a whole table, hides the overlap tables, and sends each question to one replica of
a chunk. A worker has a table for each chunk, ``Object_<chunk>``, one for its overlap, ``ObjectFullOverlap_<chunk>``,
and the regular tables whole. Each replica is asked.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from ..config import Dataset, Table
from ..errors import ConfigError, SkymillError
from ..facts import Fact
from ..questions import MYSQL, ask_all, ask_regular, read_answer
from ..truth import TileTruth, TruthTables
from .asking import loaded_names
from .qserv import _read_key

#: A table that Qserv has beside those of the chunks, and no rows in it.
DUMMY_CHUNK = 1234567890
_ADDRESS = re.compile(r"^(?P<host>[^:/@\s]+)(:(?P<port>\d+))?(/(?P<database>[^/@\s]+))?$")
#: Derived tables are to stay what they are (else expressions are repeated many times over), and joins by equality to be
#: made by hash.
_SESSION = (
    "SET SESSION optimizer_switch = 'derived_merge=off'",
    "SET SESSION optimizer_switch = 'derived_with_keys=off'",
    "SET SESSION join_cache_level = 8",
    "SET SESSION join_buffer_size = 16777216",
    # A chunk's rows with their cells are to be in memory, as far as there is room for them.
    "SET SESSION max_heap_table_size = 536870912",
    "SET SESSION tmp_table_size = 536870912",
)
#: A server of another kind has no such variable, or no such switch; it is slower then.
_UNKNOWN = (1193, 1231)


class MysqlAsker:
    """Answers of the workers of Qserv.

    Parameters
    ----------
    dataset : `Dataset`

    Raises
    ------
    ConfigError
        If the configuration does not say where the workers' databases are.
    SkymillError
        If PyMySQL is not installed, or a password cannot be had.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        options = dataset.config["ingest"].get("qserv", {}).get("sql")
        if options is None:
            raise ConfigError(
                "ingest.qserv.sql: the key is missing; verification asks the workers in SQL, and needs to know the addresses of their "
                "databases, as {workers: {w1: 'host:3306'}, user: qsmaster}"
            )
        try:
            import pymysql
        except ImportError:
            raise SkymillError(
                "the Python package PyMySQL is missing, which asks the workers of Qserv; install it: pip install PyMySQL"
            ) from None
        self._mysql = pymysql
        self._user = options["user"]
        self._password = _read_key("sql.password", options.get("password"), dataset.folder) or ""
        self._addresses = {name: self._address(name, text) for name, text in options["workers"].items()}
        self._connections: dict[str, pymysql.Connection] = {}

    def __enter__(self) -> MysqlAsker:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(self._mysql.MySQLError):
                connection.close()

    def _address(self, name: str, text: str) -> tuple[str, int, str]:
        """Host, port and database of a worker."""
        match = _ADDRESS.match(text)
        if not match:
            raise ConfigError(
                f'ingest.qserv.sql.workers.{name}: "{re.sub(".*@", "***@", text)}" is not allowed; write host, host:port or host:port/database'
            )
        database = (match["database"] or "{database}").replace("{database}", self.dataset.database)
        return match["host"], int(match["port"] or 3306), database

    def _rows(self, worker: str, query: str, arguments: tuple | None = None) -> list[tuple]:
        """The rows of an answer of a worker."""
        try:
            with self._connect(worker).cursor() as cursor:
                cursor.execute(query, arguments)
                return list(cursor.fetchall())
        except self._mysql.MySQLError as error:
            host, port, database = self._addresses[worker]
            short = query if len(query) < 300 else f"{query[:300]} ..."
            raise SkymillError(
                f"the worker {worker} ({host}:{port}, database {database}) did not answer: {error.args[-1] if error.args else error}; see whether ingest.qserv.sql is right; asked was: {short}"
            ) from None

    def _connect(self, worker: str):  # noqa: ANN202 - a connection of PyMySQL
        if worker not in self._connections:
            host, port, database = self._addresses[worker]
            connection = self._mysql.connect(
                host=host, port=port, user=self._user, password=self._password, database=database, autocommit=True
            )
            self._connections[worker] = connection
            with connection.cursor() as cursor:
                for statement in _SESSION:
                    try:
                        cursor.execute(statement)
                    except self._mysql.MySQLError as error:
                        if error.args[0] not in _UNKNOWN:
                            raise
        return self._connections[worker]

    def _tables(self, worker: str, names: list[str] | None = None) -> list[str]:
        """The tables of a worker: all, or those of some names that it has."""
        query, arguments = (
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s",
            [self._addresses[worker][2]],
        )
        if names is not None:
            query += f" AND table_name IN ({', '.join(['%s'] * len(names))})"
            arguments += names
        return [name for (name,) in self._rows(worker, query, tuple(arguments))]

    def _relation(self, worker: str, name: str) -> str:
        return f"{MYSQL.quote(self._addresses[worker][2])}.{MYSQL.quote(name)}"

    def ask_tile(self, transaction_id: str, tile: str, chunks: list[int], truth: TileTruth) -> dict[str, TruthTables]:
        """The facts of the chunks that each worker has."""
        names = loaded_names(self.dataset)
        regular = [table.name for table in self.dataset.tables_of("regular") if table.ingest]
        known = truth.names()
        answers: dict[str, TruthTables] = {}
        for worker in self._addresses:
            there = set(self._tables(worker, [f"{name}_{chunk}" for chunk in chunks for name in names]))
            found = answers[worker] = {}
            for chunk in chunks:
                if not any(f"{name}_{chunk}" in there for name in names):
                    continue
                # A table that is missing has no rows; its template has its columns.
                relations = {
                    name: self._relation(worker, f"{name}_{chunk}")
                    if f"{name}_{chunk}" in there
                    else f"(SELECT * FROM {self._relation(worker, self._template(name))} LIMIT 0)"
                    for name in names
                } | {name: self._relation(worker, name) for name in regular}
                for name, question in ask_all(self.dataset, relations, known, chunk, MYSQL, group=False):
                    values = map(read_answer, self._rows(worker, question.query)[0])
                    held = found.setdefault(name, {}).setdefault(chunk, {})
                    held |= zip(question.names, values, strict=True)
        return answers

    def _template(self, name: str) -> str:
        """The table whose columns a chunk's table has."""
        return next((t.name for t in self.dataset.tables_of("director") if t.overlap_name == name), name)

    def ask_regular(self, table: Table, known: Mapping[str, Fact]) -> dict[str, dict[str, Fact]]:
        """The facts of a regular table on each worker."""
        answers: dict[str, dict[str, Fact]] = {}
        for worker in self._addresses:
            found = answers[worker] = {}
            for question in ask_regular(self.dataset, table, self._relation(worker, table.name), known, MYSQL):
                values = map(read_answer, self._rows(worker, question.query)[0])
                found |= zip(question.names, values, strict=True)
        return answers

    def chunk_rows(self, known: set[int]) -> Iterator[tuple[str, str, int, int]]:
        """Worker, table, chunk and rows of the chunks that are not known and have any."""
        names = loaded_names(self.dataset)
        for worker in self._addresses:
            for full in self._tables(worker):
                name, _, number = full.rpartition("_")
                if name in names and number.isdigit() and int(number) not in known and int(number) != DUMMY_CHUNK:
                    rows = self._rows(worker, f"SELECT count(*) FROM {self._relation(worker, full)}")[0][0]
                    if rows:
                        yield worker, name, int(number), rows
