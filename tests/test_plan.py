"""The plan in numbers, against what is then made."""

import json

import healpy
import numpy as np
import pytest
import yaml

from skymill.census import stripe_areas, take_census
from skymill.chunker import Chunker
from skymill.config import Dataset, load_dataset
from skymill.errors import SkymillError
from skymill.files import read_json
from skymill.survey_plan import START_SECONDS, make_survey_maker
from workflow import PROJECT, SMALL_SKY, snakemake, write_config


def test_the_plan_of_fakedb_is_what_is_made(tmp_path):
    """Directors to the row, children within 1 %, bytes within 3 %."""
    snakemake(tmp_path, "--config", "keep={generated: true, partitioned: true}")
    root = tmp_path / "results" / "fakedb"
    plan = json.loads((root / "plan.json").read_text())
    made = {name: {"rows": 0, "bytes": 0} for name in ("Object", "Object_halo", "ObjectFullOverlap", "ForcedSource")}
    for manifest in (json.loads(path.read_text()) for path in root.glob("[gp]*ed/t*/s*.json")):
        for chunk in manifest["chunks"].values():
            for name, entry in chunk.items():
                # Chunk files are in both manifests.
                if manifest["stage"] == "generated" or name == "ObjectFullOverlap":
                    made[name]["rows"] += entry["rows"]
                    made[name]["bytes"] += entry["bytes"]
    tables = plan["tables"]
    assert plan["chunks"] == 112
    assert tables["Object"]["rows"] == made["Object"]["rows"]
    assert tables["ForcedSource"]["rows"] == pytest.approx(made["ForcedSource"]["rows"], rel=0.01)
    assert tables["ObjectFullOverlap"]["rows"] == pytest.approx(made["ObjectFullOverlap"]["rows"], rel=0.01)
    assert tables["Object"]["generated_bytes"] == pytest.approx(
        made["Object"]["bytes"] + made["Object_halo"]["bytes"], rel=0.03
    )
    for name in ("Object", "ObjectFullOverlap", "ForcedSource"):
        assert tables[name]["partitioned_bytes"] == pytest.approx(made[name]["bytes"], rel=0.03)
        stored = sum(path.stat().st_size for path in (root / "store" / "committed").glob(f"*/{name}/*.parquet"))
        assert tables[name]["store_bytes"] == pytest.approx(stored, rel=0.03)
    assert tables["CcdVisit"]["generated_bytes"] == (root / "visits" / "CcdVisit.csv").stat().st_size
    assert plan["total"]["rows"] == sum(figures["rows"] for figures in tables.values())
    hottest = plan["hottest_chunks"]
    assert len(hottest) == 10 and hottest[0]["chunk"] == 0
    text = (root / "plan.md").read_text()
    assert "Plan of fakedb" in text and f"{tables['Object']['rows']:,}" in text
    assert "112 chunks (112 with rows) in 7 tiles and 1 transaction.\n" in text
    # The start of jobs is in the forecast, and not in what the steps measure.
    assert plan["start_core_hours"] == pytest.approx(7 * START_SECONDS / 3600, rel=0.01)
    steps = sum(json.loads(path.read_text())["cpu_seconds"] for path in root.glob("*/t000/s*.json"))
    assert (plan["core_hours"] - plan["start_core_hours"]) * 3600 < 3 * steps
    assert f"Of these the start of jobs takes {7 * START_SECONDS:.0f} s" in text
    # The files that are kept are in the forecast of the disk.
    kept = {p.stat().st_ino: p.stat().st_size for p in root.glob("*/t*/*/**/chunk_*") if p.suffix in (".csv", ".txt")}
    assert plan["disk"]["kept_files"] == pytest.approx(sum(kept.values()), rel=0.03)


def test_the_target_plan_makes_nothing_else(tmp_path):
    config = write_config(tmp_path, SMALL_SKY)
    printed = snakemake(tmp_path, "plan", config=config)
    assert "# Plan of smallsky" in printed and "The hottest chunks" in printed
    root = tmp_path / "results" / "smallsky"
    assert sorted(path.name for path in root.iterdir()) == ["logs", "plan.json", "plan.md"]
    snakemake(tmp_path, "plan", "--config", "chunks=0:40", config=config)
    assert json.loads((root / "plan.json").read_text())["chunks"] == 6


def test_a_run_that_will_not_fit_on_the_disk_is_refused(tmp_path):
    config = yaml.safe_load((PROJECT / "configs" / "fakedb" / "config.yaml").read_text())
    config["tables"]["Object"]["density"] = {"per_sq_deg": 1e11}
    config["tables"]["CcdVisit"]["rows"] = 100
    config["chunks"] = "40000:40049"
    path = write_config(tmp_path, config)
    printed = snakemake(tmp_path, config=path, ok=False)
    assert "the run needs about" in printed and "are free" in printed and "check_disk: false" in printed
    assert "Traceback" not in printed
    assert not list((tmp_path / "results" / "fakedb").glob("ingest/plan_*"))
    assert not (tmp_path / "results" / "fakedb" / "generated").exists()


