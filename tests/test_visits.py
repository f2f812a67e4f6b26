"""Visits: matched exactly, carried into the children, and read from files with care.

Significance: see `helpers`; by chance a test of statistics fails in less than 1 of 10^6 seeds, and the seeds are fixed.
"""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from helpers import (
    REPOSITORY,
    assert_chi_square,
    assert_ks,
    assert_mean,
    chunk_columns,
    join,
    make_visits,
    normal_cdf,
    row_maker,
    small_config,
    small_dataset,
)
from skymill import visits as visits_module
from skymill.columns import Strings
from skymill.config import Dataset
from skymill.errors import ConfigError
from skymill.visits import Visits, load_visits, make_regular_table, save_arrays

#: Pairs closer to the limit than this are left out: there the last bits decide.
EXCLUDED_DEG = 1e-9
PI = np.longdouble("3.14159265358979323846264338327950288")


@cache
def table_of_visits():
    return small_dataset(1).tables["CcdVisit"]


def visits_at(ra_deg, dec_deg, ids=None):
    """Visits at some places; ids ascending by default."""
    ra_deg, dec_deg = np.asarray(ra_deg, dtype=np.float64), np.asarray(dec_deg, dtype=np.float64)
    count = len(ra_deg)
    columns = {
        "ccdVisitId": np.arange(1, count + 1) if ids is None else np.asarray(ids),
        "filterName": Strings(np.arange(count, dtype=np.int32) % 3, ("u", "g", "r")),
        "ra": ra_deg,
        "decl": dec_deg,
    }
    return Visits(columns, table_of_visits())


def separations_deg(ra1, dec1, ra2, dec2):
    """Separations of all pairs [deg], in extended precision, from the chord; good to 1e-15 deg."""

    def vectors(ra_deg, dec_deg):
        ra, dec = (np.asarray(angle, dtype=np.longdouble) * (PI / 180) for angle in (ra_deg, dec_deg))
        return np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)

    square = sum(np.subtract.outer(a, b) ** 2 for a, b in zip(vectors(ra1, dec1), vectors(ra2, dec2), strict=True))
    return 2 * np.arcsin(np.minimum(np.sqrt(square) / 2, 1)) * (180 / PI)


def assert_exact(ra, dec, visits, radius_deg):
    """The pairs are those of the brute force, each once, by row and then by visit id; returns their number."""
    blocks = list(visits.match(np.asarray(ra), np.asarray(dec), radius_deg))
    row, visit = (np.concatenate([block[i] for block in blocks]) if blocks else np.empty(0, int) for i in (0, 1))
    columns = visits.columns
    separation = separations_deg(ra, dec, columns["ra"], columns["decl"])
    found = np.zeros(separation.shape, dtype=int)
    np.add.at(found, (row, visit), 1)
    certain = np.abs(separation - radius_deg) > EXCLUDED_DEG
    assert np.array_equal(found[certain], (separation <= radius_deg)[certain].astype(int))
    assert found.max(initial=0) <= 1
    ids = columns["ccdVisitId"][visit]
    assert np.array_equal(np.lexsort((ids, row)), np.arange(len(row)))
    return len(row)


def around(random, count, ra, dec, spread_deg):
    """Points around a place: uniform in a square on the tangent plane, turned on the sphere."""
    x, y = np.radians(random.uniform(-spread_deg, spread_deg, (2, count)))
    ra0, dec0 = np.radians([ra, dec])
    axis = np.array([np.cos(dec0) * np.cos(ra0), np.cos(dec0) * np.sin(ra0), np.sin(dec0)])
    east = np.array([-np.sin(ra0), np.cos(ra0), 0])
    north = np.cross(axis, east)
    vector = axis[:, None] + np.tan(x) * east[:, None] + np.tan(y) * north[:, None]
    vector /= np.linalg.norm(vector, axis=0)
    return np.degrees(np.arctan2(vector[1], vector[0])) % 360, np.degrees(np.arcsin(vector[2]))


