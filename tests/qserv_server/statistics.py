"""Services of the controller: row counters, the director index and table indexes of loaded tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .http_service import Route
from .layout import DUMMY_CHUNK, DUPLICATE_INDEX, STATUS_NAMES, SqlError, chunk_table
from .mariadb import quote
from .protocol import ApiError, InvalidArgument, Request
from .records import chunk_numbers, find_table, is_director, worker_tables
from .state import Record, now

if TYPE_CHECKING:
    from .cluster import Cluster

OVERLAPS = {"CHUNK_AND_OVERLAP": (False, True), "CHUNK": (False,), "OVERLAP": (True,)}
POLICIES = ("DISABLED", "ENABLED", "FORCED")
JOB_ID = "00000000-0000-0000-0000-000000000000"


def _overlaps(req: Request) -> tuple[bool, ...]:
    selector = req.body.optional("overlap_selector", "str", "CHUNK_AND_OVERLAP")
    if selector not in OVERLAPS:
        raise InvalidArgument(f"str2overlapSelector unsupported selector '{selector}'")
    return OVERLAPS[selector]


def _is_scan_needed(cluster: Cluster, table: Record, overlaps: tuple[bool, ...]) -> bool:
    entries = cluster.state.row_stats(table["database"], table["name"])
    if not entries or not table["is_partitioned"]:
        return not entries
    wanted = set(chunk_numbers(cluster, table["database"]))
    return any({e["chunk"] for e in entries if e["is_overlap"] == overlap} != wanted for overlap in overlaps)


def _count(cluster: Cluster, table: Record, overlaps: tuple[bool, ...]) -> tuple[list[Record], Record]:
    """Count the rows of a table's tables on all workers: the entries, and the failures by worker and table."""
    failures: Record = {}
    counts: dict[tuple[int, bool], list[dict[int, int]]] = {}
    for worker in cluster.workers:
        chunks = [(0, False)]
        if table["is_partitioned"]:
            own = [chunk for chunk, where in cluster.state.replicas(table["database"]) if where == worker]
            chunks = [(chunk, overlap) for chunk in (DUMMY_CHUNK, *own) for overlap in overlaps]
        for chunk, overlap in chunks:
            name = chunk_table(table["name"], chunk, overlap) if table["is_partitioned"] else table["name"]
            try:
                rows = cluster.layout.row_counts(worker, table["database"], name)
            except SqlError as error:
                status = {"status": STATUS_NAMES.get(error.code, "MYSQL_ERROR"), "error": str(error)}
                failures.setdefault(worker, {})[name] = status
                continue
            if chunk != DUMMY_CHUNK:
                # A table without rows is counted, too, under transaction 0.
                counts.setdefault((chunk, overlap), []).append(rows or {0: 0})
    entries = []
    for (chunk, overlap), replicas in counts.items():
        if any(replica != replicas[0] for replica in replicas):
            # Replicas must agree: a regular table must have been sent to every worker.
            failures.setdefault("", {})
            continue
        key = {"chunk": chunk, "is_overlap": int(overlap), "update_time": now()}
        entries += [key | {"transaction_id": t, "num_rows": n} for t, n in replicas[0].items()]
    return entries, failures


def scan(
    cluster: Cluster, database: str, name: str, overlaps: tuple[bool, ...], policy: str, deploy: bool, rescan: bool
) -> Record:
    """Count the rows of a table and deploy the counters; ``error_ext`` of a failure, or nothing."""
    table = find_table(cluster.state.database(database), name)
    if rescan or _is_scan_needed(cluster, table, overlaps):
        cluster.wait_for_workers()
        entries, failures = _count(cluster, table, overlaps)
        if policy == "FORCED" or (policy == "ENABLED" and not failures):
            cluster.state.save_row_stats(database, name, entries)
        if failures:
            failures.pop("", None)
            return {"operation": "Scan table row counters.", "job_id": JOB_ID, "workers": failures}
    if deploy:
        rows: dict[int, int] = {}
        for entry in cluster.state.row_stats(database, name):
            if not entry["is_overlap"]:
                rows[entry["chunk"]] = rows.get(entry["chunk"], 0) + entry["num_rows"]
        cluster.layout.deploy_row_counters(database, name, rows)
    return {}


