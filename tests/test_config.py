"""The configuration: every wrong input is refused in words, and the fingerprint says what decides the rows."""

import datetime
import functools
import json
import math
import operator
import random
import shutil

import numpy as np
import pytest
import yaml

from helpers import FAKEDB, REPOSITORY, small_config
from skymill.config import Dataset, fingerprint_of, identity_changes, load_dataset
from skymill.errors import ConfigError
from skymill.inputs import check_files
from skymill.schema import check_schema, load_schema

CONSTANT = {"constant": 1}


def change(path, value):
    """A function that sets one value of a configuration; the path is written with dots."""

    def apply(config):
        *folders, last = path.split(".")
        part = config
        for name in folders:
            part = part[int(name)] if isinstance(part, list) else part[name]
        part[int(last) if isinstance(part, list) else last] = value

    return apply


def drop(path):
    """A function that takes one key out of a configuration."""

    def apply(config):
        *folders, last = path.split(".")
        part = config
        for name in folders:
            part = part[int(name)] if isinstance(part, list) else part[name]
        del part[int(last) if isinstance(part, list) else last]

    return apply


def add_column(table="Object", **column):
    def apply(config):
        config["tables"][table]["columns"].append(column)

    return apply


def add_table(name, **keys):
    return change(f"tables.{name}", {"kind": "regular", "rows": 1, "columns": [column("a")]} | keys)


def column(name, sql="INT", generator=None):
    return {"name": name, "type": sql, "generator": generator or CONSTANT}


def rename(old, new):
    def apply(config):
        config["tables"] = {new if name == old else name: table for name, table in config["tables"].items()}

    return apply


def both(*changes):
    def apply(config):
        for one in changes:
            one(config)

    return apply


def load(*changes, folder=REPOSITORY):
    config = small_config(1)
    both(*changes)(config)
    return Dataset.from_config(config, folder)


def test_the_small_sky_is_right():
    assert list(load().tables) == ["CcdVisit", "Object", "ForcedSource"]


