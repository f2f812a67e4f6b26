"""The whole workflow into Qserv: the test server on a real MariaDB, which cuts uploads, drops answers, hangs and is stopped mid-run.

After every rerun each chunk table holds the rows of an undisturbed run, once each, and no transaction is open.
"""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import requests

from workflow import PROJECT, SMALL_SKY, snakemake, write_config

pytest.importorskip("pymysql")
if shutil.which("mariadbd") is None and not os.environ.get("CI"):
    pytest.skip("mariadbd is not installed (Debian: apt install mariadb-server)", allow_module_level=True)

from qserv_server.fixture import QservCluster

KEY = "a-key-that-nobody-must-see"
CHUNKS = "0:40,324:330"
os.environ["SKYMILL_TEST_KEY"] = KEY


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="qs-"))
    try:
        with QservCluster(folder, auth_key=KEY, admin_auth_key="another") as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def qserv_config(cluster: QservCluster, database: str, **ingest) -> dict:
    config = copy.deepcopy(SMALL_SKY)
    config["tables"]["Object"]["columns"][3]["generator"] = {"choice": {"values": ["ab", "cd"]}}
    return {
        **config,
        "database": database,
        "chunks": CHUNKS,
        "chunks_per_tile": 3,
        "ingest": {
            "store": "qserv",
            "tiles_per_transaction": 3,
            "qserv": {"url": cluster.url, "auth_key": {"env": "SKYMILL_TEST_KEY"}, "timeout_s": 20},
            **ingest,
        },
    }


