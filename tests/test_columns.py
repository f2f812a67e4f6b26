"""Generators: range, type and distribution of what they draw, a user's own, and what they refuse.

Significance: see `helpers`; by chance a test of statistics fails in less than 1 of 10^6 seeds, and the seeds are fixed.
"""

import math
import re
from functools import cache

import numpy as np
import pytest

from helpers import (
    REPOSITORY,
    assert_chi_square,
    assert_ks,
    assert_mean,
    assert_uniform,
    chunk_columns,
    correlation_bound,
    director_columns,
    drawn,
    normal_cdf,
    row_maker,
    small_config,
    small_dataset,
)
from skymill.columns import Column, Strings
from skymill.config import Dataset
from skymill.errors import ConfigError, SkymillError
from skymill.generators import make_generator
from skymill.sqltypes import ALLOWED, parse_type
from skymill.tables import expand_names
from skymill.visits import make_regular_table

COUNT = 20_000


def make(entry, sql="DOUBLE", names=("x",), folder="."):
    """A generator of columns of a type."""
    return make_generator(entry, [Column(name, parse_type(sql)) for name in names], folder)


@cache
def director():
    """The table that most generators are checked with."""
    return small_dataset(1, children=False).tables["Object"]


def draw(entry, sql="DOUBLE", count=COUNT, seed=1):
    """The values of one column of a type."""
    generator = make(entry, sql)
    generator.check(director())
    (values,) = drawn(generator, count, seed)
    assert len(values) == count
    if generator.columns[0].type.dtype is not None:
        assert values.dtype == generator.columns[0].type.dtype
    return values


# -- uniform ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["DOUBLE", "FLOAT"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-5.5, -5.25), (1e-3, 1e6)])
def test_uniform(sql, low, high):
    values = draw({"uniform": {"min": low, "max": high}}, sql)
    assert_uniform(values, *(np.array([low, high], dtype=values.dtype).astype(np.float64)))


def test_uniform_goes_from_0_to_1_by_default():
    assert_uniform(draw("uniform"), 0, 1)
    assert (draw({"uniform": {"min": 3, "max": 3}}) == 3).all()


@pytest.mark.parametrize(
    ("sql", "low", "high"),
    [
        ("INT", -3, 6),
        ("TINYINT", -128, 127),
        ("TINYINT UNSIGNED", 0, 255),
        ("SMALLINT NOT NULL", 10, 12),
        ("INT UNSIGNED", 2**32 - 4, 2**32 - 1),
        ("BIGINT", 2**63 - 5, 2**63 - 1),
        ("BIGINT UNSIGNED", 2**64 - 5, 2**64 - 1),
        ("BIGINT", 7, 7),
    ],
)
def test_uniform_whole_numbers_include_both_ends(sql, low, high):
    values = draw({"uniform": {"min": low, "max": high}}, sql)
    found, counts = np.unique(values, return_counts=True)
    assert found.tolist() == list(range(low, high + 1))
    if high > low:
        assert_chi_square(counts, np.full(len(counts), COUNT / len(counts)))


def test_uniform_whole_numbers_of_the_full_range():
    values = draw({"uniform": {"min": -(2**63), "max": 2**63 - 1}}, "BIGINT")
    assert_uniform(values.astype(np.float64), -(2.0**63), 2.0**63)
    assert_chi_square(np.bincount(values & 7), np.full(8, COUNT / 8))


# -- normal, poisson --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["DOUBLE", "FLOAT"])
@pytest.mark.parametrize(("mean", "sigma"), [(0, 1), (-300, 0.5), (1e-3, 1e3)])
def test_normal(sql, mean, sigma):
    values = (draw({"normal": {"mean": mean, "sigma": sigma}}, sql).astype(np.float64) - mean) / sigma
    assert_ks(values, normal_cdf)
    assert_mean(values.mean(), 0, 1 / math.sqrt(COUNT))
    assert_mean(values.std(), 1, 1 / math.sqrt(2 * COUNT))


def test_normal_with_sigma_0_is_its_mean():
    assert (draw({"normal": {"mean": 2.5, "sigma": 0}}) == 2.5).all()


@pytest.mark.parametrize("sql", ["INT", "TINYINT UNSIGNED", "DOUBLE", "BIGINT NOT NULL"])
@pytest.mark.parametrize("mean", [0.3, 4, 60])
def test_poisson(sql, mean):
    values = draw({"poisson": {"mean": mean}}, sql)
    first, last = max(0, int(mean - 2.5 * math.sqrt(mean))), int(mean + 2.5 * math.sqrt(mean))
    numbers = np.arange(first, last + 1)
    expected = COUNT * np.array([math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in numbers])
    counts = np.array([(values == k).sum() for k in numbers])
    assert_chi_square(np.r_[counts, COUNT - counts.sum()], np.r_[expected, COUNT - expected.sum()])
    assert_mean(values.mean(), mean, math.sqrt(mean / COUNT))
    # The variance of a sample variance of Poisson counts: (mean + 2 mean^2) / n.
    assert_mean(values.var(dtype=float), mean, math.sqrt((mean + 2 * mean**2) / COUNT))


