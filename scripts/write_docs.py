"""Write the documents that are made from other files: docs/configuration.md and environment.yml.

    python scripts/write_docs.py                  # docs/configuration.md, from the schema and the generators
    python scripts/write_docs.py --environment    # environment.yml, from pyproject.toml and requirements.lock
    python scripts/write_docs.py --check          # writes nothing; names the files that are not up to date

Fails if pyproject.toml asks for a package that requirements.lock does not have.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from skymill.columns import Generator
from skymill.config import DATA_KEYS
from skymill.errors import SkymillError
from skymill.files import write_text
from skymill.generators import GENERATORS
from skymill.schema import load_schema
from skymill.sqltypes import ALLOWED

PROJECT = Path(__file__).resolve().parents[1]
#: Packages that conda calls otherwise.
CONDA_NAMES = {"duckdb": "python-duckdb"}
TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "string",
    "boolean": "boolean",
    "object": "mapping",
    "null": "null",
}
#: Types of a generator's options in words.
OPTION_TYPES = {
    "float": "number",
    "int": "integer",
    "str": "string",
    "bool": "boolean",
    "object": "any value",
    "dict": "mapping",
    "Sequence": "list",
    "Sequence[float]": "list of numbers",
    "Sequence[str]": "list of strings",
}

HEAD = """\
# Configuration

<!-- `make docs` writes this file from workflow/schemas/config.schema.yaml and scripts/skymill/columns.py. -->

One YAML file describes a dataset: `configs/<dataset>/config.yaml`. Paths in it are relative to its folder. An unknown
key is an error, and so is a value that is not allowed; nothing is started then.
[configs/fakedb/config.yaml](../configs/fakedb/config.yaml) is an example to start from.

The keys {data_keys} decide the rows. They must not change once a dataset has been begun:
the next run refuses to go on and says what has changed. The files that they name (a density map, a table, your own
generators) count, too. All other keys may change.

A key may also be given on the command line, as `--config chunks=0:400`, or nested, as
`--config keep='{{partitioned: true}}'`.

In the tables below, "required" means: if the mapping that the key belongs to is given.
"""

COLUMN_TYPES = """\
Column types are those of MySQL, in upper or lower case: {allowed}.

Every director and child table also gets `chunkId` and `subChunkId` as its last columns; do not list them.
"""

RULES = """\
For the columns of tables with a `schema`. What a rule does not state fits every column.
"""

GENERATOR_HEAD = """\
## Generators

A generator fills a column, or several together. It is written as a name, or as a name with options:

```yaml
generator: unique_id
generator: {uniform: {min: 10, max: 20}}
generator: {constant: 0.1}  # short for {constant: {value: 0.1}}: a plain value is the first option
generator: {colours:Redder: {base: gMag}}  # a class of your own: Redder in colours.py beside the configuration
```

