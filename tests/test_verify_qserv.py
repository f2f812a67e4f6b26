"""Verification of Qserv's workers: the test server's MariaDB is asked, and each kind of damage there is found and named."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml

from answer_queries import read_files
from skymill.config import Dataset
from skymill.errors import ConfigError, SkymillError
from skymill.stores.asking import open_asker
from skymill.workload import is_expected
from verifying import all_kinds, facts_named, verify
from workflow import PROJECT, snakemake, write_config

pytest.importorskip("pymysql")
if shutil.which("mariadbd") is None and not os.environ.get("CI"):
    pytest.skip("mariadbd is not installed (Debian: apt install mariadb-server)", allow_module_level=True)

from qserv_server.fixture import QservCluster

PAIRS = {"pairs closer than 0.25 deg", "pairs closer than 0.45 deg"}
HASH = {"hash 1", "hash 2"}
#: The separation of two points (haversine), for what Qserv has a function.
SEPARATION = r"2 * DEGREES(ASIN(SQRT(POW(SIN(RADIANS(\2 - \4) / 2), 2) + COS(RADIANS(\2)) * COS(RADIANS(\4)) * POW(SIN(RADIANS(\1 - \3) / 2), 2))))"


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="qv-"))
    try:
        with QservCluster(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sql_config(cluster: QservCluster, **sql) -> dict:
    workers = {name: f"127.0.0.1:{cluster.mariadb_port}/{name}_{{database}}" for name in cluster.worker_urls}
    options = {"url": cluster.url, "sql": {"workers": workers, "user": "root", **sql}}
    return all_kinds("verified", chunks="0:40,324:326", ingest={"store": "qserv", "qserv": options})


@pytest.fixture(scope="module")
def sky(cluster, tmp_path_factory):
    """The folder of a sky that was loaded into the workers."""
    folder = tmp_path_factory.mktemp("verify")
    snakemake(folder, config=write_config(folder, sql_config(cluster)))
    return folder


@pytest.fixture(scope="module")
def dataset(cluster):
    return Dataset.from_config(sql_config(cluster), PROJECT)


class Tables:
    """The tables of the workers; what is changed is set right at the end."""

    def __init__(self, cluster: QservCluster):
        self.cluster = cluster
        self._kept: list[str] = []

    def place(self, name: str) -> str:
        """The table of a chunk, on the worker that has it."""
        ((schema,),) = self.cluster.sql(
            "SELECT table_schema FROM information_schema.tables WHERE table_schema LIKE 'w%%verified' AND table_name = %s",
            name,
        )
        return f"{schema}.{name}"

    def change(self, name: str, statement: str) -> None:
        """Change a table; ``{table}`` in the statement stands for it."""
        table = self.place(name)
        if table not in self._kept:
            self.cluster.sql(f"CREATE TABLE {table}_kept LIKE {table}")
            self.cluster.sql(f"INSERT INTO {table}_kept SELECT * FROM {table}")
            self._kept.append(table)
        before = self.cluster.sql(f"CHECKSUM TABLE {table}")
        self.cluster.sql(statement.replace("{table}", table))
        assert self.cluster.sql(f"CHECKSUM TABLE {table}") != before, "nothing was damaged"

    def restore(self) -> None:
        for table in self._kept:
            self.cluster.sql(f"DROP TABLE {table}")
            self.cluster.sql(f"RENAME TABLE {table}_kept TO {table}")


@pytest.fixture()
def tables(sky, cluster):
    changed = Tables(cluster)
    yield changed
    changed.restore()


@pytest.fixture()
def check(sky, dataset):
    """What verification finds, by table and chunk."""
    return lambda: facts_named(verify(sky / "results" / "verified", dataset))


def an_object(tables: Tables, chunk: int = 324) -> int:
    """An object of a chunk that has neighbours, and children."""
    name = tables.place(f"Object_{chunk}")
    source = tables.place(f"ForcedSource_{chunk}")
    return tables.cluster.sql(
        f"SELECT min(a.objectId) FROM {name} a JOIN {name} b ON a.subChunkId = b.subChunkId AND a.objectId <> b.objectId "
        f"AND abs(a.`dec` - b.`dec`) < 0.17 AND abs(a.ra - b.ra) < 0.17 WHERE a.objectId IN (SELECT objectId FROM {source})"
    )[0][0]


def overlap_row(tables: Tables, chunk: int = 324) -> str:
    """A condition that holds for one row of an overlap table that has a neighbour at home there."""
    name, home = tables.place(f"ObjectFullOverlap_{chunk}"), tables.place(f"Object_{chunk}")
    row = tables.cluster.sql(
        f"SELECT o.objectId, o.subChunkId FROM {name} o JOIN {home} a ON a.subChunkId = o.subChunkId "
        "AND abs(a.`dec` - o.`dec`) < 0.17 AND abs(a.ra - o.ra) < 0.17 ORDER BY 1, 2 LIMIT 1"
    )[0]
    return f"objectId = {row[0]} AND subChunkId = {row[1]}"


def test_what_is_whole_agrees(sky, dataset):
    record = verify(sky / "results" / "verified", dataset)
    assert record["differences"] == []
    assert record["chunks"] == 9 and record["compared"] > 1000
    assert min(rows["found"] for rows in record["tables"].values()) > 300


def test_a_row_lost(tables, check):
    lost = an_object(tables)
    tables.change("Object_324", f"DELETE FROM {{table}} WHERE objectId = {lost}")
    found = check()
    assert {"rows", "different objectId", "sum of objectId"} | HASH | PAIRS <= found.pop(("Object", 324))
    assert found == {("ForcedSource", 324): {"objectId without a row in Object"}}


def test_a_row_twice(tables, check):
    twice, home = an_object(tables), tables.place("Object_324")
    tables.change("Object_324", f"INSERT INTO {{table}} SELECT * FROM {home} WHERE objectId = {twice}")
    found = check()
    assert found.keys() == {("Object", 324)}
    assert {"rows"} | HASH | PAIRS <= found["Object", 324] and "different objectId" not in found["Object", 324]


@pytest.mark.parametrize(
    ("table", "change"),
    [
        # One unit in the last place of a FLOAT and of a DOUBLE, and the last digit of a whole number.
        ("Object_324", "UPDATE {table} SET gMag = gMag * 1.0000001 WHERE objectId = {row}"),
        ("Object_324", "UPDATE {table} SET ra = ra * 1.0000000000000002 WHERE objectId = {row}"),
        ("ForcedSource_324", "UPDATE {table} SET visitId = visitId + 1 WHERE objectId = {row} LIMIT 1"),
        ("ObjectFullOverlap_324", "UPDATE {table} SET rMag = rMag * 1.0000001 WHERE {overlap}"),
    ],
)
def test_a_value_changed_in_one_digit(table, change, tables, check):
    row, overlap = an_object(tables), overlap_row(tables)
    tables.change(table, change.replace("{row}", str(row)).replace("{overlap}", overlap))
    found = check()
    assert found.keys() == {(table.split("_")[0], 324)}
    assert next(iter(found.values())) >= HASH


def test_an_overlap_row_lost(tables, sky, dataset):
    tables.change("ObjectFullOverlap_324", f"DELETE FROM {{table}} WHERE {overlap_row(tables)}")
    record = verify(sky / "results" / "verified", dataset)
    assert facts_named(record) == {("ObjectFullOverlap", 324): {"rows"} | HASH, ("Object", 324): PAIRS}
    assert all(part["found"] < part["expected"][0] for part in record["differences"] if part["fact"] in PAIRS)
    assert {part["place"] for part in record["differences"]} == {tables.place("Object_324").split("_")[0]}


def test_an_overlap_row_twice(tables, sky, dataset):
    row, name = overlap_row(tables), tables.place("ObjectFullOverlap_324")
    tables.change("ObjectFullOverlap_324", f"INSERT INTO {{table}} SELECT * FROM {name} WHERE {row}")
    record = verify(sky / "results" / "verified", dataset)
    assert facts_named(record) == {("ObjectFullOverlap", 324): {"rows"} | HASH, ("Object", 324): PAIRS}
    assert all(part["found"] > part["expected"][1] for part in record["differences"] if part["fact"] in PAIRS)


def test_a_chunk_in_the_wrong_table(tables, check):
    home, other = tables.place("Object_325"), tables.place("Object_326")
    tables.change("Object_326", f"INSERT INTO {{table}} SELECT * FROM {home}")
    tables.change("Object_325", "DELETE FROM {table}")
    found = check()
    assert other != home
    assert {"rows", "rows of other chunks"} | HASH <= found["Object", 326]
    assert {"rows"} | HASH <= found["Object", 325]
    assert found["ForcedSource", 325] == {"objectId without a row in Object"}


def test_a_child_of_another_chunk(tables, check):
    source = tables.place("ForcedSource_324")
    tables.change(
        "ForcedSource_326", f"INSERT INTO {{table}} SELECT * FROM {source} ORDER BY objectId, visitId LIMIT 1"
    )
    tables.change("ForcedSource_324", "DELETE FROM {table} ORDER BY objectId, visitId LIMIT 1")
    found = check()
    assert found.keys() == {("ForcedSource", 324), ("ForcedSource", 326)}
    assert {"rows", "rows of other chunks", "objectId without a row in Object"} | HASH <= found["ForcedSource", 326]


@pytest.mark.parametrize("column", ["count", "shape", "width", "isStar", "note"])
def test_a_null_turned_into_0(column, tables, check):
    tables.change("Object_324", f"UPDATE {{table}} SET `{column}` = 0 WHERE `{column}` IS NULL LIMIT 1")
    found = check()
    assert found.keys() == {("Object", 324)}
    assert {f"NULLs of {column}"} | HASH <= found["Object", 324]


def test_a_string_in_another_case(tables, check):
    tables.change("Object_324", "UPDATE {table} SET note = 'Ab' WHERE BINARY note = 'ab' LIMIT 1")
    assert check() == {("Object", 324): {"rows with note = 'ab'", "rows with note = 'Ab'"} | HASH}


def test_a_chunk_that_nobody_made(tables, check, cluster):
    home = tables.place("Object_324")
    stranger = f"{home.split('.')[0]}.Object_300"
    cluster.sql(f"CREATE TABLE {stranger} LIKE {home}")
    try:
        cluster.sql(f"INSERT INTO {stranger} SELECT * FROM {home} LIMIT 2")
        assert check() == {("Object", 300): {"rows"}}
    finally:
        cluster.sql(f"DROP TABLE {stranger}")


def test_a_table_of_a_chunk_is_missing(tables, check, cluster):
    name = tables.place("ForcedSource_325")
    cluster.sql(f"RENAME TABLE {name} TO {name}_away")
    try:
        found = check()
        assert found.keys() == {("ForcedSource", 325)} and {"rows"} | HASH <= found["ForcedSource", 325]
    finally:
        cluster.sql(f"RENAME TABLE {name}_away TO {name}")


def test_the_target_verify_asks_the_workers(sky, tables):
    lost = an_object(tables)
    assert "agree with the truth of generation" in snakemake(sky, "verify", config=sky / "config.yaml")
    tables.change("Object_324", f"DELETE FROM {{table}} WHERE objectId = {lost}")
    printed = snakemake(sky, "verify", "--config", "only=324", config=sky / "config.yaml", ok=False)
    worker = tables.place("Object_324").split("_")[0]
    assert f"Object chunk 324 on {worker}: rows: expected" in printed


def query_in(cluster: QservCluster, database: str, query: str) -> list[tuple]:
    """The rows of a query in a database."""
    import pymysql

    with pymysql.connect(host="127.0.0.1", port=cluster.mariadb_port, user="root", database=database) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return list(cursor.fetchall())


def test_repair_says_what_an_administrator_must_do(sky, tables, cluster, check):
    """The statements are run as they stand; then all is well again."""
    import pymysql

    lost, source = an_object(tables), tables.place("ForcedSource_325")
    tables.change("Object_324", f"DELETE FROM {{table}} WHERE objectId = {lost}")
    tables.change("ForcedSource_324", f"INSERT INTO {{table}} SELECT * FROM {source} LIMIT 1")
    tables.change("ObjectFullOverlap_325", "UPDATE {table} SET gMag = 0 LIMIT 1")
    snakemake(sky, "verify", config=sky / "config.yaml", ok=False)
    printed = snakemake(sky, "repair", config=sky / "config.yaml")
    assert "What is committed in Qserv is frozen" in printed and "an administrator must run" in printed
    root = sky / "results" / "verified"
    scripts = sorted((root / "repair").glob("*.sql"))
    assert [path.stem for path in scripts] == sorted({tables.place(f"Object_{c}").split("_")[0] for c in (324, 325)})
    for path in scripts:
        database = f"{path.stem}_verified"
        with pymysql.connect(
            host="127.0.0.1",
            port=cluster.mariadb_port,
            user="root",
            database=database,
            local_infile=True,
            autocommit=True,
        ) as connection:
            for statement in path.read_text().splitlines()[1:]:
                connection.cursor().execute(statement)
    assert check() == {}


def test_queries_in_the_dialect_of_qserv_are_answered_as_expected(sky, cluster, tables):
    """On MariaDB, in tables with the rows of all chunks, its function written out; but for boxes, which the czar reads."""
    root = sky / "results" / "verified"
    snakemake(sky, "write_queries", config=sky / "config.yaml")
    cluster.sql("CREATE OR REPLACE DATABASE whole")
    for name in ("Object", "ForcedSource", "Visit"):
        cluster.sql(f"CREATE TABLE whole.{name} LIKE w1_verified.{name}")
        parts = cluster.sql(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema LIKE 'w%%verified' "
            "AND table_name REGEXP %s AND table_name NOT LIKE '%%1234567890'",
            f"^{name}_[0-9]+$",
        )
        for schema, table in parts if name != "Visit" else [("w1_verified", "Visit")]:
            cluster.sql(f"INSERT INTO whole.{name} SELECT * FROM {schema}.{table}")
    cluster.sql("CREATE TABLE whole.near AS SELECT * FROM whole.Object")
    for (table,) in cluster.sql(
        "SELECT DISTINCT table_name FROM information_schema.tables WHERE table_name REGEXP '^ObjectFullOverlap_[0-9]+$'"
    ):
        if not table.endswith("1234567890"):
            cluster.sql(f"INSERT INTO whole.near SELECT * FROM {tables.place(table)}")
    content = yaml.safe_load((root / "queries" / "queries.yaml").read_text())
    by_file = read_files(root / "queries")
    asked = []
    for one in content["classes"]:
        query = one["sql"]["qserv"]
        for case in one["cases"] if "areaspec" not in query else ():
            text = re.sub(
                r"scisql_angSep\((.*?), (.*?), (.*?), (.*?)\)", SEPARATION, query.format(**case["parameters"])
            )
            # As the czar does it: what is near an object is in its sub-chunk, or in the overlap of that.
            same = "WHERE o1.chunkId = o2.chunkId AND o1.subChunkId = o2.subChunkId AND"
            text = text.replace(", Object AS o2 WHERE", f", near AS o2 {same}")
            rows = query_in(cluster, "whole", text)
            rows = [[float(f"{v:.6g}") if isinstance(v, float) else v for v in row] for row in rows]
            expected = dict(case["expected"])
            if "rows" in expected:
                # MariaDB prints a FLOAT with six digits.
                expected["rows"] = [
                    [float(f"{v:.6g}") if isinstance(v, float) else v for v in r] for r in expected["rows"]
                ]
            assert is_expected(expected, rows, by_file), (text, expected, rows[:3])
            asked.append(one["name"])
    assert {"Object_by_id", "Object_by_chunk", "Object_neighbours", "Object_ForcedSource_join"} <= set(asked)


def test_what_is_missing_to_ask_is_told(cluster, dataset, monkeypatch):
    config = sql_config(cluster, password={"env": "SKYMILL_TEST_SQL"})
    monkeypatch.delenv("SKYMILL_TEST_SQL", raising=False)
    with pytest.raises(
        SkymillError, match=r"ingest\.qserv\.sql\.password\.env: the environment variable SKYMILL_TEST_SQL"
    ):
        open_asker(Dataset.from_config(config, PROJECT), Path())
    config = sql_config(cluster)
    config["ingest"]["qserv"]["sql"]["workers"]["w1"] = "me@there"
    with pytest.raises(
        ConfigError, match=r'workers\.w1: "\*\*\*@there" is not allowed; write host, host:port or host:port/database'
    ):
        open_asker(Dataset.from_config(config, PROJECT), Path())
    del config["ingest"]["qserv"]["sql"]
    with pytest.raises(ConfigError, match=r"ingest\.qserv\.sql: the key is missing"):
        open_asker(Dataset.from_config(config, PROJECT), Path())
    config = sql_config(cluster, workers={"w1": "127.0.0.1:1"})
    silent = r"the worker w1 \(127\.0\.0\.1:1, database verified\) did not answer"
    with open_asker(Dataset.from_config(config, PROJECT), Path()) as asker, pytest.raises(SkymillError, match=silent):
        asker.ask_regular(dataset.tables["Visit"], {})