def test_poisson_with_mean_0_and_with_its_short_form():
    assert (draw({"poisson": 0}, "INT") == 0).all()
    assert np.array_equal(draw({"poisson": 3}, "INT"), draw({"poisson": {"mean": 3}}, "INT"))


def test_counts_that_do_not_fit_their_column_are_refused():
    with pytest.raises(ConfigError, match=r"column x: values \d+ to \d+ do not fit TINYINT"):
        draw({"poisson": 1000}, "TINYINT")


# -- magnitude --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["DOUBLE", "FLOAT"])
def test_flat_magnitudes(sql):
    assert_uniform(draw({"magnitude": {"min": 14, "max": 27.5}}, sql), 14, 27.5)
    assert_uniform(draw("magnitude", sql), 0, 27.5)


@pytest.mark.parametrize(("low", "high", "slope"), [(14, 27.5, 0.3), (-100, 100, 2), (20, 21, 0.6), (18, 25, 0.01)])
def test_the_counts_of_the_power_law_grow_with_its_slope(low, high, slope):
    values = draw({"magnitude": {"min": low, "max": high, "law": "power", "slope": slope}})
    assert values.min() >= low - 1e-12 and values.max() <= high + 1e-12
    # N(<m) is proportional to 10^(slope m) - 10^(slope min), divided here by 10^(slope max).
    bright = 10 ** (slope * (low - high))
    assert_ks(values, lambda m: (10 ** (slope * (m - high)) - bright) / (1 - bright))


def test_the_slope_of_the_power_law_is_found_again():
    """Maximum likelihood of an exponential law that is cut far below its bright end."""
    values = draw({"magnitude": {"min": 0, "max": 27.5, "law": "power", "slope": 0.3}}, count=100_000)
    slope = 1 / (math.log(10) * (27.5 - values).mean())
    assert_mean(slope, 0.3, 0.3 / math.sqrt(100_000))
    counts = np.log10([(values < m).sum() for m in (25.5, 26.5, 27.5)])
    assert np.diff(counts) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(("sql", "relative"), [("DOUBLE", 1e-14), ("FLOAT", 1e-7)])
@pytest.mark.parametrize("law", ["flat", "power"])
def test_fluxes_are_those_of_the_magnitudes(sql, relative, law):
    options = {"min": 14, "max": 28, "law": law}
    magnitudes = draw({"magnitude": options})
    fluxes = draw({"magnitude": options | {"unit": "flux"}}, sql)
    assert np.allclose(fluxes, 10 ** (-0.4 * (magnitudes - 31.4)), rtol=4 * relative, atol=0)
    janskys = draw({"magnitude": options | {"unit": "flux", "zero_point": 8.9}}, sql)
    assert np.allclose(janskys, 10 ** (-0.4 * (magnitudes - 8.9)), rtol=4 * relative, atol=0)


# -- choice, constant, ids, positions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("INT", [0, 1, 2]),
        ("DOUBLE", [0.5, -1, 1e300]),
        ("FLOAT", [0.1, 0.2]),
        ("CHAR(1)", ["u", "g", "r", "i"]),
        ("VARCHAR(12)", ["star", "a galaxy\t", ""]),
        ("BOOLEAN", [True, False]),
        ("BIGINT UNSIGNED", [2**64 - 1, 0]),
    ],
)
def test_choice_is_equal_without_probabilities(sql, values):
    found = draw({"choice": {"values": values}}, sql)
    typed = values if found.dtype == object else np.array(values, dtype=found.dtype).tolist()
    counts = np.array([(found == value).sum() for value in typed])
    assert counts.sum() == COUNT
    assert_chi_square(counts, np.full(len(values), COUNT / len(values)))
    assert np.array_equal(draw({"choice": values}, sql), found)


@pytest.mark.parametrize("probabilities", [[0.9, 0.08, 0.02], [0, 0.5, 0.5], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
@pytest.mark.parametrize(("sql", "values"), [("INT", [7, 8, 9]), ("VARCHAR(2)", ["a", "bb", "c"])])
def test_choice_has_its_probabilities(sql, values, probabilities):
    found = draw({"choice": {"values": values, "probabilities": probabilities}}, sql)
    for value, probability in zip(values, probabilities, strict=True):
        assert_mean((found == value).mean(), probability, math.sqrt(probability * (1 - probability) / COUNT))


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("DOUBLE", 0.1),
        ("FLOAT", 0.1),
        ("INT", -5),
        ("CHAR(1)", "u"),
        ("BOOLEAN", True),
        ("DOUBLE", 0),
        ("VARCHAR(3)", ""),
    ],
)
def test_constant(sql, value):
    found = draw({"constant": value}, sql, 10)
    expected = value if isinstance(value, str) else found.dtype.type(value)
    assert (found == expected).all()
    assert np.array_equal(draw({"constant": {"value": value}}, sql, 10), found)


