"""What is derived from a configuration for tools other than ours."""

from __future__ import annotations

import copy
import json
import urllib.parse
from pathlib import Path

import pytest

from skymill.config import Dataset
from skymill.derived import derived_files, index_configs, ingest_metadata, table_config, write_derived
from skymill.errors import ConfigError
from skymill.files import write_json
from workflow import SMALL_SKY, snakemake, write_config


def dataset(folder: Path, store: str = "qserv", **changes: object) -> Dataset:
    config = copy.deepcopy(SMALL_SKY)
    config["ingest"] = {"store": store, "qserv": {"url": "http://qserv:25081", **changes.pop("qserv", {})}}
    return Dataset.from_config({**config, **changes}, folder)


def test_what_qserv_is_told_can_be_sent_with_curl(tmp_path):
    """All of it but the key, which stands in none of the files."""
    indexes = [{"table": "Object", "columns": ["objectId"], "unique": True}]
    keys = {"auth_key": {"env": "A_KEY"}, "auto_build_secondary_index": 0, "indexes": indexes}
    made = dataset(tmp_path, qserv=keys)
    files = derived_files(made)
    assert list(files) == [
        "partitioner/Object.cfg",
        "partitioner/ForcedSource.cfg",
        "ingest/smallsky.json",
        "ingest/smallsky_Object.json",
        "ingest/smallsky_ForcedSource.json",
        "ingest/smallsky_Visit.json",
        "ingest/smallsky_Object_by_objectId.json",
    ]
    assert files["ingest/smallsky.json"] == {
        "database": "smallsky",
        "num_stripes": 18,
        "num_sub_stripes": 4,
        "overlap": 0.5,
        "auto_build_secondary_index": 0,
    }
    table = files["ingest/smallsky_Object.json"]
    assert {key: table[key] for key in table if key != "schema"} == {
        "database": "smallsky",
        "table": "Object",
        "is_partitioned": 1,
        "director_table": "",
        "director_key": "objectId",
        "unique_primary_key": 1,
        "longitude_key": "ra",
        "latitude_key": "dec",
    }
    assert table["schema"][0] == {"name": "objectId", "type": "BIGINT NOT NULL"}
    assert [column["name"] for column in table["schema"]][-2:] == ["chunkId", "subChunkId"]
    child = files["ingest/smallsky_ForcedSource.json"]
    assert (child["director_table"], child["director_key"], child["is_partitioned"]) == ("Object", "objectId", 1)
    visits = files["ingest/smallsky_Visit.json"]
    assert visits["is_partitioned"] == 0 and "director_table" not in visits
    index = files["ingest/smallsky_Object_by_objectId.json"]
    assert index["spec"] == "UNIQUE" and index["columns"] == [{"column": "objectId", "length": 0, "ascending": 1}]
    assert "key" not in json.dumps(files["ingest/smallsky.json"]) and "A_KEY" not in json.dumps(files)


def test_only_what_has_changed_is_written(tmp_path):
    made = dataset(tmp_path)
    assert len(write_derived(made, tmp_path)) == 6
    assert write_derived(made, tmp_path) == []
    changed = dataset(tmp_path, qserv={"auto_build_secondary_index": 0})
    assert write_derived(changed, tmp_path) == [tmp_path / "ingest" / "smallsky.json"]
    (tmp_path / "ingest" / "smallsky_Visit.json").unlink()
    assert write_derived(changed, tmp_path) == [tmp_path / "ingest" / "smallsky_Visit.json"]


def test_names_that_qserv_does_not_take_matter_only_to_qserv(tmp_path):
    tables = copy.deepcopy(SMALL_SKY["tables"])
    tables["O" * 52] = tables.pop("Object")
    tables["ForcedSource"]["director"] = "O" * 52
    with pytest.raises(ConfigError, match="have 60 characters together, Qserv allows 56; shorten one"):
        derived_files(dataset(tmp_path, tables=tables))
    assert list(derived_files(dataset(tmp_path, "embedded", tables=tables))) == [
        f"partitioner/{'O' * 52}.cfg",
        "partitioner/ForcedSource.cfg",
    ]
    tables = copy.deepcopy(SMALL_SKY["tables"])
    tables["Object"]["columns"][3]["name"] = "qserv_trans_id"
    with pytest.raises(ConfigError, match="Qserv adds a column qserv_trans_id of its own"):
        table_config(made := dataset(tmp_path, tables=tables), made.tables["Object"])


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        ([{"table": "Nothing", "columns": ["a"]}], r"indexes\[0\]\.table: \"Nothing\" is not a table that is loaded"),
        ([{"table": "Visit", "columns": ["a"]}], r"indexes\[0\]\.columns: there is no column \"a\" in Visit"),
        ([{"table": "Visit", "columns": ["ra"]}] * 2, r"indexes\[1\]: Visit gets two indexes of the name by_ra"),
    ],
)
def test_indexes_that_cannot_be_made_are_refused(tmp_path, indexes, message):
    with pytest.raises(ConfigError, match=message):
        index_configs(dataset(tmp_path, qserv={"indexes": indexes}))


