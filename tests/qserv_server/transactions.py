"""Services of the controller: transactions and the contributions made in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .http_service import Route
from .layout import DUMMY_CHUNK, NO_SUCH_TABLE, SqlError, chunk_table
from .protocol import ApiError, InvalidArgument, Request
from .records import chunk_numbers, find_table, is_director
from .state import STATES, STATUSES, Record, contribution_json

if TYPE_CHECKING:
    from .cluster import Cluster

MAX_CONTEXT = 16 * 1024 * 1024
GIB = 1024**3

# The text that any failure to build the director index ends in: the real server trips over its own error report.
INDEX_FAILURE = "[json.exception.type_error.305] cannot use operator[] with a numeric argument with object"

COMMITTED_FROM = ("STARTED",)
ABORTED_FROM = ("IS_STARTING", "STARTED", "IS_FINISHING", "START_FAILED", "FINISH_FAILED", "ABORT_FAILED")


def begin(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/trans"""
    req.check_version(12)
    state = cluster.state
    context = req.body.optional("context", "json", {})
    database = state.database(req.body.required("database", "str"))
    name = database["database"]
    if database["is_published"]:
        raise ApiError("the database is already published")
    _check_context(context)
    number = len(chunk_numbers(cluster, name))
    transaction_id = state.create_transaction(name, context)
    try:
        for table in _unpublished_directors(database):
            state.log_event(transaction_id, "begin add dir idx part", {"table": table["name"]})
            part = f"PARTITION p{transaction_id} VALUES IN ({transaction_id})"
            cluster.layout.run(f"ALTER TABLE {cluster.layout.index_name(table)} ADD PARTITION ({part})")
            state.log_event(transaction_id, "end add dir idx part", {"table": table["name"], "success": 1, "error": ""})
        state.set_state(transaction_id, "STARTED")
    except Exception:
        state.set_state(transaction_id, "START_FAILED")
        raise
    shown = {"transactions": [state.transaction(transaction_id, True, True)], "num_chunks": number}
    return {"databases": {name: shown}}


def _check_context(context: object) -> None:
    if not isinstance(context, dict):
        raise InvalidArgument(
            "DatabaseServicesMySQL::createTransaction a value of the parameter"
            " 'transactionContext is not a valid JSON object"
        )
    if len(json.dumps(context)) > MAX_CONTEXT:
        raise RuntimeError("mysql_real_query failed, error: Data too long for column 'context' at row 1, errno: 1406")


def _unpublished_directors(database: Record) -> list[Record]:
    """The tables whose director index the transactions keep up to date."""
    tables = database["tables"] if database["auto_build"] else []
    return [table for table in tables if is_director(table) and not table["is_published"]]


def end(cluster: Cluster, req: Request) -> Record:
    """PUT /ingest/trans/{id}?abort=0|1: commit or abort.

    A commit does not look at the contributions: failed and running ones are committed over.
    """
    req.check_version(12)
    transaction_id = _transaction_id(req)
    abort = req.flag("abort")
    has_context = req.body.has("context")
    context = req.body.optional("context", "json", {})
    state = cluster.state
    with cluster.lock("transaction", transaction_id):
        transaction = state.transaction(transaction_id)
        if transaction["state"] not in (ABORTED_FROM if abort else COMMITTED_FROM):
            text = f"can't be ended at this time because of state={transaction['state']}."
            raise ApiError(f"transaction id={transaction_id} {text}")
        database = state.database(transaction["database"])
        name = database["database"]
        number = len(chunk_numbers(cluster, name))
        try:
            state.set_state(transaction_id, "IS_ABORTING" if abort else "IS_FINISHING")
            if has_context:
                _check_context(context)
                state.set_context(transaction_id, context)
            info = cluster.controller.request_info(req) | {"transaction_id": transaction_id, "database": name}
            built = False
            if abort:
                _drop_partitions(cluster, database, transaction_id, bool(cluster.faults.take("fail_abort", info)))
            else:
                built = bool(database["auto_build"]) and not cluster.faults.take("skip_index", info)
                if built or not database["auto_build"]:
                    _build_index(cluster, database, transaction_id, bool(cluster.faults.take("fail_commit", info)))
                else:
                    for table in _unpublished_directors(database):
                        event = {"table": table["name"], "success": 0, "error": {}}
                        state.log_event(transaction_id, "end bld dir idx", event)
            state.set_state(transaction_id, "ABORTED" if abort else "FINISHED")
        except Exception:
            state.set_state(transaction_id, "ABORT_FAILED" if abort else "FINISH_FAILED")
            raise
        shown = {"num_chunks": number, "transactions": [state.transaction(transaction_id, True, True)]}
        return {"secondary-index-build-success": int(built), "databases": {name: shown}}