@pytest.mark.parametrize("sql", ["DOUBLE", "INT", "CHAR(1)", "BOOLEAN"])
def test_constant_null(sql):
    found = draw({"constant": None}, sql, 10)
    assert found.tolist() == [None] * 10


def test_unique_ids_of_a_regular_table_count_from_1():
    config = small_config(1)
    config["tables"]["CcdVisit"]["rows"] = 300
    config["tables"]["CcdVisit"]["columns"][0]["type"] = "SMALLINT NOT NULL"
    dataset = Dataset.from_config(config, REPOSITORY)
    ids = make_regular_table(dataset, dataset.tables["CcdVisit"])["ccdVisitId"]
    assert ids.dtype == np.int16 and ids.tolist() == list(range(1, 301))


def test_position_hands_on_the_place_and_draws_errors():
    ra, dec = np.random.default_rng(1).random((2, COUNT))
    generator = make("position", names=["ra", "dec"])
    assert all(
        a is b or np.array_equal(a, b)
        for a, b in zip(drawn(generator, COUNT, ra_deg=ra, dec_deg=dec), (ra, dec), strict=True)
    )
    names = ["ra", "raErr", "dec", "decErr"]
    types = ["DOUBLE", "FLOAT", "DOUBLE", "DOUBLE"]
    columns = [Column(name, parse_type(sql)) for name, sql in zip(names, types, strict=True)]
    generator = make_generator({"position": {"error_deg": [1e-6, 3e-6]}}, columns, ".")
    made = drawn(generator, COUNT, ra_deg=ra, dec_deg=dec)
    assert np.array_equal(made[0], ra) and np.array_equal(made[2], dec)
    assert [values.dtype for values in made] == [np.float64, np.float32, np.float64, np.float64]
    assert_uniform(made[1], float(np.float32(1e-6)), float(np.float32(3e-6)))
    assert_uniform(made[3], 1e-6, 3e-6)
    assert abs(np.corrcoef(made[1], made[3])[0, 1]) < correlation_bound(COUNT, 1)


# -- blocks and streams -----------------------------------------------------------------------------------------------

BLOCK_CASES = [
    ("uniform", "DOUBLE"),
    ("uniform", "FLOAT"),
    ({"uniform": {"max": 9}}, "TINYINT"),
    ({"uniform": {"max": 200}}, "TINYINT UNSIGNED"),
    ({"uniform": {"max": 999}}, "SMALLINT"),
    ({"uniform": {"max": 9}}, "INT"),
    ({"uniform": {"max": 9}}, "BIGINT"),
    ({"uniform": {"max": 2**62 + 1}}, "BIGINT UNSIGNED"),
    ("normal", "DOUBLE"),
    ("normal", "FLOAT"),
    ({"poisson": 3}, "INT"),
    ({"poisson": 300}, "INT"),
    ("magnitude", "DOUBLE"),
    ({"magnitude": {"law": "power", "unit": "flux"}}, "FLOAT"),
    ({"choice": [1, 2, 3]}, "INT"),
    ({"choice": ["a", "b", "c"]}, "CHAR(1)"),
    ({"choice": {"values": [True, False], "probabilities": [0.1, 0.9]}}, "BOOLEAN"),
    ({"constant": None}, "INT"),
    ("unique_id", "BIGINT"),
    ("text", "VARCHAR(12)"),
    ({"time": {"start": "2025-01-01", "end": "2026-01-01"}}, "DATETIME(6)"),
]


@pytest.mark.parametrize(("entry", "sql"), BLOCK_CASES)
def test_values_do_not_depend_on_the_size_of_blocks(entry, sql):
    whole, pieces = (drawn(make(entry, sql), 5001, pieces=sizes)[0] for sizes in ((), (1, 2, 3, 995, 0, 7)))
    assert whole.dtype == pieces.dtype
    assert np.ma.allequal(whole, pieces) if whole.dtype != object else whole.tolist() == pieces.tolist()


def test_position_errors_do_not_depend_on_the_size_of_blocks():
    ra, dec = np.random.default_rng(1).random((2, 1000))
    generator = make({"position": {"error_deg": [0, 1]}}, names=["a", "b", "c", "d"])
    whole, pieces = (drawn(generator, 1000, pieces=sizes, ra_deg=ra, dec_deg=dec) for sizes in ((), (1, 998)))
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_columns_of_one_entry_have_streams_of_their_own():
    columns = director_columns(
        row_maker(
            small_dataset(100, columns=[{"name": "x{0..3}", "type": "DOUBLE", "generator": "normal"}], children=False)
        ),
        324,
    )
    matrix = np.corrcoef([columns[f"x{i}"] for i in range(4)])
    assert np.abs(matrix[np.triu_indices(4, 1)]).max() < correlation_bound(len(columns["x0"]), 6)


# -- a user's own generator -------------------------------------------------------------------------------------------

