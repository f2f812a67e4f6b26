"""Services of a worker: contributions that it fetches itself, at once or from a queue."""

from __future__ import annotations

import errno
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from .contribution import MAX_WARNINGS, WorkerLost, check_alive, load, new_contribution, open_file, save
from .csv_rows import Dialect, RowFile, dialect_input, error_ext
from .http_service import Route
from .protocol import ApiError, DropConnection, InvalidArgument, Request
from .records import find_table
from .state import Record, contribution_json

if TYPE_CHECKING:
    from .cluster import Worker

log = logging.getLogger(__name__)

CONTEXT = "INGEST-REQUEST "
DEFAULT_RETRIES = 1
MAX_RETRIES = 10
BLOCK = 1 << 20

# The real server records a refused request without its transaction, which its database refuses in turn.
NOT_RECORDED = (
    "Connection[1]::execute(_inTransaction=1)  mysql_real_query failed, query: 'INSERT INTO `transaction_contrib` ...',"
    " error: Cannot add or update a child row: a foreign key constraint fails (`qservReplica`.`transaction_contrib`,"
    " CONSTRAINT `transaction_contrib_fk_1` FOREIGN KEY (`transaction_id`) REFERENCES `transaction` (`id`)"
    " ON DELETE CASCADE ON UPDATE CASCADE), errno: 1452"
)


def _check(worker: Worker, contrib: Record) -> None:
    """Refuse a contribution to a published database or table, or in a transaction that is not open."""
    state = worker.cluster.state
    transaction = state.transaction(contrib["transaction_id"])
    database = state.database(transaction["database"])
    name, table = database["database"], find_table(database, contrib["table"])
    if database["is_published"]:
        raise RuntimeError(f"database '{name}' is already published.")
    if table["is_published"]:
        raise RuntimeError(f"table '{table['name']}' of database '{name}' is already published.")
    if transaction["state"] != "STARTED":
        raise RuntimeError(f"transactionId={transaction['id']} is not active")


def create(worker: Worker, req: Request, is_async: bool) -> Record:
    """Record the contribution that a request asks for.

    Raises
    ------
    RuntimeError
        If the transaction or the table is unknown, or the contribution is not allowed; then nothing is recorded.
    """
    body = req.body
    contrib = new_contribution(
        worker,
        transaction_id=body.required("transaction_id", "uint"),
        table=body.required("table", "str"),
        chunk=body.required("chunk", "uint"),
        overlap=int(body.required("overlap", "int") != 0),
        url=body.required("url", "str"),
        charset_name=body.optional("charset_name", "str", "latin1"),
        dialect_input=dialect_input(body),
        http_method=body.optional("http_method", "str", "GET"),
        http_data=body.optional("http_data", "str", ""),
        http_headers=body.required_list("http_headers", "str") if body.has("http_headers") else [],
        max_num_warnings=body.optional("max_num_warnings", "uint", 0) or MAX_WARNINGS,
        # Not num_retries, which the documentation has.
        max_retries=min(body.optional("max_retries", "uint", DEFAULT_RETRIES), MAX_RETRIES),
    )
    contrib["async"] = int(is_async)
    state = worker.cluster.state
    contrib["database"] = state.transaction(contrib["transaction_id"])["database"]
    database = state.database(contrib["database"])
    if contrib["table"] not in [table["name"] for table in database["tables"]]:
        text = f"no such table '{contrib['table']}' in database '{contrib['database']}'."
        raise InvalidArgument(f"{CONTEXT}IngestRequest {text}")
    try:
        _check(worker, contrib)
        url = urlsplit(contrib["url"])
        if url.scheme not in ("file", "http", "https") or not (url.path if url.scheme == "file" else url.netloc):
            raise InvalidArgument(f"Url::_translate: invalid url '{contrib['url']}'")
        Dialect.parse(contrib["dialect_input"])
    except Exception as ex:
        log.warning("%s: contribution refused: %s", worker.name, ex)
        raise RuntimeError(NOT_RECORDED) from ex
    return state.create_contribution(contrib)


