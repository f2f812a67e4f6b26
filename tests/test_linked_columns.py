"""Columns made from others, rows that follow chosen objects, detectors, groups of columns, and times through the whole chain.

Significance: see `helpers`; by chance a test of statistics fails in less than 1 of 10^6 seeds, and the seeds are fixed.
"""

import datetime
import math
import string

import duckdb
import numpy as np
import pytest
import yaml

from generate_tile import generate_tile
from helpers import (
    FLUX_COLUMNS,
    REPOSITORY,
    assert_chi_square,
    assert_ks,
    assert_mean,
    assert_uniform,
    chunk_columns,
    correlation_bound,
    director_columns,
    drawn,
    make_visits,
    normal_cdf,
    row_maker,
    small_config,
)
from skymill import kernels, visits
from skymill.census import SHARE_ROWS, chosen_share, take_census
from skymill.columns import Column, Rows, Strings
from skymill.config import Dataset
from skymill.derived import table_config
from skymill.errors import ConfigError, SkymillError
from skymill.generators import make_generator
from skymill.linked_columns import SMALLEST_COS
from skymill.rowmaker import choose_rows
from skymill.sqltypes import parse_type
from skymill.tables import RowSelection
from skymill.textfile import TableFile
from skymill.visits import make_regular_table
from workflow import snakemake, write_config

COUNT = 20_000


def make(entry, sql="DOUBLE"):
    """A generator of one column of a type."""
    return make_generator(entry, [Column("x", parse_type(sql))], ".")


def draw(entry, sql="DOUBLE", count=COUNT, **columns):
    """The values that a generator makes of other columns of the row."""
    return make(entry, sql).draw(np.random.default_rng(1), Rows(count, 0, 0, 0, dict(columns)))


def dataset_of(config):
    return Dataset.from_config(config, REPOSITORY)


# -- text and time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sql", "length"), [("VARCHAR(20)", 8), ("CHAR(3)", 3), ("LONGTEXT", 8), ("CHAR", 1)])
def test_text_is_made_of_letters(sql, length):
    (found,) = drawn(make("text", sql), COUNT)
    assert {len(text) for text in found} == {length}
    letters = np.array([ord(letter) - ord("a") for letter in "".join(found)])
    assert_chi_square(np.bincount(letters, minlength=26), np.full(26, len(letters) / 26))


def test_text_of_a_given_length():
    assert set(draw({"text": 12}, "VARCHAR(12)").to_list()[0]) <= set(string.ascii_lowercase)
    assert {len(text) for text in draw({"text": 12}, "VARCHAR(12)").to_list()} == {12}
    assert set(draw({"text": 0}, "VARCHAR(12)").to_list()) == {""}


@pytest.mark.parametrize(("sql", "step"), [("DATETIME", 10**6), ("DATETIME(2)", 10**4), ("DATETIME(6)", 1)])
def test_times_are_uniform_and_have_the_decimals_of_their_column(sql, step):
    (found,) = drawn(make({"time": {"start": "2025-06-29", "end": "2025-06-30 12:00:00"}}, sql), COUNT)
    assert found.dtype == np.dtype("datetime64[us]")
    microseconds = (found - np.datetime64("2025-06-29", "us")).astype(np.int64)
    assert (microseconds % step == 0).all()
    assert_uniform(microseconds, 0, 36 * 3600e6)


def test_times_of_modified_julian_dates():
    days = np.array([0.0, 40587.0, 60623.5, 60623.25, -1.75, 51544.00000001])
    found = draw({"time": {"mjd": "day"}}, "DATETIME(6)", len(days), day=days)
    epoch = datetime.datetime(1858, 11, 17)
    expected = [epoch + datetime.timedelta(days=day) for day in days.tolist()]
    assert [abs(a - b) <= datetime.timedelta(microseconds=1) for a, b in zip(found.tolist(), expected, strict=True)]
    assert found.tolist()[:4] == expected[:4]
    rounded = draw({"time": {"mjd": "day"}}, "DATETIME", 2, day=np.array([51544.0, 51544 + 1.6 / 86400]))
    assert [str(time) for time in rounded] == ["2000-01-01T00:00:00.000000", "2000-01-01T00:00:02.000000"]


def test_a_time_is_null_where_its_date_is():
    day = np.ma.masked_array([60000.0, np.nan, 60001.0], [False, True, False])
    found = draw({"time": {"mjd": "day"}}, "DATETIME", 3, day=day)
    assert np.ma.getmaskarray(found).tolist() == [False, True, False]
    assert str(found[2]) == "2023-02-26T00:00:00.000000"


