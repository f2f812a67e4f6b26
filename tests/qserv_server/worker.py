"""Services of a worker: contributions uploaded as a form (the others are in ``by_reference``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import by_reference
from .contribution import MAX_WARNINGS, WorkerLost, check_alive, load, new_contribution, open_file, save
from .csv_rows import Dialect, RowFile, dialect_input
from .faults import Fault
from .http_service import BodyReader, Route
from .multipart import boundary_of, read_form
from .protocol import INSTANCE_ID, ApiError, AuthError, DropConnection, Request
from .records import find_table
from .state import Record, contribution_json

if TYPE_CHECKING:
    from .cluster import Worker

CONTEXT = "INGEST-FILE-HTTP-SVC "


class _Upload:
    """Receives the parts of one ``POST /ingest/csv``."""

    def __init__(self, worker: Worker, req: Request) -> None:
        self.worker = worker
        self.req = req
        self.contrib: Record | None = None
        self.cut_fault: Fault | None = None
        self._rows: RowFile | None = None
        self._dialect = Dialect("\\t", "")
        self._generation = worker.service.generation

    def field(self, name: str, value: str) -> None:
        self.req.body.values[name] = value

    def start_file(self, name: str, filename: str) -> None:
        service, body = self.worker.service, self.req.body
        # The key must have come before the file.
        service.enforce_key(self.req)
        service.faults.before(service.request_info(self.req))
        self.req.check_version(38)
        context = f"{CONTEXT}onStartOfFile"
        if self.contrib is not None:
            raise ApiError(f"{context}the service only allows one file per request")
        state = self.worker.cluster.state
        contrib = new_contribution(
            self.worker,
            transaction_id=body.unsigned("transaction_id"),
            table=body.required("table", "str"),
            chunk=body.unsigned("chunk"),
            overlap=int(body.unsigned("overlap") != 0),
            url=f"data-csv://{self.req.client}/{filename}",
            charset_name=body.optional("charset_name", "str", "latin1"),
            dialect_input=dialect_input(body),
            max_num_warnings=body.unsigned("max_num_warnings", MAX_WARNINGS),
        )
        # A wrong transaction or table leaves no record.
        transaction = state.transaction(contrib["transaction_id"])
        contrib["database"] = transaction["database"]
        find_table(state.database(transaction["database"]), contrib["table"])
        if transaction["state"] != "STARTED":
            error = f"{context} transactionId={transaction['id']} is not active"
            state.create_contribution(contrib | {"status": "CREATE_FAILED", "error": error, "retry_allowed": 1})
            raise ApiError(error)
        try:
            self._dialect = Dialect.parse(contrib["dialect_input"])
        except Exception as ex:
            state.create_contribution(contrib | {"status": "CREATE_FAILED", "error": str(ex), "retry_allowed": 1})
            raise
        self.contrib = contrib = state.create_contribution(contrib)
        try:
            self._rows = open_file(self.worker, contrib, self._dialect)
        except Exception as ex:
            save(self.worker, contrib, "start", "START_FAILED", str(ex))
            raise
        save(self.worker, contrib, "start")
        self.cut_fault = service.faults.take("cut_upload", service.request_info(self.req))

    def file_data(self, block: bytearray, start: int, end: int) -> bool:
        rows = self._rows
        assert rows is not None
        if self.cut_fault:
            end = min(end, start + self.cut_fault.options["bytes"] - rows.bytes)
        rows.write(block, start, end)
        return not self.cut_fault or rows.bytes < self.cut_fault.options["bytes"]

    def end_file(self, cut: bool) -> None:
        """Load what has come, also when the upload was broken off: the whole rows of it."""
        rows, contrib = self._rows, self.contrib
        assert rows is not None and contrib is not None
        check_alive(self.worker, self._generation)
        keep = bool(self.cut_fault and self.cut_fault.options["keep_partial_row"])
        rows.finish(drop_partial_row=cut and not keep)
        contrib |= {"num_bytes": rows.bytes, "num_rows": rows.rows}
        save(self.worker, contrib, "read")
        try:
            load(self.worker, contrib, rows, self._dialect, self._generation)
        except WorkerLost:
            raise
        except Exception as ex:
            error = f"MySQL load failed, ex: {ex}"
            save(self.worker, contrib, "load", "LOAD_FAILED", error)
            raise ApiError(error) from ex
        save(self.worker, contrib, "load", "FINISHED")

    def close(self) -> None:
        """Remove the temporary file."""
        if self._rows is not None:
            self._rows.discard()


def upload(worker: Worker, req: Request, reader: BodyReader, content_type: str) -> Record:
    """POST /ingest/csv: one file, after all key-value parts of the form"""
    boundary = boundary_of(content_type)
    if boundary is None:
        raise AuthError(f"{CONTEXT}the request is not a multipart form data")
    form = _Upload(worker, req)
    try:
        read_form(reader, boundary, form)
    except WorkerLost:
        raise DropConnection from None
    finally:
        form.close()
    if form.cut_fault or reader.cut:
        raise DropConnection
    if form.contrib is None:
        raise ApiError(f"{CONTEXT}onEndOfBody no file was sent in the request")
    return {"contrib": contribution_json(form.contrib)}


def version(worker: Worker, req: Request) -> Record:
    """GET /meta/version"""
    info = {"kind": "replication-worker-ingest", "id": worker.name, "instance_id": INSTANCE_ID}
    return info | {"version": req.max_version}


ROUTES = [
    Route("GET", "/meta/version", version),
    Route("POST", "/ingest/csv", upload, upload=True),
    *by_reference.ROUTES,
]
