"""density: areas and positions against healpy and against counting, the reading of maps, and the same bits everywhere.

Significance: every chi-square test fails by chance in 1 of 10^6 seeds; the seeds are fixed.
"""

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import healpy
import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from skymill.chunker import Box
from skymill.density import HealpixDensity, UniformDensity, box_area_sq_deg, read_density_map

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
WHOLE_SKY_SQ_DEG = 129600 / np.pi

BOXES = {
    "whole sky": Box(0, 360, -90, 90),
    "north cap": Box(0, 360, 66, 90),
    "tiny north cap": Box(0, 360, 89.99, 90),
    "wedge at the south pole": Box(200, 203, -90, -89),
    "up to RA 360": Box(350, 360, -3, 4),
    "from RA 0": Box(0, 0.9, 30, 30.9),
    "both sides of RA 0": Box(10, 350, -60, -20),
    "slivers at both ends of base pixel 4": Box(44.9, 315.1, -2, 2),
    "across 2/3": Box(80, 100, 35, 48),
    "around base pixel 5": Box(45, 135, -42, 42),
    "small": Box(10, 10.9, 20, 20.9),
    "thin strip": Box(120, 121, -50, -49.999),
    "thin and high": Box(180, 180.001, 60, 75),
    "point": Box(33.3, 33.30000001, -7.00000001, -7),
}


def random_boxes(rng, n):
    for k in range(n):
        width, height = 10 ** rng.uniform(-3, 2.5), 10 ** rng.uniform(-3, 2)
        ra, dec = rng.uniform(0, 360 - width), rng.uniform(-90, 90 - height)
        ra = {0: 0.0, 1: 360.0 - width}.get(k % 6, ra)
        dec = {0: -90.0, 1: 90.0 - height}.get(k % 5, dec)
        yield Box(ra, min(ra + width, 360.0), dec, min(dec + height, 90.0))


@cache
def flat(nside):
    return HealpixDensity(np.ones(12 * nside**2))


@cache
def lumpy(nside):
    """Neighbouring pixels differ a lot."""
    return HealpixDensity(1.0 + (np.arange(12 * nside**2) * 7919 % 13))


def assert_chi_square(counts, expected):
    """One-sided, by the Wilson-Hilferty normal approximation at 4.75 sigma; bins with few counts are put together."""
    order = np.argsort(expected)
    group = np.floor(np.cumsum(expected[order]) / 20).astype(int)
    counts, expected = np.bincount(group, counts[order]), np.bincount(group, expected[order])
    counts, expected = counts[expected > 5], expected[expected > 5]
    k = len(expected) - 1
    assert k > 3
    chi2 = np.sum((counts - expected) ** 2 / expected)
    assert ((chi2 / k) ** (1 / 3) - (1 - 2 / (9 * k))) / np.sqrt(2 / (9 * k)) < 4.75, f"chi2 = {chi2}, {k} bins"


def pixel_of(nside, ra_deg, dec_deg):
    return healpy.ang2pix(nside, ra_deg, dec_deg, nest=True, lonlat=True)


# Areas


def test_box_areas():
    assert box_area_sq_deg(BOXES["whole sky"]) == pytest.approx(WHOLE_SKY_SQ_DEG, rel=1e-15)
    assert box_area_sq_deg(Box(10, 20, 0, 30)) == pytest.approx(10 * 0.5 * 180 / np.pi, rel=1e-15)
    sigma = np.radians(1e-4)  # a cap of this radius
    assert box_area_sq_deg(Box(0, 360, 90 - 1e-4, 90)) == pytest.approx(np.pi * sigma**2 * (180 / np.pi) ** 2, rel=1e-9)
    assert type(box_area_sq_deg(Box(1, 2, 3, 4))) is float


@pytest.mark.parametrize("nside", [1, 2, 8, 64, 1024])
def test_pixel_areas_add_up_to_the_box(nside):
    boxes = [*BOXES.values(), *random_boxes(np.random.default_rng(nside), 60)]
    boxes = [box for box in boxes if box_area_sq_deg(box) * nside**2 < 1e6]
    assert len(boxes) > 10
    for box in boxes:
        cells, expected = flat(nside).expected_counts(box)
        assert expected.sum() == pytest.approx(box_area_sq_deg(box), rel=1e-10), box
        assert cells.dtype == np.int64 and expected.dtype == np.float64
        assert np.all(np.diff(cells) > 0) and cells[0] >= 0 and cells[-1] < 12 * nside**2
        assert np.all(expected > 0) and np.all(expected < WHOLE_SKY_SQ_DEG / (12 * nside**2) * (1 + 1e-12))


