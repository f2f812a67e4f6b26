"""Verification of the embedded store: what is whole is found whole, and each kind of damage is found and named."""

import json
import re
import shutil
import subprocess
import sys

import duckdb
import pytest
import yaml

from answer_queries import answer
from skymill.config import Dataset
from skymill.errors import PoisonedError, SkymillError
from skymill.stores.embedded import EmbeddedStore
from verifying import all_kinds, facts_named, verify
from workflow import PROJECT, snakemake, write_config

PAIRS = {"pairs closer than 0.25 deg", "pairs closer than 0.45 deg"}
HASH = {"hash 1", "hash 2"}


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """The folder in which the sky was made and loaded."""
    folder = tmp_path_factory.mktemp("verify")
    snakemake(folder, config=write_config(folder, all_kinds("allkinds")))
    return folder


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_config(all_kinds("allkinds"), PROJECT)


@pytest.fixture()
def damaged(sky, dataset):
    """A function that damages the database in SQL and says what verification then finds; afterwards it is whole again."""
    root = sky / "results" / "allkinds"
    database = root / "allkinds.duckdb"
    kept = database.with_suffix(".kept")
    shutil.copy(database, kept)

    def damage(*statements: str) -> dict:
        with duckdb.connect(str(database)) as connection:
            for statement in statements:
                assert connection.execute(statement).fetchone()[0] > 0, f"nothing was damaged by {statement}"
        return verify(root, dataset)

    yield damage
    kept.replace(database)