def urls(metadata: Path, prefix: str = "file://") -> dict[str, list[tuple[str, int, bool]]]:
    """What the tool ``qserv-ingest`` would load, by table: address of the file, chunk (-1 for none), overlap or not.

    It joins the folder of ``metadata.json``, a directory of the metadata and the name of a file, and resolves that as
    an address.
    """
    content = json.loads(metadata.read_text())
    assert content["version"] >= 12
    read = {content["database"]: json.loads((metadata.parent / content["database"]).read_text())}
    found: dict[str, list[tuple[str, int, bool]]] = {}
    for table in content["tables"]:
        schema = read[table["schema"]] = json.loads((metadata.parent / table["schema"]).read_text())
        assert schema["database"] == read[content["database"]]["database"]
        assert all((metadata.parent / index).exists() for index in table["indexes"])
        files = found.setdefault(schema["table"], [])
        for data in table["data"]:
            base = f"{metadata.parent}/{data['directory'].strip('/')}/"
            if schema["is_partitioned"]:
                files += [(f"{base}chunk_{chunk}.txt", chunk, False) for chunk in data["chunks"]]
                if schema["director_table"] == "":
                    overlaps = data.get("overlaps") or data["chunks"]
                    files += [(f"{base}chunk_{chunk}_overlap.txt", chunk, True) for chunk in overlaps]
            else:
                files += [(base + name, -1, False) for name in data["files"]]
    return {
        table: [(urllib.parse.urljoin(f"{prefix}/", path), *rest) for path, *rest in files]
        for table, files in found.items()
    }


def test_metadata_lists_the_partitioned_files_that_stay(tmp_path):
    """All of them, once each: of the first run, and of those that came when the selection grew."""
    indexes = [{"table": "Object", "columns": ["objectId"]}]
    ingest = {"store": "none", "qserv": {"url": "http://qserv:25081", "indexes": indexes}}
    config = {**copy.deepcopy(SMALL_SKY), "chunks": "36:38", "chunks_per_tile": 2, "ingest": ingest}
    path = write_config(tmp_path, config)
    root = tmp_path / "results" / "smallsky"
    metadata = root / "configs" / "ingest" / "metadata.json"
    for chunks in ("36:38", "36:38,324"):
        snakemake(tmp_path, "--config", f"chunks='{chunks}'", config=path)
        found = urls(metadata)
        listed = [Path(urllib.parse.urlsplit(url).path) for files in found.values() for url, *_ in files]
        assert len(listed) == len(set(listed)) and {p for p in listed if p.stat().st_size} == set(listed)
        written = [*root.glob("partitioned/*/*/*/chunk_*.txt"), *root.glob("visits/*.csv")]
        assert {path.resolve() for path in listed} == {path.resolve() for path in written if path.stat().st_size}
        assert {chunk for _, chunk, _ in found["Object"]} == set(
            map(int, chunks.replace("36:38", "36,37,38").split(","))
        )
    assert "Nothing to be done" in snakemake(tmp_path, "--config", "chunks='36:38,324'", config=path)
    assert all(
        url.startswith("http://server/") for files in urls(metadata, "http://server").values() for url, *_ in files
    )
    assert ".." not in json.dumps(urls(metadata, "http://server"))


def test_that_files_were_not_kept_is_told(tmp_path):
    ingest = {"qserv": {"url": "http://qserv:25081"}}
    config = write_config(tmp_path, {**copy.deepcopy(SMALL_SKY), "chunks": "36:38", "ingest": ingest})
    metadata = tmp_path / "results" / "smallsky" / "configs" / "ingest" / "metadata.json"
    snakemake(tmp_path, config=config)
    keep = ["--config", "keep={partitioned: true}"]
    printed = snakemake(tmp_path, *keep, config=config, ok=False)
    assert "of 3 chunks that were made before no files are kept, and there are no others" in printed
    assert not metadata.exists()
    printed = snakemake(tmp_path, *keep, "chunks='36:38,324'", config=config)
    assert "of 3 chunks that were made before no files are kept; they are not listed" in printed
    assert {chunk for _, chunk, _ in urls(metadata)["Object"]} == {324}


def test_metadata_of_tiles_that_were_tried_again_or_have_no_overlap(tmp_path):
    made = dataset(tmp_path)
    empty, full = {"rows": 0, "bytes": 0}, {"rows": 1, "bytes": 9}
    entry = {"Object": full, "ObjectFullOverlap": empty, "ForcedSource": empty}
    for tile, chunks in (("s0001p00000", ("36", "37")), ("s0001p00000r1", ("37",)), ("s0009p00000", ("324",))):
        manifest = {"transaction": "t000", "tile": tile, "chunks": dict.fromkeys(chunks, entry)}
        write_json(tmp_path / "partitioned" / "t000" / f"{tile}.json", manifest)
        if tile != "s0009p00000":
            (tmp_path / "partitioned" / "t000" / tile / "Object").mkdir(parents=True)
    metadata = ingest_metadata(made, tmp_path)
    data = next(table["data"] for table in metadata["tables"] if table["schema"] == "smallsky_Object.json")
    assert data == [
        {"directory": "../../partitioned/t000/s0001p00000r1/Object", "chunks": [37], "overlaps": [37]},
        {"directory": "../../partitioned/t000/s0001p00000/Object", "chunks": [36], "overlaps": [36]},
    ]
    # The tool takes no overlaps for as many as chunks: there must be one.
    assert (tmp_path / "partitioned/t000/s0001p00000/Object/chunk_36_overlap.txt").read_bytes() == b""