@pytest.mark.parametrize("day", [1e7, -1e6, np.nan])
def test_a_date_that_no_datetime_holds_is_an_error(day):
    with pytest.raises(ConfigError, match=r"column x: day is .* a DATETIME holds -313698 to 2973483"):
        draw({"time": {"mjd": "day"}}, "DATETIME", 1, day=np.array([day]))


@pytest.mark.parametrize("decimals", range(7))
@pytest.mark.parametrize("compiled", [True, False])
def test_times_as_text(decimals, compiled, tmp_path, monkeypatch):
    """From the first to the last that a DATETIME holds, leap days among them, compared with numpy's own text."""
    if not compiled:
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif kernels.load() is None:
        pytest.skip("there is no C compiler here")
    column = Column("t", parse_type(f"DATETIME({decimals})"))
    low, high = (int(np.datetime64(day, "us").astype(np.int64)) for day in ("1000-01-01", "9999-12-31T23:59:59.999999"))
    random = np.random.default_rng(3).integers(low, high, 5000, endpoint=True)
    days = np.arange("1896-01-01", "2105-01-01", dtype="datetime64[D]").astype("datetime64[us]").astype(np.int64)
    moments = np.concatenate([[low, high, 0, -1], random, days, days - 1]).astype("datetime64[us]")
    null = np.arange(len(moments)) % 7 == 5
    with TableFile(tmp_path / "t.csv", [column]) as file:
        file.add({"t": np.ma.masked_array(moments, null)})
    expected = [text.replace("T", " ")[: 20 + decimals if decimals else 19] for text in moments.astype(str).tolist()]
    expected = ["\\N" if hidden else text for text, hidden in zip(expected, null.tolist(), strict=True)]
    assert (tmp_path / "t.csv").read_text().splitlines() == expected


def test_constants_and_choices_of_times():
    config = small_config(
        5,
        children=False,
        columns=[
            {"name": "one", "type": "DATETIME", "generator": {"constant": "2025-06-30 23:30:00"}},
            {"name": "two", "type": "DATETIME", "generator": {"choice": ["2025-06-30", "2025-07-01 00:00:00.75"]}},
        ],
    )
    made = director_columns(row_maker(dataset_of(config)), 324)
    assert set(made["one"].tolist()) == {datetime.datetime(2025, 6, 30, 23, 30)}
    # The column holds whole seconds.
    assert set(made["two"].tolist()) == {datetime.datetime(2025, 6, 30), datetime.datetime(2025, 7, 1)}


# -- linear, lookup ---------------------------------------------------------------------------------------------------


def test_linear():
    source = np.arange(COUNT, dtype=np.float32)
    assert np.array_equal(draw({"linear": "a"}, a=source), source)
    assert np.array_equal(draw({"linear": {"column": "a", "factor": -2, "offset": 5}}, a=source), 5 - 2.0 * source)
    noise = draw({"linear": {"column": "a", "factor": 3, "sigma": 0.5}}, a=source) - 3.0 * source
    assert_ks(noise / 0.5, normal_cdf)
    whole = draw({"linear": {"column": "a", "offset": 2**60}}, "BIGINT", 2, a=np.array([1, -1], np.int16))
    assert whole.tolist() == [2**60 + 1, 2**60 - 1]
    null = draw({"linear": "a"}, "FLOAT", 2, a=np.ma.masked_array([1.0, 2.0], [True, False]))
    assert null.dtype == np.float32 and null.tolist() == [None, 2.0]


def test_linear_that_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match="column x: values 200 to 200 do not fit TINYINT"):
        draw({"linear": {"column": "a", "factor": 2}}, "TINYINT", 1, a=np.array([100]))


def test_lookup():
    bands = Strings(np.array([1, 0, -1, 1], np.int32), ("g", "r", "unused"))
    found = draw({"lookup": {"column": "band", "values": {"r": "red", "g": "green"}}}, "CHAR(5)", 4, band=bands)
    assert found.to_list() == ["red", "green", None, "red"]
    found = draw({"lookup": {"column": "band", "values": {"r": 7, "g": 3}}}, "TINYINT", 4, band=bands)
    assert found.dtype == np.int8 and found.tolist() == [7, 3, None, 7]
    with pytest.raises(ConfigError, match='column x: lookup has no value for "g" of band'):
        draw({"lookup": {"column": "band", "values": {"r": 7}}}, "TINYINT", 4, band=bands)


# -- jitter -----------------------------------------------------------------------------------------------------------


def jittered(ra_deg, dec_deg, sigma, unit="arcsec"):
    """RA and Dec moved by errors, as the generators do it."""
    count, made = len(ra_deg), []
    for i, entry in enumerate(({"column": "ra", "dec": "dec"}, {"column": "dec"})):
        generator = make({"jitter": {**entry, "sigma": "sigma", "unit": unit}})
        rows = Rows(count, 0, 0, 0, {"sigma": sigma}, director={"ra": ra_deg, "dec": dec_deg})
        made.append(generator.draw(np.random.default_rng(i), rows))
    return made


