"""The configuration of a dataset: read, checked, and turned into objects.

`load_dataset` reads a YAML file; `Dataset.from_config` takes a dictionary that was read already. Both apply the checks of the
JSON schema and then those that the schema cannot say. Secrets have no place here.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .chunker import Chunker
from .columns import Column, Generator, Position, VisitColumn, make_generator
from .errors import ConfigError
from .selection import Selection, select_chunks
from .sqltypes import parse_type

#: Changes whenever the same configuration would give other bytes; part of the fingerprint.
FORMAT = 1
#: Keys that decide which rows there are, and so belong to the fingerprint.
DATA_KEYS = ("database", "seed", "partitioning", "tables")
#: Columns that partitioning appends to every row of a director or child.
PLACE_COLUMNS = (
    Column("chunkId", parse_type("INT UNSIGNED NOT NULL")),
    Column("subChunkId", parse_type("INT UNSIGNED NOT NULL")),
)


@dataclass(frozen=True)
class Entry:
    """Columns that one generator fills together.

    Attributes
    ----------
    columns : `list` [`Column`]
    generator : `Generator` or `None`
        None in a table that is read from a file.
    null_fraction : `float`
    """

    columns: list[Column]
    generator: Generator | None
    null_fraction: float

    @property
    def stream_name(self) -> str:
        """The name of the entry's random stream: its columns."""
        return ",".join(column.name for column in self.columns)


