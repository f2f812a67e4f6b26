"""A table of a dataset: its columns, spelled out from names, patterns, groups and schema files, and what fills them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .columns import Column, Generator
from .errors import ConfigError
from .generators import make_generator
from .schema_columns import add_schema_columns
from .sqltypes import parse_type

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
class RowSelection:
    """Which rows of a director have rows in a child; the keys are those of ``rows.select``.

    Attributes
    ----------
    column : `str`
        A column of the director.
    limit, edge : `float`
        The value that half of the rows pass, and the range of values around it within which the share goes from 0 to 1.
    upwards : `bool`
        Whether large values have rows (``above``), or small ones (``below``).
    """

    column: str
    limit: float
    edge: float
    upwards: bool


@dataclass(frozen=True)
class Table:
    """A table of the dataset; the attributes are the keys of the schema.

    Attributes
    ----------
    entries : `list` [`Entry`]
    keyless : `bool`
        Child: it says that it has no column of its director's key (``key: null``).
    order : `tuple` of `str` or `None`
        Names of the columns in the order of the table, if it is not that of the entries.
    visits, radius_deg, select : `str`, `float`, `RowSelection` or `None`
        Child: the table of visits that its rows follow, the radius of a visit, and which rows of the director have any.
    detectors, spacing_deg : `tuple` [`int`, `int`], `float` or `None`
        Table of detectors: columns and rows of the array of detectors of each of the ``visits``, and their distance.
    region : `tuple` of 4 `float` or `None`
        Regular table: the box that its positions lie in, see the schema.
    """

    name: str
    kind: str
    entries: list[Entry]
    order: tuple[str, ...] | None = None
    key: str | None = None
    keyless: bool = False
    position: tuple[str, str] | None = None
    director: str | None = None
    density: Mapping | None = None
    rows: int | None = None
    visits: str | None = None
    radius_deg: float | None = None
    select: RowSelection | None = None
    detectors: tuple[int, int] | None = None
    spacing_deg: float | None = None
    region: tuple[float, float, float, float] | None = None
    from_file: Path | None = None
    visit: Mapping | None = None
    ingest: bool = True

    @functools.cached_property
    def columns(self) -> list[Column]:
        """The table's own columns, without chunkId and subChunkId."""
        columns = [column for entry in self.entries for column in entry.columns]
        if self.order is None:
            return columns
        by_name = {column.name: column for column in columns}
        return [by_name[name] for name in self.order]

    @functools.cached_property
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
                names = ", ".join(c.name for e in waiting for c in e.columns)
                raise ConfigError(
                    f"tables.{self.name}: the columns {names} need each other; make one of them without the others"
                )
            ordered += ready
            done |= {c.name for e in ready for c in e.columns}
            taken = set(map(id, ready))  # comparing entries would cost seconds in a table of 1,000 columns
            waiting = [e for e in waiting if id(e) not in taken]
        return ordered


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


def spell_out(options: Sequence[Mapping]) -> Iterator[tuple[str, Mapping]]:
    """The entries of columns one by one, those of groups once for each value of the group's word.

    Yields
    ------
    place : `str`
        Where the entry stands, as ``columns[3].columns[0]``.
    entry : `dict`
        The entry, with the group's value in all its texts.
    """
    for i, option in enumerate(options):
        if "for" not in option:
            yield f"columns[{i}]", option
            continue
        [(word, values)] = option["for"].items()
        for value in values:
            for j, part in enumerate(option["columns"]):
                yield f"columns[{i}].columns[{j}]", _replace(part, f"{{{word}}}", value)


def _replace(value: object, word: str, text: str) -> object:
    """Replace a word in all texts of a value but its keys."""
    if isinstance(value, Mapping):
        return {key: _replace(part, word, text) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace(part, word, text) for part in value]
    return value.replace(word, text) if isinstance(value, str) else value


def make_table(name: str, options: Mapping, rules: Sequence[Mapping], folder: Path) -> Table:
    """Make a table of its part of the configuration.

    Parameters
    ----------
    name : `str`
    options : `Mapping`
        Its part of the configuration, the columns of its schema file included.
    rules : sequence of `Mapping`
        The key ``column_rules``.
    folder : `pathlib.Path`
        The folder of the configuration.

    Raises
    ------
    ConfigError
        Naming the column and what is allowed.
    """
    spelt: list[tuple[str, Mapping, list[str]]] = []
    for place, option in spell_out(options.get("columns", ())):
        try:
            spelt.append((place, option, expand_names(option["name"])))
        except ValueError as error:
            raise _wrong(name, place, option, error) from None
    order = None
    if "schema" in options:
        spelt, order = add_schema_columns(name, options, spelt, rules)
    entries = []
    for place, option, names in spelt:
        try:
            entries += _make_entries(option, names, folder)
        except (ValueError, TypeError) as error:
            raise _wrong(name, place, option, error) from None
    rows = options.get("rows")
    of_visits = rows if isinstance(rows, Mapping) else {}
    return Table(
        name=name,
        kind=options["kind"],
        entries=entries,
        order=order,
        key=options.get("key"),
        keyless=options.get("key", "") is None,
        position=tuple(options["position"]) if "position" in options else None,
        director=options.get("director"),
        density=options.get("density"),
        rows=rows if isinstance(rows, int) else None,
        visits=of_visits.get("visits"),
        radius_deg=float(of_visits["radius_deg"]) if "radius_deg" in of_visits else None,
        select=_make_selection(name, of_visits["select"]) if "select" in of_visits else None,
        detectors=tuple(of_visits["detectors"]) if "detectors" in of_visits else None,
        spacing_deg=float(of_visits["spacing_deg"]) if "spacing_deg" in of_visits else None,
        region=tuple(map(float, options["region"])) if "region" in options else None,
        from_file=folder / options["from_file"] if "from_file" in options else None,
        visit=options.get("visit"),
        ingest=options["ingest"],
    )


def _wrong(table: str, place: str, option: Mapping, error: Exception) -> ConfigError:
    label = option["name"] if isinstance(option["name"], str) else ", ".join(option["name"])
    return ConfigError(f"tables.{table}.{place} ({label}): {error}")


def _make_selection(table: str, select: Mapping) -> RowSelection:
    limits = [key for key in ("above", "below") if key in select]
    if len(limits) != 1:
        raise ConfigError(f"tables.{table}.rows.select: give either above or below")
    limit, edge = float(select[limits[0]]), float(select.get("edge", 0.0))
    return RowSelection(select["column"], limit, edge, upwards=limits == ["above"])


def _make_entries(option: Mapping, names: list[str], folder: Path) -> list[Entry]:
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
    if joint.joint or len(columns) == 1:
        return [Entry(columns, joint, null_fraction)]
    return [Entry([c], make_generator(option["generator"], [c], folder), null_fraction) for c in columns]
