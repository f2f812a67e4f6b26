"""The persistent records of the controller: they survive a restart of the server."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .csv_rows import DEFAULT_DIALECT

Record = dict[str, Any]

STATES = (
    "IS_STARTING",
    "STARTED",
    "IS_FINISHING",
    "IS_ABORTING",
    "FINISHED",
    "ABORTED",
    "START_FAILED",
    "FINISH_FAILED",
    "ABORT_FAILED",
)
STATUSES = ("IN_PROGRESS", "CREATE_FAILED", "START_FAILED", "READ_FAILED", "LOAD_FAILED", "CANCELLED", "FINISHED")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS family (name TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS database (name TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tbl (database TEXT, name TEXT, doc TEXT NOT NULL, PRIMARY KEY (database, name));
CREATE TABLE IF NOT EXISTS replica (database TEXT, chunk INTEGER, worker TEXT, PRIMARY KEY (database, chunk, worker));
CREATE TABLE IF NOT EXISTS param (database TEXT, category TEXT, name TEXT, value TEXT,
    PRIMARY KEY (database, category, name));
CREATE TABLE IF NOT EXISTS trans (id INTEGER PRIMARY KEY AUTOINCREMENT, database TEXT, state TEXT,
    begin_time INTEGER DEFAULT 0, start_time INTEGER DEFAULT 0, transition_time INTEGER DEFAULT 0,
    end_time INTEGER DEFAULT 0, context TEXT);
CREATE TABLE IF NOT EXISTS trans_log (id INTEGER PRIMARY KEY, transaction_id INTEGER, transaction_state TEXT,
    time INTEGER, name TEXT, data TEXT);
CREATE TABLE IF NOT EXISTS contrib (id INTEGER PRIMARY KEY AUTOINCREMENT, transaction_id INTEGER, database TEXT,
    worker TEXT, tbl TEXT, chunk INTEGER, async INTEGER, status TEXT, doc TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS contrib_trans ON contrib (transaction_id);
CREATE TABLE IF NOT EXISTS row_stats (database TEXT, tbl TEXT, transaction_id INTEGER, chunk INTEGER,
    is_overlap INTEGER, num_rows INTEGER, update_time INTEGER,
    PRIMARY KEY (database, tbl, transaction_id, chunk, is_overlap));
"""


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def contribution_json(contrib: Record, extensions: bool = True, warnings: bool = True, retries: bool = True) -> Record:
    """The descriptor of a contribution; what is not asked for shows its default."""
    shown = dict(contrib)
    if not extensions:
        shown |= {"charset_name": "", "dialect_input": dict(DEFAULT_DIALECT), "http_method": "GET", "http_data": ""}
        shown |= {"http_headers": [], "max_num_warnings": 0}
    if not warnings:
        shown["warnings"] = []
    if not retries:
        shown["failed_retries"] = []
    return shown


