"""The selection: ranges, lists, files and regions of chunks, and the tiles that they belong to."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from skymill.chunker import Chunker
from skymill.errors import ConfigError
from skymill.selection import (
    chunks_in_region,
    expand_ranges,
    format_ranges,
    group_tiles,
    select_chunks,
    tile_name,
)

#: 368 chunks: stripe s holds ids from 36 s; the first stripe only 0, the second 36 to 40, the last only 612.
CHUNKER = Chunker(18, 4, 0.5)
ALL = CHUNKER.all_chunks().tolist()


def select(chunks, folder="."):
    return select_chunks(chunks, CHUNKER, Path(folder)).chunks.tolist()


# -- ids and ranges ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "expected", "asked"),
    [
        ("36:38", [36, 37, 38], 3),
        ("38:36", [36, 37, 38], 3),
        ("36:36", [36], 1),
        ("0", [0], 1),
        (612, [612], 1),
        ("0:100", [0, *range(36, 41), *range(72, 84)], 101),
        ("100:0", [0, *range(36, 41), *range(72, 84)], 101),
        ("41:71,0", [0], 32),
        ("40,36:37,37:38", [36, 37, 38, 40], 5),
        (" 36 : 38 , 40 ", [36, 37, 38, 40], 4),
        ("36,,38,", [36, 38], 2),
        ("36\n38 # a comment, 40\n# 39\n", [36, 38], 2),
        ("600:99999", [612], 99400),
        ([37, 36, 37], [36, 37], 3),
        ("all", ALL, 368),
        ("0:612", ALL, 613),
    ],
)
def test_ids_and_ranges(chunks, expected, asked):
    """Both ends are included, ranges may be reversed, ids that do not exist are skipped, each stands once, in order."""
    selection = select_chunks(chunks, CHUNKER, Path())
    assert selection.chunks.tolist() == expected
    assert selection.chunks.dtype == np.int64
    assert selection.asked == asked


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (41, r"chunks: the partitioning has no chunk 41; stripe 1 has the chunks 36 to 40"),
        ("36,500", r"chunks: the partitioning has no chunk 500; stripe 13 has the chunks 468 to 490"),
        ([0, 1], r"chunks: the partitioning has no chunk 1; stripe 0 has the chunks 0 to 0"),
        (620, r'chunks: 620 is above the last chunk id, 612\..*put quotes around it \("10:20"\).*base 60'),
        ("613:700", r"chunks: 613:700 is above the last chunk id, 612"),
        ("41:71", r'chunks: "41:71" selects no chunk of this partitioning \(it has 368 chunks, 0 to 612\); widen'),
        ("", r'chunks: "" selects no chunk'),
        (" # nothing", r"chunks: .* selects no chunk"),
        ("-1", r'chunks: "-1" is neither a chunk id nor a range; write ids and ranges like "0:2000,40000"'),
        ("36-38", r'chunks: "36-38" is neither a chunk id nor a range'),
        ("1:2:3", r'chunks: "1:2:3" is neither'),
        ("36:", r'chunks: "36:" is neither'),
        ("1e2", r'chunks: "1e2" is neither'),
        ("All", r'chunks: "All" is neither'),
    ],
)
def test_wrong_ids_and_ranges_are_refused(chunks, message):
    with pytest.raises(ConfigError, match=message):
        select(chunks)


def test_a_range_that_yaml_read_as_a_number_is_recognised_below_the_last_id_too():
    """Unquoted 10:20 is 620; in a larger partitioning that is an id between two stripes."""
    with pytest.raises(ConfigError, match=r"no chunk 620; stripe 1 has the chunks 400 to 404.*quotes"):
        select_chunks(620, Chunker(200, 5, 0.0), Path())


def test_the_range_to_the_last_chunk_of_a_large_sky_is_quick():
    chunker = Chunker(340, 3, 0.01)
    selection = select_chunks("0:1000000000000", chunker, Path())
    assert len(selection.chunks) == 146_332 and selection.asked == 10**12 + 1


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_of_ids(tmp_path):
    (tmp_path / "some.clg").write_text("# chunks of a campaign\n36:40  # the second stripe\n\n72,73\n80:76\n")
    (tmp_path / "done.clg").write_text("37\n# 38\n77:78\n")
    (tmp_path / "more.clg").write_bytes(b"0:36\r\n80\r\n")
    assert select({"from": "some.clg"}, tmp_path) == [*range(36, 41), 72, 73, *range(76, 81)]
    assert select({"from": "some.clg", "except": ["done.clg"]}, tmp_path) == [36, 38, 39, 40, 72, 73, 76, 79, 80]
    assert select({"from": "some.clg", "except": ["done.clg", "more.clg"]}, tmp_path) == [38, 39, 40, 72, 73, 76, 79]
    assert select({"from": "some.clg", "except": []}, tmp_path) == select({"from": "some.clg"}, tmp_path)


def test_a_file_may_lie_anywhere(tmp_path):
    (tmp_path / "a.txt").write_text("36")
    assert select({"from": str(tmp_path / "a.txt")}, "/nowhere") == [36]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ({"from": "missing.clg"}, r"chunks\.from: cannot read the file of chunk ids .*missing\.clg: No such file"),
        ({"from": "ids", "except": ["missing.clg"]}, r"chunks\.except: cannot read the file .*missing\.clg"),
        ({"from": "wrong"}, r'chunks\.from \(wrong\): "thirty" is neither a chunk id nor a range'),
        ({"from": "ids", "except": ["wrong"]}, r'chunks\.except \(wrong\): "thirty" is neither'),
        ({"from": "gap"}, r"chunks\.from \(gap\): the partitioning has no chunk 41"),
        ({"from": "ids", "except": ["ids"]}, r"chunks: .*selects no chunk"),
        ({"from": "empty"}, r'chunks: .*"empty".* selects no chunk'),
        ({"from": "."}, r"chunks\.from: cannot read the file .*directory"),
        ({"from": "binary"}, r"chunks\.from.*binary"),
    ],
)
def test_wrong_files_are_refused(tmp_path, chunks, message):
    (tmp_path / "ids").write_text("36:38")
    (tmp_path / "wrong").write_text("36\nthirty\n")
    (tmp_path / "gap").write_text("41")
    (tmp_path / "empty").write_text("# nothing yet\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe3\x006\x00")
    with pytest.raises(ConfigError, match=message):
        select(chunks, tmp_path)


# -- regions ----------------------------------------------------------------------------------------------------------


def meets(box, ra_min, ra_max, dec_min, dec_max):
    spans = [(ra_min, ra_max)] if ra_min <= ra_max else [(ra_min, 360), (0, ra_max)]
    in_ra = any(box.ra_max_deg >= low and box.ra_min_deg <= high for low, high in spans)
    return in_ra and box.dec_max_deg >= dec_min and box.dec_min_deg <= dec_max


def test_regions_hold_every_chunk_that_meets_them():
    rng = random.Random(1)
    for _ in range(300):
        ra = [rng.uniform(0, 360), rng.uniform(0, 360)]  # half of them cross RA 0
        dec = sorted([rng.uniform(-90, 90), rng.uniform(-90, 90)])
        expected = [chunk for chunk in ALL if meets(CHUNKER.chunk_box(chunk), *ra, *dec)]
        assert select({"region": [*ra, *dec]}) == expected


def test_every_point_of_a_region_lies_in_a_chunk_of_it():
    rng = np.random.default_rng(2)
    for ra_min, ra_max, dec_min, dec_max in ((355, 5, -3, 3), (0, 360, 85, 90), (359.9, 360, -20, 70), (12, 12, 0, 0)):
        width = (ra_max - ra_min) % 360 or float(ra_max > ra_min) * 360
        ra = (ra_min + rng.random(2000) * width) % 360
        dec = dec_min + rng.random(2000) * (dec_max - dec_min)
        assert set(CHUNKER.locate(ra, dec)[0].tolist()) <= set(select({"region": [ra_min, ra_max, dec_min, dec_max]}))


def test_a_region_across_ra_0():
    found = select({"region": [355, 5, 1, 2]})
    assert found == [324, 324 + 34]
    assert select({"region": [350, 1, 1, 2]}) == [324, 324 + 34]
    assert select({"region": [0, 360, -90, 90]}) == ALL
    assert select({"region": [5, 5, 1, 1]}) == [324]


@pytest.mark.parametrize(
    "region", [[-1, 5, 0, 1], [0, 361, 0, 1], [0, 5, 1, 0], [0, 5, -91, 0], [0, 5, 0, 90.1], [float("nan"), 5, 0, 1]]
)
def test_wrong_regions_are_refused(region):
    with pytest.raises(ConfigError, match=r"chunks\.region: \[.*write \[ra_min, ra_max, dec_min, dec_max\].*0 to 360"):
        chunks_in_region(region, CHUNKER)


# -- text of ranges ---------------------------------------------------------------------------------------------------


def test_ranges_are_compact():
    assert format_ranges(np.array([0, 1, 400, 401, 402, 405])) == "0:1,400:402,405"
    assert format_ranges(np.array([7])) == "7"
    assert format_ranges(np.array([], dtype=np.int64)) == ""
    assert expand_ranges("").tolist() == []


def test_ranges_read_back_as_they_were_written():
    rng = random.Random(3)
    for _ in range(200):
        chunks = sorted(rng.sample(range(2_000), rng.randint(1, 300)))
        text = format_ranges(np.array(chunks))
        assert expand_ranges(text).tolist() == chunks
        assert expand_ranges(text).dtype == np.int64
        # No shorter text: the ranges do not touch.
        bounds = [list(map(int, item.split(":"))) for item in text.split(",")]
        assert all(a[-1] + 1 < b[0] for a, b in itertools.pairwise(bounds))


def test_ranges_of_a_selection_select_it_again():
    rng = random.Random(4)
    for _ in range(50):
        chunks = sorted(rng.sample(ALL, rng.randint(1, len(ALL))))
        assert select(format_ranges(np.array(chunks))) == chunks


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks_per_tile", [1, 2, 7, 64, 10_000])
def test_tiles_do_not_depend_on_the_selection(chunks_per_tile):
    whole = group_tiles(CHUNKER, np.array(ALL), chunks_per_tile)
    tile_of = {chunk: name for name, chunks in whole.items() for chunk in chunks.tolist()}
    assert sorted(tile_of) == ALL
    assert all(tile_of[chunk] == tile_name(CHUNKER, chunk, chunks_per_tile) for chunk in ALL)
    rng = random.Random(5)
    for _ in range(30):
        chunks = sorted(rng.sample(ALL, rng.randint(1, 200)))
        tiles = group_tiles(CHUNKER, np.array(chunks), chunks_per_tile)
        assert np.concatenate(list(tiles.values())).tolist() == chunks
        assert all(tile_of[chunk] == name for name, part in tiles.items() for chunk in part.tolist())


@pytest.mark.parametrize("chunks_per_tile", [1, 2, 7, 64, 10_000])
def test_tiles_are_runs_of_neighbours_in_one_stripe(chunks_per_tile):
    tiles = group_tiles(CHUNKER, np.array(ALL), chunks_per_tile)
    expected = sum(-(-int(count) // chunks_per_tile) for count in CHUNKER.chunks_in_stripe)
    assert len(tiles) == expected
    assert list(tiles) == sorted(tiles)
    for name, chunks in tiles.items():
        assert len(chunks) <= chunks_per_tile
        assert (np.diff(chunks) == 1).all()
        stripe, position = int(name[1:5]), int(name[6:])
        assert {CHUNKER.stripe_of(chunk) for chunk in chunks.tolist()} == {stripe}
        assert CHUNKER.position_of(int(chunks[0])) == position and position % chunks_per_tile == 0


def test_names_of_tiles():
    assert tile_name(CHUNKER, 0, 64) == "s0000p00000"
    assert tile_name(CHUNKER, 324 + 34, 8) == "s0009p00032"
    assert group_tiles(CHUNKER, np.array([], dtype=np.int64), 8) == {}
    # The same chunk of 340 stripes has another place: names hold no count of what is selected.
    assert tile_name(Chunker(340, 3, 0.01), 680 * 170 + 679, 64) == "s0170p00640"