@pytest.mark.parametrize("radius_deg", [0.02, 1.4, 20])
@pytest.mark.parametrize(
    ("ra", "dec"),
    [(10, 90), (0, 90), (200, -90), (0, 89.5), (180, -88.7), (0, 0), (359.9, -45), (0.2, 70), (123, 60), (90, 1)],
)
def test_matches_are_exact(ra, dec, radius_deg):
    random = np.random.default_rng([int(ra), int(dec + 90), int(radius_deg * 100)])
    points = around(random, 150, ra, dec, 2 * radius_deg)
    centres = around(random, 400, ra, dec, 3 * radius_deg)
    far = np.degrees(random.random(200) * 2 * np.pi), np.degrees(np.arcsin(random.uniform(-1, 1, 200)))
    visits = visits_at(*np.concatenate([centres, far], axis=1), ids=random.permutation(10_000)[:600])
    found = assert_exact(*points, visits, radius_deg)
    # The share of centres that a point sees: pi r^2 of (6 r)^2, roughly.
    assert 0.3 * found < 150 * 400 * np.pi / 36 < 3 * found


@pytest.mark.parametrize("side", [(0, 0.8), (359.2, 359.999), (359.9, 359.9), (0, 0)])
@pytest.mark.parametrize("dec", [0, -60, 88])
def test_matches_are_exact_on_either_side_of_ra_0(side, dec):
    """Points on one side only, visits on both."""
    random = np.random.default_rng([int(side[0]), dec + 90])
    points = random.uniform(*side, 150), random.uniform(dec - 1, dec + 1, 150)
    visits = visits_at(*around(random, 300, 0, dec, 5), ids=random.permutation(300))
    assert assert_exact(*points, visits, 1.4) > 1000


def test_matches_are_exact_for_points_all_over_the_sky():
    random = np.random.default_rng(2)
    ra, dec = random.random((2, 300)) * 360, np.degrees(np.arcsin(random.uniform(-1, 1, (2, 300))))
    visits = visits_at(ra[0], dec[0])
    assert assert_exact(ra[1], dec[1], visits, 90) == pytest.approx(300 * 300 / 2, rel=0.1)
    assert assert_exact(ra[1][:1], dec[1][:1], visits, 60) > 10


def test_special_places_are_matched():
    """Poles, RA 0 and 360, the same place, and points exactly on the limit's two sides."""
    visits = visits_at([0, 360, 0, 77, 359.5, 0.5, 0, 0], [0, 0, 90, -90, 0, 0, 1.5, -1.4])
    ra = np.array([0, 359.9999999, 0.6, 200, 13, 0])
    dec = np.array([0, 0, 0, 90, -90, 89.1])
    assert assert_exact(ra, dec, visits, 1.0) == 4 + 4 + 3 + 1 + 1 + 1
    # A separation of exactly the radius, along the equator, is within 1e-13 deg of it.
    just = visits_at([1.4 - 1e-12, 1.4 + 1e-12], [0, 0])
    ((row, visit),) = just.match(np.zeros(1), np.zeros(1), 1.4)
    assert row.tolist() == [0] and visit.tolist() == [0]


def test_equal_and_opposite_places():
    visits = visits_at([33.3, 213.3], [44.4, -44.4])
    assert assert_exact(np.array([33.3]), np.array([44.4]), visits, 1e-6) == 1
    assert assert_exact(np.array([33.3]), np.array([44.4]), visits, 90) == 1


def test_no_points_and_no_visits():
    assert list(visits_at([1], [1]).match(np.empty(0), np.empty(0), 1.4)) == []
    assert assert_exact(np.array([1.0]), np.array([1.0]), visits_at([], []), 1.4) == 0
    assert assert_exact(np.array([1.0]), np.array([1.0]), visits_at([180], [-50]), 1.4) == 0