def ask(sky, query: str):
    with duckdb.connect(str(sky / "results" / "allkinds" / "allkinds.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchone()


@pytest.mark.parametrize("locked", [False, True])
def test_a_database_that_cannot_be_opened_is_told(tmp_path, dataset, locked):
    path = tmp_path / "allkinds.duckdb"
    if locked:
        code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); input()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as other:
            other.stdout.readline()
            with pytest.raises(SkymillError, match=r"cannot open .*allkinds\.duckdb: .*lock.*; close it there"):
                EmbeddedStore(dataset, tmp_path).count_rows()
            other.communicate(b"\n")
        return
    path.write_text("no database")
    with pytest.raises(SkymillError, match=r"cannot open .*allkinds\.duckdb: .*; remove it, and the next run"):
        EmbeddedStore(dataset, tmp_path).count_rows()


def test_a_damaged_file_of_an_open_transaction_has_it_loaded_again(tmp_path, dataset):
    store = EmbeddedStore(dataset, tmp_path)
    name = store.start_transaction("t000", 0, {})
    path = tmp_path / "store" / "staging" / name / "Object" / "s0000p00000.0.parquet"
    path.parent.mkdir()
    path.write_text("x")
    with pytest.raises(PoisonedError, match=r"cannot read .*s0000p00000\.0\.parquet"):
        store.commit(name, {"Object": 1})


def an_object(sky, chunk: int = 324) -> int:
    """An object of a chunk that has neighbours within both radii, and children."""
    return ask(
        sky,
        "SELECT a.objectId FROM Object a JOIN Object b USING (chunkId, subChunkId) JOIN ForcedSource f ON f.objectId = a.objectId "
        f"WHERE a.chunkId = {chunk} AND a.objectId <> b.objectId AND abs(a.dec - b.dec) < 0.15 AND abs(a.ra - b.ra) < 0.15 "
        "ORDER BY 1 LIMIT 1",
    )[0]


def test_what_is_whole_agrees(sky, dataset):
    record = verify(sky / "results" / "allkinds", dataset)
    assert record["differences"] == []
    assert record["chunks"] == 13 and record["compared"] > 1500
    assert {name: rows["found"] for name, rows in record["tables"].items()} == {
        name: ask(sky, f"SELECT count(*) FROM {name}")[0]
        for name in ("Visit", "Object", "ObjectFullOverlap", "ForcedSource")
    }
    assert min(rows["found"] for rows in record["tables"].values()) > 300


def test_a_row_lost(sky, damaged):
    lost = an_object(sky)
    found = facts_named(damaged(f"DELETE FROM Object WHERE objectId = {lost}"))
    named = found.pop(("Object", 324))
    assert {"rows", "different objectId", "sum of objectId"} | HASH | PAIRS <= named
    # Its children are left alone, and nothing else is wrong.
    assert found == {("ForcedSource", 324): {"objectId without a row in Object"}}


def test_a_row_twice(sky, damaged):
    twice = an_object(sky)
    found = facts_named(damaged(f"INSERT INTO Object SELECT * FROM Object WHERE objectId = {twice}"))
    assert found.keys() == {("Object", 324)}
    assert {"rows"} | HASH | PAIRS <= found["Object", 324] and "different objectId" not in found["Object", 324]


def test_a_value_changed_in_one_digit(sky, damaged):
    changed = an_object(sky)
    found = facts_named(
        damaged(
            f"UPDATE Object SET shape = nextafter(shape, 9::FLOAT) WHERE objectId = {changed} AND shape IS NOT NULL"
        )
        if ask(sky, f"SELECT shape FROM Object WHERE objectId = {changed}")[0] is not None
        else damaged(f"UPDATE Object SET ra = nextafter(ra, 400) WHERE objectId = {changed}")
    )
    assert found.keys() == {("Object", 324)} and found["Object", 324] >= HASH


def test_a_child_changed_in_one_digit(damaged):
    found = facts_named(
        damaged("UPDATE ForcedSource SET mag = nextafter(mag, 99) WHERE rowid = (SELECT max(rowid) FROM ForcedSource)")
    )
    assert len(found) == 1
    (((table, _), facts),) = found.items()
    assert table == "ForcedSource" and facts >= HASH


def overlap_row(sky, chunk: int = 324) -> str:
    """A condition that holds for one row of the overlap table that has a neighbour at home there."""
    row = ask(
        sky,
        "SELECT o.objectId, o.subChunkId FROM ObjectFullOverlap o JOIN Object a USING (chunkId, subChunkId) "
        f"WHERE o.chunkId = {chunk} AND abs(a.dec - o.dec) < 0.17 AND abs(a.ra - o.ra) < 0.17 ORDER BY ALL LIMIT 1",
    )
    return f"objectId = {row[0]} AND chunkId = {chunk} AND subChunkId = {row[1]}"


def test_an_overlap_row_lost(sky, damaged):
    record = damaged(f"DELETE FROM ObjectFullOverlap WHERE {overlap_row(sky)}")
    assert facts_named(record) == {("ObjectFullOverlap", 324): {"rows"} | HASH, ("Object", 324): PAIRS}
    pairs = [part for part in record["differences"] if part["fact"] in PAIRS]
    assert all(part["found"] < part["expected"][0] for part in pairs)


def test_an_overlap_row_twice(sky, damaged):
    record = damaged(f"INSERT INTO ObjectFullOverlap SELECT * FROM ObjectFullOverlap WHERE {overlap_row(sky)}")
    assert facts_named(record) == {("ObjectFullOverlap", 324): {"rows"} | HASH, ("Object", 324): PAIRS}
    pairs = [part for part in record["differences"] if part["fact"] in PAIRS]
    assert all(part["found"] > part["expected"][1] for part in pairs)


def test_a_chunk_in_the_wrong_table(damaged):
    found = facts_named(
        damaged(
            "INSERT INTO ObjectFullOverlap SELECT * FROM Object WHERE chunkId = 325",
            "DELETE FROM Object WHERE chunkId = 325",
        )
    )
    assert found.keys() == {("ObjectFullOverlap", 325), ("Object", 325), ("ForcedSource", 325)}
    assert "rows" in found["ObjectFullOverlap", 325] and "rows" in found["Object", 325]


def test_a_child_of_another_chunk(sky, damaged):
    child = ask(sky, "SELECT min(rowid) FROM ForcedSource WHERE chunkId = 324")[0]
    found = facts_named(damaged(f"UPDATE ForcedSource SET chunkId = 326 WHERE rowid = {child}"))
    assert found.keys() == {("ForcedSource", 324), ("ForcedSource", 326)}
    assert {"rows", "objectId without a row in Object"} | HASH <= found["ForcedSource", 326]
    assert {"rows"} | HASH <= found["ForcedSource", 324]


@pytest.mark.parametrize("column", ["count", "shape", "width", "isStar"])
def test_a_null_turned_into_0(column, damaged):
    first = f'(SELECT min(rowid) FROM Object WHERE "{column}" IS NULL AND chunkId = 324)'
    found = facts_named(damaged(f'UPDATE Object SET "{column}" = 0 WHERE rowid = {first}'))
    assert found.keys() == {("Object", 324)}
    assert {f"NULLs of {column}"} | HASH <= found["Object", 324]


def test_a_string_in_another_case(damaged):
    found = facts_named(
        damaged("UPDATE Object SET note = 'Ab' WHERE rowid = (SELECT min(rowid) FROM Object WHERE note = 'ab')")
    )
    (((table, _), facts),) = found.items()
    assert table == "Object" and {"rows with note = 'ab'", "rows with note = 'Ab'"} | HASH == facts


def test_a_chunk_that_nobody_made_and_a_visit_lost(sky, damaged):
    visit = ask(sky, "SELECT visitId FROM ForcedSource WHERE chunkId = 324 LIMIT 1")[0]
    found = facts_named(
        damaged(
            "UPDATE ObjectFullOverlap SET chunkId = 300 WHERE rowid = (SELECT max(rowid) FROM ObjectFullOverlap)",
            f"DELETE FROM Visit WHERE visitId = {visit}",
        )
    )
    assert found["ObjectFullOverlap", 300] == {"rows"}
    assert {"rows", "different visitId"} <= found["Visit", None]
    assert "visitId without a row in Visit" in found["ForcedSource", 324]
    assert any(fact.startswith("rows of visits in ") for fact in found["ForcedSource", 324])


def test_rows_in_a_file_of_another_tile_are_found(tmp_path, sky, dataset):
    """With views, a tile is asked of its own files; a copy of a chunk that lies elsewhere shows in the whole table."""
    root = tmp_path / "results" / "allkinds"
    shutil.copytree(sky / "results", tmp_path / "results")
    snakemake(tmp_path, "--config", "ingest={materialise_rows: 0}", config=sky / "config.yaml")
    (root / "ingest" / "published.json").unlink()
    snakemake(tmp_path, "--config", "ingest={materialise_rows: 0}", config=sky / "config.yaml")
    with duckdb.connect(str(root / "allkinds.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_views() WHERE NOT internal").fetchone()[0] == 4
    assert verify(root, dataset)["differences"] == []
    source = next(root.glob("store/committed/*/Object/s0009p00000.*.parquet"))
    shutil.copy(source, source.with_name(f"s0000p00000.{source.name}"))
    found = facts_named(verify(root, dataset))
    assert "rows in all files" in found["Object", 324] and found.keys() == {("Object", c) for c in range(324, 328)}


@pytest.fixture(scope="module")
def answered(sky):
    """The folder of the queries, whose answers have been compared."""
    printed = snakemake(sky, "answers", config=sky / "config.yaml")
    assert "classes were answered as expected" in printed
    return sky / "results" / "allkinds" / "queries"


def test_queries_of_all_kinds_are_written_and_answered_as_expected(sky, answered):
    content = yaml.safe_load((answered / "queries.yaml").read_text())
    classes = {one["name"]: one for one in content["classes"]}
    assert {
        "Object_by_id",
        "Object_in_small_box",
        "Object_ForcedSource_in_small_box",
        "Object_by_chunk",
    } <= classes.keys()
    assert {"ForcedSource_of_object", "Object_ForcedSource_join", "ForcedSource_Visit_by_filter"} <= classes.keys()
    assert {"Object_neighbours", "ForcedSource_scan_mag", "ForcedSource_by_chunk"} <= classes.keys()
    assert {one["kind"] for one in classes.values()} == {"interactive", "scan", "join", "neighbours"}
    assert "qserv_areaspec_box({ra_min}" in classes["Object_in_small_box"]["sql"]["qserv"]
    assert "scisql_angSep(" in classes["Object_neighbours"]["sql"]["qserv"]
    # What is expected is not empty, or the comparison would say nothing.
    for name in ("Object_in_small_box", "Object_ForcedSource_in_small_box", "ForcedSource_of_object"):
        assert sum(case["expected"]["value"] for case in classes[name]["cases"]) > 5, name
    low, high = classes["Object_neighbours"]["cases"][0]["expected"]["between"]
    assert 0 < low <= high
    ids = [int(line) for line in (answered / "Object_ids.txt").read_text().split()]
    assert len(ids) == len(set(ids)) > 300
    listed = ", ".join(map(str, ids))
    assert ask(sky, f"SELECT count(*) FROM Object WHERE objectId IN ({listed})")[0] == len(ids)
    answers = json.loads((answered / "answers.json").read_text())
    assert {one["class"] for one in answers} == classes.keys() and all(one["right"] for one in answers)


def test_a_wrong_answer_is_told(sky, answered, dataset):
    database = sky / "results" / "allkinds" / "allkinds.duckdb"
    content = yaml.safe_load((answered / "queries.yaml").read_text())
    box = next(one for one in content["classes"] if one["name"] == "Object_in_small_box")["cases"][0]
    where = f"ra BETWEEN {box['parameters']['ra_min']} AND {box['parameters']['ra_max']} AND dec BETWEEN " + (
        f"{box['parameters']['dec_min']} AND {box['parameters']['dec_max']}"
    )
    kept = database.with_suffix(".kept")
    shutil.copy(database, kept)
    try:
        with duckdb.connect(str(database)) as connection:
            connection.execute(f"DELETE FROM Object WHERE objectId = (SELECT min(objectId) FROM Object WHERE {where})")
        wrong = {one["class"] for one in answer(dataset, database, answered) if not one["right"]}
        assert {"Object_in_small_box", "Object_by_chunk", "Object_neighbours"} <= wrong
        assert "ForcedSource_by_chunk" not in wrong
        printed = snakemake(sky, "answers", config=sky / "config.yaml", ok=False)
        assert "were not answered as expected" in printed and "expected {'value':" in printed
    finally:
        kept.replace(database)


def test_the_target_verify(sky):
    root = sky / "results" / "allkinds"
    config = sky / "config.yaml"
    printed = snakemake(sky, "verify", config=config)
    assert "agree with the truth of generation" in printed
    assert "**The store holds what was made.**" in (root / "verify.md").read_text()
    database = root / "allkinds.duckdb"
    kept = database.with_suffix(".kept")
    shutil.copy(database, kept)
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM Object WHERE rowid = (SELECT min(rowid) FROM Object WHERE chunkId = 325)")
    try:
        printed = snakemake(sky, "verify", config=config, ok=False)
        assert re.search(r"Object chunk 325: rows: expected \d+, found \d+", printed), printed
        assert "snakemake repair" in printed and "Traceback" not in printed
        record = json.loads((root / "verify.json").read_text())
        assert {part["chunk"] for part in record["differences"]} == {325}
        assert "| Object | 325 |" in (root / "verify.md").read_text()
        # Only some chunks: of those nothing is wrong.
        printed = snakemake(sky, "verify", "--config", "only=324,326:330", config=config)
        assert "of 6 chunks agree" in printed
        assert json.loads((root / "verify.json").read_text())["only"] == "324,326:330"
    finally:
        kept.replace(database)


def test_what_cannot_be_verified_is_told_before_any_job(sky, tmp_path):
    config = write_config(tmp_path, all_kinds("allkinds"))
    assert "nothing of results/allkinds is published yet" in snakemake(tmp_path, "verify", config=config, ok=False)
    printed = snakemake(sky, "verify", "--config", "only=72", config=sky / "config.yaml", ok=False)
    assert "only: none of these chunks has been loaded" in printed
    database = sky / "results" / "allkinds" / "allkinds.duckdb"
    kept = database.rename(database.with_suffix(".kept"))
    try:
        printed = snakemake(sky, "verify", config=sky / "config.yaml", ok=False)
    finally:
        kept.rename(database)
    assert printed.count("there is no results/allkinds/allkinds.duckdb; run `snakemake` first") == 1
    assert "Execute" not in printed
    config = write_config(tmp_path, all_kinds("allkinds", ingest={"store": "none"}))
    assert "there is no store to verify" in snakemake(tmp_path, "verify", config=config, ok=False)