# -- the text of the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "database: a\nseed: 1\ndatabase: b\n",
            r'bad\.yaml is not valid YAML: the key "database" stands twice(.|\n)*line 3',
        ),
        ("tables:\n  A: {kind: director, kind: child}\n", r'the key "kind" stands twice(.|\n)*line 2'),
        ("database: a\n\tseed: 1\n", r"Indent with spaces, not with tabs"),
        ("database: [\n", r"bad\.yaml is not valid YAML(.|\n)*line"),
        ("database:\tx\n\ty", r"bad\.yaml is not valid YAML"),
        ("", r"bad\.yaml must be a mapping of keys; start from configs/fakedb/config\.yaml"),
        ("- a\n- b\n", r"bad\.yaml must be a mapping of keys"),
        ("a: !!python/object/apply:os.getcwd []\n", r"bad\.yaml is not valid YAML"),
        ("? [a, b]\n: 1\n", r"bad\.yaml is not valid YAML"),
    ],
)
def test_wrong_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_dataset(tmp_path / "bad.yaml")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml: No such file"):
        load_dataset(tmp_path / "none.yaml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"database: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_dataset(tmp_path / "bad.yaml")


def test_anchors_and_merge_keys_of_yaml_are_read(tmp_path):
    """A survey with many tables repeats itself; YAML has a way to write that once."""
    config = small_config(1, children=False)
    objects = config.pop("tables")["Object"]
    text = yaml.safe_dump(config) + "tables:\n"
    text += "  Object: &object " + yaml.safe_dump(objects, default_flow_style=True, width=10_000)
    text += "  Galaxy:\n    <<: *object\n    density: {per_sq_deg: 7}\n"
    (tmp_path / "config.yaml").write_text(text)
    tables = load_dataset(tmp_path / "config.yaml").tables
    assert tables["Object"].columns == tables["Galaxy"].columns
    assert [tables[name].density["per_sq_deg"] for name in ("Object", "Galaxy")] == [1, 7]


# -- keys and values --------------------------------------------------------------------------------------------------

UNKNOWN = [
    (change("databse", "x"), r'unknown key "databse"; allowed are check_disk, chunks, .*; did you mean "database"\?'),
    (change("tables.Object.densty", 1), r'tables\.Object: unknown key "densty"; .*; did you mean "density"\?'),
    (change("partitioning.overlap", 1), r'partitioning: unknown key "overlap".* did you mean "overlap_deg"\?'),
    (change("tables.Object.columns.0.typ", "INT"), r'tables\.Object\.columns\[0\]: unknown key "typ".*"type"\?'),
    (change("ingest", {"stroe": "none"}), r'ingest: unknown key "stroe".* did you mean "store"\?'),
    (change("keep", {"everything": True}), r'keep: unknown key "everything"; allowed are generated, partitioned'),
    (
        change("tables.Object.density", {"per_sqdeg": 1}),
        r'density: unknown key "per_sqdeg".* did you mean "per_sq_deg"\?',
    ),
    (change("chunks", {"regio": [0, 1, 2, 3]}), r'chunks: unknown key "regio".* did you mean "region"\?'),
    (change("tables.ForcedSource.rows.radius", 1), r'rows: unknown key "radius".* did you mean "radius_deg"\?'),
]
MISSING = [
    (drop("database"), r'the key "database" is missing'),
    (drop("partitioning"), r'the key "partitioning" is missing'),
    (drop("chunks"), r'the key "chunks" is missing'),
    (drop("tables"), r'the key "tables" is missing'),
    (drop("partitioning.num_stripes"), r'partitioning: the key "num_stripes" is missing'),
    (drop("tables.Object.kind"), r'tables\.Object: the key "kind" is missing'),
    (drop("tables.Object.columns"), r'tables\.Object: the key "columns" is missing'),
    (drop("tables.Object.columns.0.type"), r'tables\.Object\.columns\[0\]: the key "type" is missing'),
    (
        drop("tables.Object.columns.0.generator"),
        r'tables\.Object\.columns \(objectId\): the key "generator" is missing',
    ),
    (drop("tables.Object.key"), r'tables\.Object: the key "key" is missing'),
    (drop("tables.Object.position"), r'tables\.Object: the key "position" is missing'),
    (drop("tables.Object.density"), r"tables\.Object\.density: found neither; give either per_sq_deg or map"),
    (drop("tables.ForcedSource.key"), r'tables\.ForcedSource: the key "key" is missing'),
    (
        drop("tables.ForcedSource.rows"),
        r"tables\.ForcedSource\.rows: write \{visits: <table of visits>, radius_deg: 1\.4\}",
    ),
    (drop("tables.ForcedSource.rows.radius_deg"), r'tables\.ForcedSource\.rows: the key "radius_deg" is missing'),
    (drop("tables.CcdVisit.rows"), r"tables\.CcdVisit: give either rows \(a number\) or from_file"),
    (drop("tables.CcdVisit.position"), r'tables\.CcdVisit: the key "position" is missing'),
    (drop("tables.CcdVisit.visit"), r'tables\.ForcedSource\.rows\.visits: "CcdVisit" is not a table of visits'),
]
RANGES = [
    (change("seed", -1), r"seed: -1 is not allowed; it must be at least 0"),
    (change("seed", 2**63), r"seed: 9223372036854775808 .* at most 9223372036854775807"),
    (change("partitioning.num_stripes", 0), r"partitioning\.num_stripes: 0 .* at least 1"),
    (change("partitioning.overlap_deg", 11), r"partitioning\.overlap_deg: 11 .* at most 10"),
    (change("partitioning.overlap_deg", -0.1), r"partitioning\.overlap_deg: -0\.1 .* at least 0"),
    (change("chunks_per_tile", 0), r"chunks_per_tile: 0 .* at least 1"),
    (change("tables.Object.density.per_sq_deg", -1), r"density\.per_sq_deg: -1 .* at least 0"),
    (change("tables.Object.density.per_sq_deg", math.inf), r"density\.per_sq_deg: inf .* at most"),
    (change("tables.Object.density.per_sq_deg", math.nan), r"density.*nan"),
    (change("tables.Object.density", {"map": "x.npy", "scale": 0}), r"density\.scale: 0 .* above 0"),
    (change("tables.CcdVisit.rows", -1), r"tables\.CcdVisit\.rows: -1 .* at least 0"),
    (change("tables.ForcedSource.rows.radius_deg", 0), r"rows\.radius_deg: 0 .* above 0"),
    (change("tables.ForcedSource.rows.radius_deg", 91), r"rows\.radius_deg: 91 .* at most 90"),
    (change("tables.ForcedSource.rows.radius_deg", math.nan), r"radius_deg.*nan"),
    (change("tables.Object.columns.2.null_fraction", 1.1), r"columns\[2\]\.null_fraction: 1\.1 .* at most 1"),
    (change("ingest", {"max_transactions": 8001}), r"ingest\.max_transactions: 8001 .* at most 8000"),
    (change("chunks", -1), r"chunks: -1 .* at least 0"),
]
CHOICES = [
    (
        change("tables.Object.kind", "dirctor"),
        r'tables\.Object\.kind: "dirctor" .* allowed are director, child, regular',
    ),
    (change("ingest", {"store": "duckdb"}), r'ingest\.store: "duckdb" is not allowed; allowed are embedded'),
    (
        change("tables.Object.density", {"map": "x", "ordering": "nest"}),
        r'ordering: "nest" .* allowed are ring, nested',
    ),
    (change("database", "my-db"), r'database: "my-db" is not allowed'),
    (change("database", "1db"), r'database: "1db" is not allowed'),
    (rename("Object", "My_Object"), r'the table name "My_Object" has an underscore; letters and digits only'),
    (rename("Object", "Object-1"), r'tables: "Object-1" is not allowed'),
]
#: The value, and what it must be, in a word of the message.
TYPES = [
    (change("seed", "1"), r'seed: "1" .*(integer|whole number)'),
    (change("seed", 1.5), r"seed: 1\.5 .*(integer|whole number)"),
    (change("partitioning.num_stripes", "many"), r'partitioning\.num_stripes: "many" .*(integer|whole number)'),
    (change("partitioning.overlap_deg", "wide"), r'partitioning\.overlap_deg: "wide" .*number'),
    (change("database", 5), r"database: 5 .*(string|text)"),
    (change("keep", {"generated": "maybe"}), r'keep\.generated: "maybe" .*(boolean|true)'),
    (change("tables", []), r"tables: \[\] .*(mapping|object)"),
    (change("tables.Object.key", 5), r"tables\.Object\.key: 5 .*a text \(string\) or null"),
    (change("column_rules", [{"name": "x"}]), r"column_rules\[0\]: the key generator or null_fraction is missing"),
    (change("tables.Object", "x"), r'tables\.Object: "x" .*(mapping|object)'),
    (change("tables.Object.columns", {}), r"tables\.Object\.columns: \{\} .*(list|array)"),
    (change("tables.Object.position", ["psRa"]), r'tables\.Object\.position: \["psRa"\] .*2 entries'),
    (change("tables.CcdVisit.rows", "many"), r'tables\.CcdVisit\.rows: "many" .*number of rows'),
    (change("chunks", None), r"chunks: null \(no value\) is not allowed.*`all`.*ranges"),
    (change("chunks", True), r"chunks: true is not allowed.*`all`.*ranges"),
    (change("chunks", 1.5), r"chunks: 1\.5 is not allowed.*`all`.*ranges"),
    (change("chunks", ["0:3"]), r'chunks: \["0:3"\] is not allowed.*`all`.*ranges'),
    (change("chunks", []), r"chunks: \[\] is not allowed"),
    (change("chunks", {}), r"chunks: .*(region|from)"),
    (change("chunks", {"region": [0, 1, 2]}), r"chunks\.region: \[0, 1, 2\] .*ra_min, ra_max, dec_min, dec_max"),
    (change("chunks", {"region": [0, 1, 2, "three"]}), r'chunks\.region.*"three"'),
    (change("chunks", {"from": "a.txt", "except": "b.txt"}), r'chunks\.except: "b\.txt"'),
    (change("tables.Object.columns.2.generator", ["normal"]), r'columns\[2\]\.generator: \["normal"\]'),
    (change("tables.Object.columns.2.generator", {"normal": {}, "uniform": {}}), r"columns\[2\]\.generator: .*one"),
    (add_column(**column("x", 5)), r"columns\[3\]\.type: 5 .*MySQL type"),
    (
        add_column(**column("x", "VARCHAR(10)", {"constant": datetime.date(2026, 1, 1)})),
        r"columns\[3\]\.generator\.constant: .*2026-01-01.*quotes",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), UNKNOWN + MISSING + RANGES + CHOICES + TYPES)
def test_wrong_keys_and_values_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        load(wrong)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auth_key", "hunter2"),
        ("auth_key", ["hunter2"]),
        ("auth_key", {"hunter2": None}),
        ("admin_auth_key", {"env": ["hunter2"]}),
        ("sql", {"workers": {"w1": "host"}, "password": "hunter2"}),
        ("url", "http://someone:hunter2@host:25081"),
    ],
)
def test_a_secret_in_the_configuration_is_refused_and_not_shown(key, value):
    qserv = {"url": "http://host:25081", key: value}
    with pytest.raises(ConfigError, match=rf"ingest\.qserv\.{key}.*(not allowed|unknown key)") as error:
        load(change("ingest", {"store": "qserv", "qserv": qserv}))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("tables.Object.density", {"per_sq_deg": "100"}, {"per_sq_deg": 100}),
        ("tables.Object.columns.2.null_fraction", "0.5", 0.5),
        ("chunks", {"region": ["350", "10.5", "-5", "5"]}, {"region": [350, 10.5, -5, 5]}),
        ("chunks", ["1", "2"], [1, 2]),
        ("keep", {"generated": "true"}, {"generated": True}),
        ("partitioning.num_stripes", "18", 18),
        ("ingest", {"store": "none", "publish": "false"}, {"store": "none", "publish": False}),
    ],
)
def test_numbers_in_what_the_command_line_gives_are_read(path, text, value):
    """Snakemake hands over the values inside a mapping or a list of ``--config`` as strings."""
    config = small_config()
    change(path, text)(config)
    check_schema(config)
    *outer, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    found = functools.reduce(operator.getitem, outer, config)[last]
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize(
    ("path", "text"), [("seed", "5"), ("keep", {"generated": "yes please"}), ("chunks", ["1", "two"])]
)
def test_other_strings_are_no_numbers(path, text):
    config = small_config()
    change(path, text)(config)
    with pytest.raises(ConfigError, match="is not allowed"):
        check_schema(config)


