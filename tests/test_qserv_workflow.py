"""The whole workflow into Qserv: the test server on a real MariaDB, which cuts uploads, drops answers, hangs and is stopped mid-run.

After every rerun each chunk table holds the rows of an undisturbed run, once each, and no transaction is open.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qserv_cluster import (
    ADMIN_KEY,
    KEY,
    KEY_SOURCES,
    ask,
    contents,
    delete_database,
    running_cluster,
    transactions,
)
from qserv_server.fixture import QservCluster
from skymill.config import Dataset
from skymill.errors import SkymillError
from skymill.inputs import check_needs
from skymill.plan import State
from test_docs import QSERV, block_with
from workflow import PROJECT, SMALL_SKY, snakemake, write_config

#: Three tiles in two transactions.
CHUNKS = "0,36:39,324:327"
KILLS = 25
#: No run may take longer [s].
RUN_S = 240


@pytest.fixture(scope="module")
def cluster() -> Iterator[QservCluster]:
    with running_cluster() as running:
        yield running


def sky(cluster: QservCluster, database: str = "sky", chunks: str = CHUNKS, **ingest: object) -> dict:
    """The configuration of a small sky for a server."""
    config = copy.deepcopy(SMALL_SKY)
    options = {"url": cluster.url, **KEY_SOURCES, "timeout_s": 10, **ingest.pop("qserv", {})}
    defaults = {"store": "qserv", "tiles_per_transaction": 2, "qserv": options}
    return {**config, "database": database, "chunks": chunks, "chunks_per_tile": 4, "ingest": {**defaults, **ingest}}


class Run:
    """A run of the workflow in a session of its own, which is ended with all its jobs if it takes too long."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder = folder
        self.log = folder / "run.log"
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(PROJECT / "workflow" / "Snakefile"),
            "--quiet",
            "rules",
        ]
        command += ["--configfile", str(folder / "config.yaml"), "--directory", str(folder), "--cores", "2", *arguments]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
        self.deadline = time.monotonic() + RUN_S

    def is_running(self) -> bool:
        if self.process.poll() is None and time.monotonic() > self.deadline:
            self.kill_all()
            raise AssertionError(f"a run took longer than {RUN_S} s: {self.printed()[-3000:]}")
        return self.process.poll() is None

    def wait(self) -> bool:
        """Wait for its end; whether it did all that it had to do."""
        while self.is_running():
            time.sleep(0.05)
        return self.process.returncode == 0

    def jobs(self) -> list[int]:
        """Process ids of its jobs."""
        found: list[int] = []
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has just ended
                found += map(int, path.read_text().split())
        return found

    def kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def printed(self) -> str:
        return self.log.read_text(errors="replace")


def unlock(folder: Path) -> None:
    """What ``snakemake --unlock`` does, in less time."""
    shutil.rmtree(folder / ".snakemake" / "locks", ignore_errors=True)


@pytest.fixture(scope="module")
def prepared(cluster, tmp_path_factory) -> Path:
    """A folder with everything partitioned, and nothing loaded."""
    folder = tmp_path_factory.mktemp("prepared")
    snakemake(folder, config=write_config(folder, sky(cluster, store="none")))
    plan = json.loads((folder / "results" / "sky" / "ingest" / "plan_0.json").read_text())
    assert [len(tiles) for tiles in plan["transactions"].values()] == [1, 2]
    return folder


@pytest.fixture
def folder(cluster, prepared, tmp_path) -> Path:
    """A copy of `prepared` to load from, into a database that is not there."""
    cluster.clear_faults()
    return refill(cluster, prepared, tmp_path / "run")


def refill(cluster: QservCluster, prepared: Path, folder: Path, **ingest: object) -> Path:
    delete_database(cluster, "sky")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared / "results", folder / "results", copy_function=os.link)
    write_config(folder, sky(cluster, **ingest))
    return folder


def open_states(cluster: QservCluster, database: str = "sky") -> list[str]:
    return [t["state"] for t in transactions(cluster, database) if t["state"] not in ("FINISHED", "ABORTED")]


def published(folder: Path, database: str = "sky") -> dict:
    return json.loads((folder / "results" / database / "ingest" / "published.json").read_text())


def assert_no_secret(folder: Path) -> None:
    forms = {form.encode() for key in (KEY, ADMIN_KEY) for form in (key, json.dumps(key)[1:-1])}
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(form in content for form in forms), f"{path} holds a key"


