"""Services of the controller: register, list, configure, publish and delete databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .chunker import all_chunks
from .http_service import Route
from .protocol import ApiError, Request
from .records import chunk_numbers, database_json, is_director, worker_tables
from .state import Record, now
from .statistics import scan

if TYPE_CHECKING:
    from .cluster import Cluster

CONFIG_CATEGORY = "worker-http-file-reader"

# Parameters of PUT /ingest/config and their types.
CONFIG_PARAMETERS = {
    **dict.fromkeys(("SSL_VERIFYHOST", "SSL_VERIFYPEER", "PROXY_SSL_VERIFYHOST", "PROXY_SSL_VERIFYPEER"), "int"),
    **dict.fromkeys(("CAPATH", "CAINFO", "CAINFO_VAL", "PROXY_CAPATH", "PROXY_CAINFO", "PROXY_CAINFO_VAL"), "str"),
    **dict.fromkeys(("CURLOPT_PROXY", "CURLOPT_NOPROXY"), "str"),
    **dict.fromkeys(
        ("CURLOPT_HTTPPROXYTUNNEL", "CONNECTTIMEOUT", "TIMEOUT", "LOW_SPEED_LIMIT", "LOW_SPEED_TIME"), "int"
    ),
    "ASYNC_PROC_LIMIT": "uint",
}


def list_databases(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/database"""
    req.check_version(12)
    family = req.body.optional("family", "str", "")
    chosen = [cluster.state.database(name) for name in cluster.state.database_names()]
    if not req.body.optional("all", "uint", 1):
        published = req.body.required("published", "uint") != 0
        chosen = [database for database in chosen if bool(database["is_published"]) == published]
    shown = [
        {"name": database["database"], "family": database["family_name"], "is_published": database["is_published"]}
        for database in chosen
        if family in ("", database["family_name"])
    ]
    return {"databases": shown}


