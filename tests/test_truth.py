"""Facts and hashes of rows: the same by compiled loops and without, in numpy, DuckDB and MariaDB, and whatever the blocks."""

import gzip
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from helpers import row_maker, small_dataset
from skymill import fact_kernels, facts
from skymill.blocks import Joiner
from skymill.columns import Column, Strings
from skymill.config import Dataset
from skymill.errors import SkymillError
from skymill.facts import TableFacts, table_facts
from skymill.pairs import chord_squared, count_pairs
from skymill.rowhash import NULL_BITS, RowHasher, hash_keys, hash_placed, hash_query
from skymill.sqltypes import parse_type
from skymill.tables import PLACE_COLUMNS
from skymill.tally import Tally
from skymill.truth import TileTruth, TruthTaker, add_up, keep_truth, truth_path
from verifying import all_kinds
from workflow import PROJECT

TYPES = [
    "BIGINT", "INT", "SMALLINT", "TINYINT", "BIGINT UNSIGNED", "INT UNSIGNED", "SMALLINT UNSIGNED", "TINYINT UNSIGNED",
    "FLOAT", "DOUBLE", "BOOLEAN", "CHAR(4)", "VARCHAR(9)", "DATETIME(6)",
]  # fmt: skip
#: Values that hashes and sums go wrong with, if anywhere.
HARD = {
    "f4": [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0, -1.0, 0.1],
    "f8": [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1e308, -1e308, 0.1, 1 / 3, -1.0],
}
EDGES = (-1.0, 0.0, 0.25, 1.0)


def hard_rows(count: int = 5000, nulls: float = 0.1) -> tuple[list[Column], dict]:
    """Columns of all types with hard and random values."""
    random = np.random.default_rng(3)
    columns, values = [], {}
    for i, text in enumerate(TYPES):
        column = Column(f"c{i}", parse_type(text))
        columns.append(column)
        dtype = column.type.dtype
        if dtype is None:
            words = ("a", "B", "ab ", "it's", "") if "VAR" in text else ("a", "b", "c ", "d'")
            values[column.name] = Strings(random.integers(-1, len(words), count).astype(np.int32), words)
            continue
        if dtype.kind == "f":
            data = random.standard_normal(count).astype(dtype)
            data[: len(HARD[dtype.str[1:]])] = HARD[dtype.str[1:]]
        elif dtype.kind == "M":
            # From the year 1000 to 9999, which is what MySQL holds.
            data = random.integers(-30610224000 * 10**6, 253402300799 * 10**6, count).astype(dtype)
        elif text == "BOOLEAN":
            data = random.integers(0, 2, count).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            data = random.integers(limits.min, limits.max, count, dtype=dtype, endpoint=True)
            data[:2] = limits.min, limits.max
        values[column.name] = np.ma.masked_array(data, random.random(count) < nulls) if nulls else data
    return columns, values


def kind_of(columns: list[Column], places: bool = False) -> TableFacts:
    edges = {column.name: EDGES for column in columns if column.type.kind == "float"}
    stored = [*columns, *PLACE_COLUMNS] if places else columns
    return TableFacts(None, columns, stored, edges, [columns[0].name, columns[1].name], [], [])


def cut(values: dict, start: int, stop: int) -> dict:
    return {name: part[start:stop] for name, part in values.items()}


# -- hashes -----------------------------------------------------------------------------------------------------------


