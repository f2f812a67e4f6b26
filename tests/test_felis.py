"""Columns from schema files: the types that Felis has, rules and exceptions, and the dataset dp1.

What needs the package lsst-felis is skipped without it, but fails in continuous integration.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache

import duckdb
import numpy as np
import pytest
import yaml

from helpers import REPOSITORY, assert_mean, director_columns, row_maker, small_config
from skymill.config import Dataset, identity_changes, load_dataset
from skymill.errors import ConfigError
from skymill.felis_schema import MYSQL_TYPES, locate, read_felis, table_columns
from skymill.schema_columns import choose, fits
from skymill.sqltypes import parse_type
from workflow import snakemake

DP1 = REPOSITORY / "configs" / "dp1" / "config.yaml"
RESOURCE = "resource://lsst.sdm.schemas/dp1.yaml"

try:
    import felis.metadata
    import sqlalchemy.dialects.mysql
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("the package lsst-felis is not installed: make felis", allow_module_level=True)

#: A file with a column of each type, some of which may be NULL.
SKY = """\
name: sky
tables:
- name: Star
  primaryKey: "#Star.id"
  columns:
  - {name: tag, "@id": "#Star.tag", datatype: char, length: 3}
  - {name: ra, "@id": "#Star.ra", datatype: double, ivoa:unit: deg}
  - {name: raErr, "@id": "#Star.raErr", datatype: float, ivoa:unit: arcsec}
  - {name: dec, "@id": "#Star.dec", datatype: double, ivoa:unit: deg}
  - {name: decErr, "@id": "#Star.decErr", datatype: float, ivoa:unit: arcsec}
  - {name: id, "@id": "#Star.id", datatype: long}
  - {name: g_flux, "@id": "#Star.g_flux", datatype: double, ivoa:unit: nJy}
  - {name: r_flux, "@id": "#Star.r_flux", datatype: double, ivoa:unit: nJy}
  - {name: g_flux_flag, "@id": "#Star.g_flux_flag", datatype: boolean}
  - {name: byteNumber, "@id": "#Star.byteNumber", datatype: byte, nullable: false}
  - {name: shortNumber, "@id": "#Star.shortNumber", datatype: short}
  - {name: count, "@id": "#Star.count", datatype: int}
  - {name: word, "@id": "#Star.word", datatype: string, length: 20}
  - {name: title, "@id": "#Star.title", datatype: unicode, length: 9}
  - {name: story, "@id": "#Star.story", datatype: text}
  - {name: seen, "@id": "#Star.seen", datatype: timestamp}
  - {name: seenFinely, "@id": "#Star.seenFinely", datatype: timestamp, precision: 6}
  - {name: small, "@id": "#Star.small", datatype: double, mysql:datatype: FLOAT}
- name: Other
  columns:
  - {name: blob, "@id": "#Other.blob", datatype: binary, length: 5}
