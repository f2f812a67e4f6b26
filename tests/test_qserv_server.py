"""The ingest server that the tests of the Qserv store run against behaves as the real one does."""

from __future__ import annotations

import http.server
import itertools
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

if not os.environ.get("CI"):
    pytest.importorskip("pymysql", reason="pymysql is not installed (pip install pymysql)")

from qserv_server.chunker import all_chunks
from qserv_server.fixture import QservCluster
from qserv_server.mariadb import find_mariadbd

if not find_mariadbd() and not os.environ.get("CI"):
    pytest.skip("mariadbd is not installed (apt-get install mariadb-server)", allow_module_level=True)

KEY, ADMIN_KEY = "a key", "an admin key"
OBJECT = {
    "table": "Object",
    "is_partitioned": 1,
    "director_key": "objectId",
    "latitude_key": "dec",
    "longitude_key": "ra",
    "schema": [
        {"name": name, "type": column_type}
        for name, column_type in (
            ("objectId", "BIGINT NOT NULL"),
            ("ra", "DOUBLE NOT NULL"),
            ("dec", "DOUBLE NOT NULL"),
            ("flag", "TINYINT"),
            ("name", "VARCHAR(20)"),
            ("chunkId", "INT NOT NULL"),
            ("subChunkId", "INT NOT NULL"),
        )
    ],
}
SOURCE = {
    "table": "Source",
    "is_partitioned": 1,
    "director_table": "Object",
    "director_key": "objectId",
    "schema": [{"name": "objectId", "type": "BIGINT"}, {"name": "flux", "type": "FLOAT"}],
}
VISIT = {"table": "Visit", "is_partitioned": 0, "schema": [{"name": "visitId", "type": "BIGINT"}]}
INDEX_FAILURE = "[json.exception.type_error.305] cannot use operator[] with a numeric argument with object"

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QservCluster]:
    with QservCluster(tmp_path_factory.mktemp("q"), KEY, ADMIN_KEY) as started:
        yield started


class Client:
    """A few calls of the API, on a database of its own."""

    def __init__(self, cluster: QservCluster, *tables: dict[str, Any]) -> None:
        self.cluster = cluster
        self.db = f"db{next(numbers)}"
        shape = {"num_stripes": 18, "num_sub_stripes": 10, "overlap": 0.01}
        self.ok("POST", "/ingest/database", {"database": self.db} | shape)
        for table in tables:
            self.ok("POST", "/ingest/table", {"database": self.db} | table)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, url: str = "", **query: Any) -> Any:
        keyed = {"auth_key": self.cluster.auth_key} | (body or {})
        where = (url or self.cluster.url) + path
        reply = requests.request(method, where, json=keyed, params={"version": 55} | query, timeout=60)
        reply.raise_for_status()
        return reply.json()

    def ok(self, *args: Any, **query: Any) -> Any:
        reply = self.call(*args, **query)
        assert reply["success"] == 1 and reply["error"] == "", reply
        return reply

    def begin(self) -> int:
        reply = self.ok("POST", "/ingest/trans", {"database": self.db, "context": {"by": "test"}})
        return reply["databases"][self.db]["transactions"][0]["id"]

    def end(self, transaction: int, abort: int = 0) -> Any:
        return self.call("PUT", f"/ingest/trans/{transaction}", abort=abort)

    def locate(self, *chunks: int) -> list[dict[str, Any]]:
        return self.ok("POST", "/ingest/chunks", {"database": self.db, "chunks": list(chunks)})["locations"]

    def form(self, transaction: int, **fields: Any) -> dict[str, str]:
        form = {"auth_key": self.cluster.auth_key, "version": 55, "transaction_id": transaction}
        form |= {"table": "Object", "chunk": 300}
        return {key: str(value) for key, value in (form | {"overlap": 0} | fields).items()}

    def push(self, transaction: int, data: bytes | str, url: str = "", **fields: Any) -> Any:
        content = data.encode() if isinstance(data, str) else data
        url = url or self.url(int(fields.get("chunk", 300)))
        form = self.form(transaction, **fields)
        reply = requests.post(f"{url}/ingest/csv", data=form, files={"file": ("x.txt", content)}, timeout=60)
        reply.raise_for_status()
        return reply.json()

    def url(self, chunk: int) -> str:
        location = self.locate(chunk)[0]
        return f"http://{location['http_host']}:{location['http_port']}"

    def contributions(self, transaction: int, **query: Any) -> list[dict[str, Any]]:
        query = {"contrib": 1, "contrib_long": 1, "include_warnings": 1} | query
        reply = self.ok("GET", f"/ingest/trans/{transaction}", **query)
        return reply["databases"][self.db]["transactions"][0]["contrib"]["files"]

    def state(self, transaction: int) -> str:
        reply = self.ok("GET", f"/ingest/trans/{transaction}")
        return reply["databases"][self.db]["transactions"][0]["state"]

    def count(self, table: str, chunk: int = 300) -> int:
        worker = self.locate(chunk)[0]["worker"]
        return self.cluster.sql(f"SELECT COUNT(*) FROM {worker}_{self.db}.{table}_{chunk}")[0][0]


