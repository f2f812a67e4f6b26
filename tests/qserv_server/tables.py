"""Services of the controller: register, list and delete tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .http_service import Route
from .layout import DUMMY_CHUNK, TRANSACTION_COLUMN, SqlError, chunk_table
from .protocol import ApiError, InvalidArgument, Request
from .records import database_json, find_table, is_director, worker_tables
from .state import Record, now

if TYPE_CHECKING:
    from .cluster import Cluster

MAX_NAMES = 56  # characters of a database's and a table's name together


def _columns(schema: Any, director: bool) -> list[Record]:
    if schema is None:
        raise ApiError("table schema is empty")
    if not isinstance(schema, list):
        raise ApiError("table schema is not defined as an array")
    columns = [{"name": TRANSACTION_COLUMN, "type": "INT NOT NULL"}]
    for column in schema:
        if not isinstance(column, dict):
            raise ApiError("columns definitions in table schema are not JSON objects")
        for key in ("name", "type"):
            if key not in column:
                number = len(columns) + 1
                raise ApiError(f"column attribute '{key}' is missing in table schema for column number: {number}")
        name, column_type = column["name"], column["type"]
        if director and any(word in column_type.upper() for word in ("BLOB", "TEXT")):
            raise ApiError(
                f"the prohibited type '{column_type}' detected in a definition of the column '{name}'"
                " of the director table"
            )
        if name == TRANSACTION_COLUMN:
            raise ApiError(f"reserved column '{TRANSACTION_COLUMN}' is not allowed")
        columns.append({"name": name, "type": column_type})
    return columns


def _director(cluster: Cluster, database: Record, reference: str) -> Record | None:
    """The table that ``[database.]table`` names, or None."""
    home, _, name = reference.rpartition(".")
    owner = cluster.state.database(home) if home else database
    return next((table for table in owner["tables"] if table["name"] == name), None)


def _validate(cluster: Cluster, database: Record, table: Record) -> None:
    """Refuse a table whose kind and attributes do not fit together."""

    def refuse(condition: Any, message: str) -> None:
        if condition:
            context = f"[database={database['database']}] {json.dumps(table)}"
            raise InvalidArgument(f"DatabaseInfo::validate {message} {context}")

    refuse(not table["name"], "table name is empty")
    refuse(
        len(table["database"]) + len(table["name"]) > MAX_NAMES,
        f"the combined size of the database and table names exceeds {MAX_NAMES} characters",
    )
    if not table["is_partitioned"]:
        return
    position = {"latitudeColName": table["latitude_key"], "longitudeColName": table["longitude_key"]}
    needed = {"directorTable.primaryKeyColumn()": table["director_key"]}
    if is_director(table):
        refuse(not table["director_key"], "the director table definition requires a valid director key")
        refuse(not all(position.values()), "the director table requires both spatial coordinate columns")
        needed |= position | {"subChunkIdColName": "subChunkId"}
    else:
        kind = "RefMatch" if table["is_ref_match"] else "dependent"
        for number in ("", "2") if table["is_ref_match"] else ("",):
            reference = table[f"director_table{number}"]
            director = _director(cluster, database, reference)
            refuse(director is None, f"non-existing director '{reference}' referenced in the {kind} definition")
            text = f"table '{reference}' referenced in the {kind} definition isn't the director"
            refuse(not is_director(director or {}), text)
        if table["is_ref_match"]:
            first, second = ((table[f"director_table{n}"], table[f"director_key{n}"]) for n in ("", "2"))
            refuse(first == second, "the director tables of the RefMatch table can't be the same")
            text = "incomplete definition of the director table keys for the RefMatch table"
            refuse(not table["director_key2"], text)
            refuse(first[1] == second[1], "the director table keys of the RefMatch table can't be the same")
            refuse(not table["flag"], "the RefMatch table requires the special column to store flags")
            refuse(table["ang_sep"] <= 0, "the RefMatch table requires the angular separation to be more than 0")
            needed |= {"directorTable2.primaryKeyColumn()": table["director_key2"], "flagColName": table["flag"]}
        else:
            both = bool(table["latitude_key"]) == bool(table["longitude_key"])
            refuse(not both, "inconsistent definition of the spatial coordinate columns")
            needed |= position if table["latitude_key"] else {}
    names = [column["name"] for column in table["columns"]]
    for role, name in needed.items():
        refuse(name not in names, f"no matching column '{name}' found in schema for parameter '{role}'")


def add_table(cluster: Cluster, req: Request) -> Record:
    """POST /ingest/table"""
    body = req.body
    if body.has("unique_primary_key"):
        req.check_version(21, "'unique_primary_key' requires API version 21 or newer.")
    if body.has("charset_name") or body.has("collation_name"):
        req.check_version(49, "'charset_name' and 'collation_name' require API version 49 or newer.")
    else:
        req.check_version(12)
    table: Record = {"name": body.required("table", "str"), "database": body.required("database", "str")}
    table |= {"is_published": 0, "create_time": now(), "publish_time": 0}
    partitioned = body.required("is_partitioned", "int") != 0
    given = {key: body.optional(key, "str", "") for key in ("director_table", "director_key")}
    given |= {key: body.optional(key, "str", "") for key in ("director_table2", "director_key2", "flag")}
    given |= {key: body.optional(key, "str", "") for key in ("latitude_key", "longitude_key")}
    given["ang_sep"] = body.optional("ang_sep", "float", 0.0)
    unique = body.optional("unique_primary_key", "int", 1) != 0
    charset = body.optional("charset_name", "str", "latin1")
    collation = body.optional("collation_name", "str", "latin1_general_ci")
    for number in ("", "2"):
        if given[f"director_table{number}"] and not given[f"director_key{number}"]:
            raise InvalidArgument("DirectorTableRef: primary key column name can not be empty")
    schema = body.required("schema", "json")
    database = cluster.state.database(table["database"])
    if database["is_published"]:
        raise ApiError("the database is already published")
    if any(known["name"] == table["name"] for known in database["tables"]):
        raise ApiError("table already exists")
    # Attributes that a table of its kind does not have are dropped without a word.
    director = partitioned and not given["director_table"]
    ref_match = partitioned and not director and bool(given["director_table2"])
    blank: list[str] = []
    if not partitioned:
        blank = list(given)
    elif director or not ref_match:
        blank = ["director_table2", "director_key2", "flag", "ang_sep"]
    else:
        blank = ["latitude_key", "longitude_key"]
    given |= {key: 0.0 if key == "ang_sep" else "" for key in blank}
    table |= {"is_partitioned": int(partitioned), "is_director": int(director), "is_ref_match": int(ref_match)} | given
    for number in ("", "2"):
        home, _, name = table[f"director_table{number}"].rpartition(".")
        table |= {f"director_database_name{number}": home, f"director_table_name{number}": name}
    table |= {"unique_primary_key": int(unique), "charset_name": charset, "collation_name": collation}
    table["columns"] = _columns(schema, director)
    _validate(cluster, database, table)
    cluster.state.save_table(table)
    cluster.wait_for_workers()
    names = [table["name"]]
    if partitioned:
        names += [chunk_table(table["name"], DUMMY_CHUNK, overlap) for overlap in (False, True)]
    for name in names:
        failures = ""
        for worker in cluster.workers:
            try:
                cluster.layout.create_table(worker, table, name)
            except SqlError as error:
                failures += f"table creation failed for: '{name}', worker: {worker},  error: {error} "
        if failures:  # the table stays registered all the same
            raise ApiError(failures)
    if director and database["auto_build"]:
        cluster.layout.create_director_index(table)
    return {"database": database_json(cluster.state.database(table["database"]))}


def list_tables(cluster: Cluster, req: Request) -> Record:
    """GET /ingest/table/{database}"""
    req.check_version(12)
    tables = cluster.state.database(req.params["database"])["tables"]
    shown = [{"name": table["name"], "is_partitioned": table["is_partitioned"]} for table in tables]
    return {"tables": sorted(shown, key=lambda table: -table["is_partitioned"])}


def delete_table(cluster: Cluster, req: Request) -> Record:
    """DELETE /ingest/table/{database}/{table}"""
    req.check_version(12)
    database = cluster.state.database(req.params["database"])
    table = find_table(database, req.params["table"])
    if database["is_published"] and not req.is_admin:
        raise ApiError("deleting tables of published databases requires administrator's privileges.")
    name = table["name"]
    cluster.wait_for_workers()
    cluster.layout.drop_on_czar(database["database"], [table] if is_director(table) else [], [name], whole=False)
    for worker in cluster.workers:
        internal = worker_tables(cluster, worker, table, (False, True), template=True)
        cluster.layout.drop_tables(worker, database["database"], internal)
    if any(name in (other["director_table"], other["director_table2"]) for other in database["tables"]):
        raise InvalidArgument(
            f"DatabaseInfo::removeTable can't remove the director table '{name}' from the database"
            f" '{database['database']}' because it has dependent tables."
        )
    cluster.state.delete_table(database["database"], name)
    return {}


ROUTES = [
    Route("GET", "/ingest/table/{database}", list_tables),
    Route("POST", "/ingest/table", add_table, keyed=True),
    Route("DELETE", "/ingest/table/{database}/{table}", delete_table, keyed=True),
]