"""
STAR = {
    "kind": "director",
    "key": "id",
    "position": ["ra", "dec"],
    "density": {"per_sq_deg": 60},
    "schema": {"felis": "sky.yaml", "table": "Star"},
    "columns": [
        {"name": "id", "generator": "unique_id"},
        {"name": ["ra", "raErr", "dec", "decErr"], "generator": {"position": {"error_deg": [0, 1]}}},
    ],
}


def star_config(rules=None, **star):
    """The configuration of a small sky with the table Star."""
    config = small_config(1, children=False)
    config["tables"] = {"Star": {**json.loads(json.dumps(STAR)), **star}}
    return config if rules is None else {**config, "column_rules": rules}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sky.yaml").write_text(SKY)
    return tmp_path


def star(folder, rules=None, **keys):
    return Dataset.from_config(star_config(rules, **keys), folder).tables["Star"]


def stated(folder, rules=None, **keys):
    """The generator and the share of NULLs of each column, as (class, options, share)."""
    found = {}
    for entry in star(folder, rules, **keys).entries:
        options = {key: value for key, value in vars(entry.generator).items() if key != "columns"}
        found |= {
            column.name: (type(entry.generator).__name__, options, entry.null_fraction) for column in entry.columns
        }
    return found


@cache
def dp1_dataset():
    return load_dataset(DP1)


# -- types ------------------------------------------------------------------------------------------------------------


def felis_declarations(path):
    """What Felis declares in MySQL for the columns of each table."""
    schema = felis.datamodel.Schema.from_uri(str(path), context={"id_generation": True})
    tables = felis.metadata.MetaDataBuilder(schema, apply_schema_to_metadata=False).build().tables
    dialect = sqlalchemy.dialects.mysql.dialect()
    found = {}
    for name, table in tables.items():
        never_null = [not column.nullable or column.primary_key for column in table.columns]
        types = [column.type.compile(dialect=dialect) for column in table.columns]
        types = [text + (" NOT NULL" if never else "") for text, never in zip(types, never_null, strict=True)]
        found[name] = list(zip(table.columns.keys(), types, strict=True))
    return found


@cache
def dp1_declarations():
    return felis_declarations(locate(RESOURCE, DP1.parent, "x"))


def test_every_type_is_declared_as_felis_does_it(folder):
    for table in ("Star", "Other"):
        columns = table_columns(read_felis(folder / "sky.yaml", "x"), table, "x")
        assert [(c["name"], c["type"]) for c in columns] == felis_declarations(folder / "sky.yaml")[table]
        assert {c["datatype"] for c in columns} <= MYSQL_TYPES.keys()
    assert set(MYSQL_TYPES) == {item.value for item in felis.datamodel.DataType}


@pytest.mark.parametrize(
    ("table", "count"), [("Object", 1296), ("Source", 156), ("ForcedSource", 28), ("Visit", 15), ("CcdVisit", 50)]
)
def test_dp1_has_the_names_types_and_order_of_its_schema(table, count):
    expected = dp1_declarations()[table]
    director = dp1_dataset().tables["Object"]
    never_null = {"objectId", "coord_ra", "coord_dec"} if table == "Object" else set()
    never_null |= {"objectId"} if table == "ForcedSource" else set()
    found = [(column.name, column.type.text) for column in dp1_dataset().tables[table].columns]
    assert len(found) == count
    # Keys and positions of a director must not be NULL, whatever the file says.
    assert [(n, t.replace(" NOT NULL", "") if n in never_null else t) for n, t in found] == [
        (n, t.replace(" NOT NULL", "") if n in never_null else t) for n, t in expected
    ]
    assert all("NOT NULL" in text for name, text in found if name in never_null)
    assert director.key == "objectId"


def test_keys_and_positions_are_never_null(folder):
    types = {column.name: column.type.text for column in star(folder).columns}
    assert types["id"] == "BIGINT NOT NULL" and types["ra"] == types["dec"] == "DOUBLE NOT NULL"
    assert types["byteNumber"] == "TINYINT NOT NULL" and types["raErr"] == "FLOAT"


# -- rules and exceptions ---------------------------------------------------------------------------------------------


def test_columns_without_a_rule_get_values_that_fit_their_type(folder):
    table = star(folder)
    made = director_columns(maker(folder), 324)
    assert [column.name for column in table.columns] == [
        line["name"] for line in yaml.safe_load(SKY)["tables"][0]["columns"]
    ]
    assert set(np.unique(made["g_flux_flag"])) == {0, 1}
    assert made["count"].min() == 0 and made["count"].max() == 100
    assert len(set(made["word"].tolist())) > 1000 and {len(text) for text in made["tag"].tolist()} == {3}
    assert {time.year for time in made["seen"].tolist()} == {2025}
    assert made["small"].dtype == np.float32


def maker(folder, rules=None, **keys):
    """A maker of rows of the small sky with Star in the place of Object."""
    config = star_config(rules, **keys)
    config["tables"] = {"Object": config["tables"]["Star"]}
    return row_maker(Dataset.from_config(config, folder))


RULES = [
    {"name": "g_*", "type": "double", "generator": {"normal": {"mean": 1}}},
    {"null_fraction": 0.25, "type": ["double", "float"]},
    {"unit": "nJy", "generator": {"normal": {"mean": 2}}, "null_fraction": 0.75},
    {"name": ["{byte,short}Number", "count"], "generator": {"poisson": 7}},
    {"name": "wor?", "generator": {"constant": "w"}},
    {"unit": "", "type": "unicode", "table": "{Star,Object}", "generator": {"constant": "u"}, "null_fraction": 1},
]


def test_the_first_rule_that_fits_counts(folder):
    found = stated(folder, RULES)
    assert found["g_flux"] == ("Normal", {"mean": 1, "sigma": 1.0}, 0.25)
    assert found["r_flux"] == ("Normal", {"mean": 2, "sigma": 1.0}, 0.25)
    assert found["small"] == ("Uniform", {"min": 0.0, "max": 1.0}, 0.25)
    # A column that must not be NULL has no NULLs, an exception has those that it states.
    assert found["byteNumber"] == ("Poisson", {"mean": 7}, 0.0) and found["count"][:2] == found["shortNumber"][:2]
    assert found["ra"][2] == found["raErr"][2] == 0.0
    assert found["word"][1] == {"value": "w"} and found["title"] == ("Constant", {"value": "u"}, 1)


def test_exceptions_go_before_rules_and_may_add_columns(folder):
    columns = [
        *STAR["columns"],
        {"name": "{g,r}_flux", "generator": "uniform", "null_fraction": 0.5},
        {"name": "count", "null_fraction": 0.5},
        {"name": "small", "type": "DOUBLE NOT NULL", "generator": "normal"},
        {"for": {"band": ["g", "r"]}, "columns": [{"name": "{band}_new", "type": "INT", "generator": {"constant": 1}}]},
    ]
    found = stated(folder, RULES, columns=columns)
    assert found["g_flux"] == found["r_flux"] == ("Uniform", {"min": 0.0, "max": 1.0}, 0.5)
    assert found["count"] == ("Poisson", {"mean": 7}, 0.5)
    assert found["small"][0] == "Normal"
    names = [column.name for column in star(folder, RULES, columns=columns).columns]
    assert names[:2] == ["tag", "ra"] and names[-3:] == ["small", "g_new", "r_new"]
    types = {column.name: column.type.text for column in star(folder, RULES, columns=columns).columns}
    assert types["small"] == "DOUBLE NOT NULL" and types["g_flux"] == "DOUBLE"


def test_nulls_have_their_share(folder):
    made = director_columns(maker(folder, RULES), 324)
    count = len(made["id"])
    assert count > 4000
    for name, share in (("g_flux", 0.25), ("r_flux", 0.25), ("small", 0.25), ("ra", 0), ("byteNumber", 0)):
        assert_mean(np.ma.getmaskarray(made[name]).mean(), share, np.sqrt(share * (1 - share) / count))
    assert set(made["title"].tolist()) == {None}


@pytest.mark.parametrize(
    ("rule", "fitting"),
    [
        ({"name": "a*"}, True),
        ({"name": "*b"}, False),
        ({"name": ["x", "a?c"]}, True),
        ({"name": "{ab,abc}"}, True),
        ({"name": "A*"}, False),
        ({"name": "a.c"}, False),
        ({"unit": "pixel**2"}, True),
        ({"unit": ""}, False),
        ({"type": "float", "table": "Object"}, True),
        ({"type": "float", "table": "Source"}, False),
        ({}, True),
    ],
)
def test_patterns(rule, fitting):
    column = {
        "name": "abc",
        "datatype": "float",
        "type": "FLOAT",
        "unit": "pixel 2" if "*" not in str(rule) else "pixel**2",
    }
    assert fits(rule, "Object", column) is fitting
    assert choose([rule | {"generator": "normal"}], "Object", column)[0] == ("normal" if fitting else "uniform")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schema": {"felis": "none.yaml", "table": "Star"}}, r"tables\.Star\.schema: there is no file .*none\.yaml"),
        (
            {"schema": {"felis": "sky.yaml", "table": "star"}},
            r'schema\.table: sky has no table "star"; there are: Star, Other',
        ),
        (
            {"schema": {"felis": "resource://no.such.package/a.yaml", "table": "Star"}},
            r"the package no\.such\.package of resource://no\.such\.package/a\.yaml is not installed; correct the name, or install it with `make felis`",
        ),
        (
            {"schema": {"felis": "resource://lsst.sdm.schemas/none.yaml", "table": "a"}},
            r"there is no file .*none\.yaml",
        ),
        ({"schema": {"felis": "bad.yaml", "table": "Star"}}, r"bad\.yaml is not a valid Felis file: .*'real'"),
        ({"schema": {"felis": "broken.yaml", "table": "Star"}}, r"broken\.yaml is not a valid Felis file: "),
        (
            {"schema": {"felis": "empty.yaml", "table": "Star"}},
            r"empty\.yaml is not a valid Felis file: it holds no mapping",
        ),
        ({"schema": {"felis": "sky.yaml"}}, r'tables\.Star\.schema: the key "table" is missing'),
        ({"schema": {"felis": "sky.yaml", "table": "Other"}}, r'schema\.Other \(blob\): type "LONGBLOB": allowed are'),
        (
            {"columns": [*STAR["columns"], {"name": "gflux", "generator": "normal"}]},
            r'columns\[2\]: sky\.yaml has no column "gflux" in Star; did you mean "g_flux"\? To add a column, give its type',
        ),
        (
            {"columns": [*STAR["columns"], {"name": "count", "generator": "normal"}]},
            r"tables\.Star\.columns \(count\): INTEGER: the generator fills columns of the kind float",
        ),
        ({"columns": [*STAR["columns"], STAR["columns"][0]]}, r"columns\[2\]: the column id stands twice"),
        (
            {"columns": [*STAR["columns"], {"name": "new", "type": "INT"}]},
            r'columns \(new\): the key "generator" is missing',
        ),
    ],
)
def test_what_is_wrong_is_told(folder, keys, message):
    (folder / "bad.yaml").write_text(SKY.replace("datatype: double", "datatype: real"))
    (folder / "empty.yaml").write_text("")
    (folder / "broken.yaml").write_text("name: [")
    if keys.get("schema", {}).get("table") == "Other":
        keys = {**keys, "columns": [{"name": "x", "type": "INT", "generator": {"constant": 1}}]}
    with pytest.raises(ConfigError, match=message):
        star(folder, **keys)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [*RULES, {"name": "flux*", "generator": "normal"}],
            r"column_rules\[6\]: no column of a schema file fits name: flux\*",
        ),
        (
            [{"table": "Object", "null_fraction": 1}],
            r"column_rules\[0\]: no column .* fits table: Object; correct it, or drop it",
        ),
        ([{"name": "*", "generator": "nomal"}], r'schema\.Star \(tag\): unknown generator "nomal"'),
        ([{"name": "*"}], r"column_rules\[0\]"),
        ([{"nam": "*", "generator": "normal"}], r'column_rules\[0\]: unknown key "nam"'),
        ([], r"column_rules: \[\] is not allowed"),
    ],
)
def test_wrong_rules_are_told(folder, rules, message):
    with pytest.raises(ConfigError, match=message):
        star(folder, rules)


def test_rules_without_a_schema_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"column_rules\[0\]: no column of a schema file fits it"):
        Dataset.from_config(small_config(1, children=False, column_rules=[{"generator": "normal"}]), tmp_path)


def test_a_table_from_a_file_may_have_a_schema(folder):
    (folder / "other.csv").write_text("a,b\n1,x\n")
    (folder / "small.yaml").write_text(
        "name: small\ntables:\n- name: Band\n  columns:\n  - {name: a, datatype: int}\n  - {name: b, datatype: char, length: 2}\n"
    )
    config = star_config()
    config["tables"]["Band"] = {
        "kind": "regular",
        "from_file": "other.csv",
        "schema": {"felis": "small.yaml", "table": "Band"},
    }
    table = Dataset.from_config(config, folder).tables["Band"]
    assert [(column.name, column.type.text) for column in table.columns] == [("a", "INTEGER"), ("b", "CHAR(2)")]


def test_the_example_of_the_readme(tmp_path):
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    config = yaml.safe_load(next(block for block in blocks if "column_rules:" in block))
    (tmp_path / "survey.yaml").write_text(
        "name: survey\ntables:\n- name: Star\n  columns:\n"
        "  - {name: starId, datatype: long}\n  - {name: ra, datatype: double}\n  - {name: dec, datatype: double}\n"
        "  - {name: flag, datatype: boolean}\n  - {name: fluxErr, datatype: float, ivoa:unit: nJy}\n"
        "  - {name: flux, datatype: float, ivoa:unit: nJy}\n  - {name: size, datatype: float, ivoa:unit: arcsec}\n"
    )
    config = small_config(1, children=False) | config
    table = Dataset.from_config(config, tmp_path).tables["Star"]
    made = {entry.columns[0].name: type(entry.generator).__name__ for entry in table.entries}
    assert made == {
        "starId": "UniqueId", "ra": "Position", "flag": "Choice", "fluxErr": "Uniform", "flux": "Magnitude", "size": "Uniform",
    }  # fmt: skip


# -- what decides rows ------------------------------------------------------------------------------------------------


def test_the_fingerprint_holds_what_the_file_says_and_nothing_else_of_it(folder):
    first = Dataset.from_config(star_config(RULES), folder)
    (folder / "sky.yaml").write_text(SKY.replace("name: sky", "name: sky\ndescription: the same in other words"))
    assert Dataset.from_config(star_config(RULES), folder).fingerprint() == first.fingerprint()
    (folder / "sky.yaml").write_text(SKY.replace("length: 3", "length: 4"))
    other = Dataset.from_config(star_config(RULES), folder)
    told = list(identity_changes(first.identity(), other.identity()))
    assert told == ['tables.Star.schema.columns[tag].type: it was "CHAR(3)", now it is "CHAR(4)"']
    (folder / "sky.yaml").write_text("".join(line for line in SKY.splitlines(True) if "story" not in line))
    told = list(identity_changes(first.identity(), Dataset.from_config(star_config(RULES), folder).identity()))
    assert len(told) == 1 and "story" in told[0] and told[0].endswith("was in it")
    rules = [*RULES[1:], RULES[0]]
    assert Dataset.from_config(star_config(rules), folder).fingerprint() != other.fingerprint()


# -- the package is imported for nothing else -------------------------------------------------------------------------

PROBE = """
import sys
from pathlib import Path
sys.path.insert(0, {scripts!r})
{before}
from skymill.config import Dataset, load_dataset
{then}
print(sorted(name for name in ("felis", "pydantic", "sqlalchemy", "lsst.sdm.schemas") if sys.modules.get(name)))
"""


def probe(then, before="", cwd=None):
    """What a new Python process prints."""
    code = PROBE.format(scripts=str(REPOSITORY / "scripts"), before=before, then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    return done.stdout.strip() if done.returncode == 0 else done.stderr


def test_other_datasets_do_not_import_it():
    for name in ("fakedb", "kpm50"):
        path = str(REPOSITORY / "configs" / name / "config.yaml")
        assert probe(f"load_dataset(Path({path!r}))") == "[]"


def test_jobs_do_not_import_it(folder):
    """A job gets the configuration as it was read."""
    config = Dataset.from_config(star_config(RULES), folder).config
    (folder / "config.json").write_text(json.dumps(config))
    then = "import json; dataset = Dataset.from_config(json.loads(Path('config.json').read_text()), Path('.'), check=False)"
    assert probe(then + "; assert len(dataset.tables['Star'].columns) == 18", cwd=folder) == "[]"


#: As if the package were not installed.
WITHOUT = "sys.modules['felis'] = None"


def test_it_is_told_how_to_install_it(folder):
    (folder / "config.yaml").write_text(yaml.safe_dump(star_config(RULES)))
    printed = probe("load_dataset(Path('config.yaml'))", WITHOUT, folder)
    assert "tables.Star.schema.felis: to read sky.yaml, the package lsst-felis is needed" in printed
    assert "install it with `make felis`, or `pip install -r requirements-felis.lock`" in printed


def test_what_was_planned_is_not_read_again_until_the_file_changes(folder):
    (folder / "config.yaml").write_text(
        yaml.safe_dump(star_config(RULES) | {"chunks": "324", "ingest": {"store": "none"}})
    )
    snakemake(folder, config=folder / "config.yaml")
    assert probe("print(load_dataset(Path('config.yaml')).fingerprint()[:0], end='')", WITHOUT, folder) == "[]"
    (folder / "sky.yaml").write_text(SKY + "# another file\n")
    assert "lsst-felis is needed" in probe("load_dataset(Path('config.yaml'))", WITHOUT, folder)
    # Read again, it says the same; then it says something else.
    assert "Nothing to be done" in snakemake(folder, "-n", config=folder / "config.yaml")
    (folder / "sky.yaml").write_text(SKY.replace("length: 3", "length: 4"))
    printed = snakemake(folder, "-n", config=folder / "config.yaml", ok=False)
    assert 'tables.Star.schema.columns[tag].type: it was "CHAR(3)", now it is "CHAR(4)"' in printed


# -- dp1 --------------------------------------------------------------------------------------------------------------


def test_dp1(tmp_path):
    """The workflow makes dp1, here with fewer objects, and the database holds what it should."""
    config = yaml.safe_load(DP1.read_text())
    config["tables"]["Object"]["density"]["per_sq_deg"] = 2000
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    snakemake(tmp_path, config=tmp_path / "config.yaml")
    with duckdb.connect(str(tmp_path / "results" / "dp1" / "dp1.duckdb"), read_only=True) as database:
        for check in (check_rows, check_types, check_keys, check_values, check_sources):
            check(database)
    for target in ("verify", "answers"):
        snakemake(tmp_path, target, config=tmp_path / "config.yaml")


def ask(database, query):
    return database.execute(query).fetchall()


def check_rows(database):
    counts = {
        name: ask(database, f"SELECT count(*) FROM {name}")[0][0]
        for name in ("Object", "Source", "ForcedSource", "Visit", "CcdVisit")
    }
    assert counts["Visit"] == 1786 and counts["CcdVisit"] == 9 * 1786
    assert 450 < counts["Object"] < 700
    assert 114 < counts["ForcedSource"] / counts["Object"] < 120
    assert 16 < counts["Source"] / counts["Object"] < 24


def check_types(database):
    expected = {"BOOL": "BOOLEAN", "INTEGER": "INTEGER", "CHAR": "VARCHAR", "DATETIME": "TIMESTAMP"}
    for table in dp1_dataset().tables.values():
        stored = {row[0]: row[1] for row in ask(database, f"DESCRIBE {table.name}")}
        for column in table.columns:
            base = column.type.text.split()[0].split("(")[0]
            assert stored[column.name] == expected.get(base, base), column.name


def check_keys(database):
    for table, condition in (
        ("ForcedSource AS a ANTI JOIN Object AS b", "a.objectId = b.objectId"),
        ("ForcedSource AS a ANTI JOIN Visit AS b", "a.visit = b.visit"),
        ("ForcedSource AS a ANTI JOIN CcdVisit AS b", "a.visit = b.visitId AND a.detector = b.detector"),
        ("Source AS a ANTI JOIN Visit AS b", "a.visit = b.visit AND a.band = b.band"),
        (
            "Source AS a ANTI JOIN CcdVisit AS b",
            "a.visit = b.visitId AND a.detector = b.detector AND a.physical_filter = b.physical_filter",
        ),
        ("CcdVisit AS a ANTI JOIN Visit AS b", "a.visitId = b.visit AND a.expMidpt = b.expMidpt AND a.band = b.band"),
    ):
        assert ask(database, f"SELECT count(*) FROM {table} ON {condition}") == [(0,)], table
    for table, key in (
        ("Object", "objectId"),
        ("Source", "sourceId"),
        ("Visit", "visit"),
        ("CcdVisit", "(visitId, detector)"),
        ("CcdVisit", "ccdVisitId"),
        ("ForcedSource", "(objectId, visit)"),
    ):
        assert ask(database, f"SELECT count(*) - count(DISTINCT {key}), count(*) - count({key}) FROM {table}") == [
            (0, 0)
        ]
    near = "abs(b.dec - a.coord_dec) < 0.1171 AND abs(b.ra - a.coord_ra) * cos(radians(a.coord_dec)) < 0.1175"
    join = "ForcedSource AS a JOIN CcdVisit AS b ON a.visit = b.visitId AND a.detector = b.detector"
    assert ask(database, f"SELECT count(*) FROM {join} WHERE NOT ({near})") == [(0,)]


def check_values(database):
    assert ask(database, "SELECT DISTINCT band || '=' || physical_filter FROM Visit ORDER BY 1") == [
        (f"{name[0]}={name}",) for name in ("g_01", "i_06", "r_03", "u_02", "y_04", "z_03")
    ]
    for table in ("Visit", "CcdVisit"):
        late = "abs(epoch_us({0}) - ({0}MJD - 40587) * 86400000000)"
        worst = ask(database, f"SELECT max({late.format('expMidpt')}), max({late.format('obsStart')}) FROM {table}")[0]
        assert max(worst) <= 1
        assert ask(database, f"SELECT min(expMidpt) > '2024-11-08', max(expMidpt) < '2024-12-12' FROM {table}") == [
            (True, True)
        ]
    # A flag is true in 2 of 100 rows, and NULL in 2 of 100, as other columns that may be NULL.
    table = dp1_dataset().tables["Source"]
    flags = [c.name for c in table.columns if c.type.kind == "boolean"]
    parts = ", ".join(f"count({name}), count(*) FILTER ({name})" for name in flags)
    total, *found = ask(database, f"SELECT count(*), {parts} FROM Source")[0]
    cells = total * len(flags)
    assert_mean(1 - sum(found[::2]) / cells, 0.02, np.sqrt(0.02 * 0.98 / cells))
    assert_mean(sum(found[1::2]) / cells, 0.98 * 0.02, np.sqrt(0.0196 * 0.98 / cells))
    assert ask(database, "SELECT count(*) - count(r_psfFlux) > 0, min(r_psfFlux) > 0 FROM Object") == [(True, True)]
    noise = "(f.psfFlux - CASE f.band {} END) / f.psfFluxErr".format(
        " ".join(f"WHEN '{band}' THEN o.{band}_psfFlux" for band in "ugrizy")
    )
    rows, mean, width = ask(
        database,
        f"SELECT count({noise}), avg({noise}), stddev_pop({noise}) FROM ForcedSource AS f JOIN Object AS o USING (objectId)",
    )[0]
    assert_mean(mean, 0, 1 / np.sqrt(rows))
    assert_mean(width, 1, 1 / np.sqrt(2 * rows))


def check_sources(database):
    """A source has no objectId in this schema: it is found by its place."""
    join = (
        "Source AS s JOIN Object AS o ON s.chunkId = o.chunkId AND s.subChunkId = o.subChunkId "
        "AND abs(s.dec - o.coord_dec) < 1e-4 AND abs(s.ra - o.coord_ra) < 1.2e-4"
    )
    rows = ask(database, f"SELECT count(*), min(o.r_psfFlux) FROM {join}")[0]
    assert rows[0] == ask(database, "SELECT count(*) FROM Source")[0][0] and rows[1] > 275


def test_every_type_of_dp1_is_one_of_ours():
    for table in dp1_dataset().tables.values():
        assert all(parse_type(column.type.text) == column.type for column in table.columns)