def objects(*ids: int, chunk: int = 300) -> str:
    return "".join(f"{i}\t10.5\t-3.25\t1\tname\t{chunk}\t7\n" for i in ids)


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def test_chunks_of_known_partitionings() -> None:
    assert [len(all_chunks(stripes)) for stripes in (200, 340, 85)] == [50432, 146332, 8983]


def test_version_and_routes(cluster: QservCluster) -> None:
    controller = requests.get(f"{cluster.url}/meta/version", timeout=60).json()
    assert (controller["kind"], controller["version"], controller["success"]) == ("replication-controller", 55, 1)
    assert "name" not in controller
    for name, url in cluster.worker_urls.items():
        worker = requests.get(f"{url}/meta/version", timeout=60).json()
        assert (worker["kind"], worker["id"]) == ("replication-worker-ingest", name)
    for path in ("/ingest/nothing", "/ingest/regular/5"):
        assert requests.get(cluster.url + path, timeout=60).status_code == 404
    client = Client(cluster)
    reply = client.call("POST", "/ingest/chunks", {"database": client.db, "chunks": []}, version=53)
    assert reply["success"] == 0 and "not in the range supported" in reply["error"]
    assert reply["error_ext"] == {"min_version": 54, "max_version": 55}
    reply = client.call("POST", "/ingest/chunks", {"database": client.db, "chunks": [], "version": 55}, version=53)
    assert reply["success"] == 1, "the body's version wins"
    assert "is not a number" in client.call("GET", "/ingest/database", version="new")["error"]
    reply = requests.get(f"{cluster.url}/ingest/database", timeout=60).json()
    assert reply["success"] == 1 and reply["warning"] == "No version number was provided in the request."