@pytest.mark.parametrize("nside", [1, 4, 32])
def test_every_pixel_has_its_full_area_on_the_whole_sky(nside):
    cells, expected = lumpy(nside).expected_counts(BOXES["whole sky"])
    np.testing.assert_array_equal(cells, np.arange(12 * nside**2))
    np.testing.assert_allclose(expected, lumpy(nside).per_sq_deg * WHOLE_SKY_SQ_DEG / (12 * nside**2), rtol=1e-12)


@pytest.mark.parametrize("nside", [1, 8, 128])
@pytest.mark.parametrize("name", BOXES)
def test_pixel_areas_agree_with_counting(name, nside):
    box = BOXES[name]
    n = 20_000
    ra, dec = UniformDensity(1).sample(np.random.default_rng(1), box, 0, n)
    counts = np.bincount(pixel_of(nside, ra, dec), minlength=12 * nside**2)
    cells, area = flat(nside).expected_counts(box)
    assert set(np.flatnonzero(counts)) <= set(cells)
    if len(cells) > 10:
        assert_chi_square(counts[cells], n * area / area.sum())
    else:
        sigma = np.sqrt(n * area / area.sum()) + 1
        assert np.all(np.abs(counts[cells] - n * area / area.sum()) < 6 * sigma)


@pytest.mark.parametrize("nside", [1, 2, 16, 64, 1024])
def test_pixels_agree_with_healpy_in_boxes_like_points(nside):
    rng = np.random.default_rng(5)
    decs = np.degrees(np.arcsin(rng.uniform(-1, 1, 150)))
    decs[:30] = 90 - 10 ** rng.uniform(-2, 1, 30)
    for ra, dec in zip(rng.uniform(0, 359.9, 150), decs, strict=True):
        cells, _ = flat(nside).expected_counts(Box(ra, ra + 1e-7, dec, dec + 1e-7))
        assert pixel_of(nside, ra + 5e-8, dec + 5e-8) in cells
        assert len(cells) <= 2


def test_pixels_without_rows_are_left_out():
    density = np.ones(12 * 16**2)
    density[::2] = 0
    cells, _ = HealpixDensity(density).expected_counts(BOXES["across 2/3"])
    assert len(cells) > 3 and np.all(cells % 2 == 1)
    cells, expected = HealpixDensity(np.zeros(12)).expected_counts(BOXES["small"])
    assert len(cells) == len(expected) == 0


# Positions


def test_uniform_density():
    density = UniformDensity(10)
    cells, expected = density.expected_counts(BOXES["small"])
    assert cells.tolist() == [0] and expected.tolist() == [10 * box_area_sq_deg(BOXES["small"])]
    ra, dec = density.sample(np.random.default_rng(3), BOXES["small"], 0, 5)
    rng = np.random.default_rng(3)
    np.testing.assert_allclose(ra, 10 + 0.9 * rng.random(5), rtol=1e-14)
    low, high = np.sin(np.radians([20, 20.9]))
    np.testing.assert_allclose(dec, np.degrees(np.arcsin(low + (high - low) * rng.random(5))), rtol=1e-14)


@pytest.mark.parametrize("name", ["whole sky", "north cap", "wedge at the south pole", "small", "thin and high"])
def test_uniform_positions_are_uniform_on_the_sphere(name):
    box = BOXES[name]
    ra, dec = UniformDensity(1).sample(np.random.default_rng(4), box, 0, 50_000)
    assert_in_box(box, ra, dec)
    # 10 x 10 bins of equal area, of height measured from the pole so that it is precise there.
    z = np.sin(np.radians(45 - dec / 2)) ** 2
    z_min, z_max = np.sin(np.radians(45 - np.array([box.dec_max_deg, box.dec_min_deg]) / 2)) ** 2
    i = np.floor(10 * (ra - box.ra_min_deg) / (box.ra_max_deg - box.ra_min_deg)).clip(0, 9)
    j = np.floor(10 * (z - z_min) / (z_max - z_min)).clip(0, 9)
    assert_chi_square(np.bincount((10 * i + j).astype(int), minlength=100), np.full(100, 500.0))