@pytest.mark.parametrize(
    ("unit", "degrees"), [("deg", 1), ("arcmin", 1 / 60), ("arcsec", 1 / 3600), ("mas", 1 / 3.6e6)]
)
@pytest.mark.parametrize("dec", [0.0, -60.0, 89.0])
def test_jitter_is_gaussian_on_the_sky_with_the_errors_given(unit, degrees, dec):
    sigma = (np.random.default_rng(9).uniform(0.05, 0.5, COUNT) * 1e-3 / degrees).astype(np.float32)
    ra, other = np.full(COUNT, 120.0), np.full(COUNT, dec)
    new_ra, new_dec = jittered(ra, other, sigma, unit)
    size = sigma.astype(np.float64) * degrees
    east, north = (new_ra - ra) * math.cos(math.radians(dec)) / size, (new_dec - other) / size
    assert_ks(east, normal_cdf)
    assert_ks(north, normal_cdf)
    assert abs(np.corrcoef(east, north)[0, 1]) < correlation_bound(COUNT, 1)


def test_jitter_stays_on_the_sphere():
    ra = np.tile([0.0, 360 - 1e-12, 1e-9, 180.0], COUNT // 4)
    dec = np.repeat([90.0, -90.0, 89.99999, 0.0], COUNT // 4)
    new_ra, new_dec = jittered(ra, dec, np.full(COUNT, 1.0), "arcsec")
    assert new_ra.min() >= 0 and new_ra.max() < 360
    assert np.abs(new_dec).max() <= 90
    assert np.abs(new_dec - dec).max() < 7 / 3600
    assert SMALLEST_COS == 1e-5


def test_jitter_without_error_changes_nothing():
    ra, dec = np.random.default_rng(2).uniform(0, 90, (2, COUNT))
    new_ra, new_dec = jittered(ra, dec, np.zeros(COUNT))
    assert np.array_equal(new_ra, ra) and np.array_equal(new_dec, dec)


def test_jitter_of_null_is_null():
    sigma = np.ma.masked_array(np.ones(3), [False, True, False])
    assert np.ma.getmaskarray(jittered(np.ones(3), np.ones(3), sigma)[0]).tolist() == [False, True, False]


# -- which objects have rows ------------------------------------------------------------------------------------------

SELECT = {"column": "gPsFlux", "below": 10, "edge": 4}


def selected_survey(select=SELECT, **keys):
    """A small sky whose ForcedSource follows only some objects; and its visits."""
    config = small_config(200, **keys)
    if select is not None:
        config["tables"]["ForcedSource"]["rows"]["select"] = select
    config["tables"]["ForcedSource"]["rows"]["radius_deg"] = 4
    dataset = dataset_of(config)
    return dataset, make_visits(dataset)


@pytest.fixture(scope="module")
def survey():
    """Object and ForcedSource in a chunk, with the choice and without it."""
    found = []
    for select in (SELECT, None):
        dataset, all_visits = selected_survey(select)
        found.append(chunk_columns(row_maker(dataset, all_visits), 324))
    return found


def test_the_bright_objects_have_rows_with_a_soft_edge(survey):
    (objects, sources), (same_objects, all_sources) = survey
    assert np.array_equal(objects["objectId"], same_objects["objectId"])
    seen = np.isin(objects["objectId"], all_sources["objectId"])
    chosen = np.isin(objects["objectId"], sources["objectId"])
    flux = objects["gPsFlux"]
    assert (seen & (flux < 8)).sum() > 3000
    assert chosen[seen & (flux < 8)].all() and not chosen[flux > 12].any()
    edges = np.linspace(8, 12, 9)
    counts = np.histogram(flux[seen], edges)[0]
    expected = counts * (12 - (edges[1:] + edges[:-1]) / 2) / 4
    assert_chi_square(np.histogram(flux[chosen], edges)[0], expected)


def test_a_chosen_object_has_the_rows_that_it_has_without_a_choice(survey):
    (_, sources), (_, all_sources) = survey
    held = np.isin(all_sources["objectId"], np.unique(sources["objectId"]))
    for name in ("objectId", "ccdVisitId", "#sub_chunk"):
        assert np.array_equal(sources[name], all_sources[name][held])


def test_ids_of_a_child_are_unique_over_chunks():
    dataset, all_visits = selected_survey()
    maker = row_maker(dataset, all_visits)
    ids = np.concatenate([chunk_columns(maker, chunk)[1]["sourceId"] for chunk in (324, 325, 358)])
    assert len(ids) > 10_000 and len(np.unique(ids)) == len(ids)


def test_the_choice_does_not_depend_on_the_size_of_blocks(tmp_path, monkeypatch):
    dataset, all_visits = selected_survey()
    usual = generate_tile(dataset, row_maker(dataset, all_visits), [324], tmp_path / "usual")
    monkeypatch.setattr(visits, "BLOCK_PAIRS", 5000)
    assert generate_tile(dataset, row_maker(dataset, all_visits), [324], tmp_path / "small") == usual


@pytest.mark.parametrize("upwards", [False, True])
def test_a_choice_without_edge_is_sharp_and_leaves_null_out(upwards):
    values = np.ma.masked_array([1.0, 2.0, 3.0, 4.0, 5.0], [True, False, False, False, True])
    rows = Rows(5, 0, 0, 0, {"a": values})
    found = choose_rows(RowSelection("a", 3.0, 0.0, upwards), rows, np.random.default_rng(1))
    assert found.tolist() == ([3] if upwards else [1])


def test_the_share_of_chosen_objects_is_forecast():
    """For the plan: from the deciding column alone, NULLs and columns that it needs included."""
    columns = [
        {"name": "b", "type": "FLOAT", "generator": {"linear": {"column": "a", "factor": 2}}, "null_fraction": 0.25},
        {"name": "a", "type": "DOUBLE", "generator": "uniform"},
        {"name": "c", "type": "DOUBLE", "generator": "normal"},
    ]
    maker = row_maker(dataset_of(small_config(1, columns=columns, children=False)))
    director = maker.dataset.tables["Object"]
    for selection, share in ((RowSelection("b", 1.5, 0.5, True), 0.75 / 4), (RowSelection("c", 0.0, 9.0, False), 0.5)):
        assert_mean(chosen_share(maker, director, selection, 324), share, math.sqrt(share * (1 - share) / SHARE_ROWS))


def test_rows_of_chosen_objects_are_forecast():
    dataset, all_visits = selected_survey()
    chunks = np.arange(324, 334)
    census = take_census(row_maker(dataset, all_visits), chunks)
    maker = row_maker(dataset, all_visits)
    made = sum(len(chunk_columns(maker, chunk)[1]["objectId"]) for chunk in chunks.tolist())
    assert census.rows["ForcedSource"].sum() == pytest.approx(made, rel=0.03)


# -- detectors, regions -----------------------------------------------------------------------------------------------


def detector_config(**visit_keys):
    """A small sky with a table of detectors, which ForcedSource follows."""
    config = small_config(20)
    tables = config["tables"]
    tables["CcdVisit"] |= visit_keys
    tables["Detector"] = {
        "kind": "regular",
        "rows": {"visits": "CcdVisit", "detectors": [3, 2], "spacing_deg": 1.5},
        "visit": {"id": "detectorId", "filter": "filterName"},
        "position": ["ra", "decl"],
        "columns": [
            {"name": "detectorId", "type": "INT NOT NULL", "generator": {"unique_id": {"first": 1000}}},
            {"name": "number", "type": "TINYINT NOT NULL", "generator": "detector"},
            {"name": "ccdVisitId", "type": "BIGINT NOT NULL", "generator": {"visit": "ccdVisitId"}},
            {"name": "filterName", "type": "CHAR(1)", "generator": {"visit": "filterName"}},
            {"name": ["ra", "decl"], "type": "DOUBLE", "generator": "position"},
        ],
    }
    child = tables["ForcedSource"]
    child["rows"] = {"visits": "Detector", "radius_deg": 0.74}
    child["columns"].append({"name": "number", "type": "INT", "generator": {"visit": "number"}})
    return config


def vectors(ra, dec):
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def test_detectors_stand_in_a_grid_around_their_visit():
    dataset = dataset_of(detector_config())
    made_visits = make_regular_table(dataset, dataset.tables["CcdVisit"])
    # Some visits at the poles and at RA 0, where a grid in RA and Dec would be torn.
    made_visits["ra"][:6] = [0, 359.9999, 10, 200, 0, 77]
    made_visits["decl"][:6] = [90, 0, -90, 89.5, -89.999, 88]
    made = make_regular_table(dataset, dataset.tables["Detector"], {"CcdVisit": made_visits})
    assert made["detectorId"].tolist() == list(range(1000, 1000 + 6 * 2000))
    assert np.array_equal(made["number"], np.tile(np.arange(6), 2000))
    assert np.array_equal(made["ccdVisitId"], np.repeat(made_visits["ccdVisitId"], 6))
    assert made["filterName"].to_list() == [name for name in made_visits["filterName"].to_list() for _ in range(6)]
    assert made["ra"].min() >= 0 and made["ra"].max() < 360
    ra, dec = np.radians(made_visits["ra"]), np.radians(made_visits["decl"])
    centre = vectors(made_visits["ra"], made_visits["decl"])
    to_east = np.stack([-np.sin(ra), np.cos(ra), 0 * ra], axis=-1)
    to_north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    places = vectors(made["ra"], made["decl"]).reshape(2000, 6, 3)
    along = (places * centre[:, None]).sum(axis=-1)
    east = np.degrees((places * to_east[:, None]).sum(axis=-1) / along)
    north = np.degrees((places * to_north[:, None]).sum(axis=-1) / along)
    # Dec is an arc sine: near a pole it has lost digits, about 1e-8 rad there.
    assert np.abs(east - [1.5, 0, -1.5, 1.5, 0, -1.5]).max() < 1e-5
    assert np.abs(north - [-0.75, -0.75, -0.75, 0.75, 0.75, 0.75]).max() < 1e-5


def test_a_child_knows_the_visit_and_the_detector_that_see_its_object():
    dataset = dataset_of(detector_config())
    made = make_regular_table(dataset, dataset.tables["Detector"])
    objects, sources = chunk_columns(row_maker(dataset), 324)
    assert len(sources["objectId"]) > 1000
    # Circles of nearly half the spacing do not overlap: no visit sees an object twice, and each row names its own
    # detector.
    pairs = set(zip(sources["objectId"].tolist(), sources["ccdVisitId"].tolist(), strict=True))
    assert {c.name for c in dataset.tables["Detector"].columns} >= {"number", "ccdVisitId"}
    places = {
        i: place
        for i, place in zip(objects["objectId"].tolist(), vectors(objects["psRa"], objects["psDecl"]), strict=True)
    }
    centres = dict(zip(made["detectorId"].tolist(), vectors(made["ra"], made["decl"]), strict=True))
    expected = 0
    limit = math.cos(math.radians(0.74))
    stack = np.array(list(places.values()))
    for centre in centres.values():
        expected += int((stack @ centre > limit).sum())
    assert len(pairs) == len(sources["objectId"]) == expected


def test_visits_may_lie_in_a_region():
    dataset = dataset_of(detector_config(region=[350, 20, -10, 25]))
    made = make_regular_table(dataset, dataset.tables["CcdVisit"])
    ra, dec = made["ra"], made["decl"]
    assert ra.min() >= 0 and ra.max() < 360
    assert_uniform((ra + 10) % 360, 0, 30)
    low, high = (math.sin(math.radians(edge)) for edge in (-10, 25))
    assert_uniform(np.sin(np.radians(dec)), low, high)


def test_a_trial_by_hand_makes_the_detectors_of_its_own_visits(tmp_path):
    from generate_chunk import main

    path = write_config(tmp_path, detector_config())
    assert main(["-c", str(path), "--chunk", "324", "--visits", "5", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "Detector.csv").read_text().count("\n") == 30


# -- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_the_same_as_its_entries_written_out():
    group = {
        "for": {"band": ["u", "g"]},
        "columns": [
            {"name": "{band}Noise", "type": "FLOAT", "generator": {"linear": {"column": "{band}PsFlux", "sigma": 0.1}}},
            {"name": ["{band}{A,B}", "{band}C{0..1}"], "type": "INT", "generator": {"poisson": 3}},
        ],
    }
    plain = []
    for band in "ug":
        noise = {"linear": {"column": f"{band}PsFlux", "sigma": 0.1}}
        plain.append({"name": f"{band}Noise", "type": "FLOAT", "generator": noise})
        names = [f"{band}A", f"{band}B", f"{band}C0", f"{band}C1"]
        plain.append({"name": names, "type": "INT", "generator": {"poisson": 3}})
    datasets = [
        dataset_of(small_config(20, columns=[*FLUX_COLUMNS, *columns], children=False)) for columns in ([group], plain)
    ]
    names = [[column.name for column in dataset.tables["Object"].columns] for dataset in datasets]
    made = [director_columns(row_maker(dataset), 324) for dataset in datasets]
    assert names[0] == names[1]
    assert names[0][6:] == ["uNoise", "uA", "uB", "uC0", "uC1", "gNoise", "gA", "gB", "gC0", "gC1"]
    assert all(np.array_equal(made[0][name], made[1][name]) for name in names[0])


# -- what is refused --------------------------------------------------------------------------------------------------

IN_OBJECT = [
    ({"text": -1}, "CHAR(3)", r"length = -1: it must be a whole number from 0 to 3"),
    ({"text": 4}, "CHAR(3)", r"length = 4: .* from 0 to 3"),
    ("text", "INT", r"INT: the generator fills columns of the kind string"),
    ({"unique_id": {"first": 5}}, "BIGINT", r"first = 5: only the ids of a regular table are counted"),
    ({"time": {"start": "2025-01-01"}}, "DATETIME", r"give either start and end, or mjd"),
    ({"time": {"start": "a", "end": "2025-01-01", "mjd": "uPsFlux"}}, "DATETIME", r"give either start and end, or mjd"),
    ("time", "DATETIME", r"give either start and end, or mjd"),
    ({"time": {"start": "2025-01-02", "end": "2025-01-01"}}, "DATETIME", r"start must not be after end"),
    (
        {"time": {"start": "monday", "end": "2025-01-01"}},
        "DATETIME",
        r"start = \"monday\": write a time as \"2025-06-30",
    ),
    ({"time": {"start": 2025, "end": "2025-01-01"}}, "DATETIME", r"start = 2025: write a time as .* in quotes"),
    ({"time": {"start": "0900-01-01", "end": "2025-01-01"}}, "DATETIME", r"from the year 1000"),
    ({"time": {"mjd": "uPsFlux"}}, "DOUBLE", r"DOUBLE: the generator fills columns of the kind datetime"),
    ({"time": {"mjd": "objectId"}}, "DATETIME", r"mjd = \"objectId\": it is BIGINT NOT NULL; times need DOUBLE"),
    ({"time": {"mjd": "nothing"}}, "DATETIME", r'there is no column "nothing" in Object'),
    ({"linear": {"column": "nothing"}}, "DOUBLE", r'there is no column "nothing" in Object'),
    ({"linear": {"column": "uPsFlux", "factor": "a"}}, "DOUBLE", r"factor = \"a\": it must be a finite number"),
    ({"linear": {"column": "uPsFlux", "sigma": -1}}, "DOUBLE", r"sigma = -1: it must be at least 0"),
    ({"linear": {"column": "objectId", "factor": 0.5}}, "INT", r"INT: whole numbers need whole factor"),
    ({"linear": {"column": "uPsFlux"}}, "INT", r"INT: whole numbers need whole factor, offset and column"),
    ({"lookup": {"column": "uPsFlux", "values": {"a": 1}}}, "INT", r"column = \"uPsFlux\": it is DOUBLE, not a string"),
    ({"lookup": {"column": "uPsFlux", "values": [1]}}, "INT", r"values = \[1\]: write a mapping"),
    ({"lookup": {"column": "word", "values": {"a": "b"}}}, "INT", r"value \"b\" does not fit INT"),
    ({"jitter": {"column": "psRa", "sigma": "uPsFlux"}}, "DOUBLE", r"Object is no child table"),
    ("detector", "INT", r"Object has no rows: \{visits: \.\.\., detectors: \.\.\.\}"),
    (
        {"constant": "2025-13-01"},
        "DATETIME",
        r"value \"2025-13-01\" does not fit DATETIME \(write \"2025-06-30 23:30:00\"",
    ),
    ({"constant": 5}, "DATETIME", r"value 5 does not fit DATETIME"),
    ({"uniform": {"max": 5}}, "DATETIME", r"DATETIME: the generator fills columns of the kind integer or float"),
]
IN_CHILD = [
    (
        {"jitter": {"column": "psRa", "sigma": "psFlux_Sigma", "unit": "pixel"}},
        "DOUBLE",
        r"unit = \"pixel\": it must be deg",
    ),
    ({"jitter": {"column": "psRa", "sigma": "psFlux_Sigma"}}, "FLOAT", r"FLOAT: positions need DOUBLE"),
    ({"jitter": {"column": "psRa", "sigma": "nothing"}}, "DOUBLE", r'there is no column "nothing" in ForcedSource'),
    ({"jitter": {"column": "ra", "sigma": "psFlux_Sigma"}}, "DOUBLE", r'there is no column "ra" in Object'),
    (
        {"jitter": {"column": "psRa", "sigma": "psFlux_Sigma", "dec": "decl"}},
        "DOUBLE",
        r'there is no column "decl" in Object',
    ),
]


@pytest.mark.parametrize(("entry", "sql", "message"), IN_OBJECT)
def test_wrong_options_are_refused(entry, sql, message):
    columns = [*FLUX_COLUMNS, {"name": "word", "type": "CHAR(1)", "generator": "text"}]
    config = small_config(1, columns=[*columns, {"name": "x", "type": sql, "generator": entry}], children=False)
    with pytest.raises(ConfigError, match=r"tables\.Object\.columns.*\(x\): .*" + message):
        dataset_of(config)


@pytest.mark.parametrize(("entry", "sql", "message"), IN_CHILD)
def test_wrong_options_in_a_child_are_refused(entry, sql, message):
    config = small_config(1)
    config["tables"]["ForcedSource"]["columns"].append({"name": "x", "type": sql, "generator": entry})
    with pytest.raises(ConfigError, match=r"tables\.ForcedSource\.columns.*\(x\): .*" + message):
        dataset_of(config)


def test_jitter_of_a_string_is_an_error():
    rows = Rows(1, 0, 0, 0, {"s": np.ones(1)}, director={"name": Strings(np.zeros(1, np.int32), ("a",))})
    with pytest.raises(ConfigError, match="column x: jitter needs an angle, and name is none"):
        make({"jitter": {"column": "name", "sigma": "s"}}).draw(np.random.default_rng(1), rows)


def child_rows(**keys):
    def apply(config):
        config["tables"]["ForcedSource"]["rows"] = {"visits": "CcdVisit", "radius_deg": 1.4} | keys

    return apply


def detector_rows(**keys):
    def apply(config):
        config["tables"] |= {"Detector": detector_config()["tables"]["Detector"]}
        rows = {"visits": "CcdVisit", "detectors": [3, 2], "spacing_deg": 1.5} | keys
        config["tables"]["Detector"]["rows"] = {key: value for key, value in rows.items() if value is not None}

    return apply


def region(*box, **keys):
    def apply(config):
        config["tables"]["CcdVisit"] |= {"region": list(box)} | keys

    return apply


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (child_rows(select={"column": "gPsFlux"}), r"ForcedSource\.rows.*select"),
        (
            child_rows(select={"column": "gPsFlux", "edge": 1}),
            r"ForcedSource\.rows\.select: give either above or below",
        ),
        (child_rows(select={"column": "gPsFlux", "above": 1, "below": 2}), r"select: give either above or below"),
        (child_rows(select={"column": "flux", "above": 1}), r'rows\.select: there is no column "flux" in Object'),
        (child_rows(select={"column": "gPsFlux", "above": 1, "edge": -1}), r"rows.*edge: -1 .*at least 0"),
        (
            child_rows(detectors=[3, 3]),
            r"tables\.ForcedSource\.rows\.detectors: only a regular table of detectors has such a key",
        ),
        (detector_rows(spacing_deg=None), r'tables\.Detector\.rows: the key "spacing_deg" is missing'),
        (detector_rows(detectors=None), r'tables\.Detector\.rows: the key "detectors" is missing'),
        (detector_rows(radius_deg=1), r"tables\.Detector\.rows\.radius_deg: only a child table has such a key"),
        (detector_rows(visits="Object"), r'tables\.Detector\.rows\.visits: "Object" is not a table of visits'),
        (detector_rows(visits="Detector"), r'tables\.Detector\.rows\.visits: "Detector" is not a table of visits'),
        (detector_rows(detectors=[3]), r"detectors: \[3\]"),
        (region(10, 20, 30, 20), r"tables\.CcdVisit\.region: \[10\.0, 20\.0, 30\.0, 20\.0\]: write \[ra_min"),
        (region(10, 20, 10, 95), r"tables\.CcdVisit\.region: .*: write \[ra_min"),
    ],
)
def test_wrong_rows_are_refused(wrong, message):
    config = small_config(1)
    wrong(config)
    with pytest.raises(ConfigError, match=message):
        dataset_of(config)


def test_a_column_that_chooses_rows_must_be_a_number():
    config = small_config(
        1, columns=[*FLUX_COLUMNS, {"name": "name", "type": "CHAR(1)", "generator": {"constant": "a"}}]
    )
    child_rows(select={"column": "name", "above": 1})(config)
    with pytest.raises(ConfigError, match=r"rows\.select: name is CHAR\(1\); rows are chosen by a number"):
        dataset_of(config)


def test_a_region_is_for_positions_that_are_drawn(tmp_path):
    config = detector_config()
    config["tables"]["Detector"]["region"] = [0, 1, 0, 1]
    with pytest.raises(ConfigError, match=r"tables\.Detector\.region: only positions that are drawn lie in a region"):
        dataset_of(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(["NaT"], "datetime64[us]"), "made NaT, which DATETIME does not hold"),
        (np.array([1]), "made int64, not DATETIME"),
    ],
)
def test_what_a_generator_must_not_make_of_times(values, message):
    from skymill.rowmaker import _checked

    table = dataset_of(small_config(1, children=False)).tables["Object"]
    with pytest.raises(SkymillError, match=message):
        _checked(table, Column("t", parse_type("DATETIME")), values, 1)


