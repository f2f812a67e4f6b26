"""What the tests of the Qserv store share: a server to test against, and what is stored in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

# Where nothing may be left out, what is missing is an error, and not a test that is skipped.
if not os.environ.get("CI"):
    pytest.importorskip("pymysql", reason="pymysql is not installed (pip install pymysql)")

from qserv_server.fixture import QservCluster
from qserv_server.mariadb import find_mariadbd

if not find_mariadbd() and not os.environ.get("CI"):
    pytest.skip("mariadbd is not installed (apt-get install mariadb-server)", allow_module_level=True)

KEY, ADMIN_KEY = 'a "key" that nobody must see', "nor that of the administrator"
os.environ["SKYMILL_TEST_KEY"], os.environ["SKYMILL_TEST_ADMIN_KEY"] = KEY, ADMIN_KEY
#: Where the configuration says that the keys are.
KEY_SOURCES = {"auth_key": {"env": "SKYMILL_TEST_KEY"}, "admin_auth_key": {"env": "SKYMILL_TEST_ADMIN_KEY"}}


#: In memory, if there is room: MariaDB makes and removes many small tables.
MEMORY, ROOM_BYTES = Path("/dev/shm"), 2 << 30


@contextlib.contextmanager
def running_cluster() -> Iterator[QservCluster]:
    """A server in a folder whose path is short enough for a socket; it ends with the block, whatever happens there."""
    has_room = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    folder = Path(tempfile.mkdtemp(prefix="qs-", dir=MEMORY if has_room else None))
    try:
        with QservCluster(folder, KEY, ADMIN_KEY) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ask(cluster: QservCluster, path: str, **query: object) -> dict:
    """The answer of the controller to a question."""
    answer = requests.get(f"{cluster.url}{path}", params={"version": 55, **query}, timeout=30).json()
    assert answer["success"] == 1, answer
    return answer


def transactions(cluster: QservCluster, database: str, **query: object) -> list[dict]:
    """The transactions of a database, newest first."""
    return ask(cluster, "/ingest/trans", database=database, **query)["databases"][database]["transactions"]


def delete_database(cluster: QservCluster, database: str) -> None:
    """Delete a database, if it is there."""
    databases = ask(cluster, "/replication/config")["config"]["databases"]
    if any(found["database"] == database for found in databases):
        body = {"admin_auth_key": ADMIN_KEY}
        url = f"{cluster.url}/ingest/database/{database}?version=55"
        assert requests.delete(url, json=body, timeout=60).json()["success"] == 1


def contents(cluster: QservCluster, database: str) -> dict[str, tuple[int, int, int]]:
    """For each table with rows: how many, how many different ones, and an order-independent hash of them."""
    found = {}
    for worker in cluster.worker_urls:
        schema = f"{worker}_{database}"
        columns: dict[str, list[str]] = {}
        for table, column in cluster.sql(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s AND column_name <> 'qserv_trans_id'"
            " ORDER BY column_name",
            schema,
        ):
            columns.setdefault(table, []).append(column)
        for table, names in columns.items():
            text = ", ".join(f"IFNULL(`{name}`, 'null')" for name in names)
            rows = cluster.sql(
                f"SELECT COUNT(*), COUNT(DISTINCT CONCAT_WS('|', {text})), SUM(CRC32(CONCAT_WS('|', {text}))) FROM `{schema}`.`{table}`"
            )[0]
            if rows[0]:
                # A regular table is on every worker.
                found[table if "_" in table else f"{worker} {table}"] = tuple(int(value) for value in rows)
    return found