def assert_in_box(box, ra, dec):
    """Up to rounding; next to a pole that of sin(Dec) is 1e-6 deg."""
    slack = 2e-6 if max(abs(box.dec_min_deg), abs(box.dec_max_deg)) > 89 else 1e-12
    assert ra.min() >= box.ra_min_deg - 1e-12 and ra.max() <= box.ra_max_deg + 1e-12
    assert dec.min() >= box.dec_min_deg - slack and dec.max() <= box.dec_max_deg + slack


@pytest.mark.parametrize(
    ("nside", "name"),
    [(nside, name) for nside in (1, 4, 64, 1024) for name in BOXES if box_area_sq_deg(BOXES[name]) * nside**2 < 1e7],
)
def test_positions_lie_in_the_box_and_the_pixel(nside, name):
    box, density = BOXES[name], flat(nside)
    rng = np.random.default_rng(6)
    cells, _ = density.expected_counts(box)
    for cell in rng.choice(cells, min(len(cells), 12), replace=False):
        ra, dec = density.sample(rng, box, cell, 500)
        assert ra.shape == dec.shape == (500,) and ra.dtype == dec.dtype == np.float64
        assert_in_box(box, ra, dec)
        pixels = pixel_of(nside, ra % 360, dec)
        assert np.all(pixels == cell)


@pytest.mark.parametrize(
    ("nside", "box"),
    [
        (1, Box(10, 350, -60, 60)),
        (1, Box(0, 360, -90, 90)),
        (1, Box(44, 316, -10, 20)),
        (2, Box(20, 80, 30, 90)),
        (4, Box(100, 130, -80, -45)),
        (8, Box(0, 8, 38, 46)),
        (64, BOXES["small"]),
        (64, Box(359, 360, 88.5, 90)),
    ],
)
def test_positions_are_uniform_in_the_cell(nside, box):
    """Counts in the pixels of a map 16 times as fine."""
    rng = np.random.default_rng(7)
    cells, expected = flat(nside).expected_counts(box)
    fine, fine_area = flat(16 * nside).expected_counts(box)
    for cell in cells[np.argsort(expected)[-2:]]:  # the largest parts
        ra, dec = flat(nside).sample(rng, box, cell, 30_000)
        counts = np.bincount(pixel_of(16 * nside, ra % 360, dec), minlength=12 * (16 * nside) ** 2)
        mine = fine // 256 == cell
        assert counts.sum() == counts[fine[mine]].sum()
        assert_chi_square(counts[fine[mine]], 30_000 * fine_area[mine] / fine_area[mine].sum())


def test_both_ends_of_a_cell_that_straddles_ra_0_are_filled():
    ra, _ = flat(1).sample(np.random.default_rng(8), Box(10, 350, -5, 5), 4, 10_000)
    assert np.all((ra <= 45) | (ra >= 315))
    assert 4700 < np.count_nonzero(ra < 180) < 5300  # 6 sigma


def test_no_positions_and_wrong_cells():
    density, box = flat(8), BOXES["small"]
    ra, dec = density.sample(np.random.default_rng(9), box, density.expected_counts(box)[0][0], 0)
    assert len(ra) == len(dec) == 0
    with pytest.raises(ValueError, match=r"pixel 767 .* does not meet Box"):
        density.sample(np.random.default_rng(9), box, 767, 1)
    with pytest.raises(ValueError, match="pixel 768: nside 8 has the pixels 0 to 767"):
        density.sample(np.random.default_rng(9), box, 768, 1)