def plain_hash(columns: list[Column], values: dict) -> tuple[int, int]:
    """The hash as its definition says it, value by value in Python's whole numbers."""
    import datetime
    import hashlib
    import struct

    mask = 0xFFFFFFFF
    mix = ((0x2C1B3C6D, 0x297A2D39), (0x31848BAB, 0x2D2816FD))
    rows = []
    for column in columns:
        part = values[column.name]
        listed = part.to_list() if isinstance(part, Strings) else np.ma.asarray(part).tolist()
        bits = []
        for value in listed:
            if value is None:
                bits.append(0x7FF8000000000001)
            elif column.type.kind == "string":
                text = value.rstrip(" ") if column.type.text.startswith("CHAR") else value
                bits.append(int(hashlib.md5(text.encode()).hexdigest()[:16], 16))
            elif column.type.kind == "datetime":
                since = value - datetime.datetime(1970, 1, 1)
                bits.append(since // datetime.timedelta(microseconds=1) & (2**64 - 1))
            elif column.type.kind == "float":
                bits.append(struct.unpack("<Q", struct.pack("<d", float(value) + 0.0))[0])
            else:
                bits.append(int(value) & (2**64 - 1))
        rows.append(bits)
    sums = [0, 0]
    for bits in zip(*rows, strict=True):
        for lane in (0, 1):
            key = 0
            for j, value in enumerate(bits):
                for k, half in enumerate((value & mask, value >> 32)):
                    factor = ((4 * j + 2 * lane + k + 1) * 0x9E3779B1 & 0x7FFFFFFF) | 1
                    key += half * factor & mask
            x = (key ^ key >> 32) & mask
            x = x * mix[lane][0] & mask
            x ^= x >> 12
            x = x * mix[lane][1] & mask
            x ^= x >> 15
            sums[lane] += x
    return sums[0] % 2**64, sums[1] % 2**64


def test_the_hash_is_the_one_that_was_defined():
    columns, values = hard_rows(400)
    assert hash_keys(RowHasher(columns).keys(values, 400)) == plain_hash(columns, values)
    assert NULL_BITS == 0x7FF8000000000001


def test_the_hash_does_not_depend_on_blocks_or_order_but_on_all_else():
    columns, values = hard_rows(20_000)
    hasher = RowHasher(columns)
    whole = hash_keys(hasher.keys(values, 20_000))
    parts = [hash_keys(hasher.keys(cut(values, a, b), b - a)) for a, b in ((0, 1), (1, 17_000), (17_000, 20_000))]
    assert tuple(sum(part[lane] for part in parts) % 2**64 for lane in (0, 1)) == whole
    order = np.random.default_rng(1).permutation(20_000)
    assert hash_keys(hasher.keys({name: part[order] for name, part in values.items()}, 20_000)) == whole
    for name, part in values.items():
        changed = {**values, name: part[np.roll(np.arange(20_000), 1)]}
        assert hash_keys(hasher.keys(changed, 20_000)) != whole


def test_duckdb_has_the_same_hash():
    columns, values = hard_rows()
    arrays = [
        pa.array(part.to_list(), pa.string())
        if isinstance(part, Strings)
        else pa.array(np.ma.getdata(part), mask=np.ma.getmaskarray(part))
        for part in values.values()
    ]
    with duckdb.connect() as database:
        database.register("source", pa.table(arrays, names=list(values)))
        database.execute(f"CREATE TABLE t ({', '.join(f'{c.name} {c.type.duckdb}' for c in columns)})")
        database.execute("INSERT INTO t SELECT * FROM source")
        found = database.execute(hash_query(columns, "t", "duckdb")).fetchone()
    assert found == hash_keys(RowHasher(columns).keys(values, 5000))


@pytest.mark.parametrize("count", [331, 1296])
def test_wide_tables_have_the_same_hash_in_duckdb(count):
    columns = [Column(f"c{i}", parse_type("FLOAT" if i % 3 else "INT")) for i in range(count)]
    random = np.random.default_rng(5)
    values = {c.name: random.integers(-9, 9, 50).astype(c.type.dtype) for c in columns}
    with duckdb.connect() as database:
        database.register("source", pa.table({name: pa.array(part) for name, part in values.items()}))
        database.execute("CREATE TABLE t AS SELECT * FROM source")
        found = database.execute(hash_query(columns, "t", "duckdb")).fetchone()
    assert found == hash_keys(RowHasher(columns).keys(values, 50))


def test_mariadb_has_the_same_hash():
    pytest.importorskip("pymysql")
    if shutil.which("mariadbd") is None and not os.environ.get("CI"):
        pytest.skip("mariadbd is not installed (Debian: apt install mariadb-server)")
    from qserv_server.mariadb import MariaDB
    from skymill.textfile import format_rows

    columns, values = hard_rows(600)
    wide = [Column(f"w{i}", parse_type("FLOAT" if i % 3 else "BIGINT")) for i in range(331)]
    random = np.random.default_rng(5)
    wide_values = {c.name: (random.standard_normal(40) * 1e6).astype(c.type.dtype) for c in wide}
    folder = Path(tempfile.mkdtemp(prefix="mh-"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        server = MariaDB(folder / "mysql", probe.getsockname()[1])
    try:
        server.start()
        with server.connect(local_infile=True) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE d")
            cursor.execute("SET optimizer_switch = 'derived_merge=off', sql_mode = 'STRICT_ALL_TABLES'")
            for name, some, rows in (("t", columns, values), ("w", wide, wide_values)):
                path = folder / f"{name}.txt"
                path.write_bytes(format_rows(some, rows))
                cursor.execute(
                    f"CREATE TABLE d.{name} ({', '.join(f'{c.name} {c.type.text}' for c in some)}) ENGINE=MyISAM"
                )
                cursor.execute(f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE d.{name} CHARACTER SET latin1")
                cursor.execute(hash_query(some, f"d.{name}", "mysql"))
                found = tuple(map(int, cursor.fetchone()))
                count = len(next(iter(rows.values())))
                assert found == hash_keys(RowHasher(some).keys(rows, count)), name
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


# -- facts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nulls", [0.0, 0.1])
def test_compiled_loops_take_the_same_facts(nulls, monkeypatch):
    if fact_kernels.load() is None and not os.environ.get("CI"):
        pytest.skip("there is no C compiler (Debian: apt install gcc)")
    assert fact_kernels.load() is not None
    columns, values = hard_rows(5000, nulls)
    sub_chunk = np.random.default_rng(2).integers(0, 400, 5000).astype(np.int32)

    def take() -> tuple:
        kind = kind_of(columns, places=True)
        one = Tally(kind, RowHasher(kind.stored), 77)
        keys = [one.take(cut(values, a, b), b - a, sub_chunk[a:b]) for a, b in ((0, 700), (700, 701), (701, 5000))]
        keys = np.concatenate(keys, axis=1)
        index = np.arange(4999, -1, -3)
        return one.facts(), keys, hash_placed(RowHasher(kind.stored), keys, 5, sub_chunk[index], index)

    compiled = take()
    monkeypatch.setattr(fact_kernels, "load", lambda: None)
    plain = take()
    assert compiled[0] == plain[0]
    assert (compiled[1] == plain[1]).all() and compiled[2] == plain[2]


def test_facts_are_what_they_say():
    columns, values = hard_rows(3000)
    kind = kind_of(columns)
    one = Tally(kind, RowHasher(kind.stored))
    one.take(values, 3000)
    found = one.facts()
    assert found["rows"] == 3000
    for column in columns:
        name, part = column.name, values[column.name]
        if isinstance(part, Strings):
            texts = [t if t is None or "VAR" in column.type.text else t.rstrip() for t in part.to_list()]
            assert found[facts.nulls(name)] == texts.count(None) > 0
            assert all(found[facts.equal(name, text)] == texts.count(text) for text in set(texts) - {None})
            continue
        part = np.ma.masked_array(np.ma.getdata(part).view(np.int64), part.mask) if part.dtype.kind == "M" else part
        data = [value for value in part.tolist() if value is not None]
        assert found[facts.nulls(name)] == 3000 - len(data) > 0
        assert (found[facts.least(name)], found[facts.greatest(name)]) == (min(data), max(data))
        if column.type.kind == "float":
            counts = [found[fact] for fact in facts.bins(name, EDGES)]
            bounds = [-np.inf, *EDGES, np.inf]
            assert counts == [sum(a <= x < b for x in data) for a, b in itertools.pairwise(bounds)]
        else:
            assert found[facts.total(name)] == sum(data)
        if name in kind.keys:
            assert found[facts.distinct(name)] == len(set(data))


def test_too_many_strings_are_not_counted():
    column = Column("s", parse_type("VARCHAR(9)"))
    kind = TableFacts(None, [column], [column], {}, [], [], [])
    one = Tally(kind, RowHasher([column]))
    for start in (0, 20, 40):
        one.take({"s": Strings(np.arange(20, dtype=np.int32), tuple(f"v{start + i}" for i in range(20)))}, 20)
    assert set(one.facts()) == {"rows", "hash 1", "hash 2", "NULLs of s"}


def test_edges_are_exact_and_fixed_by_the_configuration():
    dataset = Dataset.from_config(all_kinds("edges"), PROJECT)
    known = {name: table_facts(dataset, dataset.tables[name]) for name in ("Object", "ForcedSource", "Visit")}
    edges = known["Object"].edges
    assert edges["ra"] == (64.0, 128.0, 192.0, 256.0, 320.0) and edges["dec"] == (-64.0, -32.0, 0.0, 32.0, 64.0)
    assert edges["gMag"] == (16.0, 18.0, 20.0, 22.0, 24.0)
    assert edges["width"] == (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert known["ForcedSource"].edges["mag"] == edges["gMag"]  # that of the director's columns
    assert known["ForcedSource"].edges["magErr"][0] == 0.015625
    assert known["Object"].keys == ["objectId"]
    assert known["ForcedSource"].references == [("objectId", "Object", "objectId"), ("visitId", "Visit", "visitId")]
    for kind in known.values():
        for column in kind.columns:
            if column.name in kind.edges:
                some = kind.edges[column.name]
                assert np.array(some, column.type.dtype).astype(float).tolist() == list(some) == sorted(set(some))


# -- neighbours -------------------------------------------------------------------------------------------------------


def brute_force(points: tuple, others: tuple, radii: list[float]) -> list[int]:
    vectors = [
        np.stack([np.cos(d) * np.cos(r), np.cos(d) * np.sin(r), np.sin(d)])
        for r, d in map(np.radians, (points, others))
    ]
    squares = [((vectors[0][:, :, None] - other[:, None]) ** 2).sum(axis=0) for other in vectors]
    return [
        int((squares[0] < chord_squared(r)).sum()) - len(points[0]) + int((squares[1] < chord_squared(r)).sum())
        for r in radii
    ]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "box", [(350, 370, -5, 5), (0, 360, 80, 90), (0, 360, -90, 90), (10, 20, 40, 45), (0, 360, -90, -89)]
)
def test_pairs_equal_brute_force(box, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(fact_kernels, "load", lambda: None)
    random = np.random.default_rng(4)

    def sky(count: int) -> tuple:
        sines = random.uniform(*np.sin(np.radians(box[2:])), count)
        return np.array([random.uniform(box[0], box[1], count) % 360, np.degrees(np.arcsin(sines))])

    for count, others in ((1500, 300), (3, 0), (0, 5), (300, 10)):
        for radii in ([0.05, 0.3], [0.9, 2.0], [20.0, 30.0]):
            one, other = sky(count), sky(others)
            assert count_pairs(*one, *other, radii) == brute_force(one, other, radii), (count, others, radii)


def test_pairs_across_bands_count_once(monkeypatch):
    random = np.random.default_rng(8)
    (ra, other_ra), (dec, other_dec) = 3 * random.random((2, 1000)), 3 * random.random((2, 1000)) - 1
    expected = count_pairs(ra, dec, other_ra, other_dec, [0.05, 0.3])
    assert expected[0] > 1000
    for points in (999, 300, 7):
        monkeypatch.setattr("skymill.pairs.BAND_POINTS", points)
        assert count_pairs(ra, dec, other_ra, other_dec, [0.05, 0.3]) == expected


def test_too_many_pairs_are_not_compared(monkeypatch):
    ra, dec = np.random.default_rng(1).random((2, 2000))
    none = np.empty(0)
    assert count_pairs(ra, dec, none, none, [0.5], 1000) is None
    monkeypatch.setattr("skymill.pairs.BAND_POINTS", 500)
    assert count_pairs(ra, dec, none, none, [0.5], 1000) is None
    assert count_pairs(ra, dec, none, none, [0.5], 2000 * 2000)[0] > 1000


# -- chunks and tiles -------------------------------------------------------------------------------------------------


def truth_of(dataset: Dataset, chunk: int) -> dict:
    """The truth of a chunk, with its rows joined as in generation."""
    maker, taker = row_maker(dataset), TruthTaker(dataset)
    director, child = dataset.tables["Object"], dataset.tables["ForcedSource"]
    from skymill.rowmaker import BoxStreams

    truth, streams = taker.chunk(director, chunk), {}
    takers = (truth.add_director, partial(truth.add_child, child), truth.add_halo)
    home, children, halo = joiners = [Joiner(take) for take in takers]
    for rows in maker.director_blocks(director, chunk):
        home.add(rows)
        box = streams.setdefault(rows.box, BoxStreams(dataset.seed, child, chunk, rows.box))
        for part in maker.child_blocks(child, rows, box):
            children.add(part)
    for joiner in joiners[:2]:
        joiner.flush()
    for rows in maker.halo_blocks(director, chunk):
        halo.add(rows)
    halo.flush()
    return truth.facts()


def test_truth_does_not_depend_on_blocks(monkeypatch):
    dataset = small_dataset(density=3.0)
    known = truth_of(dataset, 200)
    assert known["Object"]["rows"] > 100 and known["ObjectFullOverlap"]["rows"] > 20
    monkeypatch.setattr("skymill.blocks.ENOUGH_ROWS", 1)
    monkeypatch.setattr("skymill.truth.OVERLAP_ROWS", 100)
    assert truth_of(dataset, 200) == known
    monkeypatch.setattr("skymill.blocks.ENOUGH_ROWS", 1 << 20)
    monkeypatch.setattr(fact_kernels, "load", lambda: None)
    assert truth_of(dataset, 200) == known


def test_a_chunk_without_rows_has_facts():
    known = truth_of(small_dataset(density=0.0), 200)
    assert known["Object"]["rows"] == known["ForcedSource"]["rows"] == known["ObjectFullOverlap"]["rows"] == 0
    assert known["Object"]["hash 1"] == 0 and facts.least("psRa") not in known["Object"]
    assert known["Object"][facts.pairs(0.25)] == [0, 0]


def test_facts_add_up():
    dataset = small_dataset(density=3.0)
    one, other = truth_of(dataset, 200)["Object"], truth_of(dataset, 201)["Object"]
    both = add_up([one, other])
    assert both["rows"] == one["rows"] + other["rows"]
    assert both["hash 1"] == (one["hash 1"] + other["hash 1"]) % 2**64
    assert both[facts.least("uPsFlux")] == min(one[facts.least("uPsFlux")], other[facts.least("uPsFlux")])
    assert both[facts.greatest("objectId")] == max(one[facts.greatest("objectId")], other[facts.greatest("objectId")])
    pair = facts.pairs(0.25)
    assert both[pair] == [one[pair][0] + other[pair][0], one[pair][1] + other[pair][1]]


def test_the_file_of_a_tile_is_the_same_whatever_job_has_written_it(tmp_path):
    """A job that makes some chunks of a tile keeps what is known of the others, which are loaded and need not be made again."""
    dataset = small_dataset(density=1.0)
    truths = {chunk: truth_of(dataset, chunk) for chunk in (200, 201)}
    head = {"transaction": "t000", "fingerprint": "f"}
    whole = TileTruth()
    for chunk, known in truths.items():
        whole.add(chunk, known, {"Object": f"hash {chunk}"})
        part = TileTruth()
        part.add(chunk, known, {"Object": f"hash {chunk}"})
        keep_truth(tmp_path / "parts", part, {**head, "tile": "s0010p00000" + ("r1" if chunk == 201 else "")})
    keep_truth(tmp_path / "whole", whole, {**head, "tile": "s0010p00000"})
    paths = [truth_path(tmp_path / name, "t000", "s0010p00000") for name in ("parts", "whole")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    read = TileTruth.read(paths[0])
    assert read.hashes == {200: {"Object": "hash 200"}, 201: {"Object": "hash 201"}}
    known = {name: {fact: v for fact, v in values.items() if v is not None} for name, values in truths[201].items()}
    assert {name: chunks[201] for name, chunks in read.tables.items()} == known
    assert os.listdir(paths[0].parent) == [paths[0].name]


def test_a_truth_that_cannot_be_read_is_told(tmp_path):
    path = tmp_path / "x.truth.json.gz"
    whole = gzip.compress(json.dumps({"format": 99}).encode())
    for content in (b"nonsense", whole[:-9], whole[:10] + b"\xff" * 20):
        path.write_bytes(content)
        with pytest.raises(SkymillError, match=r"cannot read .*x\.truth\.json\.gz: it is damaged; put it back"):
            TileTruth.read(path)
    path.write_bytes(whole)
    with pytest.raises(SkymillError, match="format 99, this version of skymill reads 1"):
        TileTruth.read(path)


def test_without_a_compiler_the_truth_is_the_same(tmp_path):
    """In a process of its own, with SKYMILL_KERNELS=off."""
    code = (
        "import json, sys; sys.path[:0] = ['tests', 'scripts']\n"
        "from test_truth import truth_of; from helpers import small_dataset\n"
        "print(json.dumps(truth_of(small_dataset(density=2.0), 200)))"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, env={**os.environ, "SKYMILL_KERNELS": switch},
            check=True, capture_output=True, text=True,
        ).stdout
        for switch in ("on", "off")
    ]  # fmt: skip
    assert json.loads(answers[0]) == json.loads(answers[1])
