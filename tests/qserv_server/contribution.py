"""From a request to rows in a table: what uploads and contributions by reference have in common."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .csv_rows import Dialect, RowFile
from .layout import SqlError, chunk_table
from .mariadb import quote
from .protocol import InvalidArgument
from .records import find_table
from .state import Record, now

if TYPE_CHECKING:
    from .cluster import Worker

MAX_WARNINGS = 64
CONTEXT = "INGEST-FILE-SVC "


class WorkerLost(Exception):
    """The worker was lost while it worked on a contribution, which stays as it was."""


def new_contribution(worker: Worker, **given: object) -> Record:
    """A descriptor that is not yet recorded."""
    blank: Record = {"id": 0, "transaction_id": 0, "worker": worker.name, "database": "", "table": "", "chunk": 0}
    blank |= {"overlap": 0, "url": "", "charset_name": "latin1", "async": 0, "dialect_input": {}, "http_method": "GET"}
    blank |= {"http_data": "", "http_headers": [], "max_retries": 0, "num_failed_retries": 0, "failed_retries": []}
    blank |= dict.fromkeys(("num_bytes", "num_rows", "create_time", "start_time", "read_time", "load_time"), 0)
    blank |= {"status": "IN_PROGRESS", "tmp_file": "", "http_error": 0, "system_error": 0, "error": ""}
    blank |= {"retry_allowed": 0, "max_num_warnings": MAX_WARNINGS, "num_warnings": 0, "num_rows_loaded": 0}
    return blank | {"warnings": []} | given


def save(worker: Worker, contrib: Record, stage: str = "", status: str = "IN_PROGRESS", error: str = "") -> None:
    """Record a stage (``start``, ``read`` or ``load``) of a contribution and how it ended."""
    contrib["status"] = status
    if error:
        contrib["error"] = error
    if stage:
        contrib[f"{stage}_time"] = now()
    worker.cluster.state.save_contribution(contrib)


def open_file(worker: Worker, contrib: Record, dialect: Dialect) -> RowFile:
    """Check that the contribution may be made here, and open the temporary file for its rows.

    Raises
    ------
    RuntimeError, InvalidArgument
        If the transaction is not open, the database is published, or the chunk is not allocated to the worker.
    """
    state = worker.cluster.state
    transaction = state.transaction(contrib["transaction_id"])
    if transaction["state"] != "STARTED":
        raise RuntimeError(f"{CONTEXT}openFile transaction {transaction['id']} is not active")
    database = state.database(transaction["database"])
    name = database["database"]
    if database["is_published"]:
        raise RuntimeError(f"{CONTEXT}openFile database '{name}' is already PUBLISHED")
    table = find_table(database, contrib["table"])
    chunk = contrib["chunk"]
    if table["is_partitioned"] and worker.name not in state.workers_of(chunk, [name]):
        text = f"chunk {chunk} of the UNPUBLISHED database '{name}' is not allocated to worker '{worker.name}'"
        raise InvalidArgument(f"{CONTEXT}openFile {text}")
    file_name = f"{name}-{table['name']}-{chunk}-{transaction['id']}-{uuid.uuid4().hex[:16]}.csv"
    path = Path(worker.cluster.tmp, file_name)
    contrib["tmp_file"] = str(path)
    return RowFile(path, dialect, transaction["id"])


def load(worker: Worker, contrib: Record, rows: RowFile, dialect: Dialect, generation: int) -> None:
    """Load the collected rows into the contribution's table.

    Neither the commit nor this looks at whether the table (not the database) has been published: rows are then
    appended to the published table for good.

    Raises
    ------
    RuntimeError
        If the transaction was ended meanwhile, or MariaDB refuses the rows.
    WorkerLost
        If the worker was lost meanwhile.
    """
    state, layout = worker.cluster.state, worker.cluster.layout
    transaction_id = contrib["transaction_id"]
    transaction = state.transaction(transaction_id)
    if transaction["state"] != "STARTED":
        raise RuntimeError(
            f"{CONTEXT}loadDataIntoTable transaction {transaction_id} changed state to {transaction['state']}"
            " while the input file was being prepared for the ingest."
        )
    database = state.database(transaction["database"])
    name = database["database"]
    table = find_table(database, contrib["table"])
    target = table["name"]
    if table["is_partitioned"]:
        target = chunk_table(table["name"], contrib["chunk"], bool(contrib["overlap"]))
        partitioned = [known for known in database["tables"] if known["is_partitioned"]]
        layout.prepare_chunk(worker.name, name, partitioned, contrib["chunk"], transaction_id)
    else:
        layout.add_partition(quote(f"{worker.name}_{name}", target), transaction_id)
    columns = [column["name"] for column in table["columns"]]
    limit = contrib["max_num_warnings"] or MAX_WARNINGS
    quoted = quote(f"{worker.name}_{name}", target)
    loaded = layout.load(quoted, columns, rows.path, dialect, rows.prefixed, transaction_id, limit)
    if state.transaction(transaction_id)["state"] == "ABORTED":
        with suppress(SqlError):  # the real server makes no more than an attempt, either
            layout.drop_partition(worker.name, name, target, transaction_id)
        raise RuntimeError(
            f"{CONTEXT}loadDataIntoTable transaction {transaction_id} got aborted while the file"
            " was being ingested into the table."
        )
    check_alive(worker, generation)
    contrib["num_rows_loaded"] = loaded.rows
    contrib["num_warnings"] = loaded.num_warnings
    contrib["warnings"] = loaded.warnings


def check_alive(worker: Worker, generation: int) -> None:
    """Stop work that a lost worker would not have gone on with."""
    if worker.service.generation != generation:
        raise WorkerLost