def _drop_partitions(cluster: Cluster, database: Record, transaction_id: int, fail: bool) -> None:
    """Drop the transaction's partition of every table: its rows are gone."""
    state, layout, name = cluster.state, cluster.layout, database["database"]
    # The controller keeps asking a lost worker until the request times out.
    lost = list(cluster.workers) if fail else cluster.wait_for_workers()
    layout.forget(transaction_id)
    completed: Record = {}
    errors: Record = {}
    for table in database["tables"]:
        if table["is_published"]:
            continue
        for worker in cluster.workers:
            made = state.contributions(transaction_id, table=table["name"], worker=worker)
            names = [table["name"]] if made and not table["is_partitioned"] else []
            if table["is_partitioned"]:
                # A contribution to any table made the partition in all tables of its chunk.
                chunks = {c["chunk"] for c in state.contributions(transaction_id, worker=worker)}
                numbers = [DUMMY_CHUNK, *sorted(chunks - {DUMMY_CHUNK})]
                names = [chunk_table(table["name"], n, overlap) for n in numbers for overlap in (False, True)]
                names.insert(0, table["name"])
            for internal in names:
                error = "the worker does not respond" if worker in lost else ""
                if not error:
                    try:
                        layout.drop_partition(worker, name, internal, transaction_id)
                    except SqlError as failure:
                        # A contribution that failed early has left no table.
                        error = "" if failure.code == NO_SUCH_TABLE else str(failure)
                completed.setdefault(worker, {})[internal] = int(not error)
                errors.setdefault(worker, {})[internal] = error
    ext = {"completed": completed, "error": errors}
    success = all(all(done.values()) for done in completed.values())
    state.log_event(transaction_id, "end del table part", {"success": int(success), "error": {} if success else ext})
    if not success:
        raise ApiError("failed to drop table partitions", ext)
    for table in _unpublished_directors(database):
        part = f"ALTER TABLE {layout.index_name(table)} DROP PARTITION IF EXISTS p{transaction_id}"
        layout.run(part)
        state.log_event(transaction_id, "end del dir idx part", {"table": table["name"], "success": 1, "error": ""})


def _build_index(cluster: Cluster, database: Record, transaction_id: int, fail: bool) -> None:
    """Add the transaction's keys to the director index."""
    lost = cluster.wait_for_workers()
    for table in _unpublished_directors(database):
        # The workers with a contribution to the chunk, whatever became of it; of several, the one with least work.
        candidates: dict[int, list[str]] = {}
        for worker in cluster.workers:
            made = cluster.state.contributions(transaction_id, table=table["name"], worker=worker)
            for chunk in {contrib["chunk"] for contrib in made}:
                candidates.setdefault(chunk, []).append(worker)
        work = dict.fromkeys(cluster.workers, 0)
        success = not fail
        for chunk, workers in sorted(candidates.items()):
            worker = min(workers, key=lambda name: work[name])
            work[worker] += 1
            success = success and (worker not in lost or cluster.workers[worker].up.is_set())
            try:
                if success:
                    cluster.layout.index_chunk(table, worker, chunk, transaction_id)
            except SqlError as failure:
                cluster.state.log_event(transaction_id, "bld dir idx failed", {"chunk": chunk, "error": str(failure)})
                success = False
        if not success:
            raise RuntimeError(INDEX_FAILURE)
        event = {"table": table["name"], "success": 1, "error": None}
        cluster.state.log_event(transaction_id, "end bld dir idx", event)


def _transaction_id(req: Request) -> int:
    try:
        return int(req.params["id"])
    except ValueError:
        raise InvalidArgument("stoul") from None


def _selected(req: Request, name: str, names: tuple[str, ...], excluded: tuple[str, ...]) -> list[str]:
    """The states chosen by a comma list or by ``!`` and one of two states."""
    text = req.query.get(name, "")
    if text.startswith("!") and text[1:] in excluded:
        return [known for known in names if known != text[1:]]
    chosen = [part for part in text.split(",") if part]
    for part in chosen:
        if part not in names:
            raise RuntimeError(f"DatabaseServices::string2state  unknown transaction state: {part}")
    return chosen