class State:
    """Databases, tables, chunks, transactions and contributions, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _rows(self, statement: str, args: Iterable[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(statement, tuple(args)).fetchall()

    # Families, databases, tables -------------------------------------------------------------------------------

    def families(self) -> list[Record]:
        return [json.loads(row["doc"]) for row in self._rows("SELECT doc FROM family ORDER BY name")]

    def family(self, name: str) -> Record:
        return json.loads(self._rows("SELECT doc FROM family WHERE name = ?", [name])[0]["doc"])

    def add_family(self, family: Record) -> None:
        self._rows("INSERT INTO family VALUES (?, ?)", [family["name"], json.dumps(family)])

    def database_names(self) -> list[str]:
        return [row["name"] for row in self._rows("SELECT name FROM database ORDER BY name")]

    def database(self, name: str) -> Record:
        """A database with its tables.

        Raises
        ------
        RuntimeError
            If there is no such database.
        """
        found = self._rows("SELECT doc FROM database WHERE name = ?", [name])
        if not found:
            raise RuntimeError(f"CONFIG  _databaseInfo no such database '{name}'.")
        tables = self._rows("SELECT doc FROM tbl WHERE database = ? ORDER BY name", [name])
        return json.loads(found[0]["doc"]) | {"tables": [json.loads(row["doc"]) for row in tables]}

    def save_database(self, database: Record) -> None:
        doc = {key: value for key, value in database.items() if key != "tables"}
        self._rows("INSERT OR REPLACE INTO database VALUES (?, ?)", [database["database"], json.dumps(doc)])

    def save_table(self, table: Record) -> None:
        self._rows("INSERT OR REPLACE INTO tbl VALUES (?, ?, ?)", [table["database"], table["name"], json.dumps(table)])

    def delete_database(self, name: str) -> None:
        with self._lock:
            own = "SELECT id FROM trans WHERE database = ?"
            self._rows(f"DELETE FROM trans_log WHERE transaction_id IN ({own})", [name])
            for table in ("tbl", "replica", "param", "trans", "contrib", "row_stats"):
                self._rows(f"DELETE FROM {table} WHERE database = ?", [name])
            self._rows("DELETE FROM database WHERE name = ?", [name])

    def delete_table(self, database: str, table: str) -> None:
        with self._lock:
            self._rows("DELETE FROM tbl WHERE database = ? AND name = ?", [database, table])
            for name in ("contrib", "row_stats"):
                self._rows(f"DELETE FROM {name} WHERE database = ? AND tbl = ?", [database, table])

    # Parameters and chunks -------------------------------------------------------------------------------------

    def save_param(self, database: str, category: str, name: str, value: str) -> None:
        self._rows("INSERT OR REPLACE INTO param VALUES (?, ?, ?, ?)", [database, category, name, value])

    def params(self, database: str, category: str) -> dict[str, str]:
        rows = self._rows("SELECT name, value FROM param WHERE database = ? AND category = ?", [database, category])
        return {row["name"]: row["value"] for row in rows}

    def add_replica(self, database: str, chunk: int, worker: str) -> None:
        self._rows("INSERT OR REPLACE INTO replica VALUES (?, ?, ?)", [database, chunk, worker])

    def replicas(self, database: str) -> list[tuple[int, str]]:
        """The chunks of a database and the worker of each, in the order of their numbers."""
        rows = self._rows("SELECT chunk, worker FROM replica WHERE database = ? ORDER BY chunk, worker", [database])
        return [(row["chunk"], row["worker"]) for row in rows]

    def workers_of(self, chunk: int, databases: list[str]) -> list[str]:
        """The workers that have a chunk of any of some databases."""
        marks = ", ".join("?" * len(databases))
        statement = f"SELECT DISTINCT worker FROM replica WHERE chunk = ? AND database IN ({marks}) ORDER BY worker"
        return [row["worker"] for row in self._rows(statement, [chunk, *databases])]

    def replica_counts(self) -> dict[str, int]:
        """How many chunks of all databases each worker has."""
        return {row["worker"]: row["n"] for row in self._rows("SELECT worker, COUNT(*) n FROM replica GROUP BY worker")}

    # Transactions ----------------------------------------------------------------------------------------------

    def create_transaction(self, database: str, context: Record) -> int:
        with self._lock:
            cursor = self._db.execute(
                "INSERT INTO trans (database, state, begin_time, context) VALUES (?, 'IS_STARTING', ?, ?)",
                (database, now(), json.dumps(context)),
            )
            return int(cursor.lastrowid or 0)

    def transactions(
        self, database: str, states: Iterable[str] = (), context: bool = False, with_log: bool = False
    ) -> list[Record]:
        """The transactions of a database, newest first; no ``states`` means all."""
        chosen = list(states)
        where = f" AND state IN ({', '.join('?' * len(chosen))})" if chosen else ""
        statement = f"SELECT * FROM trans WHERE database = ?{where} ORDER BY begin_time DESC, id DESC"
        return [self._transaction(row, context, with_log) for row in self._rows(statement, [database, *chosen])]

    def transaction(self, transaction_id: int, context: bool = False, with_log: bool = False) -> Record:
        """One transaction.

        Raises
        ------
        RuntimeError
            If there is no such transaction.
        """
        found = self._rows("SELECT * FROM trans WHERE id = ?", [transaction_id])
        if not found:
            context_text = f"DatabaseServicesMySQL::_findTransactionImpl predicate=`id`={transaction_id} "
            raise RuntimeError(f"{context_text}no such transaction")
        return self._transaction(found[0], context, with_log)

    def _transaction(self, row: sqlite3.Row, context: bool, with_log: bool) -> Record:
        record = dict(row) | {"context": json.loads(row["context"]) if context else {}, "log": []}
        if with_log:
            events = self._rows("SELECT * FROM trans_log WHERE transaction_id = ? ORDER BY id", [record["id"]])
            keys = ("id", "transaction_state", "name", "time")
            record["log"] = [{k: e[k] for k in keys} | {"data": json.loads(e["data"])} for e in events]
        return record

    def set_state(self, transaction_id: int, state: str) -> None:
        column = {"STARTED": "start_time", "IS_FINISHING": "transition_time", "IS_ABORTING": "transition_time"}
        stamp = column.get(state, "end_time")
        self._rows(f"UPDATE trans SET state = ?, {stamp} = ? WHERE id = ?", [state, now(), transaction_id])

    def set_context(self, transaction_id: int, context: Record) -> None:
        self._rows("UPDATE trans SET context = ? WHERE id = ?", [json.dumps(context), transaction_id])

    def log_event(self, transaction_id: int, name: str, data: Record) -> None:
        self._rows(
            "INSERT INTO trans_log (transaction_id, transaction_state, time, name, data)"
            " SELECT id, state, ?, ?, ? FROM trans WHERE id = ?",
            [now(), name, json.dumps(data), transaction_id],
        )

    # Contributions ---------------------------------------------------------------------------------------------

    def create_contribution(self, contrib: Record) -> Record:
        """Record a new contribution and give it its id."""
        with self._lock:
            cursor = self._db.execute("INSERT INTO contrib (doc) VALUES ('{}')")
            created = contrib | {"id": int(cursor.lastrowid or 0), "create_time": now()}
            self.save_contribution(created)
        return created

    def save_contribution(self, contrib: Record) -> None:
        columns = ("transaction_id", "database", "worker", "table", "chunk", "async", "status")
        self._rows(
            "UPDATE contrib SET transaction_id = ?, database = ?, worker = ?, tbl = ?, chunk = ?, async = ?,"
            " status = ?, doc = ? WHERE id = ?",
            [*(contrib[key] for key in columns), json.dumps(contrib), contrib["id"]],
        )

    def contribution(self, contrib_id: int) -> Record | None:
        found = self._rows("SELECT doc FROM contrib WHERE id = ?", [contrib_id])
        return json.loads(found[0]["doc"]) if found else None

    def contributions(
        self,
        transaction_id: int,
        table: str = "",
        worker: str = "",
        chunk: int = -1,
        statuses: Iterable[str] = (),
        only_async: bool = False,
    ) -> list[Record]:
        """The contributions of a transaction; an empty or negative selector means any."""
        chosen = list(statuses)
        tests: list[tuple[bool, str, list[Any]]] = [
            (bool(table), "tbl = ?", [table]),
            (bool(worker), "worker = ?", [worker]),
            (chunk >= 0, "chunk = ?", [chunk]),
            (bool(chosen), f"status IN ({', '.join('?' * len(chosen))})", chosen),
            (only_async, "async = 1", []),
        ]
        used = [(test, args) for wanted, test, args in tests if wanted]
        where = " AND ".join(["transaction_id = ?", *(test for test, _ in used)])
        args = [transaction_id, *(value for _, values in used for value in values)]
        rows = self._rows(f"SELECT doc FROM contrib WHERE {where} ORDER BY id", args)
        return [json.loads(row["doc"]) for row in rows]

    # Row counters ----------------------------------------------------------------------------------------------

    def save_row_stats(self, database: str, table: str, entries: Iterable[Record]) -> None:
        with self._lock:
            for e in entries:
                values = [e[key] for key in ("transaction_id", "chunk", "is_overlap", "num_rows", "update_time")]
                self._rows("INSERT OR REPLACE INTO row_stats VALUES (?, ?, ?, ?, ?, ?, ?)", [database, table, *values])

    def row_stats(self, database: str, table: str) -> list[Record]:
        rows = self._rows("SELECT * FROM row_stats WHERE database = ? AND tbl = ?", [database, table])
        return [{key: value for key, value in dict(row).items() if key not in ("database", "tbl")} for row in rows]

    def delete_row_stats(self, database: str, table: str, overlaps: Iterable[int]) -> None:
        for overlap in overlaps:
            statement = "DELETE FROM row_stats WHERE database = ? AND tbl = ? AND is_overlap = ?"
            self._rows(statement, [database, table, overlap])
