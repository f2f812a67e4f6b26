"""The compiled loops give what numpy and polars give, byte by byte, with vector instructions and without."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

from helpers import REPOSITORY
from skymill import kernels
from skymill.columns import Column, Strings
from skymill.sqltypes import parse_type
from skymill.textfile import TableFile, format_rows

COUNT = 60_000


@pytest.fixture(params=["vector instructions", "plain"], autouse=True)
def compiled(request):
    found = kernels.load()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("there is no C compiler; install gcc")
        pytest.skip("there is no C compiler")
    switch = ctypes.c_int.in_dll(ctypes.CDLL(str(kernels.library())), "plain_only")
    switch.value = request.param == "plain"
    yield found
    switch.value = 0


def columns_of(**types: str) -> list[Column]:
    return [Column(name, parse_type(text)) for name, text in types.items()]


def written(tmp_path, columns, blocks) -> tuple[bytes, TableFile]:
    """What the kernels write."""
    with TableFile(tmp_path / "a.csv", columns, row_ends=True) as file:
        for block in blocks:
            file.add(block)
    return file.path.read_bytes(), file


def floats(dtype: type, seed: int) -> np.ndarray:
    """Numbers of every size: any bits, decimals of few digits, whole numbers, powers of 2 and of 10, and what lies beside them."""
    random = np.random.default_rng(seed)
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    limits = np.finfo(dtype)
    smallest, largest = np.log10(float(limits.tiny)), np.log10(float(limits.max))
    with np.errstate(over="ignore"):
        powers = np.concatenate(
            [
                np.ldexp(1.0, np.arange(limits.minexp - limits.nmant, limits.maxexp)).astype(dtype),
                10.0 ** np.arange(np.ceil(smallest), largest),
            ]
        ).astype(dtype)
        parts = [
            random.integers(0, np.iinfo(bits).max, COUNT, dtype=bits, endpoint=True).view(dtype),
            random.random(COUNT, dtype=dtype),
            (10.0 ** random.uniform(-8, 20, COUNT)).astype(dtype),
            (random.integers(-(10**5), 10**5, COUNT) / 10.0 ** random.integers(0, 9, COUNT)).astype(dtype),
            random.integers(-(10**9), 10**9, COUNT).astype(dtype),
            powers,
            np.nextafter(powers, dtype(0)),
            np.nextafter(powers, dtype(np.inf)),
            np.array([0.0, -0.0, limits.max, -limits.max, limits.tiny, limits.smallest_subnormal], dtype),
        ]
    values = np.concatenate(parts)
    return values[np.isfinite(values)]


@pytest.mark.parametrize(("sql", "dtype"), [("FLOAT", np.float32), ("DOUBLE", np.float64)])
def test_floats_are_the_shortest_that_read_back(sql, dtype, tmp_path):
    columns, values = columns_of(a=sql), floats(dtype, 1)
    text, _ = written(tmp_path, columns, [{"a": values}])
    assert text == format_rows(columns, {"a": values})
    read = np.array([dtype(line) for line in text.decode().split()])
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    assert np.array_equal(read.view(bits), values.view(bits))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_whole_numbers(dtype, tmp_path):
    limits = np.iinfo(dtype)
    random = np.random.default_rng(2)
    ends = [n for k in range(20) for n in (10**k - 1, 10**k, 10**k + 1, -(10**k)) if limits.min <= n <= limits.max]
    values = np.concatenate(
        [
            random.integers(limits.min, limits.max, 5000, dtype=dtype, endpoint=True),
            np.array([0, limits.min, limits.max, *ends], dtype=dtype),
        ]
    )
    sql = {"1": "TINYINT", "2": "SMALLINT", "4": "INT", "8": "BIGINT"}[dtype[1]] + " UNSIGNED" * (dtype[0] == "u")
    text, _ = written(tmp_path, columns_of(a=sql), [{"a": values}])
    assert text.decode().split() == [str(number) for number in values.tolist()]


def test_a_table_of_all_kinds_with_nulls_and_long_strings(tmp_path):
    columns = columns_of(
        id="BIGINT NOT NULL",
        flux="FLOAT",
        ra="DOUBLE",
        flag="BOOLEAN",
        band="CHAR(1)",
        note="VARCHAR(500)",
        n="SMALLINT",
    )
    random = np.random.default_rng(3)
    texts = ("", "a\tb", "back\\slash", "ä" * 20, "x" * 31, "y" * 32, "z\n" * 200)

    def block(count: int) -> dict:
        return {
            "id": np.arange(count),
            "flux": np.ma.masked_array(random.standard_normal(count, dtype=np.float32), random.random(count) < 0.1),
            "ra": random.random(count) * 360,
            "flag": np.ma.masked_array(random.integers(0, 2, count, dtype=np.uint8), random.random(count) < 0.5),
            "band": Strings(random.integers(0, 3, count, dtype=np.int32), ("u", "g", "r")),
            "note": Strings(random.integers(-1, len(texts), count, dtype=np.int64), texts),
            "n": random.integers(-5, 5, 2 * count, dtype=np.int16)[::2],
        }

    blocks = [block(count) for count in (1, 777, 40_000)]
    text, file = written(tmp_path, columns, blocks)
    assert text == b"".join(format_rows(columns, block) for block in blocks)
    assert (file.rows, file.bytes) == (40_778, len(text))
    lines = text.splitlines(keepends=True)
    assert np.array_equal(file.row_ends, np.cumsum([len(line) for line in lines]))


@pytest.mark.parametrize("count", [1, 330, 1300, kernels.MAX_COLUMNS])
def test_many_columns(count, tmp_path):
    columns = columns_of(**{f"x{i}": "FLOAT" for i in range(count)})
    random = np.random.default_rng(4)
    values = {column.name: random.random(100, dtype=np.float32) for column in columns}
    text, _ = written(tmp_path, columns, [values])
    expected = format_rows(columns, values)
    assert text == expected and len(text) > 500 * count


def test_bytes_are_found_and_rows_joined(compiled):
    random = np.random.default_rng(5)
    for size in (0, 1, 63, 64, 65, 5000):
        for values in (3, 200):
            data = random.integers(0, values, size, dtype=np.uint8)
            found = compiled.find_bytes(data, 1, 2, 100)
            assert np.array_equal(found, np.flatnonzero((data == 1) | (data == 2)) + 100)
    data = random.integers(0, 256, 5000, dtype=np.uint8)
    starts, lengths = random.integers(0, 4000, 300), random.integers(0, 1000, 300)
    table, codes = np.frombuffer(b"abcdef", np.uint8), random.integers(0, 3, 300)
    out = np.empty(int(lengths.sum()) + 600, np.uint8)
    parts = [(kernels.address(data), starts, lengths), (kernels.address(table), 2 * codes, np.full(300, 2))]
    assert compiled.join_parts(parts, out) == len(out)
    rows = zip(starts.tolist(), lengths.tolist(), codes.tolist(), strict=True)
    expected = b"".join(data[a : a + n].tobytes() + b"abcdef"[2 * code : 2 * code + 2] for a, n, code in rows)
    assert out.tobytes() == expected


@pytest.mark.parametrize(("low", "width"), [(0.0, 1.0), (-5.0, 10.0), (0.05, 0.45), (1e30, 3e38), (0.0, 0.0)])
def test_uniform_numbers_are_those_of_numpy(low, width, compiled):
    ours, numpys = (np.random.Generator(np.random.PCG64DXSM(6)) for _ in range(2))
    for count in (1, 8192, 0, 7, 100):
        for dtype in (np.float32, np.float64):
            values = compiled.uniform(ours, count, np.dtype(dtype), width, low)
            expected = numpys.random(count, dtype)
            expected *= dtype(width)
            expected += dtype(low)
            assert values.dtype == dtype
            assert np.array_equal(values, expected)
            # What else is drawn from the stream goes on from where it is.
            assert ours.integers(0, 100, dtype=np.int32) == numpys.integers(0, 100, dtype=np.int32)
    assert ours.bit_generator.state == numpys.bit_generator.state
    assert compiled.uniform(np.random.Generator(np.random.MT19937(1)), 5, np.dtype(np.float64), 1.0, 0.0) is None


@pytest.mark.parametrize("compiled", ["plain"], indirect=True)
def test_it_is_compiled_where_it_can_be_written_or_done_without(tmp_path):
    code = "from skymill import kernels; print(kernels.library())"
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "scripts"),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "pycache"),
    }

    def found(**changes: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | changes, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert found().startswith(str(tmp_path / "pycache"))
    assert found(PATH="") == found(), "what is compiled needs no compiler"
    # A folder that cannot be made, even by root: a file stands in its way.
    (tmp_path / "file").write_text("")
    blocked = {"PYTHONPYCACHEPREFIX": str(tmp_path / "file"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert found(**blocked).startswith(str(tmp_path / "cache" / "skymill"))
    assert found(**blocked | {"XDG_CACHE_HOME": str(tmp_path / "none"), "PATH": ""}) == "None"
    assert found(SKYMILL_KERNELS="off") == "None"
