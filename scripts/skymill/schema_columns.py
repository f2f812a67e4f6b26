"""Columns of a schema file: which generator each of them gets, by rules, by exceptions, or by its type.

What a schema file says of a table is a list of columns: ``name``, ``type`` (of MySQL), ``datatype`` (of the file) and
``unit``. It is read once (see `skymill.felis_schema`) and goes from there with the configuration; nothing here reads a
file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence

from .errors import ConfigError, did_you_mean

#: Generators of columns that no rule fits, by the type in the file.
DEFAULT_GENERATORS = {
    "boolean": {"choice": {"values": [0, 1]}},
    **{name: {"uniform": {"min": 0, "max": 100}} for name in ("byte", "short", "int", "long")},
    **dict.fromkeys(("float", "double"), "uniform"),
    **dict.fromkeys(("char", "string", "unicode", "text"), "text"),
    "timestamp": {"time": {"start": "2025-01-01", "end": "2026-01-01"}},
}


def add_schema_columns(
    table: str,
    options: Mapping,
    exceptions: Sequence[tuple[str, Mapping, list[str]]],
    rules: Sequence[Mapping],
) -> tuple[list[tuple[str, Mapping, list[str]]], tuple[str, ...]]:
    """Complete the entries of a table by those of its schema file.

    Parameters
    ----------
    table : `str`
    options : `Mapping`
        The table's part of the configuration.
    exceptions : sequence of (`str`, `Mapping`, `list` [`str`])
        The entries of its own key ``columns``: place, entry, names. One without a type takes it from the file; one
        without a generator takes that of the rules.
    rules : sequence of `Mapping`
        The key ``column_rules``.

    Returns
    -------
    entries : `list` of (`str`, `Mapping`, `list` [`str`])
        The same for all columns.
    order : `tuple` of `str`
        The names in the order of the file; behind them those that only ``columns`` has.

    Raises
    ------
    ConfigError
        If an exception names a column that the file does not have, or one twice.
    """
    found = {column["name"]: column for column in options["schema"]["columns"]}
    needs_generator = "from_file" not in options
    never_null = {options.get("key"), *options.get("position", ())} if options["kind"] != "regular" else set()
    entries, order, taken = [], list(found), set()
    for place, option, names in exceptions:
        where = f"tables.{table}.{place}"
        for name in names:
            if name in taken:
                raise ConfigError(f"{where}: the column {name} stands twice; drop one of the two")
            taken.add(name)
            if name not in found:
                if "type" not in option:
                    raise ConfigError(f"{where}: {_unknown(name, found, options)}")
                order.append(name)
        if "type" not in option:
            option = {**option, "type": [_type(found[name], never_null) for name in names]}
        if "generator" in option or not needs_generator or any(name not in found for name in names):
            entries.append((place, option, names))
            continue
        types = option["type"] if isinstance(option["type"], list) else [option["type"]] * len(names)
        for name, sql_type in zip(names, types, strict=True):
            generator, _ = choose(rules, table, found[name])
            stated = {} if generator is None else {"generator": generator}
            entries.append((place, {**option, "name": name, "type": sql_type, **stated}, [name]))
    for name, column in found.items():
        if name in taken:
            continue
        entry: dict = {"name": name, "type": _type(column, never_null)}
        if needs_generator:
            generator, null_fraction = choose(rules, table, column)
            if generator is not None:
                entry["generator"] = generator
            if null_fraction and "NOT NULL" not in entry["type"]:
                entry["null_fraction"] = null_fraction
        entries.append((f"schema.{options['schema']['table']}", entry, [name]))
    return entries, tuple(order)


def choose(rules: Sequence[Mapping], table: str, column: Mapping) -> tuple[object, float]:
    """The generator and the share of NULLs of a column: each from the first rule that fits and states it."""
    generator = null_fraction = None
    for rule in rules:
        wanted = (generator is None and "generator" in rule) or (null_fraction is None and "null_fraction" in rule)
        if wanted and fits(rule, table, column):
            generator = rule.get("generator") if generator is None else generator
            null_fraction = rule.get("null_fraction") if null_fraction is None else null_fraction
    if generator is None:
        generator = DEFAULT_GENERATORS.get(column["datatype"])
    return generator, null_fraction or 0.0


def fits(rule: Mapping, table: str, column: Mapping) -> bool:
    """Whether a rule is for a column of a table; a condition that it does not state is fulfilled."""
    values = {
        "table": table,
        "name": column["name"],
        "type": column["datatype"],
        "unit": column["unit"] or "",
    }
    return all(key not in rule or _matches(rule[key], value) for key, value in values.items())


def useless_rules(config: Mapping) -> Iterator[int]:
    """The numbers of the rules that fit no column of any table."""
    columns = [
        (name, column)
        for name, options in config["tables"].items()
        for column in options.get("schema", {}).get("columns", ())
    ]
    for i, rule in enumerate(config.get("column_rules", ())):
        if not any(fits(rule, table, column) for table, column in columns):
            yield i


def _matches(patterns: str | Sequence[str], value: str) -> bool:
    return any(
        _compile(pattern).fullmatch(value) for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    )


@functools.cache
def _compile(pattern: str) -> re.Pattern:
    """A pattern of names: ``*`` stands for any characters, ``?`` for one, ``{a,b}`` for one of some texts."""
    parts = re.split(r"(\*|\?|\{[^{}]*\})", pattern)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.escape(part)
        elif part in "*?":
            parts[i] = {"*": ".*", "?": "."}[part]
        else:
            parts[i] = f"(?:{'|'.join(re.escape(item.strip()) for item in part[1:-1].split(','))})"
    return re.compile("".join(parts), re.DOTALL)


def _type(column: Mapping, never_null: set[str]) -> str:
    text = column["type"]
    return f"{text} NOT NULL" if column["name"] in never_null and "NOT NULL" not in text else text


def _unknown(name: str, found: Mapping, options: Mapping) -> str:
    hint = did_you_mean(name, found)
    schema = options["schema"]
    return f'{schema["felis"]} has no column "{name}" in {schema["table"]}{hint or "."} To add a column, give its type'