# -- a child without a key --------------------------------------------------------------------------------------------


def keyless_config():
    config = small_config(5)
    child = config["tables"]["ForcedSource"]
    child["key"] = None
    child["columns"] = child["columns"][1:]
    return config


def test_a_child_may_say_that_it_has_no_key():
    dataset = dataset_of(keyless_config())
    objects, sources = chunk_columns(row_maker(dataset), 324)
    assert len(objects["objectId"]) > 0 and "objectId" not in sources
    with pytest.raises(
        ConfigError, match=r"tables\.ForcedSource\.key: Qserv needs .*generator: \{director: objectId\}"
    ):
        table_config(dataset, dataset.tables["ForcedSource"])


def test_a_director_must_have_a_key():
    config = small_config(5)
    config["tables"]["Object"]["key"] = None
    with pytest.raises(ConfigError, match=r'tables\.Object: the key "key" is missing'):
        dataset_of(config)


# -- the whole chain --------------------------------------------------------------------------------------------------


def test_times_texts_detectors_and_keyless_children_are_loaded_as_they_were_made(tmp_path):
    config = detector_config()
    tables = config["tables"]
    tables["CcdVisit"]["columns"] += [
        {"name": "night", "type": "DOUBLE", "generator": {"uniform": {"min": 60000, "max": 61000}}},
        {"name": "start", "type": "DATETIME(3)", "generator": {"time": {"mjd": "night"}}, "null_fraction": 0.1},
    ]
    tables["Object"]["columns"] += [
        {
            "name": "found",
            "type": "DATETIME",
            "generator": {"time": {"start": "1990-01-01", "end": "2030-01-01"}},
            "null_fraction": 0.2,
        },
        {"name": "story", "type": "LONGTEXT", "generator": {"choice": ["a\tb", "c\\d", "e"]}, "null_fraction": 0.2},
    ]
    child = tables["ForcedSource"]
    child["key"] = None
    child["columns"][0] = {"name": "found", "type": "DATETIME(6)", "generator": {"director": "found"}}
    config |= {"database": "chain", "chunks": "324:325"}
    path = write_config(tmp_path, yaml.safe_load(yaml.safe_dump(config)))
    snakemake(tmp_path, config=path)
    dataset = dataset_of(config)
    maker = row_maker(dataset)
    made = [chunk_columns(maker, chunk) for chunk in (324, 325)]
    with duckdb.connect(str(tmp_path / "results" / "chain" / "chain.duckdb"), read_only=True) as database:
        for i, (table, key) in enumerate((("Object", "objectId"), ("ForcedSource", "sourceId"))):
            names = [column.name for column in dataset.tables[table].columns]
            rows = database.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY {key}").fetchall()
            order = np.argsort(np.concatenate([part[i][key] for part in made]))
            columns = [[value for part in made for value in part[i][name].tolist()] for name in names]
            expected = list(zip(*([column[row] for row in order.tolist()] for column in columns), strict=True))
            assert len(rows) > 1000
            assert rows == expected
        types = dict(
            database.execute(
                "SELECT table_name || '.' || column_name, data_type FROM information_schema.columns"
            ).fetchall()
        )
        assert types["Object.found"] == types["CcdVisit.start"] == "TIMESTAMP"
        assert types["Object.story"] == "VARCHAR"
        late = database.execute(
            "SELECT max(abs(epoch_us(start) - (night - 40587) * 86400000000)), count(*) - count(start) FROM CcdVisit"
        ).fetchone()
        assert late[0] <= 500 and 0 < late[1] < 400
        detectors = database.execute("SELECT count(*), count(DISTINCT detectorId) FROM Detector").fetchone()
        assert detectors == (12_000, 12_000)
    assert not (tmp_path / "results" / "chain" / "configs" / "partitioner" / "ForcedSource.cfg").exists()


