"""The configuration of a dataset: read, checked, and turned into objects.

`load_dataset` reads a YAML file; `Dataset.from_config` takes a dictionary that was read already. Both apply the checks
of the JSON schema and then those that the schema cannot say. Secrets have no place here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .chunker import Chunker
from .columns import Position
from .errors import ConfigError, SkymillError, show
from .felis_schema import resolve_schemas
from .generators import explain
from .schema_columns import useless_rules
from .scratch import check_scratch
from .selection import Selection, check_region, select_chunks
from .tables import Entry, Table, make_table, spell_out

#: Changes whenever the same configuration would give other bytes; part of the fingerprint.
FORMAT = 1
#: Keys that decide which rows there are, and so belong to the fingerprint.
DATA_KEYS = ("database", "seed", "partitioning", "tables", "column_rules")


@dataclass(frozen=True)
class Dataset:
    """A dataset: everything that its configuration says.

    Attributes
    ----------
    config : `dict`
        The configuration with its defaults filled in.
    folder : `pathlib.Path`
        The folder of the configuration, against which its paths are resolved.
    chunker : `Chunker`
    tables : `dict` [`str`, `Table`]
    """

    config: dict
    folder: Path
    chunker: Chunker
    tables: dict[str, Table] = field(repr=False)

    @classmethod
    def from_config(cls, config: Mapping, folder: Path, check: bool = True) -> Dataset:
        """Make a dataset of a configuration.

        Parameters
        ----------
        config : `Mapping`
            The configuration.
        folder : `pathlib.Path`
            Folder against which its paths are resolved.
        check : `bool`
            Whether to check it against the schema; a job of a workflow that has checked it need not.

        Raises
        ------
        ConfigError
            Naming the key, the value and what is allowed.
        """
        config = _with_defaults(config, check)
        resolve_schemas(config, Path(folder))
        partitioning = config["partitioning"]
        try:
            chunker = Chunker(**partitioning)
        except ValueError as error:
            raise ConfigError(f"partitioning: {error}") from None
        dataset = cls(config, Path(folder), chunker, {})
        for name, options in config["tables"].items():
            dataset.tables[name] = make_table(name, options, config.get("column_rules", ()), dataset.folder)
        if check:
            _check_tables(dataset)
            check_scratch(config)
        return dataset

    @property
    def database(self) -> str:
        return self.config["database"]

    @property
    def results(self) -> Path:
        """The folder of its results, relative to the working directory."""
        return Path("results") / self.database

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def tables_of(self, *kinds: str) -> list[Table]:
        """The tables of some kinds, directors before children."""
        order = ("regular", "director", "child")
        return sorted((t for t in self.tables.values() if t.kind in kinds), key=lambda t: order.index(t.kind))

    def children_of(self, director: str) -> list[Table]:
        """The child tables of a director."""
        return [table for table in self.tables.values() if table.director == director]

    def selection(self) -> Selection:
        """The chunks that the configuration selects."""
        return select_chunks(self.config["chunks"], self.chunker, self.folder)

    def identity(self) -> dict:
        """What decides every row of the dataset: its fingerprint, in words."""
        identity = {key: self.config[key] for key in DATA_KEYS if key in self.config}
        files = self._files()
        missing = [f"{key}: {name}" for name, key in files.items() if not (self.folder / name).exists()]
        if len(missing) > 1:
            raise ConfigError(
                f"these files are not there: {'; '.join(missing)}; correct the paths, which are relative to the folder of the configuration"
            )
        identity["files"] = {name: _hash_file(self.folder / name, files[name]) for name in sorted(files)}
        identity["numpy"] = np.__version__
        identity["format"] = FORMAT
        return json.loads(json.dumps(identity))

    def fingerprint(self) -> str:
        """SHA-256 of `identity`."""
        return fingerprint_of(self.identity())

    def _files(self) -> dict[str, str]:
        """Files beside the configuration that decide rows, each with a key that names it."""
        files, entries = {}, [("column_rules", entry) for entry in self.config.get("column_rules", ())]
        for table, options in self.config["tables"].items():
            files[options.get("from_file")] = f"tables.{table}.from_file"
            files[options.get("density", {}).get("map")] = f"tables.{table}.density.map"
            entries += [(f"tables.{table}.columns", entry) for _, entry in spell_out(options.get("columns", ()))]
        for key, entry in entries:
            generator = entry.get("generator")
            name = generator if isinstance(generator, str) or generator is None else next(iter(generator))
            files[f"{name.split(':')[0]}.py" if name and ":" in name else None] = key
        return {name: key for name, key in files.items() if name is not None}


def fingerprint_of(identity: Mapping) -> str:
    """SHA-256 of an identity in canonical JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def identity_changes(old: object, new: object, key: str = "") -> Iterator[str]:
    """Say in words what differs between two identities, one line for each key."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from identity_changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            label = a.get("name", i) if isinstance(a, dict) else i
            yield from identity_changes(a, b, f"{key}[{label}]")
    elif isinstance(old, list) and isinstance(new, list) and any(isinstance(part, dict) for part in old + new):
        for word, these, others in (("was", old, new), ("was not", new, old)):
            yield from (f"{key}: {json.dumps(part)} {word} in it" for part in these if part not in others)
    elif old != new and key.startswith("files."):
        what = "is new" if old is None else "is not used any more" if new is None else "has changed"
        yield f"the file {key.removeprefix('files.')} {what}"
    elif old != new:
        yield f"{key}: it was {json.dumps(old)}, now it is {json.dumps(new)}"


def load_dataset(path: Path) -> Dataset:
    """Read a dataset from its YAML file.

    Raises
    ------
    ConfigError
        If the file cannot be read, is no YAML, or is no valid configuration.
    """
    from .schema import read_yaml

    return Dataset.from_config(read_yaml(path), Path(path).resolve().parent)


def _whole_numbers(value: object) -> object:
    """Numbers like 7.0 as 7, whether or not somebody wrote the dot: they mean the same."""
    if isinstance(value, dict):
        return {key: _whole_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The keys and values of a configuration that are no mappings or lists themselves."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _leaves(part, f"{key}[{i}]")
    else:
        yield key, value


def _refuse_nan(config: Mapping) -> None:
    """Refuse nan, which passes all limits, but for the options of generators, which say themselves what they allow."""
    for key, value in _leaves(config):
        if isinstance(value, float) and math.isnan(value) and not re.search(r"(^|\.)(columns|partitioning)\b", key):
            raise ConfigError(f"{key}: {value} is not allowed; it must be a finite number")


def _with_defaults(config: Mapping, check: bool) -> dict:
    # A copy of plain types: what Snakemake hands over is not ours to change.
    try:
        config = _whole_numbers(json.loads(json.dumps(dict(config))))
    except TypeError:
        plain = (str, int, float, bool, type(None))
        key, found = next(leaf for leaf in _leaves(config) if not isinstance(leaf[1], plain))
        raise ConfigError(f"{key}: YAML reads {found} as a {type(found).__name__}; put quotes around it") from None
    _refuse_nan(config)
    if not check:
        return config
    from . import schema

    for options in config["tables"].values() if isinstance(config.get("tables"), dict) else ():
        # What a schema file says is asked anew.
        if isinstance(options, dict) and isinstance(options.get("schema"), dict):
            options["schema"].pop("columns", None)
    schema.check_schema(config)
    schema.fill_defaults(config)
    return config


# -- tables -------------------------------------------------------------------------------------------------------------


def _check_tables(dataset: Dataset) -> None:
    tables = dataset.tables
    for name, table in tables.items():
        where = f"tables.{name}"
        names = [column.name for column in table.stored_columns]
        folded_names = [n.lower() for n in names]
        doubled = []
        if len(set(folded_names)) < len(names):
            doubled = sorted({n for n in names if folded_names.count(n.lower()) > 1})
        if doubled:
            raise ConfigError(
                f"{where}.columns: the column {', '.join(doubled)} stands twice (skymill adds chunkId and subChunkId; upper and lower "
                "case count as the same); give one of them another name, or drop it"
            )
        overlap = next(
            (t for t in tables.values() if t.kind == "director" and t.overlap_name.lower() == name.lower()), None
        )
        if overlap is not None:
            raise ConfigError(f"{where}: the name is taken by the overlap table of {overlap.name}; choose another")
        folded = [n for n in tables if n.lower() == name.lower()]
        if len(folded) > 1:
            raise ConfigError(
                f"{where}: {' and '.join(folded)} differ only by case, which MySQL may not tell apart; rename one"
            )
        {"director": _check_director, "child": _check_child, "regular": _check_regular}[table.kind](
            table, tables, where
        )
        for entry in table.entries:
            if entry.generator is None and table.from_file is None:
                raise ConfigError(f'{where}.columns ({entry.stream_name}): the key "generator" is missing')
            if entry.generator is not None:
                try:
                    entry.generator.check(table)
                    _check_needs(table, entry, tables, where)
                except SkymillError:
                    raise
                except Exception as error:  # whatever the code of a user raises
                    raise ConfigError(f"{where}.columns ({entry.stream_name}): {explain(error)}") from error
        if table.from_file is None:
            table.entries_in_order  # noqa: B018 - refuses a circle
    for i in useless_rules(dataset.config):
        raise ConfigError(
            f"column_rules[{i}]: no column of a schema file fits {_without_effect(dataset.config['column_rules'][i])}; correct it, or drop it"
        )
    if not dataset.tables_of("director"):
        raise ConfigError("tables: there is no director; at least one table must have kind: director")


def _without_effect(rule: Mapping) -> str:
    conditions = {key: rule[key] for key in ("table", "name", "type", "unit") if key in rule}
    return ", ".join(f"{key}: {value}" for key, value in conditions.items()) or "it"


def _allow(where: str, table: Table, kind_keys: set[str], reason: str) -> None:
    """Refuse keys of a table that its kind does not have."""
    optional = ("key", "position", "director", "density", "from_file", "visit", "region")
    given = {key for key in optional if getattr(table, key) is not None}
    if table.rows is not None:
        given.add("rows")
    if table.visits is not None:
        given.add("rows (of visits)")
    if table.rows is not None and "rows (of visits)" in kind_keys and "rows" not in kind_keys:
        raise ConfigError(
            f"{where}.rows: {table.rows} is not allowed for a {table.kind} table; write {{visits: <table of visits>, radius_deg: 1.4}}"
        )
    extra = sorted(given - kind_keys)
    if extra:
        raise ConfigError(f"{where}.{extra[0]}: a {table.kind} table has no such key; {reason}")


def _need_columns(where: str, table: Table, names: list[str | None], key: str) -> None:
    have = [column.name for column in table.columns]
    for name in names:
        if name is None:
            raise ConfigError(f'{where}: the key "{key}" is missing')
        if name not in have:
            raise ConfigError(f'{where}.{key}: there is no column "{name}"{_columns_of(table)}')


def _columns_of(table: Table) -> str:
    """The end of a sentence about a column that is missing: which there are."""
    have = [column.name for column in table.columns]
    return f"; there are {', '.join(have[:12])}{' ...' if len(have) > 12 else ''}"


def _check_director(table: Table, tables: Mapping[str, Table], where: str) -> None:
    _allow(where, table, {"key", "position", "density"}, "its rows come from its density")
    _need_columns(where, table, [table.key], "key")
    _need_columns(where, table, list(table.position or [None]), "position")
    density = table.density or {}
    if ("per_sq_deg" in density) == ("map" in density):
        raise ConfigError(
            f"{where}.density: found {'both' if 'map' in density else 'neither'}; give either per_sq_deg or map"
        )
    for name in (table.key, *table.position):
        if next(c for c in table.columns if c.name == name).type.nullable:
            raise ConfigError(
                f"{where}: {name} may be NULL; keys and positions of a director must be NOT NULL: write it behind the type"
            )
    if not any(isinstance(e.generator, Position) for e in table.entries):
        raise ConfigError(
            f"{where}.columns: no column has the generator position; {', '.join(table.position)} need it: add generator: position"
        )


def _check_child(table: Table, tables: Mapping[str, Table], where: str) -> None:
    _allow(where, table, {"key", "director", "rows (of visits)"}, "its rows come from its director and the visits")
    director = tables.get(table.director)
    if director is None or director.kind != "director":
        directors = ", ".join(t.name for t in tables.values() if t.kind == "director") or "none"
        raise ConfigError(f"{where}.director: {show(table.director)} is not a director table; there are: {directors}")
    if director.ingest is False and table.ingest:
        raise ConfigError(f"{where}.ingest: its director {director.name} is not loaded; set ingest: false here, too")
    if not table.keyless:
        _need_columns(where, table, [table.key], "key")
    if table.visits is None:
        raise ConfigError(f"{where}.rows: write {{visits: <table of visits>, radius_deg: 1.4}}")
    _check_visits(table, tables, where)
    if table.radius_deg is None:
        raise ConfigError(f'{where}.rows: the key "radius_deg" is missing')
    for key in ("detectors", "spacing_deg"):
        if getattr(table, key) is not None:
            raise ConfigError(f"{where}.rows.{key}: only a regular table of detectors has such a key; drop it")
    if table.select is not None:
        column = next((c for c in director.columns if c.name == table.select.column), None)
        if column is None:
            raise ConfigError(
                f'{where}.rows.select: there is no column "{table.select.column}" in {director.name}{_columns_of(director)}'
            )
        if column.type.kind not in ("integer", "float"):
            raise ConfigError(f"{where}.rows.select: {column.name} is {column.type.text}; rows are chosen by a number")


def _check_visits(table: Table, tables: Mapping[str, Table], where: str) -> None:
    visits = tables.get(table.visits)
    if visits is None or visits.visit is None or visits is table:
        raise ConfigError(
            f"{where}.rows.visits: {show(table.visits)} is not a table of visits (a regular table with the key visit)"
        )


def _check_regular(table: Table, tables: Mapping[str, Table], where: str) -> None:
    allowed = {"rows", "rows (of visits)", "from_file", "visit", "position", "region"}
    _allow(where, table, allowed, "it has rows or from_file")
    has_rows = table.rows is not None or table.visits is not None
    if has_rows == (table.from_file is not None):
        raise ConfigError(f"{where}: give either rows (a number) or from_file")
    if table.visits is not None:
        _check_visits(table, tables, where)
        if tables[table.visits].detectors is not None:
            raise ConfigError(
                f"{where}.rows.visits: {table.visits} is a table of detectors itself; name its table of visits"
            )
        for key in ("detectors", "spacing_deg"):
            if getattr(table, key) is None:
                raise ConfigError(f'{where}.rows: the key "{key}" is missing')
        for key in ("radius_deg", "select"):
            if getattr(table, key) is not None:
                raise ConfigError(f"{where}.rows.{key}: only a child table has such a key; drop it")
    if table.region is not None:
        if table.rows is None:
            raise ConfigError(f"{where}.region: only positions that are drawn lie in a region; give rows (a number)")
        check_region(list(table.region), f"{where}.region")
    if table.visit is not None:
        _need_columns(where, table, [table.visit["id"], table.visit["filter"]], "visit")
        _need_columns(where, table, list(table.position or [None]), "position")
        kinds = {c.name: c.type.kind for c in table.columns}
        if kinds[table.visit["id"]] != "integer" or kinds[table.visit["filter"]] != "string":
            raise ConfigError(
                f"{where}.visit: the id must be an integer column and the filter a CHAR or VARCHAR column"
            )
    needs_sky = [e for e in table.entries if isinstance(e.generator, Position)]
    if needs_sky and table.position is None:
        raise ConfigError(f'{where}: the key "position" is missing; it names the columns {needs_sky[0].stream_name}')


def _check_needs(table: Table, entry: Entry, tables: Mapping[str, Table], where: str) -> None:
    """Columns of this table, its director and its visits that a generator asks for."""
    have = {column.name for column in table.columns}
    for name in entry.generator.needs():
        if name not in have:
            raise ConfigError(
                f'{where}.columns ({entry.stream_name}): there is no column "{name}" in {table.name}{_columns_of(table)}'
            )
    if table.visits is None:
        return
    visits = tables[table.visits]
    sources = [(visits, entry.generator.visit_columns())]
    if table.kind == "child":
        sources.insert(0, (tables[table.director], entry.generator.director_columns(filter_names(visits))))
    for source, names in sources:
        for name in names:
            if all(column.name != name for column in source.columns):
                raise ConfigError(
                    f'{where}.columns ({entry.stream_name}): there is no column "{name}" in {source.name}{_columns_of(source)}'
                )


def filter_names(visits: Table) -> list[str]:
    """Names of the filters that a table of visits can hold, as far as the configuration tells."""
    for entry in visits.entries:
        if entry.generator is not None and entry.columns[0].name == visits.visit["filter"]:
            return list(getattr(entry.generator, "values", []))
    return []


def _hash_file(path: Path, key: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{key}: cannot read {path}: {error.strerror}; correct the path, which is relative to the folder of the configuration"
        ) from None