def test_up_to_five_errors_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        load(change("seed", -1), change("databse", 1), drop("partitioning.overlap_deg"), change("chunks_per_tile", 0))
    assert len(str(error.value).split("\n")) == 4


@pytest.mark.parametrize(
    ("path", "value"),
    [("seed", 7), ("partitioning.num_stripes", 18), ("tables.CcdVisit.rows", 20), ("chunks_per_tile", 2)],
)
def test_a_whole_number_with_a_dot_is_taken_as_one_or_refused_in_words(path, value):
    try:
        dataset = load(change(path, float(value)))
    except ConfigError as error:
        assert path in str(error) and ("whole" in str(error) or "integer" in str(error))
    else:
        assert dataset.fingerprint() == load(change(path, value)).fingerprint()
        assert json.dumps(dataset.config) == json.dumps(load(change(path, value)).config)


# -- what the schema cannot say ---------------------------------------------------------------------------------------

TABLES = [
    (
        drop("tables.ForcedSource.director"),
        r"tables\.ForcedSource\.director: null .* is not a director table; there are: Object",
    ),
    (
        change("tables.ForcedSource.director", "Objekt"),
        r'director: "Objekt" is not a director table; there are: Object',
    ),
    (
        change("tables.ForcedSource.director", "CcdVisit"),
        r'director: "CcdVisit" is not a director table; there are: Object',
    ),
    (
        both(drop("tables.ForcedSource"), drop("tables.Object")),
        r"tables: there is no director; at least one .*kind: director",
    ),
    (change("tables.Object.director", "Object"), r"tables\.Object\.director: a director table has no such key"),
    (change("tables.CcdVisit.director", "Object"), r"tables\.CcdVisit\.director: a regular table has no such key"),
    (
        change("tables.CcdVisit.density", {"per_sq_deg": 1}),
        r"tables\.CcdVisit\.density: a regular table has no such key",
    ),
    (change("tables.Object.rows", 5), r"tables\.Object\.rows: a director table has no such key; .*density"),
    (
        change("tables.ForcedSource.rows", 5),
        r"tables\.ForcedSource\.rows: 5 is not allowed for a child table; write \{visits",
    ),
    (
        change("tables.ForcedSource.density", {"per_sq_deg": 1}),
        r"tables\.ForcedSource\.density: a child table has no such key",
    ),
    (change("tables.Object.from_file", "a.csv"), r"tables\.Object\.from_file: a director table has no such key"),
    (
        change("tables.Object.density", {"per_sq_deg": 1, "map": "a.npy"}),
        r"tables\.Object\.density: found both; give either",
    ),
    (change("tables.CcdVisit.from_file", "a.csv"), r"tables\.CcdVisit: give either rows \(a number\) or from_file"),
    (change("tables.ForcedSource.rows.visits", "Object"), r'rows\.visits: "Object" is not a table of visits'),
    (change("tables.ForcedSource.rows.visits", "Nothing"), r'rows\.visits: "Nothing" is not a table of visits'),
    (
        change("tables.Object.ingest", False),
        r"tables\.ForcedSource\.ingest: its director Object is not loaded; set ingest: false",
    ),
    (change("tables.Object.key", "id"), r'tables\.Object\.key: there is no column "id"; there are objectId, psRa'),
    (
        change("tables.Object.position", ["ra", "psDecl"]),
        r'tables\.Object\.position: there is no column "ra"; there are',
    ),
    (
        change("tables.ForcedSource.key", "id"),
        r'tables\.ForcedSource\.key: there is no column "id"; there are objectId',
    ),
    (
        change("tables.CcdVisit.visit.id", "id"),
        r'tables\.CcdVisit\.visit: there is no column "id"; there are ccdVisitId',
    ),
    (change("tables.CcdVisit.visit.id", "ra"), r"tables\.CcdVisit\.visit: the id must be an integer column"),
    (change("tables.CcdVisit.visit.filter", "ra"), r"tables\.CcdVisit\.visit: .*the filter a CHAR or VARCHAR column"),
    (change("tables.Object.columns.0.type", "BIGINT"), r"tables\.Object: objectId may be NULL; .*must be NOT NULL"),
    (change("tables.Object.columns.1.type", "DOUBLE"), r"tables\.Object: psRa may be NULL; .*must be NOT NULL"),
    (
        change("tables.Object.columns.1.generator", {"constant": 1}),
        r"tables\.Object\.columns: no column has the generator position; psRa, psDecl need it",
    ),
    (add_table("object"), r"tables\.(O|o)bject: Object and object differ only by case"),
    (add_table("ObjectFullOverlap"), r"tables\.ObjectFullOverlap"),
]
COLUMNS = [
    (add_column(**column("psRa")), r"tables\.Object\.columns: the column psRa stands twice"),
    (add_column(**column("{u,u}X")), r"tables\.Object\.columns: the column uX stands twice"),
    (
        add_column(**column("chunkId")),
        r"tables\.Object\.columns: the column chunkId stands twice \(skymill adds chunkId and subChunkId",
    ),
    (add_column("ForcedSource", **column("subChunkId")), r"the column subChunkId stands twice"),
    (add_column(**column("PSRA")), r"tables\.Object\.columns: .*(PSRA|psRa)"),
    (add_column(**column("chunkid")), r"tables\.Object\.columns: .*chunk(i|I)d"),
    (add_column(**column("a-b")), r'columns\[3\] \(a-b\): column name "a-b": letters, digits and underscores only'),
    (
        add_column(**column(["a", "b"], ["INT"])),
        r"columns\[3\] \(a, b\): 1 types for 2 columns; give one type, or one for each",
    ),
    (add_column(**column("x", "TEXT")), r'columns\[3\] \(x\): type "TEXT": allowed are TINYINT'),
    (
        add_column(**column("x", generator="unifrom")),
        r'columns\[3\] \(x\): unknown generator "unifrom"; there are unique_id, .*; did you mean "uniform"\?',
    ),
    (
        add_column(**column("x", "INT NOT NULL"), null_fraction=0.5),
        r"columns\[3\] \(x\): null_fraction = 0\.5: a column is NOT NULL; drop one of the two",
    ),
    (
        add_column(**column("x", generator={"choice": {"values": [1, 2], "probabilities": [0.5, 0.6]}})),
        r"columns \(x\): probabilities \[0\.5, 0\.6\].* sum 1 \(it is 1\.1\)",
    ),
]
PARTITIONING = [
    (
        change("partitioning.overlap_deg", 2.6),
        r"partitioning: overlap_deg = 2\.6: .*height of a sub-stripe, .*= 2\.5 deg",
    ),
    (
        change("partitioning.overlap_deg", 2.4),
        r"partitioning: overlap_deg = 2\.4: .*sub-chunk's width .*use a smaller overlap",
    ),
    (change("partitioning.overlap_deg", math.nan), r"partitioning: overlap_deg = nan: it must be from 0 to 10"),
    (change("partitioning.num_sub_stripes", 40), r"partitioning: overlap_deg = 0\.5: .*180 / \(18 x 40\) = 0\.25 deg"),
]