def test_keys(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    body = {"database": client.db}
    assert "doesn't match" in client.call("POST", "/ingest/trans", body | {"auth_key": "wrong"})["error"]
    assert client.call("POST", "/ingest/trans", body | {"auth_key": "wrong", "admin_auth_key": ADMIN_KEY})["success"]
    none = requests.post(f"{cluster.url}/ingest/trans", json=body, timeout=60).json()
    assert "none of the authorization keys" in none["error"]
    text = {"Content-Type": "application/json; charset=utf-8"}
    other = requests.post(f"{cluster.url}/ingest/trans", json=body | {"auth_key": KEY}, headers=text, timeout=60)
    assert "none of the authorization keys" in other.json()["error"], "the body is ignored"
    transaction = client.begin()
    assert "doesn't match" in client.push(transaction, objects(1), auth_key="wrong")["error"]
    url = f"{client.url(300)}/ingest/csv"
    assert "not a multipart form data" in requests.post(url, json={"auth_key": KEY}, timeout=60).json()["error"]
    parts = [("file", ("x.txt", objects(1))), *((k, (None, v)) for k, v in client.form(transaction).items())]
    late = requests.post(url, files=parts, timeout=60).json()
    assert "none of the authorization keys" in late["error"], "the key comes after the file"
    assert "no file was sent" in requests.post(url, files={"auth_key": (None, KEY)}, timeout=60).json()["error"]
    assert client.contributions(transaction) == []


def test_register_load_commit_publish(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT, SOURCE, VISIT)
    assert client.call(
        "POST",
        "/ingest/database",
        {"database": client.db, **dict.fromkeys(("num_stripes", "num_sub_stripes"), 18), "overlap": 0.01},
    )["error"].endswith("already exists.")
    transaction = client.begin()
    location = client.locate(300)[0]
    reply = client.push(transaction, objects(1, 2, 3))
    contrib = reply["contrib"]
    assert (contrib["status"], contrib["num_rows"], contrib["num_rows_loaded"]) == ("FINISHED", 3, 3)
    assert (contrib["num_warnings"], contrib["retry_allowed"], contrib["worker"]) == (0, 0, location["worker"])
    assert contrib["num_bytes"] == len(objects(1, 2, 3)) and contrib["url"] == "data-csv://127.0.0.1/x.txt"
    assert client.push(transaction, objects(8, 9), overlap=1)["contrib"]["overlap"] == 1
    assert client.push(transaction, "1\t0.5\n1\t\\N\n", table="Source")["success"]
    regular = client.ok("GET", "/ingest/regular", {"transaction_id": transaction})["locations"]
    assert [place["worker"] for place in regular] == ["w1", "w2"]
    for place in regular:
        url = f"http://{place['http_host']}:{place['http_port']}"
        assert client.push(transaction, "5\n", url, table="Visit", chunk=0)["success"]
    worker = f"{location['worker']}_{client.db}"
    tables = {row[0] for row in cluster.sql(f"SHOW TABLES FROM {worker}")}
    chunk_tables = {f"{t}{o}_{c}" for t in ("Object", "Source") for o in ("", "FullOverlap") for c in (300, 1234567890)}
    assert tables == chunk_tables | {"Object", "Source", "Visit"}
    create = cluster.sql(f"SHOW CREATE TABLE {worker}.Object_300")[0][1]
    assert "(\n  `qserv_trans_id` int(11) NOT NULL,\n  `objectId`" in create
    assert f"PARTITION `p{transaction}` VALUES IN ({transaction}) ENGINE = MyISAM" in create
    assert "CHARSET=latin1 COLLATE=latin1_general_ci" in create
    summary = client.ok("GET", "/ingest/trans", database=client.db, contrib=1, include_context=1)
    listed = summary["databases"][client.db]["transactions"][0]
    assert listed["context"] == {"by": "test"} and listed["contrib"]["files"] == []
    total = listed["contrib"]["summary"]
    assert (total["num_rows"], total["num_rows_loaded"], total["num_warnings"]) == (9, 9, 0)
    assert (total["num_chunk_files"], total["num_chunk_overlap_files"], total["num_regular_files"]) == (2, 1, 2)
    assert total["table"]["Object"]["overlap"]["num_rows"] == 2
    assert "uncommitted" in client.call("PUT", f"/ingest/database/{client.db}")["error"]
    reply = client.end(transaction)
    assert reply["success"] and reply["secondary-index-build-success"] == 1
    assert reply["databases"][client.db]["transactions"][0]["state"] == "FINISHED"
    index = cluster.sql(f"SELECT * FROM qservMeta.{client.db}__Object ORDER BY objectId")
    assert index == [(transaction, i, 300, 7) for i in (1, 2, 3)]
    assert "state=FINISHED" in client.end(transaction, abort=1)["error"]
    empty = client.locate(301)[0]["worker"]
    reply = client.call("PUT", f"/ingest/database/{client.db}", {"row_counters_deploy_at_qserv": 1})
    assert reply["error"] == "Table rows scanning/deployment failed.", "a chunk without contributions has no tables"
    assert reply["error_ext"]["workers"][empty]["Object_301"]["status"] == "NO_SUCH_TABLE"
    published = client.ok("PUT", f"/ingest/database/{client.db}")["database"]
    assert published["is_published"] == 1 and all(table["is_published"] for table in published["tables"])
    assert "PARTITION" not in cluster.sql(f"SHOW CREATE TABLE {worker}.Object_300")[0][1]
    assert client.cluster.sql(f"SELECT COUNT(*) FROM {empty}_{client.db}.SourceFullOverlap_301")[0][0] == 0
    chunks = cluster.sql(f"SELECT COUNT(*) FROM qservCssData.{client.db}_EmptyChunks")[0][0]
    assert chunks == len(all_chunks(18)) - 2
    client.ok(
        "POST",
        "/ingest/table-stats",
        {
            "database": client.db,
            "table": "Object",
            "row_counters_state_update_policy": "ENABLED",
            "row_counters_deploy_at_qserv": 1,
        },
    )
    entries = client.ok("GET", f"/ingest/table-stats/{client.db}/Object")["entries"]
    rows = {(e["chunk"], e["is_overlap"], e["transaction_id"]): e["num_rows"] for e in entries}
    assert rows == {(300, 0, transaction): 3, (300, 1, transaction): 2, (301, 0, 0): 0, (301, 1, 0): 0}
    assert cluster.sql(f"SELECT * FROM qservMeta.{client.db}__Object__rows") == [(300, 3), (301, 0)]
    assert "already published" in client.call("POST", "/ingest/trans", {"database": client.db})["error"]
    spec = {"database": client.db, "table": "Object", "index": "byFlag", "overlap": 0}
    client.ok("POST", "/replication/sql/index", spec | {"columns": [{"column": "flag", "length": 0, "ascending": 1}]})
    assert any(row[2] == "byFlag" for row in cluster.sql(f"SHOW INDEX FROM {worker}.Object_300"))
    client.ok("POST", "/ingest/index/secondary", {"database": client.db, "director_table": "Object", "rebuild": 1})
    assert len(cluster.sql(f"SELECT objectId, chunkId, subChunkId FROM qservMeta.{client.db}__Object")) == 3
    assert "administrator" in client.call("DELETE", f"/ingest/database/{client.db}")["error"]
    client.ok("DELETE", f"/ingest/database/{client.db}", {"admin_auth_key": ADMIN_KEY})
    assert not cluster.sql(f"SHOW DATABASES LIKE '%{client.db}'")


def test_refused_tables(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    for changes, message in (
        ({"table": "Object"}, "table already exists"),
        ({"schema": [{"name": "qserv_trans_id", "type": "INT"}]}, "reserved column"),
        ({"schema": [*OBJECT["schema"], {"name": "x", "type": "TEXT"}]}, "prohibited type"),
        ({"schema": OBJECT["schema"][:-1]}, "no matching column 'subChunkId'"),
        ({"director_table": "Nothing"}, "non-existing director 'Nothing'"),
        ({"latitude_key": ""}, "requires both spatial coordinate columns"),
        ({"table": "T" * 54}, "exceeds 56 characters"),
    ):
        reply = client.call("POST", "/ingest/table", OBJECT | {"database": client.db, "table": "New"} | changes)
        assert reply["success"] == 0 and message in reply["error"], reply["error"]
    assert client.ok("GET", f"/ingest/table/{client.db}")["tables"] == [{"name": "Object", "is_partitioned": 1}]


def test_locations(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    chunks = all_chunks(18)[:20]
    first = client.locate(*chunks)
    assert {place["worker"] for place in first} == {"w1", "w2"} and client.locate(*chunks) == first
    one = client.ok("POST", "/ingest/chunk", {"database": client.db, "chunk": chunks[3]})["location"]
    assert one == first[3] and one["http_port"] == int(cluster.worker_urls[one["worker"]].rsplit(":", 1)[1])
    assert "not valid" in client.call("POST", "/ingest/chunk", {"database": client.db, "chunk": 35})["error"]
    same_family = Client(cluster).locate(*chunks)
    assert same_family == first, "a family keeps the same chunk together"
    other = next(url for name, url in cluster.worker_urls.items() if name != first[0]["worker"])
    transaction = client.begin()
    reply = client.push(transaction, objects(1), other, chunk=chunks[0])
    assert reply["success"] == 0 and "is not allocated to worker" in reply["error"]
    failed = client.contributions(transaction, contrib_status="!FINISHED")[0]
    assert (failed["status"], failed["retry_allowed"]) == ("START_FAILED", 0)


def test_aborted_rows_vanish(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT, SOURCE)
    kept, dropped = client.begin(), client.begin()
    assert client.push(kept, objects(1))["success"] and client.push(dropped, objects(1, 2))["success"]
    assert client.count("Object") == 3
    assert client.end(kept)["success"], "the same key in two transactions is no duplicate"
    reply = client.end(dropped, abort=1)
    assert reply["databases"][client.db]["transactions"][0]["state"] == "ABORTED"
    assert client.count("Object") == 1
    assert f"p{dropped}" not in cluster.sql(f"SHOW CREATE TABLE qservMeta.{client.db}__Object")[0][1]
    reply = client.push(dropped, objects(3))
    assert reply["success"] == 0 and "is not active" in reply["error"] and "contrib" not in reply
    assert client.contributions(dropped)[-1]["status"] == "CREATE_FAILED"
    assert "abort" in client.call("PUT", f"/ingest/trans/{kept}")["error"], "abort is required in the query"


def test_bad_values(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    bad = objects(1).replace("10.5", "inf")
    reply = client.push(transaction, bad + objects(2))
    assert reply["success"] == 0 and "contrib" not in reply and "MySQL load failed" in reply["error"]
    failed = client.contributions(transaction, contrib_status="LOAD_FAILED")[0]
    assert failed["retry_allowed"] == 0 and failed["error"] == reply["error"] and client.count("Object") == 0
    contrib = client.push(transaction, objects(1) + 5 * bad + "7\n", max_num_warnings=3)["contrib"]
    assert (contrib["status"], contrib["num_rows"], contrib["num_rows_loaded"]) == ("FINISHED", 7, 7)
    assert contrib["num_warnings"] == 11 and len(contrib["warnings"]) == 3 and contrib["warnings"][0]["code"] == 1366
    assert client.count("Object") == 7
    assert client.end(transaction)["error"].endswith(INDEX_FAILURE), "the defaulted keys are duplicates"


def test_failed_contributions_do_not_stop_a_transaction(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT, VISIT)
    transaction = client.begin()
    assert not client.push(transaction, "x\n")["success"] and client.push(transaction, objects(1))["success"]
    form = client.form(transaction, table="Visit")
    del form["chunk"]
    reply = requests.post(f"{client.url(300)}/ingest/csv", data=form, files={"file": ("x", b"1\n")}, timeout=60)
    assert "required parameter chunk is missing" in reply.json()["error"]
    assert client.end(transaction)["success"]
    assert [c["status"] for c in client.contributions(transaction)] == ["LOAD_FAILED", "FINISHED"]


def test_dialect(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    escaped = objects(1).replace("name", "a\\\nb") + objects(2).replace("name", "c\\\\") + objects(3)[:-1]
    contrib = client.push(transaction, escaped)["contrib"]
    assert (contrib["num_rows"], contrib["num_rows_loaded"], contrib["num_warnings"]) == (3, 3, 0)
    quoted = '"4","1","2",\\N,"x\\"y","300","7"\n' * 2
    comma = {"fields_terminated_by": ",", "fields_enclosed_by": '"', "fields_escaped_by": "\\\\"}
    contrib = client.push(transaction, quoted, lines_terminated_by="", **comma)["contrib"]
    assert (contrib["num_rows"], contrib["num_rows_loaded"], contrib["num_warnings"]) == (2, 2, 0)
    rows = cluster.sql(f"SELECT name, qserv_trans_id FROM {contrib['worker']}_{client.db}.Object_300 ORDER BY objectId")
    assert rows == [(name, transaction) for name in ("a\nb", "c\\", "name", 'x"y', 'x"y')]
    assert client.push(transaction, "")["contrib"]["num_rows"] == 0
    reply = client.push(transaction, objects(9), fields_terminated_by="\t")
    assert reply["success"] == 0 and "'fieldsTerminatedBy' is not allowed" in reply["error"]
    reply = client.push(transaction, objects(1), client.url(300), chunk=-1)
    assert "not an unsigned integer" in reply["error"]


def _send_part(url: str, form: dict[str, str], data: bytes, length: int) -> socket.socket:
    """Begin an upload that claims ``length`` bytes of a file, and send ``data`` of it."""
    request = requests.Request("POST", f"{url}/ingest/csv", data=form, files={"file": ("x.txt", data)}).prepare()
    assert isinstance(request.body, bytes)
    body = request.body[: request.body.index(data) + len(data)]
    headers = (
        f"Content-Length: {len(request.body) - len(data) + length}\r\nContent-Type: {request.headers['Content-Type']}"
    )
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"POST /ingest/csv HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n\r\n".encode() + body)
    return connection


def test_upload_cut_by_the_client_is_loaded(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    data = objects(*range(1000)).encode()
    _send_part(client.url(300), client.form(transaction), data[:10_000], len(data)).close()
    wait_until(lambda: [c["status"] for c in client.contributions(transaction)] == ["FINISHED"])
    contrib = client.contributions(transaction)[0]
    assert contrib["num_rows"] == contrib["num_rows_loaded"] == data[:10_000].count(b"\n") == client.count("Object")
    assert contrib["num_warnings"] == 0


def test_commit_over_failed_and_running_contributions(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    data = objects(*range(1000)).encode()
    with _send_part(client.url(300), client.form(transaction), data[:10_000], len(data)):
        wait_until(lambda: [c["status"] for c in client.contributions(transaction)] == ["IN_PROGRESS"])
        # The running contribution has not made the chunk's tables yet, which the index needs.
        assert client.push(transaction, objects(5001))["success"]
        assert client.end(transaction)["success"]
    wait_until(lambda: client.contributions(transaction)[0]["status"] == "LOAD_FAILED")
    assert "changed state to FINISHED while the input file" in client.contributions(transaction)[0]["error"]
    assert client.count("Object") == 1


def test_duplicate_director_key(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    assert client.push(transaction, objects(1, 2, 1))["contrib"]["num_warnings"] == 0
    reply = client.end(transaction)
    assert reply["success"] == 0 and reply["error"] == f"operation failed due to: {INDEX_FAILURE}"
    assert client.state(transaction) == "FINISH_FAILED"
    assert "can't be ended" in client.end(transaction)["error"]
    assert "uncommitted" in client.call("PUT", f"/ingest/database/{client.db}")["error"]
    assert client.end(transaction, abort=1)["success"] and client.state(transaction) == "ABORTED"
    assert client.count("Object") == 0
    late = client.begin()
    client.ok("POST", "/ingest/table", OBJECT | {"database": client.db, "table": "Late"})
    assert client.push(late, objects(1), table="Late")["success"]
    assert client.end(late)["error"].endswith(INDEX_FAILURE), "the index has no partition for the transaction"


def test_published_table_takes_rows_for_good(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT, VISIT)
    transaction = client.begin()
    assert client.push(transaction, objects(1))["success"] and client.end(transaction)["success"]
    failed = client.call("POST", "/ingest/table-stats", {"database": client.db, "table": "Visit", "force_rescan": 1})
    assert failed["success"] == 1
    client.ok("PUT", f"/ingest/database/{client.db}")
    path = f"/replication/config/database/{client.db}"
    assert "administrator's privileges" in client.call("PUT", path)["error"]
    client.ok("PUT", path, {"admin_auth_key": ADMIN_KEY})
    transaction = client.begin()
    assert client.push(transaction, objects(2))["success"]
    body = {"transaction_id": transaction, "table": "Object", "chunk": 300, "overlap": 0, "url": "file:///dev/null"}
    assert client.call("POST", "/ingest/file", body, client.url(300))["success"] == 0
    assert client.end(transaction, abort=1)["success"] and client.count("Object") == 2


class _Files(http.server.BaseHTTPRequestHandler):
    content: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        data = self.content.get(self.path)
        self.send_response(200 if data else 404)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_contributions_by_reference(cluster: QservCluster, tmp_path: Path) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    url = client.url(300)
    path = tmp_path / "chunk_300.txt"
    path.write_text(objects(1, 2))
    body = {"transaction_id": transaction, "table": "Object", "chunk": 300, "overlap": 0}
    reply = client.ok("POST", "/ingest/file", body | {"url": f"file://{path}"}, url)
    assert (reply["contrib"]["status"], reply["contrib"]["num_rows_loaded"]) == ("FINISHED", 2)
    with http.server.HTTPServer(("127.0.0.1", 0), _Files) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}"
        reply = client.call("POST", "/ingest/file", body | {"url": f"{web}/a"}, url)
        assert reply["error_ext"] == {"http_error": 404, "retry_allowed": 1, "system_error": 0}
        failed = client.contributions(transaction, contrib_status="READ_FAILED", include_retries=1)[0]
        assert (failed["retry_allowed"], failed["num_failed_retries"], len(failed["failed_retries"])) == (1, 1, 1)
        _Files.content["/a"] = objects(3).encode()
        reply = client.ok("PUT", f"/ingest/file/{failed['id']}", {}, url)
        assert (reply["contrib"]["id"], reply["contrib"]["status"]) == (failed["id"], "FINISHED")
        assert "is not in state READ_FAILED" in client.call("PUT", f"/ingest/file/{failed['id']}", {}, url)["error"]
        client.ok("PUT", "/ingest/config", {"database": client.db, "ASYNC_PROC_LIMIT": 1, "CAPATH": "/etc"})
        config = client.ok("GET", "/ingest/config", database=client.db)["config"]
        assert config == {"database": client.db, "ASYNC_PROC_LIMIT": 1, "CAPATH": "/etc"}
        _Files.content["/b"] = objects(4).encode()
        queued = client.ok("POST", "/ingest/file-async", body | {"url": f"{web}/b"}, url)["contrib"]
        assert (queued["status"], queued["async"]) == ("IN_PROGRESS", 1)
        own = f"/ingest/file-async/{queued['id']}"
        wait_until(lambda: client.ok("GET", own, {}, url)["contrib"]["status"] == "FINISHED")
        assert len(client.ok("GET", f"/ingest/file-async/trans/{transaction}", {}, url)["contribs"]) == 1
        server.shutdown()
    number = len(client.contributions(transaction))
    reply = client.call("POST", "/ingest/file", body | {"url": "s3://bucket/x"}, url)
    assert reply["success"] == 0 and "foreign key constraint fails" in reply["error"]
    assert len(client.contributions(transaction)) == number, "a refused request leaves no record"
    assert client.count("Object") == 4
    contrib = client.ok("GET", f"/ingest/trans/contrib/{queued['id']}")["contribution"]
    assert (contrib["id"], contrib["dialect_input"]["fields_terminated_by"]) == (queued["id"], "\\t")


def test_large_upload_is_not_held_in_memory(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    row = "{}\t1\t2\t\\N\t{}\t300\t7\n"
    data = "".join(row.format(i, "x" * 20) for i in range(600_000)).encode()
    client.push(transaction, objects(10**9))
    status = Path(f"/proc/{cluster.pid}/status")
    Path(f"/proc/{cluster.pid}/clear_refs").write_text("5")  # start the peak anew
    contrib = client.push(transaction, data)["contrib"]
    assert (contrib["num_rows"], contrib["num_bytes"]) == (600_000, len(data)) and len(data) > 2e7
    memory = {line.split(":")[0]: int(line.split()[1]) for line in status.read_text().splitlines() if "kB" in line}
    assert memory["VmHWM"] - memory["VmRSS"] < 5_000 and memory["VmHWM"] < 120_000


def test_faults_of_uploads(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT, SOURCE)
    transaction = client.begin()
    data = objects(*range(100))
    match = {"table": "Object", "chunk": 300, "path": "/ingest/*"}
    cluster.fault("cut_upload", bytes=1000, match=match)
    assert client.push(transaction, "1\t1\n", table="Source")["success"], "another table is not meant"
    with pytest.raises(requests.ConnectionError):
        client.push(transaction, data)
    cut = client.contributions(transaction, table="Object")[0]
    assert (cut["status"], cut["num_rows"]) == ("FINISHED", data[:1000].count("\n")) and cut["num_warnings"] == 0
    cluster.fault("cut_upload", bytes=1000, keep_partial_row=True)
    with pytest.raises(requests.ConnectionError):
        client.push(transaction, data)
    cut = client.contributions(transaction, table="Object")[1]
    assert (cut["status"], cut["num_rows"]) == ("FINISHED", data[:1000].count("\n") + 1) and cut["num_warnings"] > 0
    before = client.count("Object")
    cluster.fault("drop_answer", match=match)
    with pytest.raises(requests.ConnectionError):
        client.push(transaction, data)
    assert client.count("Object") == before + 100, "it was loaded all the same"
    cluster.fault("drop_request", match=match)
    with pytest.raises(requests.ConnectionError):
        client.push(transaction, data)
    cluster.fault("http_error", 2, match)
    for _ in range(2):
        with pytest.raises(requests.HTTPError, match="500"):
            client.push(transaction, data)
    cluster.fault("refuse_key", match=match)
    assert "doesn't match" in client.push(transaction, data)["error"]
    cluster.fault("hang", seconds=0.3, match=match)
    begun = time.monotonic()
    assert client.push(transaction, data)["success"] and time.monotonic() - begun > 0.3
    assert all(fault["count"] == 0 for fault in cluster.faults())
    assert client.count("Object") == before + 200
    cluster.clear_faults()


def test_faults_of_the_controller(cluster: QservCluster) -> None:
    client = Client(cluster, OBJECT)
    with pytest.raises(ValueError, match="kind of fault 'nothing' is unknown"):
        cluster.fault("nothing")
    with pytest.raises(ValueError, match="option 'speed'"):
        cluster.fault("hang", speed=1)
    cluster.fault("http_error", status=503, match={"service": "controller", "method": "POST", "path": "/ingest/trans"})
    with pytest.raises(requests.HTTPError, match="503"):
        client.begin()
    transaction = client.begin()
    assert client.push(transaction, objects(1))["success"]
    cluster.fault("fail_commit", match={"transaction_id": transaction})
    assert client.end(transaction)["error"].endswith(INDEX_FAILURE) and client.state(transaction) == "FINISH_FAILED"
    cluster.fault("fail_abort")
    assert client.end(transaction, abort=1)["error"] == "failed to drop table partitions"
    assert client.state(transaction) == "ABORT_FAILED" and client.count("Object") == 1
    assert client.end(transaction, abort=1)["success"] and client.count("Object") == 0
    cluster.fault("version", version=54)
    assert requests.get(f"{cluster.url}/meta/version", timeout=60).json()["version"] == 54
    assert client.call("GET", "/ingest/database")["error_ext"] == {"min_version": 12, "max_version": 54}
    cluster.clear_faults()
    cluster.fault("version", version=56)
    assert client.ok("GET", "/ingest/database") and client.ok("GET", "/meta/version")["version"] == 56
    cluster.clear_faults()
    assert client.ok("GET", "/meta/version")["version"] == 55


@pytest.mark.parametrize("mode", ["refuse", "drop"])
def test_lost_worker(cluster: QservCluster, mode: str) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    place = client.locate(300)[0]
    url, worker = client.url(300), place["worker"]
    assert client.push(transaction, objects(1))["success"]
    data = objects(*range(1000)).encode()
    with _send_part(url, client.form(transaction), data[:10_000], len(data)):
        wait_until(lambda: len(client.contributions(transaction)) == 2)
        cluster.fault("worker_down", worker=worker, mode=mode, abort_wait=0.2)
        with pytest.raises(requests.ConnectionError):
            client.push(transaction, objects(2), url)
    assert client.locate(300) == [place] and client.begin(), "the controller goes on"
    reply = client.end(transaction, abort=1)
    assert reply["success"] == 0 and reply["error"] == "failed to drop table partitions"
    assert reply["error_ext"]["completed"][worker]["Object_300"] == 0
    assert client.state(transaction) == "ABORT_FAILED"
    cluster.clear_faults()
    assert client.contributions(transaction)[1]["status"] == "IN_PROGRESS", "for ever"
    assert client.count("Object") == 1
    assert client.end(transaction, abort=1)["success"] and client.count("Object") == 0
    cluster.fault("worker_down", worker=worker, mode=mode, seconds=0.3)
    begun = time.monotonic()
    late = client.begin()
    reply = client.end(late, abort=1)
    assert time.monotonic() - begun > 0.25, "an abort blocks until the worker is back"
    assert reply["success"] == 0 and client.end(late, abort=1)["success"]
    cluster.clear_faults()
    assert client.push(client.begin(), objects(3), url)["success"]


def test_restart_and_kill(tmp_path_factory: pytest.TempPathFactory) -> None:
    with QservCluster(tmp_path_factory.mktemp("r")) as own:
        client = Client(own, OBJECT)
        transaction = client.begin()
        assert client.push(transaction, objects(1))["success"]
        report, listed = own.report, client.contributions(transaction)
        own.restart()
        assert own.report["pid"] != report["pid"]
        assert all(own.report[key] == report[key] for key in ("controller", "workers", "mariadb_port"))
        assert client.contributions(transaction) == listed
        data = objects(*range(1000)).encode()
        with _send_part(client.url(300), client.form(transaction), data[:10_000], len(data)):
            wait_until(lambda: len(client.contributions(transaction)) == 2)
            own.kill()
            with pytest.raises(requests.ConnectionError):
                client.begin()
        database = own.report["mariadb_pid"]
        own.start()
        assert own.report["mariadb_pid"] == database, "the database has lived on"
        assert [c["status"] for c in client.contributions(transaction)] == ["FINISHED", "IN_PROGRESS"]
        assert client.count("Object") == 1
        assert client.end(transaction, abort=1)["success"] and client.count("Object") == 0
        assert client.begin() > transaction
        own.kill()
    command = Path(f"/proc/{database}/cmdline")
    assert not command.exists() or str(own.datadir).encode() not in command.read_bytes()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(cluster: QservCluster, tmp_path: Path) -> None:
    client = Client(cluster, OBJECT)
    transaction = client.begin()
    path = tmp_path / "x.txt"
    path.write_text(objects(*range(50_000)))  # curl asks "Expect: 100-continue" above 1 MB
    command = ["curl", "-s", f"{client.url(300)}/ingest/csv", "-H", "Expect: 100-continue"]
    for key, value in client.form(transaction).items():
        command += ["-F", f"{key}={value}"]
    for extra in ([], ["-H", "Transfer-Encoding: chunked"]):
        done = subprocess.run([*command, "-F", f"file=@{path}", *extra], capture_output=True, check=True, timeout=60)
        assert b'"num_rows": 50000' in done.stdout