def _contributions(cluster: Cluster, req: Request, database: Record, transaction_id: int, scoped: bool) -> Record:
    """The summary of a transaction's contributions and, in the long format, all of them."""
    selectors: Record = {"statuses": _selected(req, "contrib_status", STATUSES, ("IN_PROGRESS", "FINISHED"))}
    limits = {"min_retries": 0, "min_warnings": 0, "max_entries": 0}
    if scoped:
        selectors |= {"table": req.query.get("table", ""), "worker": req.query.get("worker", "")}
        selectors["chunk"] = req.number("chunk", -1)
        limits = {key: req.number(key, 0) for key in limits}
    contribs = cluster.state.contributions(transaction_id, **selectors)
    contribs = [
        c
        for c in contribs
        if c["num_failed_retries"] >= limits["min_retries"] and c["num_warnings"] >= limits["min_warnings"]
    ][: limits["max_entries"] or None]
    counters = ("data_size_gb", "num_failed_retries", "num_warnings", "num_rows", "num_rows_loaded")
    kinds = ("num_chunk_overlap_files", "num_chunk_files", "num_regular_files")
    total: Record = dict.fromkeys((*counters, *kinds), 0)
    by_status = dict.fromkeys(STATUSES, 0)
    by_table: Record = {}
    by_worker: Record = {}
    finished = [c for c in contribs if c["status"] == "FINISHED"]
    for contrib in contribs:
        by_status[contrib["status"]] += 1
        table = by_table.setdefault(contrib["table"], dict.fromkeys((*counters, "num_files"), 0))
        worker = by_worker.setdefault(contrib["worker"], dict.fromkeys((*counters, *kinds), 0))
        kind = kinds[2]
        if find_table(database, contrib["table"])["is_partitioned"]:
            kind = kinds[0] if contrib["overlap"] else kinds[1]
            if contrib["overlap"]:
                table = table.setdefault("overlap", dict.fromkeys((*counters, "num_files"), 0))
        for sums in (table, worker, total):
            sums["num_failed_retries"] += contrib["num_failed_retries"]
            if contrib["status"] == "FINISHED":
                sums["data_size_gb"] += contrib["num_bytes"] / GIB
                for key in counters[2:]:
                    sums[key] += contrib[key]
                sums["num_files" if sums is table else kind] += 1
    summary = {"num_workers": len(by_worker), "num_files_by_status": by_status, "table": by_table, "worker": by_worker}
    summary |= {"first_contrib_begin": min((c["create_time"] for c in finished), default=0)}
    summary |= {"last_contrib_end": max((c["load_time"] for c in finished), default=0)}
    files = []
    if req.number("contrib_long", 0):
        include = [req.number(f"include_{what}", 0) != 0 for what in ("extensions", "warnings", "retries")]
        files = [contribution_json(contrib, *include) for contrib in contribs]
    return {"summary": summary | total, "files": files}


def _listing(cluster: Cluster, req: Request, database: Record, found: list[Record], scoped: bool) -> Record:
    if req.number("contrib", 0):
        for transaction in found:
            transaction["contrib"] = _contributions(cluster, req, database, transaction["id"], scoped)
    number = len(chunk_numbers(cluster, database["database"]))
    return {"is_published": database["is_published"], "num_chunks": number, "transactions": found}


def list_transactions(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/trans"""
    req.check_version(37)
    state = cluster.state
    context, with_log = (req.number(f"include_{what}", 0) != 0 for what in ("context", "log"))
    states = _selected(req, "trans_state", STATES, ("STARTED", "FINISHED"))
    names = [req.query["database"]] if req.query.get("database") else state.database_names()
    result: Record = {}
    for name in names:
        database = state.database(name)
        if not req.query.get("database"):
            published = bool(database["is_published"]) == (req.number("is_published", 0) != 0)
            if not published and not req.number("all_databases", 0):
                continue
            if req.query.get("family", "") not in ("", database["family_name"]):
                continue
        found = state.transactions(name, states, context, with_log)
        result[name] = _listing(cluster, req, database, found, scoped=False)
    return {"databases": result}


def get_transaction(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/trans/{id}; the id 0 and ?database= mean all transactions of a database"""
    req.check_version(37)
    state = cluster.state
    transaction_id = _transaction_id(req)
    name = req.query.get("database", "")
    context, with_log = (req.number(f"include_{what}", 0) != 0 for what in ("context", "log"))
    if transaction_id:
        found = [state.transaction(transaction_id, context, with_log)]
        owner = found[0]["database"]
        if name not in ("", owner):
            raise ApiError(
                f"transaction id={transaction_id} is associated with database '{owner}'"
                f" which is different from the requested database '{name}'"
            )
        name = owner
    elif name:
        states = _selected(req, "trans_state", STATES, ("STARTED", "FINISHED"))
        found = state.transactions(name, states, context, with_log)
    else:
        raise ApiError("either 'id' or 'database' query parameter must be specified")
    return {"databases": {name: _listing(cluster, req, state.database(name), found, scoped=True)}}


def get_contribution(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/trans/contrib/{id}"""
    req.check_version(37)
    contrib_id = _transaction_id(req)
    contrib = cluster.state.contribution(contrib_id)
    if contrib is None:
        raise RuntimeError(f"DatabaseServicesMySQL::transactionContrib id={contrib_id} no such contribution")
    include = [
        req.number(f"include_{what}", what == "extensions") != 0 for what in ("extensions", "warnings", "retries")
    ]
    return {"contribution": contribution_json(contrib, *include)}


ROUTES = [
    Route("GET", "/ingest/trans", list_transactions),
    Route("POST", "/ingest/trans", begin, keyed=True),
    Route("GET", "/ingest/trans/{id}", get_transaction),
    Route("PUT", "/ingest/trans/{id}", end, keyed=True),
    Route("GET", "/ingest/trans/contrib/{id}", get_contribution),
]