@dataclass(frozen=True)
class Table:
    """A table of the dataset; the attributes are the keys of the schema.

    Attributes
    ----------
    entries : `list` [`Entry`]
        In the order of the schema.
    visits, radius_deg : `str`, `float` or `None`
        Child: the table of visits that its rows follow, and the radius of a visit.
    """

    name: str
    kind: str
    entries: list[Entry]
    key: str | None = None
    position: tuple[str, str] | None = None
    director: str | None = None
    density: Mapping | None = None
    rows: int | None = None
    visits: str | None = None
    radius_deg: float | None = None
    from_file: Path | None = None
    visit: Mapping | None = None
    ingest: bool = True

    @property
    def columns(self) -> list[Column]:
        """The table's own columns, without chunkId and subChunkId."""
        return [column for entry in self.entries for column in entry.columns]

    @property
    def stored_columns(self) -> list[Column]:
        """The columns as files and the store hold them."""
        return self.columns if self.kind == "regular" else [*self.columns, *PLACE_COLUMNS]

    @property
    def overlap_name(self) -> str:
        """The name of a director's overlap table."""
        return f"{self.name}FullOverlap"

    @functools.cached_property
    def entries_in_order(self) -> list[Entry]:
        """The entries, each after those whose columns it needs."""
        waiting, done, ordered = list(self.entries), set(), []
        while waiting:
            ready = [e for e in waiting if set(e.generator.needs()) <= done]
            if not ready:
                names = [c.name for e in waiting for c in e.columns]
                raise ConfigError(f"tables.{self.name}: the columns {names} need each other; break the circle")
            ordered += ready
            done |= {c.name for e in ready for c in e.columns}
            waiting = [e for e in waiting if e not in ready]
        return ordered


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
        partitioning = config["partitioning"]
        try:
            chunker = Chunker(**partitioning)
        except ValueError as error:
            raise ConfigError(f"partitioning: {error}") from None
        dataset = cls(config, Path(folder), chunker, {})
        for name, options in config["tables"].items():
            dataset.tables[name] = _make_table(name, options, dataset.folder)
        if check:
            _check_tables(dataset)
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
        identity = {key: self.config[key] for key in DATA_KEYS}
        identity["files"] = {name: _hash_file(self.folder / name) for name in sorted(self._files())}
        identity["numpy"] = np.__version__
        identity["format"] = FORMAT
        return json.loads(json.dumps(identity))

    def fingerprint(self) -> str:
        """SHA-256 of `identity`."""
        return fingerprint_of(self.identity())

    def _files(self) -> set[str]:
        """Files beside the configuration that decide rows."""
        files = set()
        for options in self.config["tables"].values():
            files |= {options.get("from_file"), options.get("density", {}).get("map")}
            for column in options["columns"]:
                generator = column.get("generator")
                name = generator if isinstance(generator, str) or generator is None else next(iter(generator))
                files.add(f"{name.split(':')[0]}.py" if name and ":" in name else None)
        return files - {None}


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


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _refuse_nan(value: object, key: str = "") -> None:
    """Refuse nan, which passes all limits, but for the options of generators, which say themselves what they allow."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in ("columns", "partitioning"):
                _refuse_nan(part, f"{key}.{name}".lstrip("."))
    elif isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{key}: {value} is not allowed; it must be a finite number")


def _with_defaults(config: Mapping, check: bool) -> dict:
    # A copy of plain types: what Snakemake hands over is not ours to change.
    try:
        config = _whole_numbers(json.loads(json.dumps(dict(config))))
    except TypeError:
        found = next(value for value in _leaves(config) if not isinstance(value, (str, int, float, bool, type(None))))
        raise ConfigError(f"the value {found} is a {type(found).__name__}; put quotes around it") from None
    for value in _leaves(config):
        if isinstance(value, float) and math.isnan(value):
            _refuse_nan(config)
    if not check:
        return config
    from . import schema

    schema.check_schema(config)
    schema.fill_defaults(config)
    return config


# -- tables -------------------------------------------------------------------------------------------------------------


def expand_names(names: str | list[str]) -> list[str]:
    """Column names of a name, a list or a pattern: ``"{u,g}Flux"`` and ``"x{0..9}"`` stand for several.

    Raises
    ------
    ValueError
        If a name is not made of letters, digits and underscores.
    """
    expanded = []
    for name in [names] if isinstance(names, str) else names:
        parts = re.split(r"\{([^{}]*)\}", name)
        choices = []
        for i, part in enumerate(parts):
            span = re.match(r"^(\d+)\.\.(\d+)$", part)
            if i % 2 == 0:
                choices.append([part])
            elif span:
                if int(span[1]) > int(span[2]):
                    raise ValueError(f'column name "{name}": {part} runs backwards; write {span[2]}..{span[1]}')
                choices.append([str(n) for n in range(int(span[1]), int(span[2]) + 1)])
            else:
                choices.append([item.strip() for item in part.split(",")])
        expanded += ["".join(parts) for parts in itertools.product(*choices)]
    for name in expanded:
        if not re.match(r"^[A-Za-z_]\w{0,63}$", name, re.ASCII):
            raise ValueError(f'column name "{name}": letters, digits and underscores only, not beginning with a digit')
    return expanded


def _make_table(name: str, options: Mapping, folder: Path) -> Table:
    entries = []
    for i, option in enumerate(options["columns"]):
        try:
            entries += _make_entries(option, folder)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"tables.{name}.columns[{i}] ({_short(option['name'])}): {error}") from None
    rows = options.get("rows")
    return Table(
        name=name,
        kind=options["kind"],
        entries=entries,
        key=options.get("key"),
        position=tuple(options["position"]) if "position" in options else None,
        director=options.get("director"),
        density=options.get("density"),
        rows=rows if isinstance(rows, int) else None,
        visits=rows["visits"] if isinstance(rows, dict) else None,
        radius_deg=float(rows["radius_deg"]) if isinstance(rows, dict) else None,
        from_file=folder / options["from_file"] if "from_file" in options else None,
        visit=options.get("visit"),
        ingest=options["ingest"],
    )


def _short(name: object) -> str:
    return name if isinstance(name, str) else ", ".join(name)


def _make_entries(option: Mapping, folder: Path) -> list[Entry]:
    names = expand_names(option["name"])
    types = option["type"] if isinstance(option["type"], list) else [option["type"]] * len(names)
    if len(types) != len(names):
        raise ValueError(f"{len(types)} types for {len(names)} columns; give one type, or one for each column")
    columns = [Column(name, parse_type(text)) for name, text in zip(names, types, strict=True)]
    null_fraction = option.get("null_fraction", 0.0)
    if null_fraction > 0 and not all(column.type.nullable for column in columns):
        raise ValueError(f"null_fraction = {null_fraction}: a column is NOT NULL; drop one of the two")
    if "generator" not in option:
        return [Entry(columns, None, null_fraction)]
    joint = make_generator(option["generator"], columns, folder)
    if joint.joint:
        return [Entry(columns, joint, null_fraction)]
    return [Entry([c], make_generator(option["generator"], [c], folder), null_fraction) for c in columns]


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
                f"{where}.columns: the column {', '.join(doubled)} stands twice (chunkId and subChunkId are ours)"
            )
        overlap = next(
            (t for t in tables.values() if t.kind == "director" and t.overlap_name.lower() == name.lower()), None
        )
        if overlap is not None:
            raise ConfigError(f"{where}: the name is taken by the overlap table of {overlap.name}; choose another")
        folded = [n for n in tables if n.lower() == name.lower()]
        if len(folded) > 1:
            raise ConfigError(f"{where}: {' and '.join(folded)} differ only by case, which MySQL may not tell apart")
        {"director": _check_director, "child": _check_child, "regular": _check_regular}[table.kind](
            table, tables, where
        )
        for entry in table.entries:
            if entry.generator is None and table.from_file is None:
                raise ConfigError(f'{where}.columns ({entry.stream_name}): the key "generator" is missing')
            if entry.generator is not None:
                try:
                    entry.generator.check(table)
                except (ValueError, TypeError) as error:
                    raise ConfigError(f"{where}.columns ({entry.stream_name}): {error}") from None
                _check_needs(table, entry, tables, where)
        if table.from_file is None:
            table.entries_in_order  # noqa: B018 - refuses a circle
    if not dataset.tables_of("director"):
        raise ConfigError("tables: there is no director; at least one table must have kind: director")


def _allow(where: str, table: Table, kind_keys: set[str], reason: str) -> None:
    """Refuse keys of a table that its kind does not have."""
    given = {"key", "position", "director", "density", "from_file", "visit"} & {
        k for k in ("key", "position", "director", "density", "from_file", "visit") if getattr(table, k) is not None
    }
    if table.rows is not None:
        given.add("rows")
    if table.visits is not None:
        given.add("rows (of visits)")
    extra = sorted(given - kind_keys)
    if extra:
        raise ConfigError(f"{where}.{extra[0]}: a {table.kind} table has no such key; {reason}")


def _need_columns(where: str, table: Table, names: list[str | None], key: str) -> None:
    have = [column.name for column in table.columns]
    for name in names:
        if name is None:
            raise ConfigError(f'{where}: the key "{key}" is missing')
        if name not in have:
            raise ConfigError(
                f'{where}.{key}: there is no column "{name}"; there are {", ".join(have[:12])}{" ..." if len(have) > 12 else ""}'
            )


def _check_director(table: Table, tables: Mapping[str, Table], where: str) -> None:
    _allow(where, table, {"key", "position", "density"}, "its rows come from its density")
    _need_columns(where, table, [table.key], "key")
    _need_columns(where, table, list(table.position or [None]), "position")
    density = table.density or {}
    if ("per_sq_deg" in density) == ("map" in density):
        raise ConfigError(f"{where}.density: give either per_sq_deg or map")
    for name in (table.key, *table.position):
        if next(c for c in table.columns if c.name == name).type.nullable:
            raise ConfigError(f"{where}: {name} may be NULL; keys and positions of a director must be NOT NULL")
    if not any(isinstance(e.generator, Position) for e in table.entries):
        raise ConfigError(f"{where}.columns: no column has the generator position; {', '.join(table.position)} need it")


def _check_child(table: Table, tables: Mapping[str, Table], where: str) -> None:
    _allow(where, table, {"key", "director", "rows (of visits)"}, "its rows come from its director and the visits")
    director = tables.get(table.director)
    if director is None or director.kind != "director":
        directors = ", ".join(t.name for t in tables.values() if t.kind == "director") or "none"
        raise ConfigError(f"{where}.director: {table.director!r} is not a director table; there are: {directors}")
    if director.ingest is False and table.ingest:
        raise ConfigError(f"{where}.ingest: its director {director.name} is not loaded; set ingest: false here, too")
    _need_columns(where, table, [table.key], "key")
    if table.visits is None:
        raise ConfigError(f"{where}.rows: write {{visits: <table of visits>, radius_deg: 1.4}}")
    visits = tables.get(table.visits)
    if visits is None or visits.visit is None:
        raise ConfigError(
            f"{where}.rows.visits: {table.visits!r} is not a table of visits (a regular table with the key visit)"
        )


def _check_regular(table: Table, tables: Mapping[str, Table], where: str) -> None:
    _allow(where, table, {"rows", "from_file", "visit", "position"}, "it has rows or from_file")
    if (table.rows is None) == (table.from_file is None):
        raise ConfigError(f"{where}: give either rows (a number) or from_file")
    if table.from_file is not None and not table.from_file.is_file():
        raise ConfigError(f"{where}.from_file: there is no file {table.from_file}")
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
            raise ConfigError(f'{where}.columns ({entry.stream_name}): there is no column "{name}" in {table.name}')
    if table.kind != "child":
        return
    director, visits = tables[table.director], tables[table.visits]
    for name in entry.generator.director_columns(filter_names(visits)):
        if name not in {column.name for column in director.columns}:
            raise ConfigError(f'{where}.columns ({entry.stream_name}): there is no column "{name}" in {director.name}')
    if isinstance(entry.generator, VisitColumn) and entry.generator.column not in {
        column.name for column in visits.columns
    }:
        raise ConfigError(
            f'{where}.columns ({entry.stream_name}): there is no column "{entry.generator.column}" in {visits.name}'
        )


def filter_names(visits: Table) -> list[str]:
    """Names of the filters that a table of visits can hold, as far as the configuration tells."""
    for entry in visits.entries:
        if entry.generator is not None and entry.columns[0].name == visits.visit["filter"]:
            return list(getattr(entry.generator, "values", []))
    return []


def _hash_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}, which the configuration names: {error.strerror}") from None
