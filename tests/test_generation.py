"""Generation: rows are where, as many and as independent as they should be, and always the same bytes.

Significance: see `helpers`; by chance a test of statistics fails in less than 1 of 10^6 seeds, and the seeds are fixed.
"""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

import healpy
import numpy as np
import pytest
import yaml
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

import generate_chunk
from generate_chunk import generate_by_hand
from generate_tile import generate_tile
from helpers import (
    FAKEDB,
    FLUX_COLUMNS,
    REPOSITORY,
    SIGMAS,
    SKY_SQ_DEG,
    assert_chi_square,
    assert_mean,
    assert_uniform,
    chunk_columns,
    correlation_bound,
    director_columns,
    join,
    make_visits,
    row_maker,
    small_config,
    small_dataset,
)
from skymill import blocks, rowmaker, textfile, visits
from skymill.boxes import INNER, chunk_boxes, edge_boxes
from skymill.chunker import Chunker
from skymill.columns import Column, Rows, Strings, UniqueId
from skymill.config import Dataset
from skymill.density import box_area_sq_deg
from skymill.rowmaker import BoxStreams
from skymill.sqltypes import parse_type
from skymill.stores.embedded import read_text
from skymill.streams import stream
from skymill.textfile import TableFile, format_rows

#: Objects per square degree of the whole small sky.
SKY_DENSITY = 4
SCRIPT = REPOSITORY / "scripts" / "generate_chunk.py"
#: Chunks of the small sky: both caps, one beside a cap, the last of its stripe at mid-latitude, one at the equator.
CHUNKS = (0, 36, 166, 324, 612)


@dataclass(repr=False)
class Sky:
    """See the fixture `sky`."""

    dataset: Dataset
    visits: dict[str, visits.Visits]
    chunks: dict[int, tuple[dict, dict]]


def sin_deg(angle_deg):
    return np.sin(np.radians(angle_deg))


def count_all(maker, chunk):
    """Rows of Object in a chunk, from its streams of counts alone."""
    table = maker.dataset.tables["Object"]
    return sum(int(maker.count_rows(table, chunk, box)[1].sum()) for box in chunk_boxes(maker.chunker, chunk))