def bits():
    """sha256 of counts and positions in many boxes and cells."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(10)
    for nside in (1, 16, 256):
        for box in BOXES.values():
            if box_area_sq_deg(box) * nside**2 > 1e6:
                continue
            cells, expected = lumpy(nside).expected_counts(box)
            results = [cells, expected, *UniformDensity(1).sample(rng, box, 0, 1000)]
            for cell in cells[:: max(len(cells) // 4, 1)]:
                results += lumpy(nside).sample(rng, box, cell, 1000)
            for result in results:
                digest.update(result.astype(result.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def test_bits_do_not_depend_on_the_instruction_set():
    enabled = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": " ".join(enabled),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4",
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(Path(__file__).parent)]),
    }
    code = "import test_density; print(test_density.bits())"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == bits()


# Maps


@pytest.fixture
def ring_map():
    return np.arange(12 * 8**2, dtype=np.float64)


def test_read_npy(tmp_path, ring_map):
    np.save(tmp_path / "map.npy", ring_map.astype(np.int32))
    nested = read_density_map(tmp_path / "map.npy", per_sq_deg_unit_scale=0.5)
    assert nested.dtype == np.float64
    np.testing.assert_array_equal(nested[healpy.ring2nest(8, np.arange(768))], 0.5 * ring_map)
    np.testing.assert_array_equal(read_density_map(str(tmp_path / "map.npy"), "nested"), ring_map)


@pytest.mark.parametrize("nest", [False, True])
@pytest.mark.parametrize("ordering", ["ring", "nested"])
def test_header_of_a_fits_file_wins(tmp_path, ring_map, nest, ordering):
    written = healpy.reorder(ring_map, r2n=True) if nest else ring_map
    healpy.write_map(tmp_path / "map.fits", written, nest=nest, coord="C", dtype=np.float32)
    nested = read_density_map(tmp_path / "map.fits", ordering)
    assert nested.dtype == np.float64 and nested.dtype.isnative
    np.testing.assert_array_equal(nested, healpy.reorder(ring_map, r2n=True))


def test_fits_without_ordering(tmp_path, ring_map):
    from astropy.io import fits

    table = fits.BinTableHDU.from_columns([fits.Column("density", "D", array=ring_map)])
    table.writeto(tmp_path / "map.fits")
    np.testing.assert_array_equal(read_density_map(tmp_path / "map.fits", "nested"), ring_map)
    np.testing.assert_array_equal(read_density_map(tmp_path / "map.fits"), healpy.reorder(ring_map, r2n=True))


def test_a_map_of_zeros_is_allowed(tmp_path):
    np.save(tmp_path / "map.npy", np.zeros(12))
    assert HealpixDensity(read_density_map(tmp_path / "map.npy")).nside == 1


def with_value(value):
    density = np.ones(48)
    density[17] = value
    return density


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(100), r"shape \(100,\); a HEALPix map is one row of 12 nside\^2 values"),
        (np.ones(12 * 3**2), r"shape \(108,\).* nside a power of 2"),
        (np.ones((2, 48)), r"shape \(2, 48\)"),
        (np.ones(0), r"shape \(0,\)"),
        (with_value(np.nan), "found 1 of 48 pixels not a finite number, the first is pixel 17: nan"),
        (with_value(np.inf), "pixel 17: inf"),
        (with_value(-1e-9), "found 1 of 48 pixels negative, the first is pixel 17: -1e-09"),
        (np.array(["a"] * 12), "cannot be read as a .npy file of numbers"),
        (np.full(12, 1j), "cannot be read as a .npy file of numbers"),
        (np.array([{}] * 12), "cannot be read as a .npy file of numbers"),
    ],
)
def test_bad_maps_are_refused(tmp_path, values, message):
    np.save(tmp_path / "map.npy", values)
    with pytest.raises(ValueError, match=message) as caught:
        read_density_map(tmp_path / "map.npy")
    assert str(tmp_path / "map.npy") in str(caught.value)
    if values.dtype == np.float64:
        with pytest.raises(ValueError, match=message):
            HealpixDensity(values)


@pytest.mark.parametrize("name", ["map.npy", "map.fits"])
def test_unreadable_files_are_refused(tmp_path, name):
    path = tmp_path / name
    for content in (None, b"", b"no map at all"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as a .*; "):
            read_density_map(path)


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'found the extension ".csv"; .*\.npy and \.fits'):
        read_density_map(tmp_path / "map.csv")
    with pytest.raises(ValueError, match='found the ordering "NEST"; allowed are "ring" and "nested"'):
        read_density_map(tmp_path / "map.npy", "NEST")
    with pytest.raises(ValueError, match="unit scale 0; give a finite number > 0"):
        read_density_map(tmp_path / "map.npy", per_sq_deg_unit_scale=0)
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="give a finite number >= 0"):
            UniformDensity(bad)


def test_galactic_and_partial_maps_are_refused(tmp_path):
    healpy.write_map(tmp_path / "galactic.fits", np.ones(48), coord="G", dtype=np.float64)
    with pytest.raises(ValueError, match=r"found COORDSYS = G; .* equatorial"):
        read_density_map(tmp_path / "galactic.fits")
    partial = np.ones(12 * 16**2)
    partial[0] = healpy.UNSEEN
    healpy.write_map(tmp_path / "partial.fits", partial, partial=True, dtype=np.float64)
    with pytest.raises(ValueError, match=r"negative, the first is pixel 0: .*UNSEEN"):
        read_density_map(tmp_path / "partial.fits")
