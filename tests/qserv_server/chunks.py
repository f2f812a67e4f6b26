"""Services of the controller: where contributions go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .chunker import is_valid
from .http_service import Route
from .protocol import ApiError, InvalidArgument, Request
from .state import Record

if TYPE_CHECKING:
    from .cluster import Cluster


def _database(cluster: Cluster, req: Request) -> Record:
    """The unpublished database that a request names, itself or by a transaction."""
    if req.body.has("database"):
        name = req.body.required("database", "str")
    elif req.body.has("transaction_id"):
        name = cluster.state.transaction(req.body.required("transaction_id", "uint"))["database"]
    else:
        raise InvalidArgument(
            "HTTP-PROCESSOR :: this service expects either 'database' or  'transaction_id' to be provided"
            " to define a scope of the request."
        )
    database = cluster.state.database(name)
    if database["is_published"]:
        raise ApiError(f"HTTP-PROCESSOR :: database '{name} is already published.")
    return database


def _allocate(cluster: Cluster, database: Record, chunks: list[int]) -> list[Record]:
    """The location of each chunk; a new one goes to the worker that has fewest, or where its family has it."""
    state = cluster.state
    names = [n for n in state.database_names() if state.database(n)["family_name"] == database["family_name"]]
    with cluster.lock("chunks"):  # one decision at a time
        counts = dict.fromkeys(cluster.workers, 0) | state.replica_counts()
        placed: dict[int, list[str]] = {}
        for chunk, worker in state.replicas(database["database"]):
            placed.setdefault(chunk, []).append(worker)
        locations = []
        for chunk in chunks:
            if chunk not in placed:
                candidates = state.workers_of(chunk, names) or list(cluster.workers)
                chosen = min(candidates, key=lambda worker: counts[worker])
                counts[chosen] += 1
                state.add_replica(database["database"], chunk, chosen)
                placed[chunk] = [chosen]
            locations.append({"chunk": chunk} | cluster.workers[placed[chunk][0]].location)
    return locations


def _stripes(cluster: Cluster, database: Record) -> int:
    return int(cluster.state.family(database["family_name"])["num_stripes"])


def locate_chunk(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/chunk"""
    req.check_version(12)
    chunk = req.body.required("chunk", "uint")
    database = _database(cluster, req)
    if not is_valid(chunk, _stripes(cluster, database)):
        raise ApiError("this chunk number is not valid")
    return {"location": _allocate(cluster, database, [chunk])[0]}


def locate_chunk_multi(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/chunk-multi: all replicas, of which there is one here"""
    req.check_version(54)
    return {"locations": [locate_chunk(cluster, req)["location"]]}


def locate_chunks(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/chunks, POST /ingest/chunks-multi"""
    req.check_version(54)
    chunks = req.body.required_list("chunks", "uint")
    database = _database(cluster, req)
    stripes = _stripes(cluster, database)
    for chunk in chunks:
        if not is_valid(chunk, stripes):
            raise ApiError(f"chunk {chunk} is not valid")
    return {"locations": _allocate(cluster, database, chunks)}


def list_chunks(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/chunks: for information"""
    req.check_version(12)
    database = cluster.state.database(req.text("database"))
    keys = ("data_size", "index_size", "overlap_data_size", "overlap_index_size", "overlap_rows", "rows")
    tables = {t["name"]: dict.fromkeys(keys, 0) for t in database["tables"] if t["is_partitioned"]}
    replicas = cluster.state.replicas(database["database"])
    return {"replica": [{"chunk": chunk, "worker": worker} | tables for chunk, worker in replicas]}


def locate_regular(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/regular, with a JSON body: regular tables go to every worker"""
    req.check_version(12)
    _database(cluster, req)
    return {"locations": [worker.location for worker in cluster.workers.values()]}


ROUTES = [
    Route("POST", "/ingest/chunk", locate_chunk, keyed=True),
    Route("POST", "/ingest/chunk-multi", locate_chunk_multi, keyed=True),
    Route("POST", "/ingest/chunks", locate_chunks, keyed=True),
    Route("POST", "/ingest/chunks-multi", locate_chunks, keyed=True),
    Route("GET", "/ingest/chunks", list_chunks),
    Route("GET", "/ingest/regular", locate_regular),
]