def prepare_retry(worker: Worker, req: Request, is_async: bool) -> Record:
    """Make a contribution whose file could not be read ready to be tried again.

    Raises
    ------
    InvalidArgument
        If its status is not READ_FAILED, or it was made at another worker.
    """
    contrib = worker.cluster.state.contribution(int(req.params["id"]))
    context = f"{CONTEXT}createRetry "
    if contrib is None:
        raise RuntimeError(f"{context}failed to locate the contribution id={req.params['id']} in the database.")
    who = f"contribution id={contrib['id']}"
    if contrib["status"] != "READ_FAILED":
        raise InvalidArgument(f"{who} is not in state READ_FAILED, the actual state is {contrib['status']}.")
    if contrib["worker"] != worker.name:
        raise InvalidArgument(
            f"{who} was originally processed by worker '{contrib['worker']}',"
            f" while this retry operation was request at worker '{worker.name}'."
        )
    _note_failed_retry(contrib)
    contrib["async"] = int(is_async)
    save(worker, contrib)
    return contrib


def _note_failed_retry(contrib: Record) -> None:
    """Move the traces of a failed attempt to the list of failed retries."""
    numbers = ("num_bytes", "num_rows", "start_time", "read_time", "http_error", "system_error")
    blank: Record = dict.fromkeys(numbers, 0) | {"tmp_file": "", "error": ""}
    contrib["failed_retries"].append({key: contrib[key] for key in blank})
    contrib |= blank | {"retry_allowed": 0, "num_failed_retries": len(contrib["failed_retries"])}


@dataclass
class Job:
    """A contribution that is being made; ``cancelled`` is looked at between its stages."""

    worker: Worker
    contrib: Record
    cancelled: bool = False

    def process(self) -> None:
        """Read the file, as often as allowed, and load it.

        Raises
        ------
        Exception
            If any stage fails; the contribution's record says how.
        """
        worker, contrib = self.worker, self.contrib
        generation = worker.service.generation
        dialect = Dialect.parse(contrib["dialect_input"])
        self._check_cancelled("start", "cancelled before beginning processing the request.")
        try:
            _check(worker, contrib)
        except Exception as ex:
            save(worker, contrib, "start", "START_FAILED", f"{CONTEXT}_processStart {ex}")
            raise
        rows = self._read(dialect, generation)
        try:
            self._check_cancelled("load", "cancelled before loading data into MySQL")
            check_alive(worker, generation)
            save(worker, contrib, "read")
            load(worker, contrib, rows, dialect, generation)
            save(worker, contrib, "load", "FINISHED")
        except WorkerLost:
            raise
        except Exception as ex:
            if contrib["status"] != "CANCELLED":
                save(worker, contrib, "load", "LOAD_FAILED", str(ex))
            raise
        finally:
            rows.discard()

    def _check_cancelled(self, stage: str, error: str) -> None:
        if self.cancelled:
            self.contrib["retry_allowed"] = 1
            save(self.worker, self.contrib, stage, "CANCELLED", error)
            raise RuntimeError(f"{CONTEXT}request {self.contrib['id']}{error}")

    def _read(self, dialect: Dialect, generation: int) -> RowFile:
        worker, contrib = self.worker, self.contrib
        while True:
            try:
                rows = open_file(worker, contrib, dialect)
            except Exception as ex:
                contrib["retry_allowed"] = 1
                save(worker, contrib, "start", "START_FAILED", str(ex))
                raise
            save(worker, contrib, "start")
            try:
                self._check_cancelled("read", "cancelled before reading the input file.")
                _copy(contrib, rows)
                contrib |= {"num_bytes": rows.bytes, "num_rows": rows.rows}
                return rows
            except Exception as ex:
                rows.discard()
                check_alive(worker, generation)
                if contrib["status"] == "CANCELLED":
                    raise
                ext = ex.ext if isinstance(ex, ApiError) else {}
                contrib |= {"http_error": ext.get("http_error", 0), "system_error": ext.get("system_error", 0)}
                contrib["retry_allowed"] = 1
                save(worker, contrib, "read", "READ_FAILED", str(ex))
                if contrib["num_failed_retries"] >= contrib["max_retries"]:
                    raise
                _note_failed_retry(contrib)