def arguments_of_all() -> bytes:
    """The arguments of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return b"\n".join(found)


@pytest.fixture(scope="module")
def undisturbed(cluster, prepared, tmp_path_factory) -> dict[str, tuple[int, int, int]]:
    """What the tables hold after a run that nothing has disturbed; of a run from the beginning, not from what was prepared."""
    folder = tmp_path_factory.mktemp("undisturbed")
    delete_database(cluster, "sky")
    write_config(folder, sky(cluster))
    run = Run(folder)
    while run.is_running():
        assert KEY.encode() not in arguments_of_all()
        time.sleep(0.1)
    assert run.process.returncode == 0, run.printed()
    rows = contents(cluster, "sky")
    assert all(count == different for count, different, _ in rows.values())
    assert sum(found[0] for name, found in rows.items() if name.startswith("Object_")) > 100
    assert {"w1 Visit", "w2 Visit"} <= set(rows)
    assert open_states(cluster) == []
    counted = published(folder)["rows"]
    for table in ("Object", "ObjectFullOverlap", "ForcedSource"):
        assert counted[table] == sum(found[0] for name, found in rows.items() if name.startswith(f"{table}_"))
    assert_no_secret(folder)
    derived = folder / "results" / "sky" / "configs" / "ingest"
    assert sorted(path.name for path in derived.iterdir()) == [
        "sky.json", "sky_ForcedSource.json", "sky_Object.json", "sky_Visit.json",
    ]  # fmt: skip
    return rows


def test_an_undisturbed_run_is_final(cluster, undisturbed, prepared, tmp_path):
    """The same from prepared files; then nothing is left to do, and what would grow it is refused before any job."""
    folder = refill(cluster, prepared, tmp_path / "run")
    assert Run(folder).wait()
    assert contents(cluster, "sky") == undisturbed
    kept = list(folder.glob("results/sky/generated/*/s*.json"))
    assert kept and all(path.samefile(prepared / path.relative_to(folder)) for path in kept), "it was generated again"
    assert "Nothing to be done" in snakemake(folder, config=folder / "config.yaml")
    printed = snakemake(folder, "--config", "chunks=0:80", config=folder / "config.yaml", ok=False)
    assert "published tables of the store qserv are frozen" in printed and "ingest.publish: false" in printed
    context = transactions(cluster, "sky", include_context=1)[0]["context"]
    assert context["workflow"] == "skymill" and context["folder"] == str(folder / "results" / "sky")
    assert (context["transaction"], context["attempt"], context["tiles"]) in [("t000", 0, 1), ("t001", 0, 2)]
    config = sky(cluster)
    config["ingest"]["store"] = "embedded"
    printed = snakemake(folder, config=write_config(folder, config), ok=False)
    assert "was loaded into the store qserv" in printed


FAULTS = {
    "an upload is cut": ("cut_upload", {"bytes": 2000}, {"table": "ForcedSource", "chunk": 38}),
    "an answer is lost after loading": ("drop_answer", {}, {"table": "Object", "chunk": 38}),
    "an error of the server": ("http_error", {"status": 500}, {"table": "Object", "chunk": 325, "path": "/ingest/csv"}),
    "a server that hangs": ("hang", {"seconds": 15}, {"table": "ForcedSource", "chunk": 38}),
    "a commit fails": ("fail_commit", {}, {}),
    "an abort fails": ("fail_abort", {}, {}),
    "a key is refused": ("refuse_key", {}, {"table": "Object", "chunk": 38}),
    "a start is not answered": ("drop_answer", {}, {"path": "/ingest/trans", "method": "POST"}),
    "publishing is not answered": ("drop_answer", {}, {"path": "/ingest/database/sky"}),
}
#: What a lost answer hid is looked up; and a refused chunk, of which nothing was sent, is sent alone when the others
#: are loaded.
MENDED_AT_ONCE = (
    "an answer is lost after loading",
    "publishing is not answered",
    "a start is not answered",
    "a key is refused",
)
POISONS = ("an upload is cut", "an error of the server", "a server that hangs", "a commit fails", "an abort fails")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_loses_nothing_and_loads_nothing_twice(name, cluster, undisturbed, folder):
    kind, options, match = FAULTS[name]
    cluster.fault(kind, match=match, **options)
    if kind == "fail_abort":
        cluster.fault("fail_commit")
    runs = [Run(folder)]
    while not runs[-1].wait():
        assert len(runs) < 4, runs[-1].printed()[-5000:]
        runs.append(Run(folder))
    assert all(fault["fired"] for fault in cluster.faults())
    assert contents(cluster, "sky") == undisturbed
    assert open_states(cluster) == []
    records = folder / "results" / "sky" / "ingest" / "transactions"
    marks, aborts = list(records.glob("*.poisoned.json")), list(records.glob("*.aborted.*.json"))
    assert len(marks) == len(aborts) == (name in POISONS)
    assert len(runs) == (1 if name in MENDED_AT_ONCE else 2)
    assert_no_secret(folder)


@pytest.mark.parametrize("loss", ["a worker", "the server"])
def test_a_loss_in_mid_run(loss, cluster, undisturbed, folder):
    """It comes back soon; what was under way may have to be loaded again by the next run."""
    run = Run(folder)
    while run.is_running() and not uploads(cluster):
        time.sleep(0.01)
    if loss == "a worker":
        cluster.fault("worker_down", worker="w1", seconds=3)
    else:
        cluster.kill()
        time.sleep(1)
        cluster.start()
    for _ in range(4):
        if run.wait():
            break
        run = Run(folder)
    assert run.process.returncode == 0, run.printed()[-5000:]
    assert contents(cluster, "sky") == undisturbed
    assert open_states(cluster) == []


def uploads(cluster: QservCluster) -> int:
    """How many contributions there are to the database."""
    if not any(found["database"] == "sky" for found in ask(cluster, "/replication/config")["config"]["databases"]):
        return 0
    listed = transactions(cluster, "sky", contrib=1)
    return sum(sum(t["contrib"]["summary"]["num_files_by_status"].values()) for t in listed)


def requests_served(cluster: QservCluster) -> int:
    return (cluster.datadir / "server.log").read_bytes().count(b"HTTP/1.1")


def test_kills_and_restarts(cluster, undisturbed, prepared, tmp_path):
    """SIGKILL of the driver, of one job, or of all together, each after a random number of requests; the server is killed now and then, too.

    When all is loaded in spite of it, everything begins anew, until there were enough kills.
    """
    rng = random.Random(5)
    kills = dict.fromkeys(("driver", "job", "all"), 0)
    restarts = 0
    for number in itertools.count():
        folder = refill(cluster, prepared, tmp_path / f"run{number}")
        for runs in itertools.count():
            assert runs < 40, (folder / "run.log").read_text()[-5000:]
            if killed_run(cluster, Run(folder), rng, kills, done=sum(kills.values()) >= KILLS):
                break
            unlock(folder)
            if rng.random() < 0.2:
                cluster.kill()
                cluster.start()
                restarts += 1
        assert contents(cluster, "sky") == undisturbed
        assert open_states(cluster) == []
        shutil.rmtree(folder)
        if sum(kills.values()) >= KILLS:
            break
    print(f"kills: {kills}, restarts of the server: {restarts}, runs to the end: {number + 1}")
    assert sum(kills.values()) >= KILLS and all(kills.values()) and restarts >= 3


def killed_run(cluster: QservCluster, run: Run, rng: random.Random, kills: dict[str, int], done: bool) -> bool:
    """Run on, kill something at a random moment, and wait for the end of the driver; whether all is loaded."""
    moment = requests_served(cluster) + rng.randint(1, 12)
    while run.is_running() and (done or requests_served(cluster) < moment):
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.05))
    jobs = run.jobs()
    what = rng.choice(["driver", "job", "all"] if jobs else ["driver", "all"])
    if run.process.poll() is None:
        if what == "all":
            run.kill_all()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(jobs) if what == "job" else run.process.pid, signal.SIGKILL)
        kills[what] += 1
    return run.wait()


@pytest.mark.parametrize("send", ["file", "http"])
def test_workers_that_read_the_files_themselves(send, cluster, undisturbed, prepared, tmp_path):
    """By reference; the driver and its jobs are killed in the middle, which the workers do not mind."""
    options: dict = {"send": send}
    with contextlib.ExitStack() as stack:
        if send == "http":
            command = [
                sys.executable,
                "-u",
                "-m",
                "http.server",
                "0",
                "--bind",
                "127.0.0.1",
                "--directory",
                str(tmp_path),
            ]
            server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
            stack.callback(server.kill)
            port = server.stdout.readline().split()[5].decode()
            options["base_url"] = f"http://127.0.0.1:{port}/run"
        folder = refill(cluster, prepared, tmp_path / "run", qserv=options)
        run = Run(folder)
        while run.is_running() and not uploads(cluster):
            time.sleep(0.01)
        run.kill_all()
        unlock(folder)
        run = Run(folder)
        assert run.wait(), run.printed()[-5000:]
    assert contents(cluster, "sky") == undisturbed
    assert open_states(cluster) == []
    assert not list((folder / "results" / "sky" / "ingest" / "transactions").glob("*.poisoned.json"))


def test_a_missing_key_is_told_before_any_job(cluster, tmp_path, monkeypatch):
    config = write_config(tmp_path, sky(cluster))
    monkeypatch.delenv("SKYMILL_TEST_KEY")
    printed = snakemake(tmp_path, config=config, ok=False)
    assert printed.count("is not set; say `export SKYMILL_TEST_KEY=...`") == 1
    assert "Execute" not in printed and not (tmp_path / "results").exists()
    snakemake(tmp_path, "-n", config=config)
    dataset = Dataset.from_config(sky(cluster), tmp_path)
    state = State.read(dataset.results, dataset)
    check_needs(state, {"status"}, {"generate_tile"})
    with pytest.raises(SkymillError, match=r"ingest\.qserv\.sql: the key is missing"):
        check_needs(state, set(), {"verify_tile"})


def test_nothing_is_generated_for_a_database_that_is_refused(cluster, tmp_path):
    """It is there and published, and nobody here has recorded that."""
    delete_database(cluster, "sky")
    config = write_config(tmp_path, sky(cluster, chunks="36:39"))
    snakemake(tmp_path, config=config)
    shutil.rmtree(tmp_path / "results")
    printed = snakemake(tmp_path, config=config, ok=False)
    assert printed.count("is published, and so frozen; load under another name") == 1
    assert not (tmp_path / "results" / "sky" / "generated").exists()


def test_an_open_database_may_grow(cluster, undisturbed, tmp_path):
    delete_database(cluster, "sky")
    config = write_config(tmp_path, sky(cluster, publish=False))
    snakemake(tmp_path, "--config", "chunks=0", config=config)
    assert "Nothing to be done" in snakemake(tmp_path, "--config", "chunks=0", config=config)
    snakemake(tmp_path, config=config)
    assert contents(cluster, "sky") == undisturbed
    database = next(d for d in ask(cluster, "/replication/config")["config"]["databases"] if d["database"] == "sky")
    assert not database["is_published"] and not (tmp_path / "results" / "sky" / "ingest" / "published.json").exists()
    snakemake(tmp_path, config=write_config(tmp_path, sky(cluster, publish=True)))
    assert published(tmp_path)["chunks"] == 9
    assert "are frozen" in snakemake(tmp_path, "--config", "chunks=0:80", config=config, ok=False)


def test_what_was_started_and_is_not_wanted_any_more_is_aborted(cluster, tmp_path):
    """The first transaction was to load the regular tables; another one does it now."""
    delete_database(cluster, "sky")
    config = write_config(tmp_path, sky(cluster))
    records = tmp_path / "results" / "sky" / "ingest" / "transactions"
    started = [str((records / f"{name}.0.started.json").relative_to(tmp_path)) for name in ("t000", "t001")]
    snakemake(tmp_path, *started, config=config)
    assert open_states(cluster) == ["STARTED", "STARTED"]
    snakemake(tmp_path, "--config", "chunks='36:39,324:327'", config=config)
    assert sorted(t["state"] for t in transactions(cluster, "sky")) == ["ABORTED", "FINISHED"]
    assert [path.name for path in records.glob("*.aborted.*")] == ["t000.aborted.0.json"]
    assert published(tmp_path)["rows"]["Visit"] == 1500
    assert contents(cluster, "sky")["w1 Visit"][0] == 1500


def test_check_ingest(cluster, tmp_path):
    delete_database(cluster, "sky")
    config = write_config(tmp_path, sky(cluster))
    printed = snakemake(tmp_path, "check_ingest", config=config)
    assert "The store can be used." in printed and "yes  the database sky fits: it is not there yet" in printed
    assert ask(cluster, "/replication/config")["config"]["databases"] == []
    assert KEY not in printed
    questions = [line[5:].split(":")[0] for line in printed.splitlines() if line.startswith("yes  ")]
    assert len(questions) == 5 and all(f"yes  {q.replace('sky', 'mysurvey')}:" in QSERV for q in questions)
    os.environ["SKYMILL_TEST_OTHER_KEY"] = "another"
    printed = snakemake(
        tmp_path,
        "check_ingest",
        config=write_config(tmp_path, sky(cluster, qserv={"auth_key": {"env": "SKYMILL_TEST_OTHER_KEY"}})),
        ok=False,
    )
    assert printed.count(" NO  auth_key is accepted") == 1
    verdict = "the store qserv cannot be used: the answer was NO to: auth_key is accepted; the workers"
    assert printed.count(verdict) == 1
    quiet = snakemake(tmp_path, "check_ingest", "--quiet", "rules", config=tmp_path / "config.yaml", ok=False)
    assert verdict in quiet


def workers_with(cluster: QservCluster, table: str) -> list[str]:
    """The workers that have a table of mysurvey."""
    return [w for w in cluster.worker_urls if cluster.sql(f"SHOW TABLES FROM {w}_mysurvey LIKE '{table}'")]


@pytest.mark.skipif(not shutil.which("curl") and not os.environ.get("CI"), reason="curl is not installed")
def test_a_database_is_registered_by_hand_as_the_readme_says(cluster, tmp_path, monkeypatch):
    """With its keys, and the lines that send what is derived; the workflow goes on from there."""
    delete_database(cluster, "mysurvey")
    config = sky(cluster, "mysurvey", store="none")
    snakemake(tmp_path, config=write_config(tmp_path, config))
    monkeypatch.setenv("QSERV_AUTH_KEY", KEY)
    monkeypatch.setenv("QSERV_ADMIN_KEY", ADMIN_KEY)
    block = block_with("sh", "curl", "mysurvey.json").replace("http://qserv-repl:25081", cluster.url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and json.loads(done.stdout)["success"] == 1, done.stdout + done.stderr
    block = block_with("yaml", "store: qserv", "auth_key").replace("Star", "Object").replace("starId", "objectId")
    ingest = yaml.safe_load(block)["ingest"]
    ingest["qserv"]["url"] = cluster.url
    snakemake(tmp_path, config=write_config(tmp_path, {**config, "ingest": ingest}))
    assert published(tmp_path, "mysurvey")["rows"]["Object"] > 100
    chunk = next(name for name in contents(cluster, "mysurvey") if name.startswith("Object_"))
    indexes = [cluster.sql(f"SHOW INDEX FROM {worker}_mysurvey.{chunk}") for worker in workers_with(cluster, chunk)]
    assert [[row[2] for row in found] for found in indexes] == [["by_objectId"]]
    assert_no_secret(tmp_path)
    block = block_with("sh", "--request DELETE", "mysurvey").replace("http://qserv-repl:25081", cluster.url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and json.loads(done.stdout)["success"] == 1, done.stdout + done.stderr
    assert "mysurvey" not in [d["database"] for d in ask(cluster, "/replication/config")["config"]["databases"]]
    assert not cluster.sql("SHOW DATABASES LIKE '%mysurvey'")


def try_qserv(config: Path | str) -> subprocess.CompletedProcess[str]:
    # The environment is there already: -o says that it is not to be made again.
    command = ["make", "-s", "-o", ".venv/bin/.ready", "try-qserv", f"CONFIG={config}"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=RUN_S)


def test_try_qserv_leaves_nothing_behind(cluster, tmp_path):
    before = cluster.sql("SHOW DATABASES")
    done = try_qserv(write_config(tmp_path, sky(cluster, "mine")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All is well." in done.stdout and "deleted try" in done.stdout and "Object: " in done.stdout
    cluster.fault("fail_commit")
    done = try_qserv(tmp_path / "config.yaml")
    assert done.returncode != 0 and "FINISH_FAILED" in done.stderr and "deleted try" in done.stdout
    config = sky(cluster, "mine")
    del config["ingest"]["qserv"]["admin_auth_key"]
    done = try_qserv(write_config(tmp_path, config))
    assert done.returncode != 0 and "ingest.qserv.admin_auth_key: the key is missing" in done.stderr
    assert done.stdout == "", "nothing was begun"
    assert "CONFIG=configs/X/config.yaml" in try_qserv("").stderr
    assert cluster.sql("SHOW DATABASES") == before
    assert KEY not in done.stdout + done.stderr
