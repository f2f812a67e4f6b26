"""The Qserv store, call by call, against the test server: what goes wrong at each point, and what the store makes of it."""

from __future__ import annotations

import contextlib
import copy
import functools
import http.server
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from qserv_cluster import ADMIN_KEY, KEY, KEY_SOURCES, ask, contents, running_cluster, transactions
from qserv_server.fixture import QservCluster
from skymill.config import Dataset
from skymill.errors import ConfigError, PoisonedError, SkymillError
from skymill.stores import Contribution, qserv_load
from skymill.stores.qserv import QservStore
from skymill.stores.qserv_http import QservRefusal, QservUnreachable

CHUNKS = (300, 301, 302)
#: Long enough for what the tests wait for, short enough to wait until it is over.
PATIENCE_S = 3.0
numbers = iter(range(10**6))
POSITION = {"name": ["ra", "dec"], "type": "DOUBLE NOT NULL", "generator": "position"}
SKY = {
    "database": "sky",
    "partitioning": {"num_stripes": 18, "num_sub_stripes": 4, "overlap_deg": 0.5},
    "chunks": "300:302",
    "tables": {
        "Visit": {
            "kind": "regular",
            "rows": 2,
            "visit": {"id": "visitId", "filter": "band"},
            "position": ["ra", "dec"],
            "columns": [
                {"name": "visitId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
                {"name": "band", "type": "CHAR(1)", "generator": {"choice": {"values": ["g", "r"]}}},
                POSITION,
            ],
        },
        "Object": {
            "kind": "director",
            "key": "objectId",
            "position": ["ra", "dec"],
            "density": {"per_sq_deg": 1},
            "columns": [
                {"name": "objectId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
                POSITION,
                {"name": "{g,r}Mag", "type": "FLOAT", "generator": "magnitude"},
                {"name": "note", "type": "VARCHAR(8)", "generator": {"choice": {"values": ["a\tb", "c"]}}},
            ],
        },
        "ForcedSource": {
            "kind": "child",
            "director": "Object",
            "key": "objectId",
            "rows": {"visits": "Visit", "radius_deg": 3},
            "columns": [
                {"name": "objectId", "type": "BIGINT NOT NULL", "generator": {"director": "objectId"}},
                {"name": "visitId", "type": "BIGINT NOT NULL", "generator": {"visit": "visitId"}},
                {"name": "{mag,magErr}", "type": "DOUBLE", "generator": "uniform"},
            ],
        },
    },
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[QservCluster]:
    with running_cluster() as running:
        yield running


class Load:
    """A database of its own, with files to load into it."""

    def __init__(self, cluster: QservCluster, folder: Path, database: str = "", **qserv: object):
        self.cluster, self.folder = cluster, folder
        self.config = copy.deepcopy(SKY)
        self.config["database"] = database or f"store{next(numbers)}"
        options = {"url": cluster.url, **KEY_SOURCES, "timeout_s": PATIENCE_S, **qserv}
        self.config["ingest"] = {"store": "qserv", "qserv": options}
        self.dataset = Dataset.from_config(self.config, folder)
        self.name = self.dataset.database
        self.fingerprint = self.dataset.fingerprint()
        self.store = QservStore(self.dataset, folder)

    def write(self, table: str, chunk: int | None, *ids: int, overlap: bool = False, text: str = "") -> Contribution:
        """A file of rows with some ids, or of some text."""
        ends = {
            "Visit": "g\t1.5\t2.5\n",
            "Object": f"10.5\t-3.25\t20.1\t20.2\ta\\tb\t{chunk}\t7\n",
            "ForcedSource": f"5\t20.5\t0.01\t{chunk}\t7\n",
        }
        text = text or "".join(f"{i}\t{ends[table]}" for i in ids)
        path = self.folder / table / f"chunk_{chunk}{'_overlap' if overlap else ''}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        size = path.stat().st_size
        return Contribution(self.dataset.tables[table], chunk, overlap, path, text.count("\n"), size)

    def files(self, *chunks: int) -> list[Contribution]:
        """For each chunk: three objects, one in the overlap, four sources."""
        found = []
        for chunk in chunks:
            first = 1000 * chunk
            found.append(self.write("Object", chunk, *range(first, first + 3)))
            found.append(self.write("Object", chunk, first + 9, overlap=True))
            found.append(self.write("ForcedSource", chunk, *range(first, first + 4)))
        return found

    def begin(self, transaction: str = "t000", attempt: int = 0) -> str:
        """Register what is not registered, and start a transaction."""
        if self.store.client.database(self.name) is None:
            self.store.register(self.dataset, self.fingerprint)
        context = {
            "workflow": "skymill",
            "fingerprint": self.fingerprint,
            "transaction": transaction,
            "attempt": attempt,
        }
        return self.store.start_transaction(transaction, attempt, {**context, "folder": str(self.folder)})

    def send(self, transaction: str, files: list[Contribution]) -> dict[int | None, int]:
        """Load files; the rows of each chunk."""
        return dict(self.store.contribute(transaction, "s0000p00000", files))

    def state(self, transaction: str) -> str:
        return ask(self.cluster, f"/ingest/trans/{transaction}")["databases"][self.name]["transactions"][0]["state"]

    def held(self, transaction: str) -> list[dict]:
        answer = ask(self.cluster, f"/ingest/trans/{transaction}", contrib=1, contrib_long=1)
        return answer["databases"][self.name]["transactions"][0]["contrib"]["files"]

    def push(self, transaction: str, file: Contribution, url: str = "") -> dict:
        """Push a file by hand, past the store."""
        url = url or self.url(file.chunk)
        form = {"auth_key": KEY, "transaction_id": transaction, "table": file.table.name, "chunk": file.chunk or 0}
        form |= {"overlap": int(file.overlap)}
        with open(file.path, "rb") as content:
            done = requests.post(f"{url}/ingest/csv?version=55", data=form, files={"file": ("x", content)}, timeout=30)
        return done.json()

    def url(self, chunk: int) -> str:
        """Address of the worker of a chunk."""
        body = {"database": self.name, "chunk": chunk, "auth_key": KEY}
        place = requests.post(f"{self.cluster.url}/ingest/chunk?version=55", json=body, timeout=30).json()["location"]
        return f"http://{place['http_host']}:{place['http_port']}"

    def end(self, transaction: str, abort: int) -> None:
        """End a transaction by hand."""
        url = f"{self.cluster.url}/ingest/trans/{transaction}?version=55&abort={abort}"
        assert requests.put(url, json={"auth_key": KEY}, timeout=30).json()["success"] == 1


@pytest.fixture
def load(cluster, tmp_path) -> Iterator[Load]:
    yield Load(cluster, tmp_path)
    cluster.clear_faults()


def rows_of(files: list[Contribution]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for file in files:
        rows[file.table_name] = rows.get(file.table_name, 0) + file.rows
    return rows


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


# -- all goes well -----------------------------------------------------------------------------------------------------


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("send", ["push", "file", "http"])
def test_from_nothing_to_a_published_database(send, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        base = {"base_url": f"http://127.0.0.1:{server.server_port}/"} if send == "http" else {}
        indexes = [
            {"table": "Object", "columns": ["objectId"], "unique": True},
            {"table": "Visit", "columns": ["band"]},
        ]
        load = Load(cluster, tmp_path, send=send, indexes=indexes, **base)
        answer = load.store.register(load.dataset, load.fingerprint)
        assert answer == {"database": load.name, "api_version": 55, "workers": ["w1", "w2"]}
        first, second = load.begin("t000"), load.begin("t001")
        visits = [load.write("Visit", None, 1, 2)]
        assert load.send(first, visits) == {None: 2}
        files = load.files(*CHUNKS[:2])
        assert load.send(first, files) == {300: 8, 301: 8}
        last = load.files(302)
        assert load.send(second, last) == {302: 8}
        assert load.send(second, last) == {302: 8}, "what is there is not sent again"
        server.shutdown()
    assert len(load.held(first)) == 8 and len(load.held(second)) == 3
    load.store.commit(first, rows_of([*visits, *files]))
    load.store.commit(second, rows_of(last))
    load.store.commit(second, rows_of(last))
    committed = [{"id": first, "rows": rows_of([*visits, *files])}, {"id": second, "rows": rows_of(last)}]
    published = load.store.publish(committed)
    rows = {"Object": 9, "ObjectFullOverlap": 3, "ForcedSource": 12, "Visit": 2}
    assert published == {"database": load.name, "frozen": True, "rows": rows}
    assert load.store.publish(committed) == published, "a run that died before it wrote it down"
    assert load.store.count_rows() == rows
    stored = contents(cluster, load.name)
    assert {name: found[0] for name, found in stored.items()} == {
        "w1 Visit": 2,
        "w2 Visit": 2,
        **{
            f"{table}_{chunk}": n
            for table, n in (("Object", 3), ("ObjectFullOverlap", 1), ("ForcedSource", 4))
            for chunk in CHUNKS
        },
    }
    worker = next(w for w in cluster.worker_urls if cluster.sql(f"SHOW TABLES FROM {w}_{load.name} LIKE 'Object_300'"))
    assert cluster.sql(f"SELECT note FROM {worker}_{load.name}.Object_300")[0][0] == "a\tb"
    for table, unique in (("Object_300", 0), ("ObjectFullOverlap_300", 1), ("Visit", 1)):
        found = cluster.sql(f"SHOW INDEX FROM {worker}_{load.name}.{table}")
        assert [row[1] for row in found] == [unique], "0 stands for unique; nothing is unique in an overlap"
    assert len(cluster.sql(f"SELECT * FROM qservMeta.{load.name}__Object")) == 9
    assert cluster.sql(f"SELECT SUM(num_rows) FROM qservMeta.{load.name}__Object__rows")[0][0] == 9


def test_rows_are_counted_without_row_counters_too(cluster, tmp_path):
    load = Load(cluster, tmp_path, row_counters=False)
    transaction = load.begin()
    files = [load.write("Visit", None, 1, 2), *load.files(300)]
    load.send(transaction, files)
    load.store.commit(transaction, rows_of(files))
    published = load.store.publish([{"id": transaction, "rows": rows_of(files)}])
    assert published["rows"] == {"Object": 3, "ObjectFullOverlap": 1, "ForcedSource": 4, "Visit": 2}


def test_a_transaction_says_whose_it_is(load):
    transaction = load.begin()
    context = transactions(load.cluster, load.name, include_context=1)[0]["context"]
    assert context["folder"] == str(load.folder) and context["transaction"] == "t000"
    assert load.begin() == transaction, "it is found again"
    load.folder = load.folder / "moved"
    assert load.begin() == transaction, "by what it is, not by where it was started"
    assert load.begin(attempt=1) != transaction


def test_a_large_file_is_not_held_in_memory(load):
    """A process of its own pushes 50 MB; its memory grows by a fraction of that."""
    transaction = load.begin()
    ids = range(2_000_000)
    file = load.write("ForcedSource", 300, text="".join(f"{i}\t5\t20.5\t0.01\t300\t7\n" for i in ids))
    assert file.bytes > 5e7
    code = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from skymill.config import Dataset; from skymill.stores import Contribution; from skymill.stores.qserv import QservStore\n"
        "config, transaction, path, rows, size = json.loads(sys.argv[2])\n"
        "dataset = Dataset.from_config(config, Path(path).parents[1])\n"
        "store = QservStore(dataset, Path())\n"
        "file = Contribution(dataset.tables['ForcedSource'], 300, False, Path(path), rows, size)\n"
        "peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
        "before = peak()\n"
        "print(list(store.contribute(transaction, 'tile', [file])))\n"
        "print(peak() - before, peak())\n"
    )
    config = copy.deepcopy(load.config)
    config["ingest"]["qserv"]["timeout_s"] = 60
    scripts = str(Path(__file__).resolve().parents[1] / "scripts")
    arguments = json.dumps([config, transaction, str(file.path), file.rows, file.bytes])
    command = [sys.executable, "-c", code, scripts, arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded, memory_kb = done.stdout.split("\n")[:2]
    growth_kb, peak_kb = map(int, memory_kb.split())
    assert loaded == f"[(300, {file.rows})]" and growth_kb < 20_000 and peak_kb < 300_000


# -- register ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(load):
    load.store.register(load.dataset, load.fingerprint)
    load.store.register(load.dataset, load.fingerprint)

    def register(**changes: object) -> None:
        config = copy.deepcopy(load.config)
        for key, value in changes.items():
            config[key].update(value)
        dataset = Dataset.from_config(config, load.folder)
        QservStore(dataset, load.folder).register(dataset, "")

    with pytest.raises(SkymillError, match=r"num_sub_stripes of the family layout_18_4 is 4, here it is 3"):
        register(partitioning={"num_sub_stripes": 3})
    with pytest.raises(SkymillError, match=r"overlap of the family layout_18_4 is 0.5, here it is 0.25"):
        register(partitioning={"overlap_deg": 0.25})
    tables = copy.deepcopy(load.config["tables"])
    tables["Object"]["columns"][3]["type"] = "VARCHAR(9)"
    with pytest.raises(
        SkymillError, match=r"column 6 of the table Object is note VARCHAR\(8\), here it is note VARCHAR\(9\)"
    ):
        register(tables=tables)
    tables = copy.deepcopy(load.config["tables"])
    tables["ForcedSource"]["columns"][2]["name"] = "mag"
    with pytest.raises(
        SkymillError, match=r"column 4 of the table ForcedSource is magErr DOUBLE, here it is chunkId INT"
    ):
        register(tables=tables)
    tables = copy.deepcopy(load.config["tables"])
    tables["Visit"]["ingest"] = False
    with pytest.raises(SkymillError, match=r"has a table Visit, which is not loaded here"):
        register(tables=tables)
    assert ask(load.cluster, "/replication/config")["config"]["databases"] != []


def test_another_overlap_of_the_family_is_refused_for_a_new_database(load, tmp_path):
    """The first database of a family decides it for all; nothing is registered."""
    load.store.register(load.dataset, load.fingerprint)
    config = {**load.config, "database": "newcomer"}
    config["partitioning"] = {**config["partitioning"], "overlap_deg": 0.25}
    dataset = Dataset.from_config(config, tmp_path)
    with pytest.raises(SkymillError, match=r"overlap of the family layout_18_4 is 0.5, here it is 0.25"):
        QservStore(dataset, tmp_path).register(dataset, "")
    databases = ask(load.cluster, "/replication/config")["config"]["databases"]
    assert "newcomer" not in [database["database"] for database in databases]


def test_a_published_database_is_refused(load):
    transaction = load.begin()
    files = load.files(300)
    load.send(transaction, files)
    load.store.commit(transaction, rows_of(files))
    load.store.publish([{"id": transaction, "rows": rows_of(files)}])
    with pytest.raises(SkymillError, match="is published, and so frozen; load under another name"):
        load.store.register(load.dataset, load.fingerprint)


def test_rows_of_others_are_refused(load):
    load.begin()
    load.store.register(load.dataset, load.fingerprint)
    with pytest.raises(SkymillError, match=r"has a transaction \d+ \(STARTED\) that is not of this dataset"):
        load.store.register(load.dataset, "another fingerprint")


@pytest.mark.parametrize(("version", "fits"), [(54, False), (55, True), (56, True)])
def test_the_version_is_checked(load, version, fits):
    load.store.register(load.dataset, load.fingerprint)
    load.cluster.fault("version", version=version)
    for action in (
        lambda: load.store.register(load.dataset, load.fingerprint)["api_version"],
        lambda: load.store.start_transaction("t000", 0, {"workflow": "skymill"}),
    ):
        if fits:
            assert action()
        else:
            with pytest.raises(
                SkymillError, match="too old: its API has version 54, needed is 55 or newer; upgrade Qserv"
            ):
                action()


def test_an_address_that_is_no_controller_is_refused(cluster, tmp_path):
    load = Load(cluster, tmp_path, url=cluster.worker_urls["w1"])
    with pytest.raises(SkymillError, match="found the service replication-worker-ingest; give the address"):
        load.store.register(load.dataset, load.fingerprint)


def test_a_registration_that_was_broken_off_is_done_again(load):
    """The server says that the table is there, but a part of it is not: the next run makes it anew."""
    load.cluster.fault("drop_answer", match={"path": "/ingest/table", "table": "Object"})
    with pytest.raises(SkymillError, match="no answer came"):
        load.store.register(load.dataset, load.fingerprint)
    load.cluster.sql(f"DROP TABLE qservMeta.{load.name}__Object")
    load.cluster.sql(f"DROP TABLE w1_{load.name}.Object")
    load.store.register(load.dataset, load.fingerprint)
    transaction = load.begin()
    files = load.files(*CHUNKS)
    load.send(transaction, files)
    load.store.commit(transaction, rows_of(files))


def test_a_database_with_transactions_keeps_its_tables(load):
    transaction = load.begin()
    files = load.files(300)
    load.send(transaction, files)
    load.store.register(load.dataset, load.fingerprint)
    load.store.commit(transaction, rows_of(files))
    assert contents(load.cluster, load.name)["Object_300"][0] == 3


def test_names_that_qserv_would_not_take_are_refused(cluster, tmp_path):
    load = Load(cluster, tmp_path, database="qservsky")
    with pytest.raises(ConfigError, match="Qserv keeps names that begin with qserv for itself"):
        load.store.register(load.dataset, load.fingerprint)


def test_keys_that_may_repeat_do_not_make_a_unique_index(cluster, tmp_path):
    load = Load(cluster, tmp_path)
    load.config["tables"]["Object"]["columns"][0]["generator"] = {"uniform": {"min": 1, "max": 9}}
    load.config["tables"]["Object"]["columns"][0]["type"] = "DOUBLE NOT NULL"
    load.config["tables"]["ForcedSource"]["columns"][0]["type"] = "DOUBLE NOT NULL"
    load.dataset = Dataset.from_config(load.config, tmp_path)
    load.store = QservStore(load.dataset, tmp_path)
    transaction = load.begin()
    file = load.write("Object", 300, 1, 2, 1)
    load.send(transaction, [file])
    load.store.commit(transaction, {"Object": 3})


# -- start -------------------------------------------------------------------------------------------------------------


def test_a_transaction_whose_start_got_no_answer_is_found(load):
    load.store.register(load.dataset, load.fingerprint)
    load.cluster.fault("drop_answer", match={"path": "/ingest/trans", "method": "POST"})
    transaction = load.begin()
    load.cluster.fault("http_error", status=500, match={"path": "/ingest/trans", "method": "POST"})
    with pytest.raises(SkymillError, match="HTTP status 500"):
        load.begin("t001")
    assert load.begin("t001") != transaction
    assert len(transactions(load.cluster, load.name)) == 2


def test_a_transaction_that_failed_is_aborted_and_another_started(load):
    failed = load.begin()
    load.cluster.fault("fail_commit")
    with pytest.raises(PoisonedError, match="FINISH_FAILED"):
        load.store.commit(failed, {})
    assert load.begin() != failed and load.state(failed) == "ABORTED"


# -- load --------------------------------------------------------------------------------------------------------------

OBJECT = {"table": "Object", "chunk": 300, "overlap": 0, "method": "POST"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cut_upload", {"bytes": 60}),
        ("cut_upload", {"bytes": 60, "keep_partial_row": True}),
        ("http_error", {"status": 500}),
        ("hang", {"seconds": 2 * PATIENCE_S}),
        ("drop_request", {}),
    ],
)
def test_an_upload_whose_fate_is_unknown_poisons_the_transaction(load, kind, options):
    transaction = load.begin()
    files = load.files(*CHUNKS)
    load.cluster.fault(kind, match=OBJECT, **options)
    with pytest.raises(
        PoisonedError, match=rf"transaction {transaction} of {load.name}: .*chunk_300\.txt for Object at worker w"
    ):
        load.send(transaction, files)
    load.store.abort(transaction)
    again = load.begin(attempt=1)
    assert load.send(again, files) == dict.fromkeys(CHUNKS, 8)
    load.store.commit(again, rows_of(files))
    assert {rows for rows, *_ in contents(load.cluster, load.name).values()} == {1, 3, 4}


def test_an_upload_that_is_there_in_spite_of_an_error_is_not_sent_again(load):
    transaction = load.begin()
    files = load.files(*CHUNKS)
    load.cluster.fault("drop_answer", count=3, match={"path": "/ingest/csv"})
    assert load.send(transaction, files) == dict.fromkeys(CHUNKS, 8)
    assert len(load.held(transaction)) == 9
    load.store.commit(transaction, rows_of(files))


def test_a_refused_key_does_no_harm(load):
    transaction = load.begin()
    files = load.files(300)
    load.cluster.fault("refuse_key", match=OBJECT)
    with pytest.raises(QservRefusal, match="failed to pass authorization requirements"):
        load.send(transaction, files)
    assert load.send(transaction, files) == {300: 8}
    load.store.commit(transaction, rows_of(files))


def test_a_worker_that_comes_back_is_waited_for(load):
    transaction = load.begin()
    load.cluster.fault("worker_down", worker="w1", seconds=1.0)
    assert load.send(transaction, load.files(*CHUNKS)) == dict.fromkeys(CHUNKS, 8)


def test_a_worker_that_stays_away_does_no_harm(load):
    transaction = load.begin()
    files = load.files(*CHUNKS)
    load.cluster.fault("worker_down", worker="w1")
    with pytest.raises(QservUnreachable, match=r"no connection: .*; is the server up\?"):
        load.send(transaction, files)
    load.cluster.clear_faults()
    assert load.send(transaction, files) == dict.fromkeys(CHUNKS, 8)
    load.store.commit(transaction, rows_of(files))


def begin_upload(load: Load, transaction: str, file: Contribution):
    """Send the first half of an upload, as somebody does who is still at it; returns what sends the rest."""
    url = load.url(file.chunk)
    form = {"auth_key": KEY, "transaction_id": transaction, "table": "Object", "chunk": file.chunk, "overlap": 0}
    content = file.path.read_bytes()
    body = requests.Request("POST", url, data=form, files={"file": ("x", content)}).prepare()
    go_on = threading.Event()

    def parts():
        middle = body.body.index(content) + len(content) // 2
        yield body.body[:middle]
        go_on.wait(60)
        yield body.body[middle:]

    def send() -> None:
        headers = {"Content-Type": body.headers["Content-Type"]}
        with contextlib.suppress(requests.RequestException):  # its worker has gone
            requests.post(f"{url}/ingest/csv?version=55", data=parts(), headers=headers, timeout=60)

    threading.Thread(target=send, daemon=True).start()
    wait_until(lambda: [held["status"] for held in load.held(transaction)] == ["IN_PROGRESS"])
    return go_on.set


def test_an_upload_that_is_still_at_work_is_waited_for(load):
    """Its sender has died, but not before it had sent all."""
    transaction = load.begin()
    files = load.files(300)
    finish = begin_upload(load, transaction, files[0])
    threading.Timer(0.5, finish).start()
    assert load.send(transaction, files) == {300: 8}
    assert len(load.held(transaction)) == 3
    load.store.commit(transaction, rows_of(files))


def test_an_upload_that_a_killed_worker_has_left_poisons_the_transaction(load):
    transaction = load.begin()
    files = load.files(300)
    finish = begin_upload(load, transaction, files[0])
    load.cluster.kill()
    load.cluster.start()
    finish()
    with pytest.raises(PoisonedError, match="its status is IN_PROGRESS"):
        load.send(transaction, files)
    load.store.abort(transaction)


def test_values_that_do_not_fit_poison_the_transaction(load):
    """In the first row they are an error, in others a mere warning of the server; strings may not hold anything but ASCII."""
    for bad, message in (("x\tx\n", "LOAD_FAILED"), ("1\t2\t3\t4\t5\t6\nx\tx\n", "values do not fit their columns: ")):
        transaction = load.begin(attempt=next(numbers))
        with pytest.raises(PoisonedError, match=message):
            load.send(transaction, [load.write("ForcedSource", 300, text=bad)])
        load.store.abort(transaction)


def test_text_that_qserv_would_garble_is_not_sent(load):
    transaction = load.begin()
    text = "1\t1\t1\t1\t1\tok\t300\t7\n2\t1\t1\t1\t1\té\t300\t7\n"
    with pytest.raises(SkymillError, match=r"chunk_300\.txt: row 2 holds a character that is not ASCII") as caught:
        load.send(transaction, [load.write("Object", 300, text=text)])
    assert not isinstance(caught.value, PoisonedError)
    assert load.held(transaction) == []


def test_a_file_that_has_changed_is_not_sent(load):
    transaction = load.begin()
    file = load.write("Object", 300, 1, 2)
    file.path.write_text(file.path.read_text()[:-1])
    with pytest.raises(SkymillError, match="its manifest says"):
        load.send(transaction, [file])
    assert load.held(transaction) == []


def test_a_file_that_the_worker_cannot_read_is_read_again(cluster, tmp_path, monkeypatch):
    load = Load(cluster, tmp_path, send="file")
    transaction = load.begin()
    file = load.write("ForcedSource", 300, 1, 2)
    hidden = file.path.rename(tmp_path / "hidden")
    threading.Timer(0.5, lambda: hidden.rename(file.path)).start()
    assert load.send(transaction, [file]) == {300: 2}
    assert len(load.held(transaction)) == 1
    other = load.write("ForcedSource", 301, 3)
    hidden = other.path.rename(tmp_path / "hidden")
    monkeypatch.setattr(qserv_load, "READ_TRIES", 3)
    with pytest.raises(SkymillError, match=r"its status is READ_FAILED: .*; mend it and run again") as caught:
        load.send(transaction, [other])
    assert not isinstance(caught.value, PoisonedError)
    hidden.rename(other.path)
    assert load.send(transaction, [other]) == {301: 1}, "it goes on with the same contribution"
    assert len(load.held(transaction)) == 2
    load.store.commit(transaction, {"ForcedSource": 3})


def test_a_worker_goes_on_with_what_it_was_asked_for_before_it_died(cluster, tmp_path):
    load = Load(cluster, tmp_path, send="file")
    transaction = load.begin()
    file = load.write("Object", 300, 1, 2)
    os.mkfifo(tmp_path / "pipe")  # a file that is read slowly
    body = {"auth_key": KEY, "transaction_id": int(transaction), "table": "Object", "chunk": 300, "overlap": 0}
    body["url"] = f"file://{tmp_path}/pipe"
    answer = requests.post(f"{load.url(300)}/ingest/file-async?version=55", json=body, timeout=30).json()
    assert answer["contrib"]["status"] == "IN_PROGRESS"
    cluster.kill()
    (tmp_path / "pipe").unlink()
    file.path.rename(tmp_path / "pipe")
    file.path.write_bytes((tmp_path / "pipe").read_bytes())
    cluster.start()
    assert load.send(transaction, [file]) == {300: 2}
    assert len(load.held(transaction)) == 1
    load.store.commit(transaction, {"Object": 2})


def test_a_chunk_that_is_at_another_worker_poisons_the_transaction(load):
    """Its rows would be there twice."""
    transaction = load.begin()
    file = load.write("Object", 300, 1)
    assert load.push(transaction, file)["success"]
    held = load.held(transaction)[0]
    other = next(name for name in load.cluster.worker_urls if name != held["worker"])
    load.cluster.stop()
    with contextlib.closing(sqlite3.connect(load.cluster.datadir / "state.sqlite")) as records, records:
        records.execute("UPDATE replica SET worker = ? WHERE database = ? AND chunk = 300", [other, load.name])
    load.cluster.start()
    with pytest.raises(PoisonedError, match=f"at worker {other}: it was sent to worker {held['worker']}"):
        load.send(transaction, [file])


# -- what others do to a transaction -----------------------------------------------------------------------------------


def test_a_transaction_that_somebody_aborted_is_poisoned(load):
    transaction = load.begin()
    files = load.files(300)
    load.send(transaction, files)
    load.end(transaction, abort=1)
    with pytest.raises(PoisonedError, match="its state is ABORTED, somebody has ended it"):
        load.send(transaction, files)
    with pytest.raises(PoisonedError, match="cannot become FINISHED, its state is ABORTED: somebody else has ended it"):
        load.store.commit(transaction, rows_of(files))
    load.store.abort(transaction)


def test_a_transaction_that_somebody_committed_too_early_is_refused(load):
    transaction = load.begin()
    files = load.files(*CHUNKS)
    load.send(transaction, files[:3])
    load.end(transaction, abort=0)
    assert load.send(transaction, files[:3]) == {300: 8}, "what is there is there"
    with pytest.raises(SkymillError, match=r"is committed, but does not hold .*; delete the database") as caught:
        load.send(transaction, files)
    assert not isinstance(caught.value, PoisonedError)
    with pytest.raises(SkymillError, match="it is committed and cannot be taken back"):
        load.store.commit(transaction, rows_of(files))
    load.store.commit(transaction, rows_of(files[:3]))
    with pytest.raises(
        SkymillError, match=r"cannot become ABORTED, its state is FINISHED: .*; load under another name"
    ):
        load.store.abort(transaction)


def test_no_rows_go_into_tables_that_were_published_once(load):
    """An un-published database takes rows for good: no abort removes them."""
    transaction = load.begin()
    files = load.files(300)
    load.send(transaction, files)
    load.store.commit(transaction, rows_of(files))
    load.store.publish([{"id": transaction, "rows": rows_of(files)}])
    url = f"{load.cluster.url}/replication/config/database/{load.name}?version=55"
    assert requests.put(url, json={"admin_auth_key": ADMIN_KEY}, timeout=30).json()["success"]
    late = load.begin("t001")
    with pytest.raises(SkymillError, match="are or were published; rows could not be taken back"):
        load.send(late, load.files(301))
    assert load.held(late) == []


# -- commit ------------------------------------------------------------------------------------------------------------


def test_only_what_was_sent_is_committed(load):
    """The server itself commits anything."""
    transaction = load.begin()
    files = load.files(300, 301)
    load.send(transaction, files)
    with pytest.raises(PoisonedError, match=r'it holds the rows .*"Object": 6.*, sent were .*"Object": 7'):
        load.store.commit(transaction, {**rows_of(files), "Object": 7})
    assert load.push(transaction, files[0])["success"]
    with pytest.raises(PoisonedError, match="Object was sent to chunk 300 more than once"):
        load.store.commit(transaction, rows_of([*files, files[0]]))
    with pytest.raises(PoisonedError, match="the server has it 2 times"):
        load.send(transaction, files)
    load.store.abort(transaction)
    second = load.begin(attempt=1)
    load.send(second, files)
    assert not load.push(second, load.write("ForcedSource", 302, text="x\n"))["success"]
    with pytest.raises(PoisonedError, match="contributions are not finished: 1 LOAD_FAILED"):
        load.store.commit(second, rows_of(files))
    load.store.abort(second)
    third = load.begin(attempt=2)
    load.send(third, files)
    assert load.push(third, load.write("ForcedSource", 302, text="1\t1\t1\t1\t302\t7\nx\n"))["success"]
    with pytest.raises(
        PoisonedError, match=r"14 of 14 rows are loaded, with \d+ warnings|18 of 18 rows are loaded, with \d+ warnings"
    ):
        load.store.commit(third, rows_of(files))


def test_a_regular_table_must_be_at_every_worker(load):
    transaction = load.begin()
    visits = load.write("Visit", None, 1, 2)
    assert load.push(transaction, visits, load.cluster.worker_urls["w1"])["success"]
    with pytest.raises(PoisonedError, match="Visit was sent to w1, now the workers are w1, w2"):
        load.store.commit(transaction, {"Visit": 2})
    load.send(transaction, [visits])
    assert load.push(transaction, visits, load.cluster.worker_urls["w2"])["success"]
    with pytest.raises(PoisonedError, match="Visit was sent to worker w2 more than once"):
        load.store.commit(transaction, {"Visit": 2})


def test_a_commit_that_got_no_answer_is_looked_up(load):
    transaction = load.begin()
    files = load.files(300)
    load.send(transaction, files)
    load.cluster.fault("drop_answer", match={"method": "PUT"})
    load.store.commit(transaction, rows_of(files))
    other = load.begin("t001")
    load.cluster.fault("http_error", status=503, count=2, match={"method": "PUT"})
    load.store.commit(other, {})
    assert load.state(transaction) == load.state(other) == "FINISHED"


def test_keys_that_stand_twice_make_the_commit_fail_for_good(load):
    transaction = load.begin()
    file = load.write("Object", 300, 1, 2, 1)
    load.send(transaction, [file])
    for _ in range(2):
        with pytest.raises(PoisonedError, match="cannot become FINISHED, its state is FINISH_FAILED"):
            load.store.commit(transaction, {"Object": 3})
    load.store.abort(transaction)
    assert load.state(transaction) == "ABORTED" and contents(load.cluster, load.name) == {}


def in_thread(action) -> tuple[threading.Thread, list[BaseException | None]]:
    """Do something in a thread; the list gets what it raised, or None."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
        except SkymillError as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def restart_while(load: Load, transaction: str, state: str, action) -> BaseException | None:
    """Kill the server while it is ending a transaction, which a lost worker holds up, and start it again."""
    load.cluster.fault("worker_down", worker="w1")
    thread, outcome = in_thread(action)
    wait_until(lambda: load.state(transaction) == state)
    load.cluster.kill()
    load.cluster.start()
    thread.join(60)
    assert load.state(transaction) != "STARTED" and len(outcome) == 1
    return outcome[0]


def test_a_commit_in_which_the_controller_died_poisons_the_transaction(load):
    transaction = load.begin()
    files = load.files(*CHUNKS)
    load.send(transaction, files)
    error = restart_while(load, transaction, "IS_FINISHING", lambda: load.store.commit(transaction, rows_of(files)))
    assert isinstance(error, PoisonedError) and "is IS_FINISHING for good" in str(error)
    with pytest.raises(PoisonedError, match="is IS_FINISHING for good"):
        load.store.commit(transaction, rows_of(files))
    load.store.abort(transaction)
    assert load.state(transaction) == "ABORTED" and contents(load.cluster, load.name) == {}


def test_a_commit_that_goes_on_is_waited_for(load):
    """The driver that wanted it was killed, and its successor finds the server at it."""
    transaction = load.begin()
    files = load.files(*CHUNKS)
    load.send(transaction, files)
    load.cluster.fault("worker_down", worker="w1", seconds=PATIENCE_S + 1)
    thread, _ = in_thread(lambda: load.end(transaction, abort=0))
    wait_until(lambda: load.state(transaction) == "IS_FINISHING")
    load.store.commit(transaction, rows_of(files))
    thread.join(60)
    assert load.state(transaction) == "FINISHED"


# -- abort -------------------------------------------------------------------------------------------------------------


def test_an_abort_that_fails_is_repeated(load):
    transaction = load.begin()
    load.send(transaction, load.files(*CHUNKS))
    load.cluster.fault("fail_abort", count=2)
    load.cluster.fault("drop_answer", match={"method": "PUT"})
    load.store.abort(transaction)
    assert load.state(transaction) == "ABORTED" and contents(load.cluster, load.name) == {}
    load.store.abort(transaction)


def test_an_abort_waits_for_a_lost_worker(load):
    transaction = load.begin()
    load.send(transaction, load.files(*CHUNKS))
    load.cluster.fault("worker_down", worker="w1", seconds=PATIENCE_S + 1)
    load.store.abort(transaction)
    assert load.state(transaction) == "ABORTED" and contents(load.cluster, load.name) == {}


def test_an_abort_has_an_end(load):
    transaction = load.begin()
    load.cluster.fault("fail_abort", count=-1)
    with pytest.raises(QservRefusal, match="failed to drop table partitions"):
        load.store.abort(transaction)
    load.cluster.clear_faults()
    load.store.abort(transaction)
    assert load.state(transaction) == "ABORTED"


def test_an_abort_in_which_the_controller_died_cannot_be_mended(load):
    """Qserv takes no order for such a transaction: a person must delete the database."""
    transaction = load.begin()
    error = restart_while(load, transaction, "IS_ABORTING", lambda: load.store.abort(transaction))
    assert "is IS_ABORTING for good" in str(error) and "delete it from Qserv and load again" in str(error)


# -- publish -----------------------------------------------------------------------------------------------------------


def committed(load: Load, transaction: str = "t000", chunk: int = 300) -> dict:
    """A transaction that holds a chunk, committed."""
    number = load.begin(transaction)
    files = load.files(chunk)
    load.send(number, files)
    load.store.commit(number, rows_of(files))
    return {"id": number, "rows": rows_of(files)}


def is_published(load: Load) -> bool:
    return bool(load.store.client.database(load.name)["is_published"])


def test_nothing_else_is_published(load):
    first = committed(load)
    open_one = load.begin("t001")
    with pytest.raises(
        SkymillError, match=rf"its transaction {open_one} \(STARTED\) was not committed by this workflow"
    ):
        load.store.publish([first])
    load.end(open_one, abort=0)
    with pytest.raises(
        SkymillError, match=rf"its transaction {open_one} \(FINISHED\) was not committed by this workflow"
    ):
        load.store.publish([first])
    empty = {"id": open_one, "rows": {}}
    with pytest.raises(SkymillError, match=r'it holds the rows .*"Object": 3.*, sent were .*"Object": 4'):
        load.store.publish([{**first, "rows": {**first["rows"], "Object": 4}}, empty])
    with pytest.raises(SkymillError, match="has no transaction 123456789, which this workflow has committed"):
        load.store.publish([first, empty, {"id": "123456789", "rows": {}}])
    assert not is_published(load)
    load.store.publish([first, empty])
    assert is_published(load)


def test_a_selection_without_a_row_is_not_published(load):
    transaction = load.begin()
    visits = load.write("Visit", None, 1)
    load.send(transaction, [visits])
    load.store.commit(transaction, {"Visit": 1})
    with pytest.raises(SkymillError, match="no chunk of the selection has any row"):
        load.store.publish([{"id": transaction, "rows": {"Visit": 1}}])


@pytest.mark.parametrize("kind", ["drop_answer", "drop_request", "http_error"])
def test_publishing_that_got_no_answer_is_looked_up(load, kind):
    first = committed(load)
    for path in (f"/ingest/database/{load.name}", "/ingest/table-stats"):
        load.cluster.fault(kind, match={"path": path})
    assert load.store.publish([first])["rows"]["Object"] == 3
    assert is_published(load)


def test_a_director_index_that_was_not_built_is_rebuilt_after_publishing(load):
    """A commit may succeed without it; only its answer, and the transaction's log, say so."""
    first = committed(load)
    load.cluster.fault("skip_index")
    second = committed(load, "t001", 301)
    assert len(load.cluster.sql(f"SELECT * FROM qservMeta.{load.name}__Object")) == 3
    load.store.publish([first, second])
    assert len(load.cluster.sql(f"SELECT * FROM qservMeta.{load.name}__Object")) == 6


def test_the_director_index_may_be_left_for_later(cluster, tmp_path):
    load = Load(cluster, tmp_path, auto_build_secondary_index=0)
    load.store.publish([committed(load)])
    assert cluster.sql(f"SHOW TABLES FROM qservMeta LIKE '{load.name}\\_\\_Object'") == []


# -- keys and questions ------------------------------------------------------------------------------------------------


def test_keys_are_read_from_where_they_are(cluster, tmp_path, monkeypatch):
    (tmp_path / "key").write_text(f"{KEY}\n")
    Load(cluster, tmp_path, auth_key={"file": "key"}).begin()
    (tmp_path / "key").write_text(f"{KEY}\nmore")
    with pytest.raises(SkymillError, match=r"auth_key\.file: .*key holds more than one line") as caught:
        Load(cluster, tmp_path, auth_key={"file": "key"})
    assert KEY not in str(caught.value)
    with pytest.raises(SkymillError, match=r"ingest\.qserv\.auth_key\.file: .*nothing cannot be read: No such file"):
        Load(cluster, tmp_path, auth_key={"file": "nothing"})
    monkeypatch.delenv("SKYMILL_TEST_KEY")
    with pytest.raises(SkymillError, match=r"auth_key\.env: the environment variable SKYMILL_TEST_KEY is not set"):
        Load(cluster, tmp_path)


def test_no_message_holds_a_key(load, caplog, monkeypatch):
    """Not even if the server repeats it, in whatever form."""
    caplog.set_level(logging.DEBUG)
    transaction = load.begin()
    load.cluster.fault("echo_key", count=-1, match={"method": "POST"})
    load.cluster.fault("echo_key", count=-1, match={"method": "PUT"})
    messages = []
    for action in (
        lambda: load.store.start_transaction("t001", 0, {"workflow": "skymill"}),
        lambda: load.send(transaction, load.files(300)),
        lambda: load.store.abort(transaction),
        lambda: load.store.commit(transaction, {}),
    ):
        with pytest.raises(SkymillError) as caught:
            action()
        messages += [str(caught.value), repr(caught.value), str(caught.value.__cause__), str(caught.value.__context__)]
    messages += [answer[2] for answer in load.store.check()]
    assert any("the key was ***" in message for message in messages)
    for text in (*messages, caplog.text):
        assert KEY not in text and json.dumps(KEY)[1:-1] not in text and ADMIN_KEY not in text


def everything(cluster: QservCluster) -> tuple:
    """All that the server holds."""
    tables = cluster.sql("SELECT table_schema, table_name, table_rows, create_time FROM information_schema.tables")
    config = ask(cluster, "/replication/config")["config"]
    names = [database["database"] for database in config["databases"]]
    listed = {name: transactions(cluster, name, contrib=1, contrib_long=1) for name in names}
    chunks = {name: ask(cluster, "/ingest/chunks", database=name)["replica"] for name in names}
    stored = [table for table in tables if table[0] not in ("information_schema", "mysql", "performance_schema", "sys")]
    return sorted(stored), config, listed, chunks


def test_questions_are_answered_and_change_nothing(load):
    def answers(store: QservStore | None = None) -> dict[str, tuple[bool, str]]:
        before = everything(load.cluster)
        found = {question: (good, detail) for question, good, detail in (store or load.store).check()}
        assert everything(load.cluster) == before
        return found

    database = f"the database {load.name} fits"
    workers = "the workers answer, and accept the key"
    found = answers()
    assert list(found) == [
        "the controller answers",
        "auth_key is accepted",
        "admin_auth_key is accepted",
        workers,
        database,
    ]
    assert all(good for good, _ in found.values()), found
    assert found[database][1] == "it is not there yet"
    first = committed(load)
    load.begin("t001")
    assert answers()[database] == (True, "not published, 3 tables, transactions: 1 FINISHED, 1 STARTED")
    load.store.abort(load.begin("t001"))
    load.store.publish([first])
    good, detail = answers()[database]
    assert not good and "is published, and so frozen" in detail and "load under another name" in detail
    record = load.folder / "ingest" / "transactions" / "t000.committed.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"id": "another"}))
    assert not answers()[database][0]
    record.write_text(json.dumps(first))
    listed = "1 ABORTED, 1 FINISHED"
    assert answers()[database] == (True, f"published, and so frozen, 3 tables, transactions: {listed}")
    load.cluster.fault("worker_down", worker="w2")
    good, detail = answers()[workers]
    assert not good and "no connection" in detail
    load.cluster.clear_faults()
    wrong = QservStore(load.dataset, load.folder)
    wrong.client._keys["auth_key"] = "wrong"
    found = answers(wrong)
    assert not found["auth_key is accepted"][0] and not found[workers][0] and found["admin_auth_key is accepted"][0]
    other = copy.deepcopy(load.config)
    other["partitioning"]["overlap_deg"] = 0.25
    good, detail = answers(QservStore(Dataset.from_config(other, load.folder), load.folder))[database]
    assert not good and "overlap of the family" in detail
    load.cluster.fault("version", version=54)
    good, detail = load.store.check()[0][1:]
    assert not good and "too old" in detail


def test_a_worker_that_is_not_enabled_is_named(load):
    load.cluster.fault("disable_worker", count=-1, worker="w2")
    found = {question: (good, detail) for question, good, detail in load.store.check()}
    good, detail = found["the workers answer, and accept the key"]
    assert (
        good
        and detail.startswith("w1 at http://")
        and detail.endswith("not enabled, or read-only, and so left out: w2")
    )


def test_a_server_that_is_not_there(tmp_path, cluster):
    load = Load(cluster, tmp_path, url="http://127.0.0.1:9", timeout_s=1.0)
    with pytest.raises(
        QservUnreachable, match=r"GET http://127\.0\.0\.1:9/meta/version: no connection: .*; is the server up\?"
    ):
        load.store.register(load.dataset, load.fingerprint)
    assert [answer[:2] for answer in load.store.check()] == [("the controller answers", False)]


def test_a_port_that_is_none_is_refused(load):
    with pytest.raises(QservRefusal, match="the port must be a number up to 65535; correct the address"):
        load.store.client.call("GET", "/meta/version", url="http://127.0.0.1:99999")


class Odd(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = {"/a": b"[]", "/b": b"{}", "/c": b"<html>", "/d": b""}.get(self.path.split("?")[0], b"{")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_answer_that_is_none_of_qserv_is_no_answer(load):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        load.store.client.patience_s = 0.0
        for path in "/a", "/b", "/c", "/d", "/e":
            with pytest.raises(
                SkymillError, match=r"no answer came that is Qserv's; is http://127.0.0.1:.* the right server"
            ):
                load.store.client.call("GET", path, url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