MODULE = '''
import numpy as np

from skymill.columns import Generator, Strings


class Triangle(Generator):
    """A sum of two uniform numbers, and a column that another one needs."""

    def __init__(self, width, centre=0.0):
        self.width, self.centre = width, centre

    def check(self, table):
        if self.width <= 0:
            raise ValueError(f"width = {self.width}: it must be above 0")

    def draw(self, random, rows):
        return self.centre + self.width * (random.random((rows.count, 2)).sum(axis=1) - 1)


class Twice(Generator):
    def __init__(self, column):
        self.column = column

    def needs(self):
        return (self.column,)

    def draw(self, random, rows):
        return 2 * rows.columns[self.column]


class Pair(Generator):
    joint = True

    def draw(self, random, rows):
        x = random.random(rows.count)
        return x, 1 - x


class Words(Generator):
    def draw(self, random, rows):
        return np.array(["one", "two", "three"])[random.integers(0, 3, rows.count)]


class Coded(Generator):
    def draw(self, random, rows):
        return Strings(np.arange(rows.count) % 3 - 1, ("a", "b"))


class Masked(Generator):
    def draw(self, random, rows):
        return np.ma.masked_array(np.arange(rows.count) % 100, np.arange(rows.count) % 2 == 0)


class OnlyNulls(Generator):
    def draw(self, random, rows):
        return np.ma.masked_all(rows.count, np.int64)


class NoNulls(Generator):
    def draw(self, random, rows):
        return np.ma.masked_array(np.ones(rows.count, np.int32), np.arange(rows.count) == 1)


class WordsWithNulls(Generator):
    def draw(self, random, rows):
        return np.ma.masked_array(np.array(["x"] * rows.count), np.arange(rows.count) % 2 == 0)


class TooFew(Generator):
    def draw(self, random, rows):
        return np.zeros(rows.count - 1)


class Three(Generator):
    joint = True

    def draw(self, random, rows):
        return [np.zeros(rows.count)] * 3


class Raises(Generator):
    def __init__(self):
        1 / 0


class RaisesLater(Three):
    def check(self, table):
        {}["x"]


class DrawsNothing(Generator):
    pass


class Fraction(Generator):
    def draw(self, random, rows):
        return np.full(rows.count, 1.5)


class Huge(Generator):
    def draw(self, random, rows):
        return np.full(rows.count, 1 << 40)


class NotANumber(Generator):
    def draw(self, random, rows):
        return np.full(rows.count, np.nan)


class Infinite(Generator):
    def draw(self, random, rows):
        return np.full(rows.count, np.inf)


class NoGenerator:
    pass
'''


def user_dataset(folder, *columns):
    (folder / "mine.py").write_text(MODULE)
    entries = [{"name": name, "type": sql, "generator": entry} for name, sql, entry in columns]
    return small_dataset(20, columns=entries, children=False, folder=folder)


def user_columns(folder, *columns):
    return director_columns(row_maker(user_dataset(folder, *columns)), 324)


def test_a_generator_of_the_user(tmp_path):
    made = user_columns(tmp_path, ("x", "DOUBLE", {"mine:Triangle": {"width": 2.0, "centre": 5}}))["x"]
    assert made.min() >= 3 and made.max() <= 7
    assert_ks(made, lambda x: np.where(x < 5, (x - 3) ** 2 / 8, 1 - (7 - x) ** 2 / 8))
    # The short form gives the first option, and the values are cast to the type of the column.
    short = user_columns(tmp_path, ("x", "FLOAT", {"mine:Triangle": 2.0}))["x"]
    assert short.dtype == np.float32 and np.allclose(short, made - 5, atol=1e-6)


def test_a_generator_of_the_user_may_need_other_columns(tmp_path):
    """In whatever order they stand."""
    made = user_columns(tmp_path, ("y", "DOUBLE", {"mine:Twice": "x"}), ("x", "DOUBLE", "normal"))
    assert list(made).index("y") > list(made).index("x")
    assert np.array_equal(made["y"], 2 * made["x"])


def test_a_generator_of_the_user_may_fill_columns_together(tmp_path):
    made = user_columns(tmp_path, (["x", "y"], "DOUBLE", "mine:Pair"))
    assert np.array_equal(made["y"], 1 - made["x"])


def test_a_generator_of_the_user_may_make_strings_and_nulls(tmp_path):
    made = user_columns(
        tmp_path,
        ("words", "VARCHAR(5)", "mine:Words"),
        ("coded", "CHAR(1)", "mine:Coded"),
        ("masked", "BIGINT", "mine:Masked"),
    )
    assert set(made["words"].tolist()) == {"one", "two", "three"}
    assert set(made["coded"].tolist()) == {None, "a", "b"}
    assert np.ma.getmaskarray(made["masked"]).mean() == pytest.approx(0.5, abs=0.01)


def test_nulls_of_a_user_keep_when_their_type_changes(tmp_path):
    made = user_columns(tmp_path, ("masked", "INT", "mine:Masked"))["masked"]
    assert made.dtype == np.int32 and np.ma.getmaskarray(made).mean() == pytest.approx(0.5, abs=0.01)


