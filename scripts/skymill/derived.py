"""Files that are derived from the configuration, for tools other than ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from .columns import UniqueId
from .config import Dataset, Table
from .errors import ConfigError, show
from .files import read_json, write_json
from .retries import retry_number

#: How our files are written, as Qserv's services and tools want it said: escaped, in two characters.
QSERV_DIALECT = {
    "fields_terminated_by": "\\t",
    "fields_enclosed_by": "\\0",
    "fields_escaped_by": "\\\\",
    "lines_terminated_by": "\\n",
}
#: Most characters that the names of a database and a table may have together in Qserv.
QSERV_NAMES = 56
#: Beginning of the names of databases and tables that Qserv keeps for itself, and its own column.
QSERV_PREFIX = "qserv"
QSERV_COLUMN = "qserv_trans_id"
#: The version of the form of ``metadata.json`` that the tool ``qserv-ingest`` asks for.
METADATA_VERSION = 12


def partitioner_config(dataset: Dataset, table: Table) -> dict:
    """The configuration of the reference partitioner for a director or child table.

    It reads the generated files (whose last two columns, chunkId and subChunkId, it computes again) and writes the
    chunk and overlap files that the workflow writes. A child is placed by the index of its director's keys
    (``part.id-url``).
    """
    chunker = dataset.chunker
    fields = [column.name for column in table.stored_columns]
    dialect = {"null": "\\N", "delimiter": "\t", "escape": "\\", "no-quote": True, "field": fields}
    part: dict = {
        "num-stripes": chunker.num_stripes,
        "num-sub-stripes": chunker.num_sub_stripes,
        "chunk": "chunkId",
        "sub-chunk": "subChunkId",
        "id": table.key,
    }
    if table.kind == "director":
        part |= {"pos": ", ".join(table.position), "overlap": chunker.overlap_deg}
    else:
        part |= {"overlap": 0.0}
    return {"part": part, "in": {"csv": dict(dialect)}, "out": {"csv": dict(dialect)}}


def database_config(dataset: Dataset) -> dict:
    """The body of ``POST /ingest/database`` to Qserv, without keys.

    Raises
    ------
    ConfigError
        If Qserv keeps such names for itself.
    """
    _check_name("database", dataset.database)
    options = dataset.config["ingest"].get("qserv", {})
    return {
        "database": dataset.database,
        "num_stripes": dataset.chunker.num_stripes,
        "num_sub_stripes": dataset.chunker.num_sub_stripes,
        "overlap": dataset.chunker.overlap_deg,
        "auto_build_secondary_index": options.get("auto_build_secondary_index", 1),
    }


def table_config(dataset: Dataset, table: Table) -> dict:
    """The body of ``POST /ingest/table`` to Qserv, without keys.

    Raises
    ------
    ConfigError
        If a name is too long for Qserv, or Qserv keeps such names for itself.
    """
    where = f"tables.{table.name}"
    _check_name(where, table.name)
    if any(column.name.lower() == QSERV_COLUMN for column in table.columns):
        raise ConfigError(f"{where}.columns: Qserv adds a column {QSERV_COLUMN} of its own; give yours another name")
    length = len(dataset.database) + len(table.name)
    if length > QSERV_NAMES:
        raise ConfigError(
            f"{where}: the names {dataset.database} and {table.name} have {length} characters together, Qserv allows {QSERV_NAMES}; "
            "shorten one"
        )
    config: dict = {
        "database": dataset.database,
        "table": table.name,
        "is_partitioned": int(table.kind != "regular"),
    }
    if table.kind == "director":
        # Where keys may repeat, the director index must allow it: it would refuse every commit.
        unique = any(
            table.key == c.name and isinstance(e.generator, UniqueId) for e in table.entries for c in e.columns
        )
        config |= {"director_table": "", "director_key": table.key, "unique_primary_key": int(unique)}
        config |= {"longitude_key": table.position[0], "latitude_key": table.position[1]}
    elif table.kind == "child":
        if table.key is None:
            raise ConfigError(
                f"{where}.key: Qserv needs the column of the director's key in a child, and {table.name} has none (key: null). Add one, as "
                f"{{name: {dataset.tables[table.director].key}, type: BIGINT NOT NULL, generator: {{director: "
                f"{dataset.tables[table.director].key}}}}}, and name it as the key; or set ingest: false"
            )
        config |= {"director_table": table.director, "director_key": table.key}
    return config | {"schema": [{"name": column.name, "type": column.type.text} for column in table.stored_columns]}


def index_configs(dataset: Dataset) -> list[dict]:
    """The bodies of ``POST /replication/sql/index`` to Qserv for the indexes that are wanted, without keys.

    Raises
    ------
    ConfigError
        If a table or column does not exist, or is not loaded.
    """
    configs = []
    for i, index in enumerate(dataset.config["ingest"].get("qserv", {}).get("indexes", [])):
        where = f"ingest.qserv.indexes[{i}]"
        table = dataset.tables.get(index["table"])
        if table is None or not table.ingest:
            loaded = ", ".join(t.name for t in dataset.tables.values() if t.ingest)
            raise ConfigError(
                f"{where}.table: {show(index['table'])} is not a table that is loaded; there are: {loaded}"
            )
        names = [column.name for column in table.stored_columns]
        unknown = [name for name in index["columns"] if name not in names]
        if unknown:
            raise ConfigError(f"{where}.columns: there is no column {show(unknown[0])} in {table.name}")
        configs.append(
            {
                "database": dataset.database,
                "table": table.name,
                "index": "_".join(["by", *index["columns"]])[:64],
                "spec": "UNIQUE" if index.get("unique") else "DEFAULT",
                "comment": "",
                "columns": [{"column": name, "length": 0, "ascending": 1} for name in index["columns"]],
            }
        )
        if [(config["table"], config["index"]) for config in configs].count((table.name, configs[-1]["index"])) > 1:
            raise ConfigError(
                f"{where}: {table.name} gets two indexes of the name {configs[-1]['index']}, of which Qserv would make only one; drop one"
            )
    return configs


def loaded_tables(dataset: Dataset) -> list[Table]:
    """The tables that are loaded, in the order in which Qserv must get to know them."""
    tables = [*dataset.tables_of("director", "child"), *dataset.tables_of("regular")]
    return [table for table in tables if table.ingest]


def ingest_configs(dataset: Dataset) -> dict[str, dict]:
    """What Qserv is told, as files by name: ``<database>.json``, ``<database>_<Table>.json``, ``<database>_<Table>_<index>.json``."""
    files = {f"{dataset.database}.json": database_config(dataset)}
    for table in loaded_tables(dataset):
        files[f"{dataset.database}_{table.name}.json"] = table_config(dataset, table)
    for index in index_configs(dataset):
        files[f"{dataset.database}_{index['table']}_{index['index']}.json"] = index
    return files


def derived_files(dataset: Dataset) -> dict[str, dict]:
    """All that is derived from a configuration alone, as files by their path below ``configs/``.

    What Qserv is told is among it whatever the store is, for partitioned files can be loaded by hand; but not where
    Qserv would not take the tables. A table that does not hold its director's key cannot be placed by the reference
    partitioner.

    Raises
    ------
    ConfigError
        If the store is Qserv, and would not take what is derived.
    """
    placed = [table for table in dataset.tables_of("director", "child") if table.key]
    files = {f"partitioner/{table.name}.cfg": partitioner_config(dataset, table) for table in placed}
    try:
        return files | {f"ingest/{name}": content for name, content in ingest_configs(dataset).items()}
    except ConfigError:
        if dataset.config["ingest"]["store"] == "qserv":
            raise
        return files


def write_derived(dataset: Dataset, folder: Path) -> list[Path]:
    """Write `derived_files` below a folder, but those that are there with the same content; returns what was written."""
    written = []
    for name, content in derived_files(dataset).items():
        path = folder / name
        if not path.exists() or read_json(path) != content:
            write_json(path, content)
            written.append(path)
    return written


def ingest_metadata(dataset: Dataset, root: Path) -> dict:
    """The file ``metadata.json`` of the tool ``qserv-ingest``, which loads partitioned files that were kept.

    It belongs beside the files of `ingest_configs`, in ``configs/ingest/`` below the results: its paths begin there.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``. Tiles whose files are not there any more are left out.
    """
    kept = list(_kept_tiles(root))
    indexes = index_configs(dataset)
    tables = []
    for table in loaded_tables(dataset):
        own = f"{dataset.database}_{table.name}"
        files = [f"{own}_{index['index']}.json" for index in indexes if index["table"] == table.name]
        if table.kind == "regular":
            data = [{"directory": "../../visits", "files": [f"{table.name}.csv"]}]
        else:
            data = [entry for folder, chunks in kept if (entry := _metadata_entry(table, root, folder, chunks))]
        tables.append({"schema": f"{own}.json", "indexes": files, "data": data})
    formats = {suffix: QSERV_DIALECT for suffix in ("txt", "csv")}
    return {"version": METADATA_VERSION, "database": f"{dataset.database}.json", "formats": formats, "tables": tables}


def _kept_tiles(root: Path) -> Iterator[tuple[str, dict]]:
    """The folders of partitioned tiles that are there, below the results, with what their manifests say of each chunk."""
    for transaction in sorted(path for path in (root / "partitioned").glob("*") if path.is_dir()):
        manifests = [read_json(path) for path in transaction.glob("*.json") if path.with_suffix("").is_dir()]
        seen: set[str] = set()
        # A chunk belongs to the last retry that holds it.
        for manifest in sorted(manifests, key=lambda m: retry_number(m["tile"]), reverse=True):
            chunks = {chunk: entry for chunk, entry in manifest["chunks"].items() if chunk not in seen}
            seen |= chunks.keys()
            yield f"partitioned/{transaction.name}/{manifest['tile']}", chunks


def chunks_not_kept(root: Path) -> int:
    """How many chunks were partitioned whose files are not there any more."""
    made = {chunk for path in root.glob("partitioned/*/s*.json") for chunk in read_json(path)["chunks"]}
    return len(made - {chunk for _, chunks in _kept_tiles(root) for chunk in chunks})


def _metadata_entry(table: Table, root: Path, tile: str, chunks: Mapping[str, Mapping]) -> dict | None:
    """What ``metadata.json`` says of a table in the folder of a tile; None if it has no rows there."""

    def chunks_with(name: str) -> list[int]:
        return [int(chunk) for chunk, entry in chunks.items() if entry[name]["rows"]]

    folder = f"{tile}/{table.name}"
    entry = {"directory": f"../../{folder}", "chunks": chunks_with(table.name)}
    if table.kind == "director":
        entry["overlaps"] = chunks_with(table.overlap_name)
        if entry["chunks"] and not entry["overlaps"]:
            # The tool takes an empty list for "as many as chunks", and would miss the files.
            (root / folder / f"chunk_{entry['chunks'][0]}_overlap.txt").touch()
            entry["overlaps"] = entry["chunks"][:1]
    return entry if entry["chunks"] or entry.get("overlaps") else None


def _check_name(where: str, name: str) -> None:
    if name.lower().startswith(QSERV_PREFIX):
        raise ConfigError(
            f"{where}: Qserv keeps names that begin with {QSERV_PREFIX} for itself; {name} must have another"
        )