@pytest.mark.parametrize(("wrong", "message"), TABLES + COLUMNS + PARTITIONING)
def test_what_does_not_fit_together_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        load(wrong)


def test_the_overlap_may_be_as_high_as_a_sub_stripe():
    assert (
        load(change("partitioning", {"num_stripes": 18, "num_sub_stripes": 1, "overlap_deg": 9.4})).chunker.overlap_deg
        == 9.4
    )
    assert load(change("partitioning.overlap_deg", 0)).chunker.overlap_deg == 0


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (41, r"chunks: the partitioning has no chunk 41; stripe 1 has the chunks 36 to 40"),
        ("41:71", r'chunks: "41:71" selects no chunk of this partitioning'),
        # What YAML makes of 10:20 without quotes.
        (yaml.safe_load("10:20"), r'chunks: 620 is above the last chunk id, 612\..*put quotes around it \("10:20"\)'),
        ({"from": "none.clg"}, r"chunks\.from: cannot read the file of chunk ids .*none\.clg"),
        ({"region": [0, 10, 5, -5]}, r"chunks\.region: \[0, 10, 5, -5\]: write \[ra_min"),
    ],
)
def test_a_wrong_selection_is_refused(chunks, message):
    with pytest.raises(ConfigError, match=message):
        load(change("chunks", chunks)).selection()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(13), r"tables\.Object\.density\.map: .*map\.npy.*shape \(13,\).*12 nside\^2"),
        (np.r_[np.ones(11), -1], r"density\.map: .*map\.npy.*1 of 12 pixels negative, the first is pixel 11"),
        (np.full(12, np.inf), r"density\.map: .*map\.npy.*12 of 12 pixels not a finite number"),
        (np.array(["a"] * 12), r"density\.map: .*map\.npy.*numbers"),
    ],
)
def test_a_wrong_density_map_is_refused(tmp_path, values, message):
    np.save(tmp_path / "map.npy", values)
    dataset = load(change("tables.Object.density", {"map": "map.npy"}), folder=tmp_path)
    with pytest.raises(ConfigError, match=message):
        check_files(dataset, tmp_path / "results")


