"""Chunks that verification finds to differ are made again, byte for byte, and replaced; nothing else is touched."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest

from skymill.config import Dataset
from skymill.truth import TileTruth
from verifying import all_kinds, verify
from workflow import PROJECT, snakemake, write_config


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """The folder of a sky whose database shows the Parquet files."""
    folder = tmp_path_factory.mktemp("repair")
    config = all_kinds("allkinds", ingest={"materialise_rows": 0})
    snakemake(folder, config=write_config(folder, config))
    return folder


@pytest.fixture()
def copy(sky, tmp_path):
    """A copy of it that may be damaged."""
    shutil.copytree(sky / "results", tmp_path / "results")
    snakemake(tmp_path, config=sky / "config.yaml")  # the views show the files where they are now
    return tmp_path / "results" / "allkinds"


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_config(all_kinds("allkinds", ingest={"materialise_rows": 0}), PROJECT)


def file_with(root, table: str, chunk: int):
    """The Parquet file that holds a chunk of a table."""
    for path in root.glob(f"store/committed/*/{table}/*.parquet"):
        if pc.any(pc.equal(pa.parquet.read_table(path)["chunkId"], chunk)).as_py():
            return path
    raise AssertionError(f"no file holds chunk {chunk} of {table}")


def damage(path, change) -> None:
    """Write a Parquet file with changed rows, and the same metadata of its own."""
    metadata = pyarrow.parquet.read_metadata(path).metadata
    table = pyarrow.parquet.read_table(path)
    changed = change(table)
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({b"skymill.rows_of_chunks": metadata[b"skymill.rows_of_chunks"]})


def hashes(root) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.glob("store/committed/*/*/*.parquet")
    }


def test_damaged_chunks_are_replaced_and_only_they(copy, sky, dataset):
    before = hashes(copy)
    lost, overlap, child = (
        file_with(copy, n, c) for n, c in (("Object", 325), ("ObjectFullOverlap", 36), ("ForcedSource", 330))
    )
    damage(
        lost,
        lambda t: t.filter(
            pc.invert(pc.equal(t["objectId"], pc.min(t.filter(pc.equal(t["chunkId"], 325))["objectId"])))
        ),
    )
    damage(overlap, lambda t: pa.concat_tables([t, t.filter(pc.equal(t["chunkId"], 36)).slice(0, 1)]))
    damage(child, lambda t: t.set_column(t.schema.get_field_index("mag"), "mag", pc.add(t["mag"], 1.0)))
    stray = file_with(copy, "ForcedSource", 325)
    shutil.copy(stray, stray.with_name("s0000p00000.copy.parquet"))
    damaged = {str(path.relative_to(copy)) for path in (lost, overlap, child)}
    snakemake(copy.parents[1], "verify", config=sky / "config.yaml", ok=False)
    found = {part["chunk"] for part in json.loads((copy / "verify.json").read_text())["differences"]}
    assert {325, 36, 330} < found
    printed = snakemake(copy.parents[1], "repair", config=sky / "config.yaml")
    assert "chunks were made again, byte for byte, and replaced" in printed
    record = json.loads((copy / "repair" / "repair.json").read_text())
    assert set(record["chunks"]) == found
    assert damaged <= set(record["written"])
    # The files are what they were, to the last byte, and so is the answer.
    assert hashes(copy) == before
    assert not list((copy / "repair").glob("chunk_*"))
    assert verify(copy, dataset)["differences"] == []
    assert "agree with the truth of generation" in snakemake(copy.parents[1], "verify", config=sky / "config.yaml")
    assert "nothing to repair" in snakemake(copy.parents[1], "repair", config=sky / "config.yaml")
    assert "Nothing to be done" in snakemake(copy.parents[1], config=sky / "config.yaml")


def test_lost_files_strangers_and_regular_tables(copy, sky, dataset):
    before = hashes(copy)
    file_with(copy, "Object", 0).unlink()
    damage(next(copy.glob("store/committed/*/Visit/*.parquet")), lambda t: t.slice(1))
    overlap = file_with(copy, "ObjectFullOverlap", 36)
    place = pa.array([300], pa.uint32())
    damage(
        overlap,
        lambda t: pa.concat_tables(
            [t, t.slice(0, 1).set_column(t.schema.get_field_index("chunkId"), t.schema.field("chunkId"), place)]
        ),
    )
    snakemake(copy.parents[1], "verify", config=sky / "config.yaml", ok=False)
    printed = snakemake(copy.parents[1], "repair", config=sky / "config.yaml")
    record = json.loads((copy / "repair" / "repair.json").read_text())
    assert record["regular"] == ["Visit"] and record["strangers"]["ObjectFullOverlap"] == [300], printed
    assert verify(copy, dataset)["differences"] == []
    assert hashes(copy) == before


def test_a_chunk_that_comes_out_otherwise_is_not_put_in(copy, sky):
    path = file_with(copy, "Object", 325)
    damage(path, lambda t: t.slice(1))
    snakemake(copy.parents[1], "verify", config=sky / "config.yaml", ok=False)
    before = path.read_bytes()
    for known in copy.glob("generated/*/*.truth.json.gz"):
        truth = TileTruth.read(known)
        for files in truth.hashes.values():
            files["Object"] = "0" * 64
        truth.write(known, {})
    printed = snakemake(copy.parents[1], "repair", config=sky / "config.yaml", ok=False)
    assert "nothing was replaced" in printed and "0000000000" in printed and "Traceback" not in printed
    assert path.read_bytes() == before


def test_there_must_be_a_verification(sky):
    (sky / "results" / "allkinds" / "verify.json").unlink(missing_ok=True)
    printed = snakemake(sky, "repair", config=sky / "config.yaml", ok=False)
    assert "run `snakemake verify` first" in printed


def test_files_that_have_lost_rows_are_found_without_verification(copy, sky, dataset):
    """Files that are missing, garbage, or written by somebody else; the database is lost as well."""
    before = hashes(copy)
    (copy / "verify.json").unlink(missing_ok=True)
    foreign = file_with(copy, "Object", 325)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(foreign).slice(2), foreign)
    file_with(copy, "ForcedSource", 36).write_bytes(b"garbage")
    file_with(copy, "ObjectFullOverlap", 36).unlink()
    visits = next(copy.glob("store/committed/*/Visit/*.parquet"))
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(visits), visits)
    (copy / "allkinds.duckdb").unlink()
    printed = snakemake(copy.parents[1], config=sky / "config.yaml", ok=False)
    assert "run `snakemake repair`, which makes again" in printed and "Traceback" not in printed
    snakemake(copy.parents[1], "repair", config=sky / "config.yaml")
    assert hashes(copy) == before
    snakemake(copy.parents[1], config=sky / "config.yaml")
    assert verify(copy, dataset)["differences"] == []


def test_less_than_was_committed_is_not_published(copy, sky):
    damage(file_with(copy, "Object", 325), lambda t: t.slice(1))
    (copy / "allkinds.duckdb").unlink()
    printed = snakemake(copy.parents[1], config=sky / "config.yaml", ok=False)
    assert "Object: the files below" in printed and "run `snakemake repair`" in printed
    assert not (copy / "allkinds.duckdb").exists()