def test_a_block_of_nulls_only_is_no_error(tmp_path):
    made = user_columns(tmp_path, ("x", "INT", "mine:OnlyNulls"))["x"]
    assert np.ma.getmaskarray(made).all()


def test_masked_strings_of_a_user_are_nulls(tmp_path):
    made = user_columns(tmp_path, ("words", "CHAR(1)", "mine:WordsWithNulls"))["words"]
    assert set(made.tolist()) == {None, "x"}


@pytest.mark.parametrize(
    ("sql", "entry", "message"),
    [
        ("DOUBLE", "mine:TooFew", r"Object\.x: its generator made \d+ values for \d+ rows"),
        ("INT", "mine:Fraction", r"Object\.x: its generator made values that do not fit INT"),
        ("INT", "mine:Huge", r"Object\.x: its generator made values that do not fit INT"),
        ("INT NOT NULL", "mine:NoNulls", r"Object\.x.*NOT NULL"),
        ("CHAR(2)", "mine:Words", r"Object\.x.*CHAR\(2\)"),
        ("DOUBLE", "mine:NotANumber", r"Object\.x"),
        ("FLOAT", "mine:Infinite", r"Object\.x"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_a_generator_of_the_user_must_not_make(tmp_path, sql, entry, message):
    with pytest.raises(SkymillError, match=message):
        user_columns(tmp_path, ("x", sql, entry))


def test_the_number_of_columns_of_a_generator_of_the_user(tmp_path):
    with pytest.raises(SkymillError, match=r"Object: the generator of x,y made 3 columns, not 2"):
        user_columns(tmp_path, (["x", "y"], "DOUBLE", "mine:Three"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "other:Class",
            r"columns\[2\] \(x\): generator \"other:Class\": there is no file other\.py beside the configuration",
        ),
        (
            "mine:Missing",
            r"\"mine:Missing\": mine\.py has no class Missing that derives from skymill\.columns\.Generator",
        ),
        ("mine:NoGenerator", r"mine\.py has no class NoGenerator that derives from"),
        ("mine:Triangle", r"\"mine:Triangle\" needs the option \"width\""),
        (
            {"mine:Triangle": {"width": 1, "hight": 2}},
            r"\"mine:Triangle\" has no option \"hight\"; it has width, centre",
        ),
        ({"mine:Triangle": -1}, r"Object\.columns \(x\): width = -1: it must be above 0"),
        ("mine:Raises", r"\"mine:Raises\": ZeroDivisionError: division by zero \(mine\.py, line \d+\)"),
        ("mine:RaisesLater", r"Object\.columns \(x\): KeyError: 'x' \(mine\.py, line \d+\)"),
        ("mine:DrawsNothing", r"\"mine:DrawsNothing\": the class has no method draw"),
        ({"mine:Three": 5}, r"\"mine:Three\" has no options; write generator: mine:Three"),
        ({"mine:Twice": "nothing"}, r"there is no column \"nothing\" in Object"),
    ],
)
def test_wrong_generators_of_the_user_are_refused(tmp_path, entry, message):
    with pytest.raises(ConfigError, match=message):
        user_dataset(tmp_path, ("x", "DOUBLE", entry))


def test_a_module_of_the_user_that_does_not_run_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match=r"columns\[2\] \(x\).*broken"):
        small_dataset(1, [{"name": "x", "type": "INT", "generator": "broken:Any"}], children=False, folder=tmp_path)


# -- what is refused --------------------------------------------------------------------------------------------------

INF, NAN = math.inf, math.nan

WRONG_OPTIONS = [
    ("unifrom", "DOUBLE", r'unknown generator "unifrom"; there are unique_id, position, uniform, .*module:Class'),
    ({"uniform": {"mx": 1}}, "DOUBLE", r'generator "uniform" has no option "mx"; it has min, max'),
    ({"uniform": {"min": 5, "max": 1}}, "DOUBLE", r"min = 5, max = 1: min must not exceed max"),
    ({"uniform": {"max": 0.5}}, "INT", r"min = 0\.0, max = 0\.5: INT holds whole numbers in -2147483648\.\.2147483647"),
    ({"uniform": {"max": 128}}, "TINYINT", r"max = 128: TINYINT holds whole numbers in -128\.\.127"),
    ({"uniform": {"min": -1}}, "INT UNSIGNED", r"min = -1, .*whole numbers in 0\.\.4294967295"),
    ("uniform", "CHAR(1)", r"CHAR\(1\): the generator fills columns of the kind integer or float"),
    ("normal", "INT", r"INT: the generator fills columns of the kind float"),
    ({"normal": {"sigma": -1}}, "DOUBLE", r"sigma = -1: it must be at least 0"),
    ("poisson", "INT", r'generator "poisson" needs the option "mean"'),
    ({"poisson": -1}, "INT", r"mean = -1: it must be from 0 to 1e15"),
    ({"poisson": NAN}, "INT", r"mean = nan: it must be from 0 to 1e15"),
    ({"magnitude": {"min": 30}}, "FLOAT", r"min = 30, max = 27\.5: -100 <= min <= max <= 100"),
    ({"magnitude": {"law": "linear"}}, "FLOAT", r"law = \"linear\": it must be flat or power"),
    ({"magnitude": {"unit": "nJy"}}, "FLOAT", r"unit = \"nJy\": it must be magnitude or flux"),
    ({"magnitude": {"law": "power", "slope": 0}}, "FLOAT", r"slope = 0: it must be above 0 and at most 2"),
    ("magnitude", "INT", r"INT: the generator fills columns of the kind float"),
    ({"choice": {"values": []}}, "INT", r"values: at least one is needed"),
    ({"choice": {"values": [1, 300]}}, "TINYINT", r"value 300 does not fit TINYINT"),
    ({"choice": {"values": [1, 0.5]}}, "INT", r"value 0\.5 does not fit INT"),
    ({"choice": {"values": ["u", "uv"]}}, "CHAR(1)", r"value \"uv\" does not fit CHAR\(1\)"),
    ({"choice": {"values": [True]}}, "CHAR(4)", r"value true does not fit CHAR\(4\) \(put quotes around it\)"),
    ({"choice": {"values": [2]}}, "BOOLEAN", r"value 2 does not fit BOOLEAN"),
    ({"choice": {"values": [1e39]}}, "FLOAT", r"value 1e\+39 does not fit FLOAT"),
    ({"choice": {"values": [INF]}}, "DOUBLE", r"value inf does not fit DOUBLE"),
    (
        {"choice": {"values": [1, 2], "probabilities": [0.5, 0.4]}},
        "INT",
        r"probabilities \[0\.5, 0\.4\].* sum 1 .*0\.9",
    ),
    ({"choice": {"values": [1, 2], "probabilities": [1]}}, "INT", r"probabilities \[1\]: there must be 2"),
    ({"choice": {"values": [1, 2], "probabilities": [2, -1]}}, "INT", r"none negative"),
    ({"constant": {}}, "INT", r'generator "constant" needs the option "value"'),
    ({"constant": None}, "INT NOT NULL", r"value null: x is NOT NULL"),
    ({"constant": 1}, "CHAR(1)", r"value 1 does not fit CHAR\(1\) \(put quotes around it\)"),
    ({"constant": 256}, "TINYINT UNSIGNED", r"value 256 does not fit TINYINT UNSIGNED"),
    ("unique_id", "INT", r"INT: ids need BIGINT"),
    ("unique_id", "DOUBLE", r"DOUBLE: the generator fills columns of the kind integer"),
    ({"director": "psRa"}, "DOUBLE", r"Object is no child table"),
    ({"visit": "ra"}, "DOUBLE", r"Object has no rows: \{visits: \.\.\.\}"),
    ({"forced_flux": {"flux": "{filter}PsFlux", "sigma": "x"}}, "DOUBLE", r"Object has no rows: \{visits: \.\.\.\}"),
]
#: Numbers that YAML reads as text (1e5 has no dot), and numbers that no database takes.
NO_NUMBERS = [
    ({"uniform": {"max": "1e5"}}, "DOUBLE", r"max = \"1e5\""),
    ({"normal": {"mean": "1e5"}}, "DOUBLE", r"mean = \"1e5\""),
    ({"poisson": "1e5"}, "INT", r"mean = \"1e5\""),
    ({"magnitude": {"zero_point": "a"}}, "DOUBLE", r"zero_point = \"a\""),
    ({"choice": {"values": 5}}, "INT", r"values = 5"),
    ({"choice": {"values": "star"}}, "VARCHAR(4)", r"values = \"star\""),
    ({"choice": {"values": [1, 2], "probabilities": 1}}, "INT", r"probabilities.* 1\b"),
    ({"choice": {"values": [1, 2], "probabilities": [NAN, 1]}}, "INT", r"probabilities \[nan, 1\]"),
    ({"uniform": {"max": INF}}, "DOUBLE", r"max = inf"),
    ({"uniform": {"max": INF}}, "INT", r"max = inf"),
    ({"uniform": {"max": 1e300}}, "FLOAT", r"max = 1e\+300.*FLOAT"),
    ({"uniform": {"min": -1.7e308, "max": 1.7e308}}, "DOUBLE", r"max = 1\.7e\+308"),
    ({"normal": {"mean": NAN}}, "DOUBLE", r"mean = nan"),
    ({"normal": {"sigma": INF}}, "DOUBLE", r"sigma = inf"),
    ({"magnitude": {"unit": "flux", "zero_point": 1e6}}, "DOUBLE", r"zero_point = 1000000\.0"),
    ({"magnitude": {"unit": "flux", "min": -100}}, "FLOAT", r"FLOAT"),
]


@pytest.mark.parametrize(("entry", "sql", "message"), WRONG_OPTIONS + NO_NUMBERS)
def test_wrong_options_are_refused(entry, sql, message):
    config = small_config(1, columns=[{"name": "x", "type": sql, "generator": entry}], children=False)
    with pytest.raises(ConfigError, match=r"tables\.Object\.columns.*\(x\): .*" + message):
        Dataset.from_config(config, REPOSITORY)


@pytest.mark.parametrize(
    ("entry", "sql", "message"),
    [
        ({"director": "nothing"}, "DOUBLE", r'no column "nothing" in Object; there are objectId, psRa'),
        ({"visit": "nothing"}, "DOUBLE", r'there is no column "nothing" in CcdVisit'),
        (
            {"forced_flux": {"flux": "gFlux", "sigma": "psFlux_Sigma"}},
            "DOUBLE",
            r'flux = "gFlux": it must hold \{filter\}',
        ),
        ({"forced_flux": {"flux": "{filter}Flux", "sigma": "psFlux_Sigma"}}, "DOUBLE", r'no column "uFlux" in Object'),
        (
            {"forced_flux": {"flux": "{filter}PsFlux", "sigma": "nothing"}},
            "DOUBLE",
            r'no column "nothing" in ForcedSource',
        ),
        ({"forced_flux": {"flux": "{filter}PsFlux"}}, "DOUBLE", r'"forced_flux" needs the option "sigma"'),
        (
            {"forced_flux": {"flux": "{filter}PsFlux", "sigma": "psFlux_Sigma"}},
            "INT",
            r"INT: the generator fills columns of the kind float",
        ),
        ("position", "DOUBLE", r"position"),
    ],
)
def test_wrong_options_in_a_child_are_refused(entry, sql, message):
    config = small_config(1)
    name = ["x", "y"] if entry == "position" else "x"
    config["tables"]["ForcedSource"]["columns"].append({"name": name, "type": sql, "generator": entry})
    with pytest.raises(ConfigError, match=r"tables\.ForcedSource\.columns.*\(x.*\): .*" + message):
        Dataset.from_config(config, REPOSITORY)


@pytest.mark.parametrize(
    ("entry", "sql"),
    [
        ({"director": "objectId"}, "INT"),
        ({"director": "objectId"}, "CHAR(3)"),
        ({"director": "uPsFlux"}, "INT"),
        ({"director": "gPsFlux"}, "DOUBLE NOT NULL"),
        ({"visit": "filterName"}, "INT"),
        ({"visit": "band"}, "CHAR(1)"),
    ],
)
def test_a_child_takes_over_only_what_its_column_can_hold(entry, sql):
    """Refused with the configuration, or at the latest when the rows are made; never cut, wrapped or left as it is."""
    config = small_config(60)
    config["tables"]["Object"]["columns"][2]["null_fraction"] = 0.5
    config["tables"]["CcdVisit"]["columns"].append(
        {"name": "band", "type": "CHAR(4)", "generator": {"constant": "wide"}},
    )
    config["tables"]["ForcedSource"]["columns"].append({"name": "x", "type": sql, "generator": entry})
    with pytest.raises(SkymillError, match=re.escape(sql)):
        chunk_columns(row_maker(Dataset.from_config(config, REPOSITORY)), 324)


@pytest.mark.parametrize(
    ("names", "types", "entry", "message"),
    [
        (["psRa"], "DOUBLE NOT NULL", "position", r"1 columns: it fills 2 \(RA, Dec\), or with error_deg 4"),
        (
            ["psRa", "a", "psDecl", "b"],
            "DOUBLE NOT NULL",
            {"position": {"error_deg": [2, 1]}},
            r"error_deg = \[2, 1\]: write \[low, high\]",
        ),
        (
            ["psRa", "a", "psDecl", "b"],
            "DOUBLE NOT NULL",
            {"position": {"error_deg": 0.1}},
            r"error_deg = 0\.1: write \[low, high\]",
        ),
        (["psDecl", "psRa"], "DOUBLE NOT NULL", "position", r"RA and Dec must be the table's position"),
        (["psRa", "psDecl"], "FLOAT NOT NULL", "position", r"psRa is FLOAT NOT NULL: positions need DOUBLE"),
    ],
)
def test_wrong_positions_are_refused(names, types, entry, message):
    config = small_config(1, children=False)
    config["tables"]["Object"]["columns"][1] = {"name": names, "type": types, "generator": entry}
    if len(names) == 1:
        config["tables"]["Object"]["columns"].append({"name": "psDecl", "type": types, "generator": {"constant": 1}})
    with pytest.raises(ConfigError, match=r"tables\.Object\.columns \(ps.*\): .*" + message):
        Dataset.from_config(config, REPOSITORY)


def test_columns_that_need_each_other_are_refused(tmp_path):
    message = r"tables\.Object: the columns x, y need each other; make one of them without the others"
    with pytest.raises(ConfigError, match=message):
        user_dataset(tmp_path, ("x", "DOUBLE", {"mine:Twice": "y"}), ("y", "DOUBLE", {"mine:Twice": "x"}))


def test_ids_that_do_not_fit_are_refused():
    config = small_config(1)
    config["tables"]["CcdVisit"]["columns"][0]["type"] = "TINYINT NOT NULL"
    with pytest.raises(ConfigError, match=r"tables\.CcdVisit.*ccdVisitId.*TINYINT"):
        Dataset.from_config(config, REPOSITORY)


# -- NULLs that are handed on -----------------------------------------------------------------------------------------


def test_nulls_of_a_director_are_nulls_of_its_children():
    config = small_config(60)
    config["tables"]["Object"]["columns"][2]["null_fraction"] = 0.5
    config["tables"]["ForcedSource"]["columns"] += [
        {"name": "copy", "type": "FLOAT", "generator": {"director": "gPsFlux"}},
        {"name": "filterName", "type": "CHAR(1)", "generator": {"visit": "filterName"}},
    ]
    objects, sources = chunk_columns(row_maker(Dataset.from_config(config, REPOSITORY)), 324)
    missing = objects["objectId"][np.ma.getmaskarray(objects["gPsFlux"])]
    assert np.array_equal(np.ma.getmaskarray(sources["copy"]), np.isin(sources["objectId"], missing))
    # A flux that is not there cannot be measured.
    seen_in_g = sources["filterName"] == "g"
    assert np.array_equal(
        np.ma.getmaskarray(sources["psFlux"])[seen_in_g], np.isin(sources["objectId"], missing)[seen_in_g]
    )


def test_strings_know_their_nulls():
    strings = Strings(np.array([0, -1, 1], np.int32), ("a", "b"))
    assert len(strings) == 3 and strings[1:].codes.tolist() == [-1, 1]
    assert strings.to_list() == ["a", None, "b"]


# -- names and types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expanded"),
    [
        ("x", ["x"]),
        (["a", "b"], ["a", "b"]),
        ("{u,g}Flux", ["uFlux", "gFlux"]),
        ("{u, g}Flux", ["uFlux", "gFlux"]),
        ("x{0..3}", ["x0", "x1", "x2", "x3"]),
        ("x{9..11}", ["x9", "x10", "x11"]),
        ("{a,b}_{1..2}", ["a_1", "a_2", "b_1", "b_2"]),
        (["id", "{u,g}Flux"], ["id", "uFlux", "gFlux"]),
    ],
)
def test_names_are_expanded(names, expanded):
    assert expand_names(names) == expanded