def test_matches_do_not_depend_on_the_block_size(monkeypatch):
    random = np.random.default_rng(4)
    points, visits = around(random, 100, 0, 80, 3), visits_at(*around(random, 200, 0, 80, 3))
    whole = [np.concatenate(parts) for parts in zip(*visits.match(*points, 1.4), strict=True)]
    monkeypatch.setattr(visits_module, "BLOCK_PAIRS", 700)
    blocks = list(visits.match(*points, 1.4))
    assert len(blocks) > 10
    assert all(
        np.array_equal(np.concatenate(parts), one) for parts, one in zip(zip(*blocks, strict=True), whole, strict=True)
    )


# -- children -----------------------------------------------------------------


@pytest.fixture(scope="module")
def survey():
    """Objects and forced sources around RA 0, with all that a child can take from its visit and its director."""
    config = small_config(150)
    config["tables"]["CcdVisit"]["rows"] = 4000
    config["tables"]["ForcedSource"]["columns"] += [
        {"name": "filterName", "type": "CHAR(1)", "generator": {"visit": "filterName"}},
        {"name": "visitRa", "type": "DOUBLE", "generator": {"visit": "ra"}},
        {"name": "visitDec", "type": "DOUBLE", "generator": {"visit": "decl"}},
        {"name": "objectRa", "type": "DOUBLE", "generator": {"director": "psRa"}},
        {"name": "objectDec", "type": "DOUBLE", "generator": {"director": "psDecl"}},
    ]
    dataset = Dataset.from_config(config, REPOSITORY)
    visits = make_visits(dataset)
    parts = [chunk_columns(row_maker(dataset, visits), chunk) for chunk in (324, 358)]
    return visits["CcdVisit"], parts


def test_a_child_has_a_row_for_each_visit_that_sees_its_object(survey):
    visits, parts = survey
    for objects, sources in parts:
        chosen = slice(None, None, 50)
        ids = objects["objectId"][chosen]
        row, visit = np.nonzero(
            separations_deg(
                objects["psRa"][chosen], objects["psDecl"][chosen], visits.columns["ra"], visits.columns["decl"]
            )
            <= 1.4
        )
        assert len(row) > 100
        mine = np.isin(sources["objectId"], ids)
        found = zip(sources["objectId"][mine].tolist(), sources["ccdVisitId"][mine].tolist(), strict=True)
        assert list(found) == list(zip(ids[row].tolist(), visits.columns["ccdVisitId"][visit].tolist(), strict=True))


def test_a_child_is_ordered_by_object_and_visit(survey):
    for objects, sources in survey[1]:
        place = {key: i for i, key in enumerate(objects["objectId"].tolist())}
        pairs = [
            (place[o], v) for o, v in zip(sources["objectId"].tolist(), sources["ccdVisitId"].tolist(), strict=True)
        ]
        assert pairs == sorted(pairs)


def test_a_child_takes_the_values_of_its_visit_and_its_object(survey):
    visits, parts = survey
    for objects, sources in parts:
        # Generated ids are 1, 2, 3, ... in the order of the visits.
        visit = sources["ccdVisitId"] - 1
        names = np.array(visits.filters, dtype=object)[visits.columns["#filter"]]
        assert np.array_equal(sources["filterName"], names[visit])
        assert np.array_equal(sources["visitRa"], visits.columns["ra"][visit])
        assert np.array_equal(sources["visitDec"], visits.columns["decl"][visit])
        order = np.argsort(objects["objectId"])
        parent = order[np.searchsorted(objects["objectId"], sources["objectId"], sorter=order)]
        assert np.array_equal(sources["objectRa"], objects["psRa"][parent])
        assert np.array_equal(sources["objectDec"], objects["psDecl"][parent])