def test_a_wrong_file_of_visits_is_refused_before_any_job(tmp_path):
    (tmp_path / "visits.csv").write_text("1,u,2,95\n")
    dataset = load(drop("tables.CcdVisit.rows"), change("tables.CcdVisit.from_file", "visits.csv"), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"tables\.CcdVisit\.from_file \(visits\.csv\): decl: row 1 is 95"):
        check_files(dataset, tmp_path / "results")


def test_a_density_map_that_is_not_there_is_refused(tmp_path):
    dataset = load(change("tables.Object.density", {"map": "map.npy"}), folder=tmp_path)
    with pytest.raises(
        ConfigError, match=r"tables\.Object\.density\.map: cannot read .*map\.npy: No such file.*relative to the folder"
    ):
        dataset.identity()
    other = load(
        change("tables.Object.density", {"map": "map.npy"}),
        drop("tables.CcdVisit.rows"),
        change("tables.CcdVisit.from_file", "visits.csv"),
        folder=tmp_path,
    )
    with pytest.raises(
        ConfigError, match=r"CcdVisit\.from_file: visits\.csv; tables\.Object\.density\.map: map\.npy; correct"
    ):
        other.identity()


# -- what it becomes --------------------------------------------------------------------------------------------------


def test_fakedb_is_right():
    dataset = load_dataset(FAKEDB)
    assert dataset.database == "fakedb" and dataset.seed == 1
    assert len(dataset.selection().chunks) == 112
    assert [table.name for table in dataset.tables_of("regular", "director", "child")] == [
        "CcdVisit",
        "Object",
        "ForcedSource",
    ]
    assert [c.name for c in dataset.tables["Object"].stored_columns][-4:] == [
        "zPsFlux",
        "yPsFlux",
        "chunkId",
        "subChunkId",
    ]
    assert [table.name for table in dataset.children_of("Object")] == ["ForcedSource"]
    assert dataset.tables["Object"].overlap_name == "ObjectFullOverlap"
    assert dataset.tables["ForcedSource"].radius_deg == 1.4
    assert dataset.config["ingest"]["store"] == "embedded" and dataset.config["keep"] == {
        "generated": False,
        "partitioned": False,
    }