def _copy(contrib: Record, rows: RowFile) -> None:
    url = urlsplit(contrib["url"])
    block = bytearray(BLOCK)
    try:
        with _open(contrib, url.path if url.scheme == "file" else "") as source:
            while got := source.readinto(block):  # type: ignore[attr-defined]
                rows.write(block, 0, got)
    except urllib.error.HTTPError as ex:
        text = "HTTP response code said error (on HTTP error codes 400 or greater)"
        raise ApiError(f" error: '{text}', errnum: 22", error_ext(http_error=ex.code)) from ex
    except urllib.error.URLError as ex:
        raise ApiError(" error: 'Couldn't connect to server', errnum: 7", error_ext()) from ex
    except OSError as ex:
        number = ex.errno or errno.EIO
        text = f"failed to open the file '{url.path}', error: '{os.strerror(number)}', errno: {number}"
        raise ApiError(text, error_ext(system_error=number)) from ex
    rows.finish()


def _open(contrib: Record, path: str) -> BinaryIO:
    if path:
        return Path(path).open("rb", buffering=0)
    headers = dict(header.split(":", 1) for header in contrib["http_headers"] if ":" in header)
    data = contrib["http_data"].encode() or None
    request = urllib.request.Request(contrib["url"], data, headers, method=contrib["http_method"])
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=600)


# Services --------------------------------------------------------------------------------------------------------


def _process(job: Job) -> Record:
    try:
        job.process()
    except WorkerLost:
        raise DropConnection from None
    return {"contrib": contribution_json(job.contrib)}


def _submit(job: Job) -> Record:
    shown = contribution_json(job.contrib)
    job.worker.queue.submit(job)
    return {"contrib": shown}


def file_sync(worker: Worker, req: Request) -> Record:
    """POST /ingest/file"""
    req.check_version(16)
    return _process(Job(worker, create(worker, req, is_async=False)))


def file_sync_retry(worker: Worker, req: Request) -> Record:
    """PUT /ingest/file/{id}"""
    req.check_version(16)
    return _process(Job(worker, prepare_retry(worker, req, is_async=False)))


def file_async(worker: Worker, req: Request) -> Record:
    """POST /ingest/file-async"""
    req.check_version(16)
    return _submit(Job(worker, create(worker, req, is_async=True)))


def file_async_retry(worker: Worker, req: Request) -> Record:
    """PUT /ingest/file-async/{id}"""
    req.check_version(16)
    return _submit(Job(worker, prepare_retry(worker, req, is_async=True)))


def _find(worker: Worker, contrib_id: int) -> Record:
    job = worker.queue.find(contrib_id)
    contrib = job.contrib if job else worker.cluster.state.contribution(contrib_id)
    if contrib is None:
        raise RuntimeError(f"INGEST-REQUEST-MGR find request {contrib_id} was not found")
    return contribution_json(contrib)


def async_status(worker: Worker, req: Request) -> Record:
    """GET /ingest/file-async/{id}"""
    req.check_version(13)
    return {"contrib": _find(worker, int(req.params["id"]))}


def async_cancel(worker: Worker, req: Request) -> Record:
    """DELETE /ingest/file-async/{id}"""
    req.check_version(13)
    worker.queue.cancel(int(req.params["id"]))
    return {"contrib": _find(worker, int(req.params["id"]))}


def _of_transaction(worker: Worker, req: Request) -> list[Record]:
    return worker.cluster.state.contributions(int(req.params["id"]), worker=worker.name, only_async=True)


def async_status_all(worker: Worker, req: Request) -> Record:
    """GET /ingest/file-async/trans/{id}"""
    req.check_version(13)
    return {"contribs": [contribution_json(contrib) for contrib in _of_transaction(worker, req)]}


def async_cancel_all(worker: Worker, req: Request) -> Record:
    """DELETE /ingest/file-async/trans/{id}"""
    req.check_version(13)
    shown = []
    for contrib in _of_transaction(worker, req):
        worker.queue.cancel(contrib["id"])
        shown.append(_find(worker, contrib["id"]))
    return {"contribs": shown}


ROUTES = [
    Route("POST", "/ingest/file", file_sync, keyed=True),
    Route("PUT", "/ingest/file/{id}", file_sync_retry, keyed=True),
    Route("POST", "/ingest/file-async", file_async, keyed=True),
    Route("PUT", "/ingest/file-async/{id}", file_async_retry, keyed=True),
    Route("GET", "/ingest/file-async/{id}", async_status),
    Route("DELETE", "/ingest/file-async/{id}", async_cancel, keyed=True),
    Route("GET", "/ingest/file-async/trans/{id}", async_status_all),
    Route("DELETE", "/ingest/file-async/trans/{id}", async_cancel_all, keyed=True),
]