def contents(cluster: QservCluster, database: str) -> dict[str, tuple]:
    """For each chunk table with rows: the number of rows, and an order-independent hash of them."""
    found = {}
    for worker in cluster.worker_urls:
        schema = f"{worker}_{database}"
        tables = cluster.sql(f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{schema}'")
        for (table,) in tables:
            columns = [
                row[0]
                for row in cluster.sql(
                    "SELECT column_name FROM information_schema.columns WHERE "
                    f"table_schema = '{schema}' AND table_name = '{table}' AND column_name <> 'qserv_trans_id'"
                )
            ]
            text = ", ".join(f"IFNULL(`{column}`, 'null')" for column in sorted(columns))
            rows = cluster.sql(
                f"SELECT COUNT(*), COUNT(DISTINCT CONCAT_WS('|', {text})), SUM(CRC32(CONCAT_WS('|', {text}))) FROM `{schema}`.`{table}`"
            )[0]
            if rows[0]:
                # A regular table is on every worker.
                found[table if "_" in table else f"{worker} {table}"] = tuple(int(value) for value in rows)
    return found


def open_transactions(cluster: QservCluster, database: str) -> list[str]:
    answer = requests.get(
        f"{cluster.url}/ingest/trans", params={"database": database, "version": 55}, timeout=20
    ).json()
    transactions = answer["databases"].get(database, {}).get("transactions", [])
    return [t["state"] for t in transactions if t["state"] not in ("FINISHED", "ABORTED")]


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """What the chunk tables hold after a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    snakemake(folder, config=write_config(folder, qserv_config(cluster, "quiet")))
    rows = contents(cluster, "quiet")
    assert all(count == distinct for name, (count, distinct, _) in rows.items() if "FullOverlap" not in name)
    assert sum(rows[name][0] for name in rows if name.startswith("Object_")) > 100
    assert open_transactions(cluster, "quiet") == []
    published = json.loads((folder / "results" / "quiet" / "ingest" / "published.json").read_text())
    assert published["rows"]["Object"] == sum(rows[name][0] for name in rows if name.startswith("Object_"))
    assert "Nothing to be done" in snakemake(folder, config=folder / "config.yaml")
    printed = snakemake(folder, "--config", "chunks=0:80", config=folder / "config.yaml", ok=False)
    assert "published tables are frozen" in printed
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"
    return rows


FAULTS = {
    "an upload is cut": ("cut_upload", {"bytes": 2000}, {"table": "ForcedSource"}),
    "an answer is lost after loading": ("drop_answer", {}, {"table": "Object"}),
    "an error of the server": ("http_error", {"status": 500}, {"table": "Object"}),
    "a server that hangs": ("hang", {"seconds": 30}, {"table": "ForcedSource"}),
    "a worker is lost for a while": ("worker_down", {"worker": "w1", "seconds": 5}, {}),
    "a commit fails": ("fail_commit", {}, {}),
    "a key is refused": ("refuse_key", {}, {"table": "Object"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_loses_nothing_and_loads_nothing_twice(name, cluster, undisturbed, tmp_path):
    kind, options, match = FAULTS[name]
    database = f"fault{list(FAULTS).index(name)}"
    config = write_config(tmp_path, qserv_config(cluster, database))
    snakemake(tmp_path, "load", "--config", "only=0", config=config)
    cluster.fault(kind, match={"database": database, **match} if match else {}, **options)
    runs = 0
    while True:
        runs += 1
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
        command += ["--configfile", str(config), "--directory", str(tmp_path), "--cores", "2"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
        assert KEY not in done.stdout + done.stderr
        if done.returncode == 0:
            break
        assert runs < 5, done.stderr[-3000:]
    assert contents(cluster, database) == undisturbed
    assert open_transactions(cluster, database) == []


def test_kills_of_the_driver_and_restarts_of_the_server(cluster, undisturbed, tmp_path):
    """SIGKILL at random moments, 25 times; in between the server is stopped and started."""
    rng = random.Random(5)
    config = write_config(tmp_path, qserv_config(cluster, "killed"))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--configfile", str(config), "--directory", str(tmp_path), "--cores", "2", "--quiet", "all"]
    kills = 0
    while kills < 25:
        driver = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + rng.uniform(2.0, 9.0)
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if driver.poll() is None:
            # Now and then the jobs die with their driver; else they outlive it.
            if rng.random() < 0.5:
                os.killpg(driver.pid, signal.SIGKILL)
            else:
                driver.kill()
            kills += 1
            if kills % 8 == 0:
                cluster.restart()
        elif driver.returncode == 0:
            break
        driver.wait()
        snakemake(tmp_path, "--unlock", config=config)
    print(f"{kills} kills")
    assert kills >= 5
    for _ in range(4):
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(cluster, "killed") == undisturbed
    assert open_transactions(cluster, "killed") == []


def test_an_open_database_may_grow(cluster, undisturbed, tmp_path):
    config = write_config(tmp_path, qserv_config(cluster, "grown", publish=False))
    snakemake(tmp_path, "--config", "chunks=0:40", config=config)
    snakemake(tmp_path, config=config)
    assert contents(cluster, "grown") == undisturbed
    assert not (tmp_path / "results" / "grown" / "ingest" / "published.json").exists()
    config = write_config(tmp_path, qserv_config(cluster, "grown", publish=True))
    snakemake(tmp_path, config=config)
    assert (tmp_path / "results" / "grown" / "ingest" / "published.json").exists()


def test_check_ingest_changes_nothing(cluster, tmp_path):
    config = write_config(tmp_path, qserv_config(cluster, "unborn"))
    printed = snakemake(tmp_path, "check_ingest", config=config)
    assert "The store can be used." in printed
    assert "unborn" not in requests.get(f"{cluster.url}/replication/config?version=55", timeout=20).text


def test_try_qserv_leaves_nothing_behind(cluster, tmp_path):
    config = write_config(tmp_path, qserv_config(cluster, "mine"))
    command = [sys.executable, str(PROJECT / "scripts" / "try_qserv.py"), "-c", str(config)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All is well." in done.stdout and "deleted try" in done.stdout
    assert cluster.sql("SHOW DATABASES LIKE '%_try%'") in ([], ())