def test_defaults_are_filled_in_and_the_configuration_is_left_alone():
    config = small_config(1)
    before = yaml.safe_dump(config)
    dataset = Dataset.from_config(config, REPOSITORY)
    assert yaml.safe_dump(config) == before
    defaults = load_schema()["properties"]
    assert dataset.config["chunks_per_tile"] == defaults["chunks_per_tile"]["default"]
    assert dataset.config["keep"] == {"generated": False, "partitioned": False}
    # A job gets the checked configuration, and makes the same of it.
    again = Dataset.from_config(dataset.config, REPOSITORY, check=False)
    assert again.config == dataset.config and again.fingerprint() == dataset.fingerprint()


# -- fingerprint ------------------------------------------------------------------------------------------------------


def shuffled(value, rng):
    """The same mapping with its keys in another order, all through; lists keep theirs."""
    if isinstance(value, dict):
        items = [(key, shuffled(part, rng)) for key, part in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(part, rng) for part in value] if isinstance(value, list) else value


def test_the_fingerprint_is_stable_under_the_order_of_keys():
    rng = random.Random(1)
    expected = load().fingerprint()
    assert len(expected) == 64
    for _ in range(5):
        assert Dataset.from_config(shuffled(small_config(1), rng), REPOSITORY).fingerprint() == expected