@pytest.mark.parametrize("name", ["1x", "a-b", "a b", "", "x{", "x{0..", "ä", "x" * 65, "a.b", "`x`"])
def test_wrong_names_are_refused(name):
    with pytest.raises(
        ValueError, match=r"column name .*letters, digits and underscores only, not beginning with a digit"
    ):
        expand_names(name)


def test_a_range_of_names_that_runs_backwards_is_no_empty_list():
    with pytest.raises(ValueError, match=r"x\{3\.\.1\}"):
        expand_names("x{3..1}")


@pytest.mark.parametrize(
    ("text", "canonical", "dtype", "length", "nullable"),
    [
        ("INT", "INT", "i4", 0, True),
        (" int(11)  unsigned not  null ", "INT UNSIGNED NOT NULL", "u4", 0, False),
        ("TINYINT", "TINYINT", "i1", 0, True),
        ("SMALLINT UNSIGNED", "SMALLINT UNSIGNED", "u2", 0, True),
        ("BIGINT NOT NULL", "BIGINT NOT NULL", "i8", 0, False),
        ("FLOAT", "FLOAT", "f4", 0, True),
        ("double null", "DOUBLE", "f8", 0, True),
        ("BOOL", "BOOL", "u1", 0, True),
        ("CHAR", "CHAR", None, 1, True),
        ("char(3)", "CHAR(3)", None, 3, True),
        ("VARCHAR(255) NOT NULL", "VARCHAR(255) NOT NULL", None, 255, False),
        ("national  varchar(9)", "NATIONAL VARCHAR(9)", None, 9, True),
        ("LONGTEXT", "LONGTEXT", None, 2**32 - 1, True),
        ("datetime", "DATETIME", "M8[us]", 0, True),
        ("DATETIME(6) NOT NULL", "DATETIME(6) NOT NULL", "M8[us]", 6, False),
    ],
)
def test_types(text, canonical, dtype, length, nullable):
    found = parse_type(text)
    assert (found.text, found.length, found.nullable) == (canonical, length, nullable)
    assert found.dtype == (None if dtype is None else np.dtype(dtype))


@pytest.mark.parametrize(
    "text",
    [
        "TEXT",
        "DOUBLE UNSIGNED",
        "VARCHAR",
        "INT NOTNULL",
        "INT DEFAULT 0",
        "",
        "DECIMAL(3,2)",
        "NATIONAL VARCHAR",
        "NATIONAL CHAR(3)",
        "LONGTEXT(5)",
        "DATETIME(7)",
        "TIMESTAMP",
        "DATETIME UNSIGNED",
    ],
)
def test_other_types_are_refused(text):
    with pytest.raises(ValueError, match=r"type .*: allowed are TINYINT") as error:
        parse_type(text)
    assert text in str(error.value) and ALLOWED in str(error.value)
