"""The dataset kpm50: its columns are those of the list, and hold what the list says of their values.

Significance: see `helpers`; by chance a test of statistics fails in less than 1 of 10^6 seeds, and the seeds are fixed.
"""

import csv
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
    correlation_bound,
    join,
    normal_cdf,
)
from skymill.config import load_dataset
from skymill.density import UniformDensity, box_area_sq_deg
from skymill.rowmaker import BoxStreams, RowMaker
from skymill.visits import Visits, make_regular_table

TABLES = ("Object", "Source", "ForcedSource")
#: Not NULL: keys, and the positions of rows.
NEVER_NULL = {"objectId", "sourceId", "ccdVisitId", "psRa", "psDecl", "ra", "decl"}
#: What is tested is made in this chunk, with so many objects.
CHUNK, OBJECTS = 115484, 3000


def listed():
    with open(REPOSITORY / "tests" / "data" / "kpm50_columns.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def dataset():
    return load_dataset(REPOSITORY / "configs" / "kpm50" / "config.yaml")


@cache
def made():
    """The tables of a chunk with fewer objects, and the visits."""
    tables = dataset().tables
    visits = Visits(make_regular_table(dataset(), tables["CcdVisit"]), tables["CcdVisit"])
    area = box_area_sq_deg(dataset().chunker.chunk_box(CHUNK))
    maker = RowMaker(dataset(), {"Object": UniformDensity(OBJECTS / area)}, {"CcdVisit": visits})
    blocks = {name: [] for name in TABLES}
    streams = {}
    for rows in maker.director_blocks(tables["Object"], CHUNK):
        blocks["Object"].append(rows.columns)
        for name in TABLES[1:]:
            key = name, rows.box
            streams.setdefault(key, BoxStreams(dataset().seed, tables[name], CHUNK, rows.box))
            blocks[name] += [part.columns for part in maker.child_blocks(tables[name], rows, streams[key])]
    return {name: join(parts) for name, parts in blocks.items()}, visits


# -- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "count"), [("Object", 331), ("Source", 47), ("ForcedSource", 5)])
def test_names_types_and_order_are_those_of_the_list(table, count):
    expected = []
    for row in listed():
        if row["table"] == table:
            never_null = " NOT NULL" if row["column"] in NEVER_NULL else ""
            expected.append((row["column"], row["mysql_type"] + never_null))
    assert [(column.name, column.type.text) for column in dataset().tables[table].columns] == expected
    assert len(expected) == count


def test_the_survey_has_the_size_that_it_is_known_for():
    chunks = dataset().selection().chunks
    chunker = dataset().chunker
    areas = [box_area_sq_deg(chunker.chunk_box(chunk)) for chunk in chunks[::1000].tolist()]
    assert len(chunks) == 146_332
    assert dataset().tables["CcdVisit"].rows == 150_000
    density = dataset().tables["Object"].density["per_sq_deg"]
    assert density == 327_248
    assert 90_000 < density * np.mean(areas) < 95_000


# -- values -----------------------------------------------------------------------------------------------------------


def assert_whole(values, low, high):
    """Whole numbers are uniform in low..high, both included."""
    values = values.astype(np.float64)
    assert values.min() >= low and values.max() <= high
    if high - low < 1000:
        counts = np.bincount(values.astype(int) - low, minlength=high - low + 1)
        assert_chi_square(counts, np.full(high - low + 1, len(values) / (high - low + 1)))
    else:
        assert_ks(values, lambda x: (x - low) / (high - low))


def assert_poisson(values, mean):
    assert values.min() >= 0
    assert_mean(values.mean(), mean, math.sqrt(mean / len(values)))
    # The variance of a sample variance of Poisson counts: (mean + 2 mean^2) / n.
    assert_mean(values.var(dtype=float), mean, math.sqrt((mean + 2 * mean**2) / len(values)))


def check_values(table, column, text):
    """Whether a column holds what the list says, if it says a distribution; else False."""
    values = made()[0][table][column]
    number = r"(-?[\d.e-]+)"
    if match := re.fullmatch(rf"(?:magnitude )?uniform {number}\.\.{number}", text):
        low, high = (float(np.asarray(float(edge), dtype=values.dtype)) for edge in match.groups())
        assert_uniform(values, low, high)
    elif match := re.fullmatch(r"uniform integer (\d+)\.\.(\d+)", text):
        assert_whole(values, int(match[1]), int(match[2]))
    elif match := re.fullmatch(r"poisson mean=(\d+)", text):
        assert_poisson(values, int(match[1]))
    elif match := re.fullmatch(r"one of ([a-z ]+)", text):
        names = match[1].split()
        assert_chi_square([(values == name).sum() for name in names], np.full(len(names), len(values) / len(names)))
    else:
        return False
    return True


#: What the list says of values that have a test of their own below.
SPECIAL = {
    "unique id",
    "position (deg); its errors uniform 0..2e-6 deg",
    "id of its visit",
    "filter of its visit",
    "id of its object",
    "object RA (jitter allowed)",
    "object Dec (jitter allowed)",
    "object flux in the visit's filter plus gaussian noise of psFlux_Err",
}


@pytest.mark.parametrize("table", TABLES)
def test_values_have_the_distributions_of_the_list(table):
    rest = {
        row["values"]
        for row in listed()
        if row["table"] == table and not check_values(table, row["column"], row["values"])
    }
    assert rest <= SPECIAL
    assert len(made()[0][table]) == sum(row["table"] == table for row in listed())


def test_ids_are_unique():
    tables, _ = made()
    for table, key in (("Object", "objectId"), ("Source", "sourceId")):
        assert len(np.unique(tables[table][key])) == len(tables[table][key]) > 2000


def test_positions_of_objects_and_their_errors():
    objects = made()[0]["Object"]
    box = dataset().chunker.chunk_box(CHUNK)
    assert_uniform(objects["psRa"], box.ra_min_deg, box.ra_max_deg)
    low, high = (math.sin(math.radians(edge)) for edge in (box.dec_min_deg, box.dec_max_deg))
    assert_uniform(np.sin(np.radians(objects["psDecl"])), low, high)
    for name in ("psRaErr", "psDeclErr"):
        assert_uniform(objects[name], 0, float(np.float32(2e-6)))


def of_object(table, name):
    """A column of the object of each row of a child."""
    objects = made()[0]["Object"]
    order = np.argsort(objects["objectId"])
    place = order[np.searchsorted(objects["objectId"][order], table["objectId"])]
    assert np.array_equal(objects["objectId"][place], table["objectId"])
    return objects[name][place]


def of_visit(table, name):
    """A column of the visit of each row of a child."""
    visits = made()[1].columns
    place = np.searchsorted(visits["ccdVisitId"], table["ccdVisitId"])
    assert np.array_equal(visits["ccdVisitId"][place], table["ccdVisitId"])
    return visits[name][place]


def vectors(ra, dec):
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


@pytest.mark.parametrize("table", ["Source", "ForcedSource"])
def test_a_child_has_a_row_for_each_matching_visit_of_its_objects(table):
    tables, visits = made()
    rows, objects = tables[table], tables["Object"]
    cosine = (
        vectors(of_object(rows, "psRa"), of_object(rows, "psDecl"))
        * vectors(of_visit(rows, "ra"), of_visit(rows, "decl"))
    ).sum(axis=1)
    assert np.degrees(np.arccos(np.minimum(cosine, 1))).max() <= 1.7
    # As many as there are, counted in another way.
    chosen = np.isin(objects["objectId"], rows["objectId"])
    points = vectors(objects["psRa"][chosen], objects["psDecl"][chosen])
    near = vectors(visits.columns["ra"], visits.columns["decl"]) @ points.mean(axis=0) > math.cos(math.radians(4))
    centres = vectors(visits.columns["ra"][near], visits.columns["decl"][near])
    assert len(rows["objectId"]) == int((points @ centres.T >= math.cos(math.radians(1.7))).sum())
    pairs = np.unique(np.stack([rows["objectId"], rows["ccdVisitId"]]), axis=1)
    assert pairs.shape[1] == len(rows["objectId"])


def test_a_source_has_the_filter_of_its_visit():
    sources = made()[0]["Source"]
    assert np.array_equal(sources["filterName"], np.array(of_visit(sources, "filterName").to_list(), dtype=object))
    assert set(sources["filterName"]) == set("ugrizy")


def test_the_brightest_three_of_ten_objects_have_sources_with_a_soft_edge():
    objects, sources = made()[0]["Object"], made()[0]["Source"]
    flux, chosen = objects["rPsFlux"], np.isin(objects["objectId"], sources["objectId"])
    assert_mean(chosen.mean(), 0.3, math.sqrt(0.3 * 0.7 / len(chosen)))
    assert chosen[flux < 7.75].all() and not chosen[flux > 8.75].any()
    edge = (flux >= 7.75) & (flux <= 8.75)
    assert 20 < chosen[edge].sum() < edge.sum() - 20


def test_places_of_sources():
    sources = made()[0]["Source"]
    ra, dec = of_object(sources, "psRa"), of_object(sources, "psDecl")
    assert np.array_equal(sources["psRa"], ra) and np.array_equal(sources["psDecl"], dec)
    east = (sources["ra"] - ra) * np.cos(np.radians(dec)) * 3600 / sources["raErr"]
    north = (sources["decl"] - dec) * 3600 / sources["declErr"]
    assert_ks(east, normal_cdf)
    assert_ks(north, normal_cdf)
    assert abs(np.corrcoef(east, north)[0, 1]) < correlation_bound(len(east), 1)


def test_forced_fluxes_are_those_of_the_filter_with_the_noise_given():
    forced = made()[0]["ForcedSource"]
    names = np.array(of_visit(forced, "filterName").to_list())
    noise = np.empty(len(names))
    for band in "ugrizy":
        seen = names == band
        noise[seen] = (forced["psFlux"][seen] - of_object(forced, f"{band}PsFlux")[seen]) / forced["psFlux_Err"][seen]
    # float32 fluxes up to 27.5 are rounded to 2e-6, errors are 0.05 and more.
    assert_ks(noise, normal_cdf)


def test_a_kpm50_chunk_has_the_rows_that_it_is_known_for():
    """92,000 objects, 0.94 million sources and 3.1 million forced sources, on the average over the sky."""
    tables, visits = made()
    per_object = dataset().tables["CcdVisit"].rows * (1 - math.cos(math.radians(1.7))) / 2
    objects = 327_248 * 129_600 / math.pi / 146_332
    assert round(objects, -3) == 92_000
    assert 3.0e6 < objects * per_object < 3.1e6
    assert 0.9e6 < 0.3 * objects * per_object < 0.95e6
    # The chunk that is tested here has about as many, as the visits happen to lie.
    assert 0.7 < len(tables["ForcedSource"]["objectId"]) / len(tables["Object"]["objectId"]) / per_object < 1.3
    assert len(visits.columns["ra"]) == 150_000