def test_psflux_is_the_flux_in_the_filter_of_the_visit_with_its_own_sigma(survey):
    _, parts = survey
    objects, sources = (join([part[i] for part in parts]) for i in (0, 1))
    order = np.argsort(objects["objectId"])
    parent = order[np.searchsorted(objects["objectId"], sources["objectId"], sorter=order)]
    flux = np.choose(
        [("u", "g", "r").index(name) for name in sources["filterName"]],
        [objects[f"{name}PsFlux"][parent] for name in ("u", "g", "r")],
    )
    noise = (sources["psFlux"] - flux) / sources["psFlux_Sigma"]
    count = len(noise)
    assert count > 5000
    assert_ks(noise, normal_cdf)
    assert_mean(noise.mean(), 0, 1 / np.sqrt(count))
    # The standard deviation of n normal values scatters by 1 / sqrt(2 n).
    for name in ("u", "g", "r"):
        part = noise[sources["filterName"] == name]
        assert_mean(part.std(), 1, 1 / np.sqrt(2 * len(part)))
    # Small and large sigma alike.
    small = sources["psFlux_Sigma"] < 0.15
    assert_mean(noise[small].std(), 1, 1 / np.sqrt(2 * small.sum()))
    filters = np.unique(sources["filterName"], return_counts=True)[1]
    assert len(filters) == 3


def test_visits_are_uniform_on_the_sphere_and_in_their_filters():
    config = small_config(1)
    config["tables"]["CcdVisit"]["rows"] = 20_000
    dataset = Dataset.from_config(config, REPOSITORY)
    columns = make_regular_table(dataset, dataset.tables["CcdVisit"])
    assert np.array_equal(np.sort(columns["ccdVisitId"]), np.arange(1, 20_001))
    counts = np.histogram2d(columns["ra"], np.sin(np.radians(columns["decl"])), 20, [(0, 360), (-1, 1)])[0]
    assert_chi_square(counts, np.full((20, 20), 50))
    assert columns["ra"].max() < 360
    assert_chi_square(np.bincount(columns["filterName"].codes), np.full(3, 20_000 / 3))


def test_arrays_are_read_as_they_were_written(tmp_path):
    table = table_of_visits()
    columns = {
        "ccdVisitId": np.array([3, 1, 2]),
        "filterName": Strings(np.array([0, 1, 0], np.int32), ("a\tb", "ü")),
        "ra": np.ma.masked_array([1.0, 2.0, 3.0], [False, False, False]),
        "decl": np.array([-0.0, 5e-324, 89.0]),
    }
    save_arrays(tmp_path / "CcdVisit.npz", columns)
    visits = load_visits(tmp_path / "CcdVisit.npz", table)
    assert visits.columns["ccdVisitId"].tolist() == [1, 2, 3]
    assert visits.columns["filterName"].to_list() == ["ü", "a\tb", "a\tb"]
    assert visits.columns["decl"].tobytes() == np.array([5e-324, 89.0, -0.0]).tobytes()


# -- files --------------------------------------------------------------------

ROWS = [(7, "g", 12.25, -45.5), (3, "r", 0.1, 0.30000000000000004), (2**60 + 1, "u", 359.9999999, 90.0)]
NAMES = ["ccdVisitId", "filterName", "ra", "decl"]


def dataset_from_file(folder, name, **types):
    config = small_config(1)
    visits = config["tables"]["CcdVisit"]
    del visits["rows"]
    visits["from_file"] = name
    sql = {"ccdVisitId": "BIGINT NOT NULL", "filterName": "CHAR(1)", "ra": "DOUBLE", "decl": "DOUBLE"} | types
    visits["columns"] = [{"name": column, "type": text} for column, text in sql.items()]
    config["tables"]["ForcedSource"]["columns"][3] = {
        "name": "psFlux", "type": "DOUBLE", "generator": {"director": "uPsFlux"},
    }  # fmt: skip
    return Dataset.from_config(config, folder)


def read_visits(folder, name, **types):
    dataset = dataset_from_file(folder, name, **types)
    return make_regular_table(dataset, dataset.tables["CcdVisit"])


def lines(rows, separator=",", header=None):
    return "".join(separator.join(map(str, row)) + "\n" for row in ([header] if header else []) + list(rows))


def write_comma_with_header(path):
    path.write_text(lines(ROWS, header=NAMES))


def write_other_order(path):
    rows = [(dec, "more", ra, number, name) for number, name, ra, dec in ROWS]
    path.write_text(lines(rows, header=["decl", "extra", "ra", "ccdVisitId", "filterName"]))