def scan_table(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/table-stats"""
    req.check_version(12)
    database, table = req.body.required("database", "str"), req.body.required("table", "str")
    overlaps = _overlaps(req)
    policy = req.body.optional("row_counters_state_update_policy", "str", "DISABLED")
    if policy not in POLICIES:
        raise InvalidArgument(f"SqlRowStatsJob::str2policy: '{policy}' is not a valid policy.")
    deploy = req.body.optional("row_counters_deploy_at_qserv", "int", 0) != 0
    rescan = req.body.optional("force_rescan", "int", 0) != 0
    prefix = "HTTP-PROCESSOR ::_scanTableStats'row_counters_deploy_at_qserv'=1 requires"
    if deploy and policy != "ENABLED":
        raise InvalidArgument(f"{prefix} 'row_counters_state_update_policy'=ENABLED")
    if deploy and overlaps == (True,):
        raise InvalidArgument(f"{prefix} 'overlap_selector'=CHUNK or 'overlap_selector'=CHUNK_AND_OVERLAP")
    failure = scan(cluster, database, table, overlaps, policy, deploy, rescan)
    if failure:
        raise ApiError("Table rows scanning/deployment failed.", failure)
    return {}


def table_stats(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/table-stats/{database}/{table}"""
    req.check_version(12)
    table = find_table(cluster.state.database(req.params["database"]), req.params["table"])
    entries = cluster.state.row_stats(table["database"], table["name"])
    return {"database": table["database"], "table": table["name"], "entries": entries}


def delete_table_stats(cluster: Cluster, req: Request) -> Record:
    """DELETE /ingest/table-stats/{database}/{table}"""
    req.check_version(12)
    table = find_table(cluster.state.database(req.params["database"]), req.params["table"])
    qserv_only = req.body.optional("qserv_only", "int", 0) != 0
    overlaps = _overlaps(req)
    counters = quote("qservMeta", f"{table['database']}__{table['name']}__rows")
    cluster.layout.run(f"DROP TABLE IF EXISTS {counters}")
    if not qserv_only:
        cluster.state.delete_row_stats(table["database"], table["name"], [int(overlap) for overlap in overlaps])
    return {}


def build_director_index(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/index/secondary"""
    req.check_version(22)
    database = req.body.required("database", "str")
    name = req.body.required("director_table", "str")
    for option, since in (("allow_for_published", 22), ("local", 20)):
        if req.body.has(option):
            req.warnings.append(f"Option '{option}' is obsolete as of the version {since} of the API.")
    rebuild = req.body.optional("rebuild", "int", 0) != 0
    table = find_table(cluster.state.database(database), name)
    if not is_director(table):
        raise ApiError(f"table '{name}' is not configured as a director table in database '{database}'")
    if not table["is_published"]:
        raise ApiError(f" the director table '{name}' of the database '{database}' is not published.")
    unique = req.body.optional("unique_primary_key", "int", table["unique_primary_key"]) != 0
    cluster.wait_for_workers()
    cluster.layout.rebuild_director_index(table, cluster.state.replicas(database), unique, rebuild)
    return {}


def _published_table(cluster: Cluster, database: str, name: str) -> Record:
    table = find_table(cluster.state.database(database), name)
    if not table["is_published"]:
        raise ApiError("table is not published")
    return table


def _on_all_tables(cluster: Cluster, table: Record, overlap: bool, statement: str, ignored: int) -> None:
    """Run a statement with a place for the table's name on all tables of a table; ``ignored`` is an error number."""
    cluster.wait_for_workers()
    failures: Record = {}
    for worker in cluster.workers:
        for name in worker_tables(cluster, worker, table, (overlap,), template=False):
            try:
                cluster.layout.run(statement.format(quote(f"{worker}_{table['database']}", name)))
            except SqlError as error:
                if error.code != ignored:
                    status = STATUS_NAMES.get(error.code, "MYSQL_ERROR")
                    failure = {"request_status": status, "request_error": str(error)}
                    failures.setdefault(worker, {})[name] = failure
    if failures:
        ext = {"job_state": "FAILED", "workers": failures}
        raise ApiError("The operation failed. See details in the extended report.", ext)


def create_indexes(cluster: Cluster, req: Request) -> Record:
    """POST /replication/sql/index"""
    req.check_version(12)
    body = req.body
    database, name, index = (body.required(key, "str") for key in ("database", "table", "index"))
    comment = body.optional("comment", "str", "").replace("'", "''").replace("{", "{{").replace("}", "}}")
    spec = body.optional("spec", "str", "DEFAULT")
    if spec not in ("DEFAULT", "UNIQUE", "FULLTEXT", "SPATIAL"):
        raise InvalidArgument("RequestBodyJSON::optional<T>(permitted) a value of parameter spec is not allowed.")
    columns = body.required("columns", "json")
    overlap = body.optional("overlap", "int", 0) != 0
    ignored = DUPLICATE_INDEX if body.optional("ignore_duplicate_key", "int", 1) else 0
    table = _published_table(cluster, database, name)
    if not isinstance(columns, list):
        raise InvalidArgument("HTTP-PROCESSOR ::_createIndexes  parameter 'columns' is not a simple JSON array.")
    known = [column["name"] for column in table["columns"]]
    keys = []
    for column in columns:
        if column["column"] not in known:
            raise InvalidArgument(
                f"HTTP-PROCESSOR ::_createIndexes  requested column '{column['column']}'"
                " has not been found in the table schema."
            )
        length = f"({int(column['length'])})" if column["length"] else ""
        keys.append(f"{quote(column['column'])}{length} {'ASC' if column['ascending'] else 'DESC'}")
    kind = "" if spec == "DEFAULT" else f"{spec} "
    statement = f"CREATE {kind}INDEX {quote(index)} ON {{}} ({', '.join(keys)}) COMMENT '{comment}'"
    _on_all_tables(cluster, table, overlap, statement, ignored)
    return {}


def drop_indexes(cluster: Cluster, req: Request) -> Record:
    """DELETE /replication/sql/index"""
    req.check_version(12)
    database, name, index = (req.body.required(key, "str") for key in ("database", "table", "index"))
    overlap = req.body.optional("overlap", "int", 0) != 0
    table = _published_table(cluster, database, name)
    _on_all_tables(cluster, table, overlap, f"DROP INDEX IF EXISTS {quote(index)} ON {{}}", 0)
    return {}


ROUTES = [
    Route("POST", "/ingest/table-stats", scan_table, keyed=True),
    Route("GET", "/ingest/table-stats/{database}/{table}", table_stats),
    Route("DELETE", "/ingest/table-stats/{database}/{table}", delete_table_stats, keyed=True),
    Route("POST", "/ingest/index/secondary", build_director_index, keyed=True),
    Route("POST", "/replication/sql/index", create_indexes, keyed=True),
    Route("DELETE", "/replication/sql/index", drop_indexes, keyed=True),
]