An entry with several names gives each column values of its own; only `position` fills its columns together. Options
that do not fit the type of a column are refused before anything is made. How to write a generator is told
[in the README](../README.md#your-own-dataset).
"""


class Key(NamedTuple):
    """A key of the configuration, as a row of a table."""

    path: str
    type: str
    allowed: str
    default: str
    description: str


# -- docs/configuration.md -------------------------------------------------------------------------------------------


def type_text(node: dict) -> str:
    """The type of a value in words."""
    if "oneOf" in node:
        return " or ".join(dict.fromkeys(type_text(choice) for choice in node["oneOf"]))
    if "enum" in node:
        return "integer" if isinstance(node["enum"][0], int) else "string"
    if isinstance(node.get("type"), list):
        return " or ".join(TYPES[kind] for kind in node["type"])
    if node.get("type") != "array":
        return TYPES[node["type"]] if "type" in node else "mapping"
    item = type_text(node.get("items", {}))
    few = node.get("minItems")
    count = f"{few} " if few is not None and few == node.get("maxItems") else ""
    return f"list of {count}{item}s"


def allowed_text(node: dict) -> str:
    """What is allowed for a value: a range, names, a pattern."""
    if "oneOf" in node:
        limits = ((type_text(choice), allowed_text(choice)) for choice in node["oneOf"])
        return "; ".join(f"{kind}: {limit}" for kind, limit in limits if limit)
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    pattern = node.get("pattern") or node.get("propertyNames", {}).get("pattern")
    if pattern:
        return f"{'names like ' if 'propertyNames' in node else ''}`{pattern}`"
    low, above, high = (node.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f"{low:.12g} to {high:.12g}" if isinstance(high, float) else f"{low} to {high}"
    limits = (("at least", low), ("above", above), ("at most", high))
    return ", ".join(f"{word} {value}" for word, value in limits if value is not None)


def default_text(node: dict, required: bool) -> str:
    """The default of a value, or that there is none."""
    if required:
        return "required"
    default = node.get("default")
    if default in (None, {}, []):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def list_keys(node: dict, definitions: dict, path: str = "") -> Iterator[Key]:
    """The keys below a part of the schema, depth first; parts with a table of their own are not entered."""
    for name, part in node.get("properties", {}).items():
        own = f"{path}{name}"
        part = {**definitions.get(part.get("$ref", "").rsplit("/", 1)[-1], {}), **part}
        yield Key(
            own,
            type_text(part),
            allowed_text(part),
            default_text(part, name in node.get("required", ())),
            " ".join(part.get("description", "").split()),
        )
        for choice in (part, *part.get("oneOf", ())):
            yield from list_keys(choice, definitions, f"{own}.")
        yield from list_keys(part.get("items", {}), definitions, f"{own}[].")


def format_table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def format_keys(node: dict, definitions: dict, path: str = "") -> str:
    """The table of the keys below a part of the schema."""
    rows = [[f"`{key.path}`", *key[1:]] for key in list_keys(node, definitions, path)]
    return format_table(["key", "type", "allowed", "default", "meaning"], rows)


def format_generator(name: str, made: type[Generator]) -> str:
    """A generator: what it says of itself, and its options."""
    text = " ".join(inspect.getdoc(made).split()).replace("``", "`")
    text = re.sub(rf"^`{name}`: *", "", text)
    rows = []
    for option, parameter in inspect.signature(made).parameters.items():
        annotation = str(parameter.annotation).removesuffix(" | None")
        required = parameter.default is parameter.empty
        default = "required" if required else "" if parameter.default is None else f"`{parameter.default}`"
        rows.append([f"`{option}`", OPTION_TYPES.get(annotation, f"`{annotation}`"), default])
    options = format_table(["option", "type", "default"], rows) if rows else "It has no options.\n"
    return f"### {name}\n\n{text[0].upper()}{text[1:]}\n\n{options}"


def configuration_text() -> str:
    """The text of docs/configuration.md."""
    schema = load_schema()
    definitions = schema["$defs"]
    *most, last = (f"`{key}`" for key in DATA_KEYS)
    return (
        "\n".join(
            [
                HEAD.format(data_keys=f"{', '.join(most)} and {last}"),
                "## Keys of a dataset\n",
                format_keys(schema, definitions),
                "## Keys of a table\n",
                format_keys(definitions["table"], definitions, "tables.<Table>."),
                "## Keys of a column\n",
                format_keys(definitions["column"], definitions, "tables.<Table>.columns[]."),
                "A group of entries, repeated for each value of a word:\n",
                format_keys(definitions["group"], definitions, "tables.<Table>.columns[]."),
                COLUMN_TYPES.format(allowed=ALLOWED),
                "## Keys of a rule\n",
                RULES,
                format_keys(definitions["rule"], definitions, "column_rules[]."),
                GENERATOR_HEAD,
                *(format_generator(name, made) for name, made in GENERATORS.items()),
            ]
        ).rstrip("\n")
        + "\n"
    )


# -- environment.yml -------------------------------------------------------------------------------------------------


def canonical_name(requirement: str) -> str:
    """The name of the package that a requirement is for, in lower case with hyphens (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def read_lock(path: Path) -> dict[str, str]:
    """The version of each package in requirements.lock."""
    pins = (line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {canonical_name(name): version.split(";")[0].strip() for name, version in pins}


def environment_text(root: Path) -> str:
    """The text of environment.yml: the packages that pyproject.toml names, in the versions of requirements.lock.

    Parameters
    ----------
    root : `pathlib.Path`
        The folder of the project.

    Raises
    ------
    SkymillError
        If a package is not in requirements.lock.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = read_lock(root / "requirements.lock")
    python = re.search(r"\d+\.\d+", project["requires-python"])[0]
    lines = [
        "# `make lock` writes this file from pyproject.toml and requirements.lock: change those.",
        f"name: {project['name']}",
        "channels: [conda-forge, bioconda]",
        "dependencies:",
        f"  - python={python}",
    ]
    # What reads schema files is not among them: it is asked for by itself, in requirements-felis.lock.
    groups = [project["dependencies"], project["optional-dependencies"]["dev"]]
    for name in (canonical_name(requirement) for group in groups for requirement in group):
        if name not in versions:
            raise SkymillError(f"requirements.lock has no {name}, which pyproject.toml asks for; run `make lock`")
        lines.append(f"  - {CONDA_NAMES.get(name, name)}=={versions[name]}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None, root: Path = PROJECT) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md, which is made from the schema.")
    parser.add_argument("--environment", action="store_true", help="write environment.yml instead")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    options = parser.parse_args(arguments)
    configuration, environment = root / "docs" / "configuration.md", root / "environment.yml"
    try:
        if options.check:
            remedies = {
                configuration: (configuration_text(), "make docs"),
                environment: (environment_text(root), "python scripts/write_docs.py --environment"),
            }
            stale = [
                (path, remedy)
                for path, (text, remedy) in remedies.items()
                if not path.exists() or path.read_text(encoding="utf-8") != text
            ]
            for path, remedy in stale:
                print(f"{path.relative_to(root)} is not up to date; run `{remedy}`", file=sys.stderr)
            return 1 if stale else 0
        if options.environment:
            write_text(environment, environment_text(root))
        else:
            write_text(configuration, configuration_text())
    except SkymillError as error:
        print(f"write_docs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