def add_database(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/database"""
    req.check_version(12)
    name = req.body.required("database", "str")
    stripes, sub_stripes = (req.body.required(key, "uint") for key in ("num_stripes", "num_sub_stripes"))
    overlap = req.body.required("overlap", "float")
    auto_build = req.body.optional("auto_build_secondary_index", "uint", 1)
    if req.body.has("local_load_secondary_index"):
        req.warnings.append("Option 'local_load_secondary_index' is obsolete as of the version 20 of the API.")
    if overlap < 0:
        raise ApiError("overlap can't have a negative value")
    family = f"layout_{stripes}_{sub_stripes}"
    # An existing family is used whatever its overlap: the first database of a family decides that.
    if family not in [known["name"] for known in cluster.state.families()]:
        numbers = {"num_stripes": stripes, "num_sub_stripes": sub_stripes, "overlap": overlap}
        cluster.state.add_family({"name": family, "min_replication_level": 1} | numbers)
    cluster.wait_for_workers()
    for worker in cluster.workers:
        cluster.layout.create_database(worker, name)
    if name in cluster.state.database_names():
        raise RuntimeError(f"CONFIG  addDatabase the database '{name}' already exists.")
    database = {"database": name, "family_name": family, "is_published": 0, "create_time": now(), "publish_time": 0}
    cluster.state.save_database(database | {"auto_build": int(auto_build != 0)})
    return {"database": database_json(cluster.state.database(name))}


def publish(cluster: Cluster, req: Request) -> Record:
    """PUT /ingest/database/{database}"""
    req.check_version(12)
    state, layout = cluster.state, cluster.layout
    consolidate = req.body.optional("consolidate_secondary_index", "int", 0) != 0
    deploy = req.body.optional("row_counters_deploy_at_qserv", "int", 0) != 0
    database = state.database(req.params["database"])
    name = database["database"]
    if database["is_published"]:
        raise ApiError("the database is already published")
    if any(t["state"] not in ("FINISHED", "ABORTED") for t in state.transactions(name)):
        raise ApiError("database has uncommitted transactions")
    allocated = chunk_numbers(cluster, name)
    if not allocated:
        raise ApiError("the database doesn't have any chunks")
    new = [table for table in database["tables"] if not table["is_published"]]
    cluster.wait_for_workers()
    if database["auto_build"] and consolidate:
        for table in new:
            if is_director(table):
                layout.run(f"ALTER TABLE {layout.index_name(table)} REMOVE PARTITIONING")
    if deploy:
        # This fails on a chunk without contributions: it has no tables until they are created below.
        for table in new:
            failure = scan(cluster, name, table["name"], (False, True), "ENABLED", deploy=True, rescan=True)
            if failure:
                raise ApiError("Table rows scanning/deployment failed.", failure)
    for table in new:
        for worker in cluster.workers:
            if table["is_partitioned"]:
                for internal in worker_tables(cluster, worker, table, (False, True), template=True):
                    layout.create_table(worker, table, internal)
            for internal in worker_tables(cluster, worker, table, (False, True), template=True):
                layout.remove_partitioning(worker, name, internal)
    family = state.family(database["family_name"])
    empty = sorted(set(all_chunks(family["num_stripes"])) - set(allocated))
    layout.publish_on_czar(name, new, empty)
    layout.forget()
    published = {"is_published": 1, "publish_time": now()}
    for table in new:
        state.save_table(table | published)
    state.save_database(database | published)
    return {"database": database_json(state.database(name))}


def unpublish(cluster: Cluster, req: Request) -> Record:
    """PUT /replication/config/database/{database}: open a published database for new tables"""
    again = req.body.optional("publish", "int", 0) != 0
    req.check_version(34 if again else 12)
    if not req.is_admin:
        raise ApiError("administrator's privileges are required to (un-)publish databases.")
    database = cluster.state.database(req.params["database"])
    if bool(database["is_published"]) == again:
        word = "already" if again else "not"
        raise RuntimeError(f"CONFIG  _publishDatabase database '{database['database']}' is {word} published.")
    stamp = {"is_published": int(again), "publish_time": now() if again else 0}
    if again:
        for table in database["tables"]:
            if not table["is_published"]:
                cluster.state.save_table(table | stamp)
    cluster.state.save_database(database | stamp)
    shown = database_json(cluster.state.database(database["database"]))
    return {"config": {"databases": {database["database"]: shown}}}


def delete_database(cluster: Cluster, req: Request) -> Record:
    """DELETE /ingest/database/{database}"""
    req.check_version(12)
    database = cluster.state.database(req.params["database"])
    if database["is_published"] and not req.is_admin:
        raise ApiError("deleting published databases requires administrator's privileges.")
    name = database["database"]
    cluster.wait_for_workers()
    directors = [table for table in database["tables"] if is_director(table)]
    cluster.layout.drop_on_czar(name, directors, [table["name"] for table in database["tables"]], whole=True)
    for worker in cluster.workers:
        cluster.layout.drop_database(worker, name)
    cluster.state.delete_database(name)
    return {}


def get_config(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/config"""
    req.check_version(14)
    name = cluster.state.database(req.text("database"))["database"]
    saved = cluster.state.params(name, CONFIG_CATEGORY)
    shown = {key: value if CONFIG_PARAMETERS[key] == "str" else int(value) for key, value in saved.items()}
    return {"config": {"database": name} | shown}


def put_config(cluster: Cluster, req: Request) -> Record:
    """PUT /ingest/config"""
    req.check_version(14)
    name = cluster.state.database(req.body.required("database", "str"))["database"]
    for key, kind in CONFIG_PARAMETERS.items():
        if req.body.has(key):
            cluster.state.save_param(name, CONFIG_CATEGORY, key, str(req.body.required(key, kind)))
    return {}


ROUTES = [
    Route("GET", "/ingest/config", get_config),
    Route("PUT", "/ingest/config", put_config, keyed=True),
    Route("GET", "/ingest/database", list_databases),
    Route("POST", "/ingest/database", add_database, keyed=True),
    Route("PUT", "/ingest/database/{database}", publish, keyed=True),
    Route("DELETE", "/ingest/database/{database}", delete_database, keyed=True),
    Route("PUT", "/replication/config/database/{database}", unpublish, keyed=True),
]