def write_quoted_header(path):
    path.write_text(lines(ROWS, header=[f'"{name}"' for name in NAMES]))


def write_comma_without_header(path):
    path.write_text(lines(ROWS))


def write_tab_without_header(path):
    path.write_text(lines(ROWS, "\t"))


def write_tab_with_header(path):
    path.write_text(lines(ROWS, "\t", NAMES))


def write_windows_line_ends(path):
    path.write_bytes(lines(ROWS, header=NAMES).replace("\n", "\r\n").encode())


def write_parquet(path):
    pd.DataFrame(ROWS, columns=NAMES)[["ra", "filterName", "ccdVisitId", "decl"]].to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", write_comma_with_header),
        ("a.csv", write_other_order),
        ("a.csv", write_quoted_header),
        ("a.csv", write_comma_without_header),
        ("a.txt", write_tab_without_header),
        ("a.tsv", write_tab_with_header),
        ("a.csv", write_windows_line_ends),
        ("a.parquet", write_parquet),
    ],
)
def test_visits_are_read_from_files(tmp_path, name, write):
    write(tmp_path / name)
    columns = read_visits(tmp_path, name)
    made = zip(*(columns[column].tolist() for column in ("ccdVisitId", "ra", "decl")), strict=True)
    assert list(made) == [(number, ra, dec) for number, _, ra, dec in ROWS]
    assert columns["filterName"].to_list() == [row[1] for row in ROWS]
    assert columns["ccdVisitId"].dtype == np.int64


def test_visits_of_a_file_are_matched(tmp_path):
    (tmp_path / "a.csv").write_text("9,g,5.0,-5.0\n4,r,5.2,-5.0\n")
    dataset = dataset_from_file(tmp_path, "a.csv")
    objects, sources = chunk_columns(row_maker(dataset), 288)
    separation = separations_deg(objects["psRa"], objects["psDecl"], [5.2, 5.0], [-5, -5])
    row, visit = np.nonzero(separation <= 1.4)
    assert len(row) > 5
    assert sources["objectId"].tolist() == objects["objectId"][row].tolist()
    assert sources["ccdVisitId"].tolist() == np.array([4, 9])[visit].tolist()


def test_large_numbers_beside_nulls_keep_their_digits(tmp_path):
    (tmp_path / "a.csv").write_text(f"ccdVisitId,filterName,ra,decl,run\n1,g,1,2,\n2,g,1,2,{2**60 + 1}\n")
    assert read_visits(tmp_path, "a.csv", run="BIGINT")["run"].tolist() == [None, 2**60 + 1]


def test_nulls_of_a_file(tmp_path):
    (tmp_path / "a.csv").write_text("ccdVisitId,filterName,ra,decl,seeing,note\n1,g,1,2,,x\n2,g,1,2,0.5,\\N\n")
    columns = read_visits(tmp_path, "a.csv", seeing="FLOAT", note="VARCHAR(5)")
    assert columns["seeing"].tolist() == [None, 0.5] and columns["seeing"].dtype == np.float32
    assert columns["note"].codes.tolist()[1] == -1