def test_a_selection_without_a_row_stops_at_the_plan(tmp_path):
    config = {**SMALL_SKY, "chunks": "0:40"}
    config["tables"] = {**config["tables"], "Object": {**config["tables"]["Object"], "density": {"per_sq_deg": 0}}}
    printed = snakemake(tmp_path, config=write_config(tmp_path, config), ok=False)
    assert "have no row; raise the density" in printed
    assert not list((tmp_path / "results" / "smallsky").glob("ingest/plan_*"))


def test_rows_of_a_map_are_counted(tmp_path):
    """With a density that varies within chunks, and a small field of visits."""
    nside = 32
    _, dec = healpy.pix2ang(nside, np.arange(12 * nside**2), lonlat=True)
    np.save(tmp_path / "map.npy", np.where(dec > 1, 40.0, 4.0))
    config = {**SMALL_SKY, "chunks": "324:359"}
    config["tables"] = {**config["tables"], "Object": {**config["tables"]["Object"], "density": {"map": "map.npy"}}}
    dataset = load_dataset(write_config(tmp_path, config))
    maker = make_survey_maker(dataset)
    chunks = dataset.selection().chunks
    census = take_census(maker, chunks)
    director, child = dataset.tables["Object"], dataset.tables["ForcedSource"]
    rows = pairs = 0
    for i, chunk in enumerate(chunks.tolist()):
        in_chunk = 0
        for box in maker.director_blocks(director, chunk):
            in_chunk += box.count
            pairs += sum(len(row) for row, _ in maker.visits["Visit"].match(box.ra_deg, box.dec_deg, child.radius_deg))
        assert census.rows["Object"][i] == in_chunk
        rows += in_chunk
    assert rows > 50_000
    assert census.rows["ForcedSource"].sum() == pytest.approx(pairs, rel=0.02)


@pytest.mark.parametrize("settings", [(18, 4, 0.5), (85, 12, 0.01667), (200, 5, 0.1)])
def test_areas_of_overlap_agree_with_counting(settings):
    """Points that are uniform on the sphere, placed by the locator: counts are within 5 sigma of what the areas say."""
    chunker = Chunker(*settings)
    chunk_area, overlap_area, halo_area = stripe_areas(chunker)
    sky = 4 * np.pi * (180 / np.pi) ** 2
    assert (chunk_area * chunker.chunks_in_stripe).sum() == pytest.approx(sky)
    random, count = np.random.default_rng(2), 3_000_000
    ra, dec = 360 * random.random(count), np.degrees(np.arcsin(2 * random.random(count) - 1))
    home, _, overlap = chunker.locate_overlap(ra, dec)
    stripe = overlap.chunk // (2 * chunker.num_stripes)
    expected = overlap_area * chunker.chunks_in_stripe * count / sky
    found = np.bincount(stripe, minlength=chunker.num_stripes)
    # A point can be in the overlap of up to 3 sub-chunks: the counts scatter more than those of Poisson.
    assert (np.abs(found - expected) < 5 * np.sqrt(3 * expected) + 5).all()
    outside = np.unique(np.stack([overlap.row, overlap.chunk])[:, home[overlap.row] != overlap.chunk], axis=1)[1]
    expected = halo_area * chunker.chunks_in_stripe * count / sky
    found = np.bincount(outside // (2 * chunker.num_stripes), minlength=chunker.num_stripes)
    assert (np.abs(found - expected) < 5 * np.sqrt(3 * expected) + 5).all()


def test_the_whole_sky_is_counted_in_blocks():
    """More chunks than are worked on at a time, at 340 stripes."""
    config = yaml.safe_load((PROJECT / "configs" / "fakedb" / "config.yaml").read_text())
    config["partitioning"] = {"num_stripes": 340, "num_sub_stripes": 3, "overlap_deg": 0.01667}
    config["chunks"] = "115600:120000"
    dataset = Dataset.from_config(config, PROJECT / "configs" / "fakedb")
    chunks = dataset.selection().chunks
    told = []
    census = take_census(make_survey_maker(dataset), chunks, lambda done, total: told.append((done, total)))
    area = chunks.size * stripe_areas(dataset.chunker)[0][170]
    assert census.rows["Object"].sum() == pytest.approx(1000 * area, rel=0.01)
    assert told[0] == (0, chunks.size) and len(told) == -(-chunks.size // 4096)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_plan_that_was_damaged_is_told(tmp_path, content):
    path = tmp_path / "plan_0.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(
        SkymillError, match=r"cannot read .*plan_0\.json: it is no JSON object.*put it back from a copy"
    ):
        read_json(path)