def test_times_are_read_from_files(tmp_path):
    config = small_config(1)
    visits_table = config["tables"]["CcdVisit"]
    del visits_table["rows"]
    visits_table["from_file"] = "visits.csv"
    visits_table["columns"] = [
        {key: value for key, value in column.items() if key != "generator"} for column in visits_table["columns"]
    ]
    visits_table["columns"].append({"name": "start", "type": "DATETIME(3)"})
    path = tmp_path / "visits.csv"
    path.write_text(
        "ccdVisitId,filterName,ra,decl,start\n1,u,1,2,2024-11-08 04:15:33.125\n2,g,1,2,\n3,u,1,2,2024-11-08T04:15:33\n"
    )
    dataset = Dataset.from_config(config, tmp_path)
    table = dataset.tables["CcdVisit"]
    made = make_regular_table(dataset, table)["start"]
    assert made.tolist() == [
        datetime.datetime(2024, 11, 8, 4, 15, 33, 125000),
        None,
        datetime.datetime(2024, 11, 8, 4, 15, 33),
    ]
    visits.save_arrays(tmp_path / "visits.npz", {**make_regular_table(dataset, table)})
    assert visits.load_visits(tmp_path / "visits.npz", table).columns["start"].tolist() == made.tolist()
    path.write_text("ccdVisitId,filterName,ra,decl,start\n1,u,1,2,yesterday\n")
    with pytest.raises(ConfigError, match=r"from_file \(visits\.csv\): start: .*it must be DATETIME\(3\)"):
        make_regular_table(dataset, table)