GOOD = "ccdVisitId,filterName,ra,decl\n1,g,10,20\n2,r,11,21\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD.replace("decl", "dec"),
            r"CcdVisit\.from_file \(a\.csv\).* decl is missing.*ccdVisitId, filterName, ra, dec",
        ),
        ("1,g,10\n", r"\(a\.csv\).*no header and 3 fields .*the table has 4 columns: ccdVisitId, filterName, ra, decl"),
        (GOOD.replace("10,20", "10,"), r"\(a\.csv\).*decl.*row 1 .*NULL or NaN"),
        (GOOD.replace("10,20", "nan,20"), r"\(a\.csv\).* ra.*row 1 .*NULL or NaN"),
        (GOOD.replace("10,20", "inf,20"), r"\(a\.csv\).* ra .*inf"),
        (GOOD.replace("2,r", "1,r"), r"\(a\.csv\).*ccdVisitId.* twice"),
        (GOOD.replace("2,r", ",r"), r"\(a\.csv\).*ccdVisitId is NOT NULL, but row 2"),
        (GOOD.replace("2,r", "2.5,r"), r"\(a\.csv\).*ccdVisitId.*2\.5 does not fit BIGINT"),
        (GOOD.replace("2,r", "two,r"), r"\(a\.csv\).*ccdVisitId.*two.*BIGINT"),
        (GOOD.replace("2,r", "2,"), r"\(a\.csv\).*filterName.*row 2 has no filter"),
        (GOOD.replace("2,r", "2,red"), r'\(a\.csv\).*filterName.*"red" is longer than CHAR\(1\)'),
        (GOOD.replace("11,21", "11,91"), r"\(a\.csv\).*decl.*row 2 is 91\.0 deg.*from -90 to 90"),
        (GOOD.replace("11,21", "11,-90.001"), r"\(a\.csv\).*decl.*row 2 is -90\.001 deg.*from -90 to 90"),
        (GOOD.replace("11,21", "361,21"), r"\(a\.csv\).* ra.*row 2 is 361\.0 deg.*from 0 to 360"),
        (GOOD.replace("11,21", "-1,21"), r"\(a\.csv\).* ra.*row 2 is -1\.0 deg.*from 0 to 360"),
        (GOOD.replace("11,21", "east,21"), r"\(a\.csv\).* ra.*east.*DOUBLE"),
        (GOOD.replace("2,r", "99999999999999999999,r"), r"\(a\.csv\): ccdVisitId, row 2: 9+ does not fit BIGINT"),
        (
            GOOD.replace("20", "20,5").replace("21", "21,5"),
            r"\(a\.csv\): the rows have more fields than the first line",
        ),
        (GOOD.replace("11,21", "11,21,5"), r"\(a\.csv\): cannot be read: Expected 4 fields in line 3, saw 5"),
        (GOOD.replace("ra,decl", "ra,ra,decl"), r"\(a\.csv\): the header names a column twice"),
        (GOOD.upper(), r"\(a\.csv\): the header \(CCDVISITID, .*differs by case from .*ccdVisitId"),
        (GOOD.replace(",", ";"), r"\(a\.csv\): found no header and 1 fields .*commas or tabs"),
        ("", r"\(a\.csv\): the file is empty"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_visits(tmp_path, "a.csv")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(GOOD.replace("2,r", "2,\xe9").encode("latin-1"))
    with pytest.raises(ConfigError, match=r"CcdVisit\.from_file \(a\.csv\): .* no text in UTF-8; save it as"):
        read_visits(tmp_path, "a.csv")


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"CcdVisit\.from_file \(a\.parquet\).*cannot be read"):
        read_visits(tmp_path, "a.parquet")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tables\.CcdVisit\.from_file: there is no file .*a\.csv"):
        read_visits(tmp_path, "a.csv")


def test_generated_visits_are_checked_too():
    config = small_config(1)
    config["tables"]["CcdVisit"]["columns"][1]["null_fraction"] = 0.5
    dataset = Dataset.from_config(config, REPOSITORY)
    with pytest.raises(ConfigError, match=r"tables\.CcdVisit: filterName: row \d+ has no filter"):
        make_regular_table(dataset, dataset.tables["CcdVisit"])


def test_a_filter_without_a_column_of_the_director_is_refused(tmp_path):
    """A file may hold filters that the configuration cannot know."""
    (tmp_path / "a.csv").write_text("1,w,5.0,-5.0\n2,g,5.1,-5.0\n")
    config = small_config(1)
    config["tables"]["CcdVisit"] |= {"from_file": "a.csv"}
    del config["tables"]["CcdVisit"]["rows"]
    for column in config["tables"]["CcdVisit"]["columns"]:
        del column["generator"]
    dataset = Dataset.from_config(config, tmp_path)
    with pytest.raises(ConfigError, match="wPsFlux"):
        chunk_columns(row_maker(dataset), 288)