@pytest.mark.parametrize(
    "same",
    [
        change("chunks", "36:40"),
        change("chunks_per_tile", 1),
        change("keep", {"generated": True}),
        change("ingest", {"store": "none", "tiles_per_transaction": 1, "max_transactions": 7, "materialise_rows": 0}),
        change("only", "36"),
        change("seed", 1),
    ],
)
def test_what_changes_no_row_changes_no_fingerprint(same):
    assert load(same).fingerprint() == load().fingerprint()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (change("seed", 2), "seed: it was 1, now it is 2"),
        (change("database", "other"), 'database: it was "small", now it is "other"'),
        (change("partitioning.overlap_deg", 0.4), "partitioning.overlap_deg: it was 0.5, now it is 0.4"),
        (change("partitioning.num_sub_stripes", 3), "partitioning.num_sub_stripes: it was 4, now it is 3"),
        (change("tables.Object.density.per_sq_deg", 2), "tables.Object.density.per_sq_deg: it was 1, now it is 2"),
        (change("tables.CcdVisit.rows", 3), "tables.CcdVisit.rows: it was 2000, now it is 3"),
        (
            change("tables.ForcedSource.rows.radius_deg", 1),
            "tables.ForcedSource.rows.radius_deg: it was 1.4, now it is 1",
        ),
        (
            change("tables.Object.columns.2.type", "FLOAT"),
            'tables.Object.columns[{u,g,r}PsFlux].type: it was "DOUBLE", now it is "FLOAT"',
        ),
        (
            change("tables.Object.columns.2.generator.magnitude.max", 28),
            "tables.Object.columns[{u,g,r}PsFlux].generator.magnitude.max: it was 27.5, now it is 28",
        ),
        (
            change("tables.Object.columns.2.null_fraction", 0.5),
            "tables.Object.columns[{u,g,r}PsFlux].null_fraction: it was null, now it is 0.5",
        ),
    ],
)
def test_what_changes_rows_changes_the_fingerprint_and_is_told(other, told):
    old, new = load(), load(other)
    assert new.fingerprint() != old.fingerprint()
    assert list(identity_changes(old.identity(), new.identity())) == [told]
    assert fingerprint_of(new.identity()) == new.fingerprint()


