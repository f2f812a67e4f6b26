"""The partitioning of the sky against the C++ reference partitioner, lsst.sphgeom and plain geometry."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skymill.chunker import Chunker, check_coordinates

DATA = Path(__file__).parent / "data"
COMMAND = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "locate_points.py")]
#: Points and places that the reference partitioner has found, by number of stripes and sub-stripes and overlap [deg].
SCHEMES = {"200_5": (200, 5, 0.01667), "340_3": (340, 3, 0.01667), "18_4": (18, 4, 0.5)}
NUM_POINTS = 10014


def golden_lines(name: str) -> list[str]:
    """The lines of a file of reference places, without the comment."""
    return gzip.decompress((DATA / f"locate_{name}.csv.gz").read_bytes()).decode().splitlines()[1:]


def golden_points(name: str) -> list[str]:
    """A CSV file, as lines, of the points in a file of reference places."""
    lines = golden_lines(name)
    return ["point,ra_deg,dec_deg", *dict.fromkeys(line.rsplit(",", 3)[0] for line in lines[1:])]


@pytest.mark.parametrize("name", SCHEMES)
def test_library_places_points_like_the_reference(name):
    point, ra, dec, chunk, sub_chunk, overlap = np.loadtxt(golden_lines(name), delimiter=",", skiprows=1).T
    own = overlap == 0
    assert own.sum() == NUM_POINTS
    found_chunk, found_sub_chunk, found = Chunker(*SCHEMES[name]).locate_overlap(ra[own], dec[own])
    assert np.array_equal(found_chunk, chunk[own])
    assert np.array_equal(found_sub_chunk, sub_chunk[own])
    expected = sorted(zip(point[~own], chunk[~own], sub_chunk[~own], strict=True))
    assert sorted(zip(*(column.tolist() for column in found), strict=True)) == expected
    chunk_only, sub_chunk_only = Chunker(*SCHEMES[name]).locate(ra[own], dec[own])
    assert np.array_equal(chunk_only, found_chunk)
    assert np.array_equal(sub_chunk_only, found_sub_chunk)


@pytest.mark.parametrize("name", SCHEMES)
def test_command_prints_the_lines_of_the_reference(name, tmp_path):
    points = "\n".join(golden_points(name)) + "\n"
    path = tmp_path / "points.csv.gz"
    path.write_bytes(gzip.compress(points.encode()))
    options = "--num-stripes={} --num-sub-stripes={} --overlap-deg={}".format(*SCHEMES[name]).split()
    for argument, text in ((str(path), None), ("-", points)):
        done = subprocess.run([*COMMAND, *options, argument], input=text, capture_output=True, text=True, check=True)
        comment, *lines = done.stdout.splitlines()
        assert lines == golden_lines(name)
        assert comment.startswith("# num_stripes={} num_sub_stripes={} overlap_deg={};".format(*SCHEMES[name]))
        assert "reference" not in comment


def run_locate(text: str) -> subprocess.CompletedProcess:
    arguments = ["--num-stripes=18", "--num-sub-stripes=4", "--overlap-deg=0", "-"]
    return subprocess.run([*COMMAND, *arguments], input=text, capture_output=True, text=True, check=False)


def test_command_numbers_points_and_ignores_other_columns():
    lines = run_locate("# made by hand\ndec_deg,magnitude,ra_deg\n-0.0,x,1e-7\n90,,3.10\n").stdout.splitlines()
    assert lines[1] == "point,ra_deg,dec_deg,chunkId,subChunkId,overlap"
    assert [line.split(",")[:3] for line in lines[2:]] == [["0", "1e-07", "-0.0"], ["1", "3.1", "90.0"]]
    assert run_locate("point,ra_deg,dec_deg\n").stdout.splitlines() == lines[:2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ra_deg,dec\n1,2\n", "no column dec_deg"),
        ("# c\nra_deg,dec_deg\n1,2\n-1,2\n", "standard input, line 4: ra_deg = -1.0: it must be from 0 to 360"),
        ("ra_deg,dec_deg\n1,91\n", "dec_deg = 91.0: it must be from -90 to 90"),
        ("ra_deg,dec_deg\nnan,1\n", "line 2: ra_deg = nan"),
        ("ra_deg,dec_deg\n,1\n", "invalid value ''"),
    ],
)
def test_command_refuses_points_off_the_sky(text, message):
    done = run_locate(text)
    assert done.returncode == 1
    assert message in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(("stripes", "sub_stripes", "count"), [(200, 5, 50432), (340, 3, 146332), (85, 12, 8983)])
def test_chunks_are_those_of_sphgeom(stripes, sub_stripes, count):
    sphgeom = pytest.importorskip("lsst.sphgeom")
    chunker, other = Chunker(stripes, sub_stripes, 0.0), sphgeom.Chunker(stripes, sub_stripes)
    ids = chunker.all_chunks()
    assert len(ids) == chunker.num_chunks == count
    assert ids.tolist() == sorted(other.getAllChunks())
    assert ids[-1] == chunker.last_chunk
    assert chunker.is_chunk(ids).all()
    assert chunker.is_chunk(np.arange(ids[-1] + 1000)).sum() == count
    ends_of_stripes = np.flatnonzero(np.diff(ids) > 1)
    for chunk in ids[
        np.unique(np.concatenate([np.arange(0, count, 61), ends_of_stripes, ends_of_stripes + 1]))
    ].tolist():
        stripe, position = other.getStripe(chunk), other.getChunk(chunk, other.getStripe(chunk))
        assert (chunker.stripe_of(chunk), chunker.position_of(chunk)) == (stripe, position)
        assert chunker.chunk_at(stripe, position) == chunk
        box, expected = chunker.chunk_box(chunk), other.getChunkBoundingBox(stripe, position)
        lon, lat = expected.getLon(), expected.getLat()
        bounds = [lat.getA().asDegrees(), lat.getB().asDegrees()]
        assert [box.dec_min_deg, box.dec_max_deg] == pytest.approx(bounds, abs=1e-9)
        # Its boxes are a little larger and may wrap around, or be the whole circle.
        width = box.ra_max_deg - box.ra_min_deg
        assert width == pytest.approx(lon.getSize().asDegrees(), abs=1e-6)
        if width < 360:
            center = lon.getCenter().asDegrees() % 360
            assert (box.ra_min_deg + box.ra_max_deg) / 2 == pytest.approx(center, abs=1e-9)


def test_points_in_a_chunk_are_in_its_box_and_sub_chunks():
    sphgeom = pytest.importorskip("lsst.sphgeom")
    chunker, other = Chunker(85, 12, 0.0), sphgeom.Chunker(85, 12)
    rng = np.random.default_rng(1)
    for chunk in rng.choice(chunker.all_chunks(), 100).tolist():
        box = chunker.chunk_box(chunk)
        ra, dec = rng.uniform(box.ra_min_deg, box.ra_max_deg, 3000), rng.uniform(box.dec_min_deg, box.dec_max_deg, 3000)
        found, sub_chunks = chunker.locate(ra, dec)
        assert (found == chunk).all()
        assert set(sub_chunks.tolist()) <= set(other.getAllSubChunks(chunk))


@pytest.mark.parametrize("scheme", [(18, 4, 0.5), (200, 5, 0.01667), (3, 2, 2.0)])
def test_overlap_holds_everything_within_its_radius(scheme):
    """A point near a point of a sub-chunk is in the sub-chunk or in its overlap, poles and RA 0 included."""
    chunker = Chunker(*scheme)
    rng = np.random.default_rng(2)
    n = 20000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    dec[: n // 4] = np.clip(rng.choice([-90, 90], n // 4) + rng.normal(0, 3 * scheme[2], n // 4), -90, 90)
    ra[n // 4 : n // 2] = rng.normal(0, scheme[2], n // 4) % 360
    chunk, sub_chunk = chunker.locate(ra, dec)
    # A second point at a distance and in a direction from the first one.
    distance, angle = np.radians(scheme[2]) * rng.uniform(0, 0.999999, n), rng.uniform(0, 2 * np.pi, n)
    lat = np.radians(dec)
    sin_lat = np.sin(lat) * np.cos(distance) + np.cos(lat) * np.sin(distance) * np.cos(angle)
    east = np.sin(angle) * np.sin(distance) * np.cos(lat)
    near_ra = (ra + np.degrees(np.arctan2(east, np.cos(distance) - np.sin(lat) * sin_lat))) % 360
    near_dec = np.degrees(np.arcsin(np.clip(sin_lat, -1, 1)))
    near_chunk, near_sub_chunk, overlap = chunker.locate_overlap(near_ra, near_dec)
    places = set(zip(range(n), near_chunk.tolist(), near_sub_chunk.tolist(), strict=True))
    places |= set(zip(*(column.tolist() for column in overlap), strict=True))
    wanted = set(zip(range(n), chunk.tolist(), sub_chunk.tolist(), strict=True))
    assert not wanted - places
    assert len(overlap.row) > n // 10


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ((200, 5, 0.19), "must not exceed the height of a sub-stripe, .* = 0.18 deg"),
        ((3, 1, 11.0), "from 0 to 10 deg"),
        ((18, 1, -0.1), "from 0 to 10 deg"),
        ((18, 1, float("nan")), "from 0 to 10 deg"),
        ((0, 5, 0.1), "at least 1"),
        ((5, 0, 0.1), "at least 1"),
        ((60, 10, 0.3), "more than a sub-chunk's width"),
    ],
)
def test_impossible_partitionings_are_refused(scheme, message):
    with pytest.raises(ValueError, match=message):
        Chunker(*scheme)


@pytest.mark.parametrize(
    ("ra", "dec", "message"),
    [
        (-1e-9, 0.0, "row 2: RA = -1e-09 deg: it must be from 0 to 360"),
        (360.1, 0.0, "row 2: RA = 360.1 deg"),
        (float("nan"), 0.0, "row 2: RA = nan"),
        (1.0, 90.1, "row 2: Dec = 90.1 deg: it must be from -90 to 90"),
        (1.0, float("nan"), "row 2: Dec = nan"),
        (float("inf"), 0.0, "row 2: RA = inf"),
    ],
)
def test_points_off_the_sky_are_refused(ra, dec, message):
    chunker = Chunker(18, 4, 0.1)
    ras, decs = np.array([0.0, 360.0, ra, 1.0]), np.array([-90.0, 90.0, dec, 1.0])
    for check in (check_coordinates, chunker.locate, chunker.locate_overlap):
        with pytest.raises(ValueError, match=message):
            check(ras, decs)


def test_rows_of_later_blocks_are_named_by_their_number():
    ra = np.zeros(40000)
    ra[35000] = -1
    with pytest.raises(ValueError, match="row 35000: "):
        Chunker(18, 4, 0.1).locate(ra, np.zeros(40000))
    assert all(len(column) == 0 for column in Chunker(18, 4, 0.1).locate(np.empty(0), np.empty(0)))