def texts(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def sky():
    """The whole small sky: its visits, and chunk by chunk the columns of Object and ForcedSource."""
    dataset = small_dataset(SKY_DENSITY)
    all_visits = make_visits(dataset)
    maker = row_maker(dataset, all_visits)
    return Sky(
        dataset, all_visits, {chunk: chunk_columns(maker, chunk) for chunk in dataset.chunker.all_chunks().tolist()}
    )


# -- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
def test_positions_are_uniform_on_the_sphere(chunk):
    maker = row_maker(small_dataset(300, columns=[], children=False))
    columns = director_columns(maker, chunk)
    ra, z = columns["psRa"], sin_deg(columns["psDecl"])
    box = maker.chunker.chunk_box(chunk)
    z_min, z_max = sin_deg(box.dec_min_deg), sin_deg(box.dec_max_deg)
    assert_uniform(ra, box.ra_min_deg, box.ra_max_deg)
    assert_uniform(np.clip(z, z_min, z_max), z_min, z_max)
    # Together, too: the boxes of the chunk must not show.
    edges = [np.linspace(box.ra_min_deg, box.ra_max_deg, 31), np.linspace(z_min - 1e-12, z_max + 1e-12, 31)]
    counts = np.histogram2d(ra, z, edges)[0]
    assert counts.sum() == len(ra)
    assert_chi_square(counts, np.full(counts.shape, len(ra) / counts.size))


@pytest.mark.parametrize("chunk", [0, 612])
def test_the_poleward_half_of_a_cap_holds_a_quarter_of_its_rows(chunk):
    maker = row_maker(small_dataset(300, columns=[], children=False))
    distance_deg = 90 - np.abs(director_columns(maker, chunk)["psDecl"])
    share = (1 - np.cos(np.radians(5))) / (1 - np.cos(np.radians(10)))
    assert share == pytest.approx(0.25, abs=0.001)
    assert_mean((distance_deg < 5).mean(), share, np.sqrt(share * (1 - share) / len(distance_deg)))


def test_every_row_lies_in_its_own_chunk(sky):
    for chunk, (objects, sources) in sky.chunks.items():
        ra, dec = objects["psRa"], objects["psDecl"]
        home, sub_chunk = sky.dataset.chunker.locate(ra, dec)
        assert (home == chunk).all() and (sub_chunk == objects["#sub_chunk"]).all()
        assert ra.min() >= 0 and ra.max() < 360 and np.abs(dec).max() <= 90
        # A child's row lies where its director's row does.
        order = np.argsort(objects["objectId"])
        parent = order[np.searchsorted(objects["objectId"], sources["objectId"], sorter=order)]
        assert np.array_equal(objects["objectId"][parent], sources["objectId"])
        assert np.array_equal(objects["#sub_chunk"][parent], sources["#sub_chunk"])
    total = sum(len(objects["objectId"]) for objects, _ in sky.chunks.values())
    assert_mean(total, SKY_DENSITY * SKY_SQ_DEG, np.sqrt(SKY_DENSITY * SKY_SQ_DEG))


def test_positions_that_rounding_puts_into_a_neighbour_are_drawn_again():
    """At the borders of a box: the density is asked again until every position lies in the chunk, and RA below 360."""

    class AtTheBorder:
        calls = 0

        def sample(self, random, box, cell, count):
            self.calls += 1
            ra = np.full(count, box.ra_max_deg if self.calls == 1 else 0.5 * (box.ra_min_deg + box.ra_max_deg))
            return ra, np.full(count, 0.5 * (box.dec_min_deg + box.dec_max_deg))

    dataset = small_dataset(1, columns=[], children=False)
    for chunk in (324, 324 + 34):  # the first and the last of their stripe
        maker = row_maker(dataset)
        maker.densities["Object"] = density = AtTheBorder()
        box = maker.chunker.chunk_box(chunk)
        ra, _, _ = maker._draw_positions(dataset.tables["Object"], chunk, box, 0, None, 3)
        assert density.calls == 2 and (ra < box.ra_max_deg).all()


# -- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1, 10, 1000])
def test_counts_are_unbiased(density):
    maker = row_maker(small_dataset(density, columns=[], children=False))
    chunks = maker.chunker.all_chunks().tolist()
    counts = np.array([count_all(maker, chunk) for chunk in chunks])
    area = np.array([box_area_sq_deg(maker.chunker.chunk_box(chunk)) for chunk in chunks])
    assert area.sum() == pytest.approx(SKY_SQ_DEG, rel=1e-12)
    assert_mean(counts.sum(), density * SKY_SQ_DEG, np.sqrt(density * SKY_SQ_DEG))
    assert_chi_square(counts, density * area, fixed_total=False)
    # Poisson: over the chunks the variance equals the mean; k degrees of freedom scatter by sqrt(2 k).
    chi_square = ((counts - density * area) ** 2 / (density * area)).sum()
    assert abs(chi_square - len(chunks)) < SIGMAS * np.sqrt(2 * len(chunks)) * 1.2


def test_as_many_rows_are_made_as_were_counted():
    maker = row_maker(small_dataset(100, columns=[], children=False))
    for chunk in CHUNKS:
        assert len(director_columns(maker, chunk)["objectId"]) == count_all(maker, chunk)


def test_density_0_gives_no_row_and_no_file(tmp_path):
    dataset = small_dataset(0)
    maker = row_maker(dataset)
    made = generate_tile(dataset, maker, maker.chunker.all_chunks().tolist(), tmp_path)
    assert len(made) == 368
    assert {entry["rows"] for chunk in made.values() for entry in chunk.values()} == {0}
    assert not list(tmp_path.iterdir())


# -- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_unique_with_a_million_rows_a_chunk():
    maker = row_maker(small_dataset(1e4, columns=[], children=False))
    ids = []
    for chunk in (324, 325):  # neighbours, also by their numbers
        ids.append(director_columns(maker, chunk)["objectId"])
        assert len(ids[-1]) > 10**6
    ids = np.concatenate(ids)
    assert ids.dtype == np.int64 and ids.min() > 0
    assert len(np.unique(ids)) == len(ids)


def test_ids_are_unique_over_the_sky(sky):
    for table, name in ((0, "objectId"), (1, "sourceId")):
        ids = np.concatenate([chunk[table][name] for chunk in sky.chunks.values()])
        assert len(ids) > 40_000 and ids.min() > 0
        assert len(np.unique(ids)) == len(ids)


def test_ids_are_positive_and_distinct_at_the_ends_of_their_fields():
    generator = UniqueId()
    generator.columns = [Column("id", parse_type("BIGINT NOT NULL"))]
    last_chunk = Chunker(4096, 1, 0.0).last_chunk
    ids = [
        generator.draw(None, Rows(2, first, chunk, box, {}))
        for chunk in (0, 1, last_chunk - 1, last_chunk)
        for box in (0, 5)
        for first in (0, 2**35 - 3)
    ]
    ids = np.concatenate(ids)
    assert ids.dtype == np.int64 and ids.min() > 0 and len(np.unique(ids)) == len(ids)


# -- independence -----------------------------------------------------------------------------------------------------

MANY_COLUMNS = [
    {"name": "{u,g,r}PsFlux", "type": "DOUBLE", "generator": {"magnitude": {"max": 27.5}}},
    {"name": "{u,g,r}PsFluxErr", "type": "FLOAT", "generator": {"uniform": {"min": 0.1, "max": 2}}},
    {"name": "normal{0..4}", "type": "DOUBLE", "generator": "normal"},
    {"name": "float{0..4}", "type": "FLOAT", "generator": "normal"},
    {"name": "count{0..4}", "type": "INT", "generator": {"poisson": 20}},
    {"name": "whole{0..4}", "type": "SMALLINT", "generator": {"uniform": {"min": -100, "max": 100}}},
    {"name": "flag{0..4}", "type": "INT", "generator": {"choice": {"values": [0, 1, 2]}}},
]


def correlations(series):
    series = np.asarray(series, dtype=np.float64)
    matrix = np.corrcoef(series)
    return np.abs(matrix[np.triu_indices(len(series), 1)])


def test_no_two_columns_of_a_table_are_correlated():
    maker = row_maker(small_dataset(500, columns=MANY_COLUMNS, children=False))
    columns = director_columns(maker, 324)
    series = [values for name, values in columns.items() if name not in ("objectId", "#sub_chunk")]
    found = correlations(series)
    assert len(found) == 33 * 32 / 2 and len(series[0]) > 40_000
    assert found.max() < correlation_bound(len(series[0]), len(found))


def test_no_two_boxes_are_correlated():
    """Every column of every box of neighbouring chunks against every other: no stream is used twice."""
    maker = row_maker(small_dataset(200, columns=MANY_COLUMNS, children=False))
    blocks = [
        director_columns(maker, chunk, [box])
        for chunk in (324, 325, 326, 358, 288, 360)
        for box in chunk_boxes(maker.chunker, chunk)
    ]
    rows = min(len(block["objectId"]) for block in blocks)
    series = [
        values[:rows] for block in blocks for name, values in block.items() if name not in ("objectId", "#sub_chunk")
    ]
    found = correlations(series)
    assert len(series) == 6 * 5 * 33 and rows > 700
    assert found.max() < correlation_bound(rows, len(found))


def test_a_child_is_not_correlated_with_its_director():
    config = small_config(50, columns=[{"name": "value", "type": "DOUBLE", "generator": "normal"}])
    config["tables"]["ForcedSource"]["columns"][3:] = [
        {"name": "value", "type": "DOUBLE", "generator": "normal"},
        {"name": "ofObject", "type": "DOUBLE", "generator": {"director": "value"}},
    ]
    maker = row_maker(Dataset.from_config(config, REPOSITORY))
    child = maker.dataset.tables["ForcedSource"]
    blocks = []
    for rows in maker.director_blocks(maker.dataset.tables["Object"], 324, [INNER]):
        blocks += [part.columns for part in maker.child_blocks(child, rows, BoxStreams(1, child, 324, INNER))]
    columns = join(blocks)
    director = director_columns(maker, 324, [INNER])["value"]
    rows = min(len(columns["value"]), len(director))
    assert rows > 500
    # Row by row, and against the values that it takes from the director.
    assert abs(np.corrcoef(columns["value"][:rows], director[:rows])[0, 1]) < correlation_bound(rows, 1)
    assert abs(np.corrcoef(columns["value"], columns["ofObject"])[0, 1]) < correlation_bound(rows, 1)


def test_streams_of_different_keys_differ():
    keys = [
        (1, "Object", "ra", 5, 0, 0),
        (2, "Object", "ra", 5, 0, 0),
        (1, "Source", "ra", 5, 0, 0),
        (1, "Object", "dec", 5, 0, 0),
        (1, "Object", "ra", 6, 0, 0),
        (1, "Object", "ra", 5, 1, 0),
        (1, "Object", "ra", 5, 0, 1),
        (1, "Object", "ra", 0, 5, 0),
        (1, "Object", "ra", 5, 1, 1),
        (1, "Object", "ra", -1, 0, 0),
        (1, "Objectr", "a", 5, 0, 0),
        (1, "Objec", "tra", 5, 0, 0),
        (2**63 - 1, "Object", "ra", 5, 0, 0),
    ]
    values = np.array([stream(*key).random(8) for key in keys])
    assert (stream(*keys[0]).random(8) == values[0]).all()
    assert len(np.unique(values)) == values.size


def test_another_seed_gives_another_survey(tmp_path):
    made = [
        generate_tile(dataset, row_maker(dataset), [324], tmp_path / str(dataset.seed))["324"]
        for dataset in (small_dataset(20, seed=1), small_dataset(20, seed=2))
    ]
    assert all(made[0][name]["sha256"] != made[1][name]["sha256"] for name in made[0])


# -- children and edges -----------------------------------------------------------------------------------------------


def test_the_last_chunk_of_every_stripe_has_its_forced_sources(sky):
    columns = sky.visits["CcdVisit"].columns
    centres = healpy.ang2vec(columns["ra"], columns["decl"], lonlat=True)
    limit = 2 * np.sin(np.radians(1.4 / 2))
    chunker = sky.dataset.chunker
    for stripe, count in enumerate(chunker.chunks_in_stripe.tolist()):
        for position in {count - 1, max(count - 2, 0), 0}:
            objects, sources = sky.chunks[chunker.chunk_at(stripe, position)]
            points = healpy.ang2vec(objects["psRa"], objects["psDecl"], lonlat=True)
            expected = sum(int((np.linalg.norm(centres - point, axis=1) <= limit).sum()) for point in points)
            assert len(sources["objectId"]) == expected > 20
        assert chunker.chunk_box(chunker.chunk_at(stripe, count - 1)).ra_max_deg == 360


def test_edges_alone_equal_the_edges_of_the_complete_chunk(sky):
    """Row for row, director and child, for every chunk: the boxes at the edges come first in the complete chunk."""
    found = [0, 0]
    for chunk, whole in sky.chunks.items():
        maker = row_maker(sky.dataset, sky.visits)  # a new one, that knows nothing of the other run
        edges = chunk_columns(maker, chunk, sorted(edge_boxes(sky.dataset.chunker, chunk)))
        for i, (part, complete) in enumerate(zip(edges, whole, strict=True)):
            count = len(part.get("objectId", ()))
            for name, values in part.items():
                assert values.dtype == complete[name].dtype
                assert values.tobytes() == complete[name][:count].tobytes(), (chunk, name)
            found[i] += count
            assert i == 1 or len(complete["objectId"]) > count
    assert found[0] > 25_000 and found[1] > 5_000


def test_edges_by_hand(tmp_path):
    dataset = small_dataset(3)
    generate_by_hand(dataset, 166, tmp_path / "whole")
    generate_by_hand(dataset, 166, tmp_path / "edges", edge_only=True)
    for name, whole in texts(tmp_path / "whole").items():
        edges = (tmp_path / "edges" / name).read_bytes()
        assert whole.startswith(edges)
        assert (len(edges) < len(whole)) == (name != "CcdVisit.csv")


def assert_halos(maker, stripes, objects):
    """The halo of each chunk of some stripes is what the locator finds among all objects of the sky."""
    chunker, table = maker.chunker, maker.dataset.tables["Object"]
    home, _, overlap = chunker.locate_overlap(objects["psRa"], objects["psDecl"])
    outside = overlap.chunk != home[overlap.row]
    expected = np.unique(np.stack([overlap.chunk[outside], objects["objectId"][overlap.row[outside]]]), axis=1)
    total = 0
    for chunk in chunks_of(chunker, stripes):
        found = [rows.columns["objectId"] for rows in maker.halo_blocks(table, chunk)]
        found = np.concatenate(found) if found else np.empty(0, np.int64)
        assert np.array_equal(np.sort(found), expected[1][expected[0] == chunk]), chunk
        total += len(found)
    return total


def chunks_of(chunker, stripes):
    chunks = chunker.all_chunks()
    return chunks[np.isin(chunks // (2 * chunker.num_stripes), stripes)].tolist()


def test_halos_of_the_small_sky_are_complete(sky):
    objects = join([objects for objects, _ in sky.chunks.values()])
    found = assert_halos(row_maker(sky.dataset, sky.visits), range(18), objects)
    assert found > 25_000


@pytest.mark.parametrize("cap", [range(334, 340), range(0, 6)])
def test_halos_near_the_poles_are_complete(cap):
    """At |Dec| above 86, where the overlap spans many degrees of RA."""
    config = small_config(2000, columns=[], children=False)
    config["partitioning"] = {"num_stripes": 340, "num_sub_stripes": 3, "overlap_deg": 0.1}
    maker = row_maker(Dataset.from_config(config, REPOSITORY))
    objects = join([director_columns(maker, chunk) for chunk in chunks_of(maker.chunker, cap)])
    inner = [stripe for stripe in cap if stripe not in (334, 5)]  # the outermost has a neighbour that was not made
    assert assert_halos(maker, inner, objects) > 10_000


# -- density maps -----------------------------------------------------------------------------------------------------

NSIDE = 32


@cache
def ring_map():
    """A map that differs from pixel to pixel; every fifth pixel is empty."""
    values = 100.0 + 10 * (np.arange(12 * NSIDE**2) * 7919 % 13)
    values[::5] = 0
    return values


def write_maps(folder):
    np.save(folder / "ring.npy", ring_map())
    np.save(folder / "nested.npy", healpy.reorder(ring_map(), r2n=True))
    healpy.write_map(folder / "map.fits", ring_map(), nest=False, dtype=np.float64, coord="C")


MAPS = {
    "npy, ring": {"map": "ring.npy"},
    "npy, nested": {"map": "nested.npy", "ordering": "nested"},
    "fits": {"map": "map.fits"},
}


def is_inside(pixel, box):
    """Whether a pixel of the map lies in a box with all its border (a box of all RA has none in RA)."""
    ra, dec = healpy.vec2ang(healpy.boundaries(NSIDE, pixel, step=8).T, lonlat=True)
    in_ra = box.ra_max_deg - box.ra_min_deg == 360 or (box.ra_min_deg < ra.min() and ra.max() < box.ra_max_deg)
    return in_ra and box.dec_min_deg < dec.min() and dec.max() < box.dec_max_deg


def test_rows_follow_a_density_map(tmp_path):
    """In each pixel that lies inside a chunk there are as many rows as the map says; its boxes do not show."""
    write_maps(tmp_path)
    expected = ring_map() * SKY_SQ_DEG / len(ring_map())
    chunks = [0, 36, 166, 324 + 34, 612]
    made = {}
    for name, density in MAPS.items():
        maker = row_maker(small_dataset(density, columns=[], children=False, folder=tmp_path))
        made[name] = [director_columns(maker, chunk) for chunk in chunks]
    for i, chunk in enumerate(chunks):
        columns = made["fits"][i]
        for name in MAPS:
            assert all(np.array_equal(made[name][i][key], values) for key, values in columns.items()), name
        assert (maker.chunker.locate(columns["psRa"], columns["psDecl"])[0] == chunk).all()
        pixel = healpy.ang2pix(NSIDE, columns["psRa"], columns["psDecl"], lonlat=True)
        assert expected[pixel].min() > 0
        box = maker.chunker.chunk_box(chunk)
        inside = [p for p in np.unique(pixel) if is_inside(p, box)]
        assert len(inside) > 8 and len(np.unique(expected[inside])) > 4
        counts = np.bincount(pixel, minlength=len(expected))
        assert_chi_square(counts[inside], expected[inside], fixed_total=False)


def test_the_scale_of_a_map_multiplies_its_counts(tmp_path):
    write_maps(tmp_path)
    maker = row_maker(small_dataset({"map": "ring.npy", "scale": 1000}, columns=[], children=False, folder=tmp_path))
    stripe = [count_all(maker, chunk) for chunk in chunks_of(maker.chunker, [0])]
    # The chunk of this stripe is the cap: the pixels of the map below Dec -80, cut there.
    points = np.random.default_rng(3).random((2, 200_000))
    z = -1 + points[1] * (1 + sin_deg(-80))
    sampled = ring_map()[healpy.ang2pix(NSIDE, np.arccos(z), 2 * np.pi * points[0])]
    area = SKY_SQ_DEG * (1 + sin_deg(-80)) / 2
    expected = 1000 * sampled.mean() * area
    error = 1000 * sampled.std() / np.sqrt(200_000) * area
    count = sum(stripe)
    assert_mean(count, expected, np.sqrt(expected + error**2))


# -- the same bytes always --------------------------------------------------------------------------------------------

#: A column of every generator whose arithmetic could differ between processors.
EXACT_COLUMNS = [
    *MANY_COLUMNS,
    {"name": "power", "type": "DOUBLE", "generator": {"magnitude": {"law": "power", "slope": 0.4}}},
    {"name": "nJy", "type": "DOUBLE", "generator": {"magnitude": {"min": 14, "unit": "flux"}}},
    {"name": "powerFlux", "type": "FLOAT", "generator": {"magnitude": {"law": "power", "unit": "flux", "min": 10}}},
    {
        "name": "large",
        "type": "BIGINT",
        "generator": {"uniform": {"min": -(10**18), "max": 10**18}},
        "null_fraction": 0.1,
    },
    {
        "name": "type",
        "type": "VARCHAR(6)",
        "generator": {"choice": {"values": ["star", "galaxy"], "probabilities": [0.3, 0.7]}},
    },
    {"name": "line", "type": "DOUBLE", "generator": {"linear": {"column": "psRa", "factor": 0.1, "sigma": 0.3}}},
    {"name": "when", "type": "DATETIME(6)", "generator": {"time": {"mjd": "line"}}},
]
#: A table of detectors, and columns and a choice of objects for the child that follows it.
EXACT_DETECTORS = {
    "kind": "regular",
    "rows": {"visits": "CcdVisit", "detectors": [3, 3], "spacing_deg": 1},
    "visit": {"id": "detectorId", "filter": "filterName"},
    "position": ["ra", "decl"],
    "columns": [
        {"name": "detectorId", "type": "INT NOT NULL", "generator": "unique_id"},
        {"name": "filterName", "type": "CHAR(1)", "generator": {"visit": "filterName"}},
        {"name": ["ra", "decl"], "type": "DOUBLE", "generator": "position"},
    ],
}
EXACT_CHILD_ROWS = {
    "visits": "Detector",
    "radius_deg": 0.6,
    "select": {"column": "nJy", "above": 100, "edge": 50},
}
EXACT_CHILD_COLUMNS = [
    {
        "name": "ra",
        "type": "DOUBLE",
        "generator": {"jitter": {"column": "psRa", "sigma": "psFlux_Sigma", "dec": "psDecl"}},
    },
    {"name": "decl", "type": "DOUBLE", "generator": {"jitter": {"column": "psDecl", "sigma": "psFlux_Sigma"}}},
]


def run_by_hand(config, chunk, out, **environment):
    command = [sys.executable, SCRIPT, "-c", config, "--chunk", str(chunk), "--out", out]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return {name: hashlib.sha256(text).hexdigest() for name, text in texts(out).items()}


def instruction_sets():
    """Settings of NPY_DISABLE_CPU_FEATURES: from nothing disabled to all that numpy could use on this processor."""
    enabled = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    return [enabled[n:] for n in range(len(enabled) + 1)]


def test_bytes_depend_neither_on_the_process_nor_on_the_instruction_set(tmp_path):
    settings = instruction_sets()
    if len(settings) < 2:
        pytest.skip("numpy has only its baseline on this processor")
    # At most four: none, all, and two between.
    settings = [settings[i] for i in sorted({0, len(settings) // 3, 2 * len(settings) // 3, len(settings) - 1})]
    config = small_config(8, columns=EXACT_COLUMNS, chunks="all")
    config["tables"]["Detector"] = EXACT_DETECTORS
    child = config["tables"]["ForcedSource"]
    child["rows"] = EXACT_CHILD_ROWS
    child["columns"][1]["generator"] = {"visit": "detectorId"}
    child["columns"] += EXACT_CHILD_COLUMNS
    (tmp_path / "exact.yaml").write_text(yaml.safe_dump(config))
    for name, path, chunk, files in (("fakedb", FAKEDB, 40000, 3), ("exact", tmp_path / "exact.yaml", 36, 4)):
        found = [
            run_by_hand(
                path, chunk, tmp_path / f"{name}{i}", NPY_DISABLE_CPU_FEATURES=" ".join(off), PYTHONHASHSEED=str(i)
            )
            for i, off in enumerate(settings)
        ]
        assert len(found[0]) == files
        assert all(hashes == found[0] for hashes in found[1:]), (name, settings)


def test_files_do_not_depend_on_the_tile(tmp_path):
    dataset = small_dataset(20)
    all_visits = make_visits(dataset)
    chunks = [324, 325, 326, 358]
    together = generate_tile(dataset, row_maker(dataset, all_visits), chunks, tmp_path / "together")
    backwards = generate_tile(dataset, row_maker(dataset, all_visits), chunks[::-1], tmp_path / "backwards")
    alone = {}
    for chunk in chunks:
        alone |= generate_tile(dataset, row_maker(dataset, all_visits), [chunk], tmp_path / "alone")
    assert together == alone == backwards
    assert all(entry["rows"] > 0 for tables in together.values() for entry in tables.values())
    assert texts(tmp_path / "together") == texts(tmp_path / "alone") == texts(tmp_path / "backwards")


@pytest.mark.parametrize(
    ("module", "constant", "value"),
    [
        (visits, "BLOCK_PAIRS", 64),
        (textfile, "FLUSH_VALUES", 50),
        (rowmaker, "EDGE_VALUES", 1),
        (blocks, "ENOUGH_ROWS", 1),
    ],
)
def test_files_do_not_depend_on_sizes_of_memory(tmp_path, monkeypatch, module, constant, value):
    times = {"start": "1995-01-01", "end": "2035-01-01"}
    columns = [
        *FLUX_COLUMNS,
        {"name": "t", "type": "DATETIME(3)", "generator": {"time": times}, "null_fraction": 0.3},
        {"name": "s", "type": "CHAR(3)", "generator": {"choice": {"values": ["a", "b"]}}, "null_fraction": 0.3},
        {"name": "i", "type": "INT", "generator": {"poisson": {"mean": 3}}, "null_fraction": 0.3},
    ]
    dataset = small_dataset(20, columns=columns)
    generate_tile(dataset, row_maker(dataset), [324, 325], tmp_path / "usual")
    assert getattr(module, constant) > value
    monkeypatch.setattr(module, constant, value)
    generate_tile(dataset, row_maker(dataset), [324, 325], tmp_path / "small")
    assert texts(tmp_path / "usual") == texts(tmp_path / "small")


# -- text -------------------------------------------------------------------------------------------------------------


def random_floats(dtype, count=20_000):
    """Finite numbers of every size: random bits, and the extremes."""
    random = np.random.default_rng(5)
    size = np.dtype(dtype).itemsize
    values = np.frombuffer(random.bytes(count * size), dtype)
    limits = np.finfo(dtype)
    extremes = [0, -0.0, 1, 0.1, 1e22, 1e23, 16777217, limits.max, limits.min, limits.tiny, limits.smallest_subnormal]
    return np.concatenate([values[np.isfinite(values)], np.array(extremes, dtype), random.random(1000).astype(dtype)])


@pytest.mark.parametrize(("sql", "dtype"), [("FLOAT", np.float32), ("DOUBLE", np.float64)])
def test_numbers_read_back_exactly(sql, dtype):
    values = random_floats(dtype)
    column = Column("x", parse_type(sql))
    assert column.type.dtype == dtype
    text = format_rows([column], {"x": values}).decode().split("\n")
    assert text.pop() == ""
    back = np.array([float(item) for item in text]).astype(dtype)
    assert back.tobytes() == values.tobytes()
    # As short as can be: no text of FLOAT has the digits of a DOUBLE.
    digits = [len(item.split("e")[0].replace("-", "").replace(".", "").strip("0")) for item in text]
    assert max(digits) <= {np.float32: 9, np.float64: 17}[dtype]


STRINGS = (
    "plain", "", "a tab\tinside", "two\nlines", "a \\ backslash", "\\", "\\\\", "\\N", "\\n", "\\t", "\\\\n",
    "\t", "\n", "return\r", "\r\n", '"quoted"', "'", ",", " blanks ", "#", "NULL", "null", "nan", "1", "\\\n\\\t\\",
)  # fmt: skip


def text_table(columns):
    """Object with some columns more."""
    return small_dataset(1, columns=columns, children=False).tables["Object"]


def test_rows_read_back_as_they_were_made(tmp_path):
    config = [
        {
            "name": "text",
            "type": "VARCHAR(20)",
            "generator": {"choice": {"values": list(STRINGS)}},
            "null_fraction": 0.2,
        },
        {"name": "small", "type": "FLOAT", "generator": "normal", "null_fraction": 0.5},
        {"name": "flag", "type": "BOOLEAN", "generator": {"choice": {"values": [True, False]}}, "null_fraction": 0.5},
        {"name": "byte", "type": "TINYINT UNSIGNED", "generator": {"uniform": {"max": 255}}, "null_fraction": 0.5},
        {"name": "nothing", "type": "INT", "generator": {"constant": None}},
        {"name": "nobody", "type": "CHAR(3)", "generator": {"constant": None}},
    ]
    dataset = small_dataset(30, columns=config, children=False)
    maker = row_maker(dataset)
    made = director_columns(maker, 324)
    generate_tile(dataset, maker, [324], tmp_path)
    path = tmp_path / "chunk_324_Object.csv"
    rows = [row for block in read_text(path, dataset.tables["Object"]) for row in block.to_pylist()]
    assert len(rows) == len(made["objectId"]) > 2000
    assert {row["text"] for row in rows} == {*STRINGS, None}
    for name, values in made.items():
        if name[0] != "#":
            assert [row[name] for row in rows] == values.tolist(), name
    assert {row["chunkId"] for row in rows} == {324}
    assert [row["subChunkId"] for row in rows] == made["#sub_chunk"].tolist()


def test_the_dialect_of_the_text():
    columns = [
        Column(name, parse_type(sql))
        for name, sql in (("a", "INT"), ("b", "BOOLEAN"), ("c", "VARCHAR(9)"), ("d", "FLOAT"))
    ]
    values = {
        "a": np.ma.masked_array(np.array([1, -2], np.int32), [False, True]),
        "b": np.array([1, 0], np.uint8),
        "c": Strings(np.array([0, -1], np.int32), ("x\ty\\\n",)),
        "d": np.array([0.1, 1e-45], np.float32),
    }
    assert format_rows(columns, values) == b"1\t1\tx\\ty\\\\\\n\t0.1\n\\N\t0\t\\N\t1e-45\n"


def test_float_columns_are_float32():
    """A FLOAT value in the text is the shortest decimal of a float32, not one of float64 that was cut."""
    maker = row_maker(small_dataset(30, columns=MANY_COLUMNS, children=False))
    columns = director_columns(maker, 324)
    table = maker.dataset.tables["Object"]
    for column in table.columns:
        assert columns[column.name].dtype == column.type.dtype, column.name
    text = format_rows([c for c in table.columns if c.name == "float0"], columns).decode().split()
    assert np.array(text, dtype=np.float32).tobytes() == columns["float0"].tobytes()
    assert max(len(item.lstrip("-").replace(".", "").lstrip("0").split("e")[0]) for item in text) <= 9


def test_a_file_that_fails_leaves_nothing(tmp_path):
    column = Column("x", parse_type("INT"))
    with pytest.raises(RuntimeError), TableFile(tmp_path / "x.csv", [column]) as file:
        file.add({"x": np.arange(10**6)})
        raise RuntimeError
    assert not list(tmp_path.iterdir())


# -- NULLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_null_fraction_is_the_share_of_nulls(share):
    columns = [
        {"name": "x{0..1}", "type": "DOUBLE", "generator": "normal", "null_fraction": share},
        {"name": "text", "type": "CHAR(1)", "generator": {"choice": {"values": ["a", "b"]}}, "null_fraction": share},
        {"name": "whole", "type": "INT", "generator": {"uniform": {"max": 9}}, "null_fraction": share},
    ]
    made = director_columns(row_maker(small_dataset(100, columns=columns, children=False)), 324)
    null = [np.ma.getmaskarray(made["x0"]), np.ma.getmaskarray(made["x1"]), np.ma.getmaskarray(made["whole"])]
    null.append(np.array([value is None for value in made["text"].tolist()]))
    count = len(null[0])
    for mask in null:
        assert_mean(mask.mean(), share, np.sqrt(share * (1 - share) / count))
    if 0 < share < 1:
        assert correlations(null).max() < correlation_bound(count, 6)


def test_a_null_hides_nothing_else():
    """The values that are not NULL are those that the column has without NULLs."""
    with_nulls, without = (
        director_columns(
            row_maker(
                small_dataset(
                    20,
                    columns=[{"name": "x", "type": "DOUBLE", "generator": "normal", "null_fraction": share}],
                    children=False,
                )
            ),
            324,
        )["x"]
        for share in (0.5, 0)
    )
    mask = np.ma.getmaskarray(with_nulls)
    assert 0 < mask.sum() < len(mask)
    assert np.array_equal(with_nulls.data[~mask], without[~mask])


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_small_trials_by_hand(tmp_path, capsys):
    """Options --objects and --visits: about so many rows, and exactly so many visits, all in the chunk."""
    arguments = ["-c", str(FAKEDB), "--chunk", "40000", "--objects", "200", "--visits", "7", "--out", str(tmp_path)]
    assert generate_chunk.main(arguments) == 0
    printed = capsys.readouterr().out
    found = texts(tmp_path)
    assert {name: text.count(b"\n") for name, text in found.items()}["CcdVisit.csv"] == 7
    objects = found["chunk_40000_Object.csv"].count(b"\n")
    assert_mean(objects, 200, np.sqrt(200))
    assert 0 < found["chunk_40000_ForcedSource.csv"].count(b"\n") <= 7 * objects
    assert f"{objects:>10} rows" in printed
    places = np.array([line.split(b"\t")[2:4] for line in found["CcdVisit.csv"].splitlines()], dtype=float)
    assert (Chunker(200, 5, 0.01667).locate(*places.T.copy())[0] == 40000).all()


@pytest.mark.parametrize("chunk", [-1, 3, 400000])
def test_a_chunk_that_does_not_exist_is_refused(tmp_path, capsys, chunk):
    assert generate_chunk.main(["-c", str(FAKEDB), f"--chunk={chunk}", "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert f"--chunk {chunk}" in message and "no such chunk" in message
    assert ("stripe 0 has the chunks 0 to 0" in message) == (chunk == 3)
    assert not list(tmp_path.iterdir())


def test_a_bad_density_map_is_told_without_a_traceback(tmp_path, capsys):
    np.save(tmp_path / "map.npy", np.ones(13))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_config({"map": "map.npy"}, children=False)))
    assert (
        generate_chunk.main(["-c", str(tmp_path / "config.yaml"), "--chunk", "36", "--out", str(tmp_path / "out")]) == 1
    )
    assert "map.npy: found an array of shape (13,)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objects=-1"], "--objects -1: it must be at least 0"),
        (["--visits=-1"], "--visits -1: it must be at least 0"),
        (["--out=file/x"], "generate_chunk: Not a directory: file/x"),
    ],
)
def test_wrong_options_are_told_without_a_traceback(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert generate_chunk.main(["-c", str(FAKEDB), "--chunk=0", *arguments]) == 1
    assert message in capsys.readouterr().err