@pytest.mark.parametrize("other", [add_column(**column("x")), add_table("More"), drop("tables.ForcedSource")])
def test_another_column_or_table_changes_the_fingerprint(other):
    assert load(other).fingerprint() != load().fingerprint()
    assert list(identity_changes(load().identity(), load(other).identity()))


def test_the_order_of_columns_is_part_of_the_fingerprint():
    def swap(config):
        config["tables"]["Object"]["columns"].reverse()

    assert load(swap).fingerprint() != load().fingerprint()


def test_files_that_decide_rows_are_part_of_the_fingerprint(tmp_path):
    module, density, visits = (tmp_path / name for name in ("mine.py", "map.npy", "visits.csv"))
    code = "from skymill.columns import Generator\n\n\nclass Mine(Generator):\n    def draw(self, random, rows):\n        return None\n"
    module.write_text(code)
    np.save(density, np.ones(12))
    visits.write_text("1,u,2,3\n")

    def from_file(config):
        table = config["tables"]["CcdVisit"]
        del table["rows"]
        table["from_file"] = "visits.csv"

    changes = [
        change("tables.Object.density", {"map": "map.npy"}),
        add_column(**column("x", generator="mine:Mine")),
        from_file,
    ]
    original = load(*changes, folder=tmp_path)
    fingerprint, identity = original.fingerprint(), original.identity()
    assert sorted(identity["files"]) == ["map.npy", "mine.py", "visits.csv"]
    # Elsewhere the same: only what the files hold counts.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, elsewhere)
    assert load(*changes, folder=elsewhere).fingerprint() == fingerprint
    for path, text in ((module, code + "# changed\n"), (visits, "1,u,2,4\n")):
        before = path.read_bytes()
        path.write_text(text)
        assert load(*changes, folder=tmp_path).fingerprint() != fingerprint, path.name
        told = list(identity_changes(identity, load(*changes, folder=tmp_path).identity()))
        assert told == [f"the file {path.name} has changed"]
        path.write_bytes(before)
    assert load(*changes, folder=tmp_path).fingerprint() == fingerprint
    np.save(density, np.full(12, 2.0))
    assert load(*changes, folder=tmp_path).fingerprint() != fingerprint
