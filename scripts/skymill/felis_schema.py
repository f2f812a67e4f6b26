"""Reads the columns of tables from Felis files, with the package lsst-felis, which is imported for nothing else.

A file is read once for a dataset: the plan keeps what it said, so that the jobs, and the runs that follow, need neither
the package nor the time that its import takes. If the file changes, it is read again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError, SkymillError
from .files import read_json

#: Felis types as Felis itself declares them for MySQL, with ``{length}`` if they have one.
MYSQL_TYPES = {
    "boolean": "BOOL",
    "byte": "TINYINT",
    "short": "SMALLINT",
    "int": "INTEGER",
    "long": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "char": "CHAR({length})",
    "string": "VARCHAR({length})",
    "unicode": "NATIONAL VARCHAR({length})",
    "text": "LONGTEXT",
    "binary": "LONGBLOB",
    "timestamp": "DATETIME",
}
_RESOURCE = re.compile(r"^resource://([\w.]+)/(.+)$")
INSTALL = "install it with `make felis`, or `pip install -r requirements-felis.lock`"


def resolve_schemas(config: dict, folder: Path) -> None:
    """Put the columns of all schema files into the configuration, in place.

    Parameters
    ----------
    config : `dict`
        The configuration; the key ``schema`` of a table gets the key ``columns``.
    folder : `pathlib.Path`
        The folder of the configuration.

    Raises
    ------
    ConfigError
        If a file, a table in it or the package lsst-felis is missing, or the file is not valid.
    """
    tables = {name: options["schema"] for name, options in config["tables"].items() if "schema" in options}
    tables = {name: schema for name, schema in tables.items() if "columns" not in schema}
    if not tables:
        return
    planned = _planned(config["database"])
    files: dict[str, object] = {}
    for name, schema in tables.items():
        where = f"tables.{name}.schema"
        path = locate(schema["felis"], folder, where)
        known = _known(planned, name, schema, path)
        if known is None:
            if schema["felis"] not in files:
                files[schema["felis"]] = read_felis(path, f"{where}.felis")
            known = table_columns(files[schema["felis"]], schema["table"], where)
        schema["columns"] = known


def file_hashes(config: Mapping, folder: Path) -> dict[str, str]:
    """SHA-256 of each schema file that a configuration names."""
    names = {options["schema"]["felis"] for options in config["tables"].values() if "schema" in options}
    return {name: _hash(locate(name, folder, "schema")) for name in sorted(names)}


def locate(source: str, folder: Path, where: str) -> Path:
    """The file that a configuration names: a path, or ``resource://<package>/<file>`` for one that comes with a package.

    Raises
    ------
    ConfigError
        If there is no such package or file.
    """
    resource = _RESOURCE.match(source)
    if resource is None:
        path = folder / source
    else:
        try:
            found = importlib.util.find_spec(resource[1])
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(
                f"{where}: the package {resource[1]} of {source} is not installed; correct the name, or {INSTALL}"
            )
        path = next((Path(place) / resource[2] for place in found.submodule_search_locations or ()), Path(resource[2]))
    if not path.is_file():
        raise ConfigError(f"{where}: there is no file {path}; paths are relative to the folder of the configuration")
    return path


def read_felis(path: Path, where: str) -> object:
    """Read a Felis file, as the package's own ``Schema``.

    Raises
    ------
    ConfigError
        If the package is missing, or the file is not valid.
    """
    try:
        from felis.datamodel import Schema
    except ImportError as error:
        raise ConfigError(
            f"{where}: to read {path.name}, the package lsst-felis is needed ({error}); {INSTALL}"
        ) from None
    import yaml

    try:
        return Schema.from_uri(str(path), context={"id_generation": True})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:  # pydantic's errors are ValueErrors
        lines = [line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line]
        text = re.sub(r" \[type=.*?, input_type=\w+\]", "", " ".join(lines[:7]))
        # What the package says of a file without keys is about its own code.
        reason = "it holds no mapping of keys" if re.search("not subscriptable|indices must be", text) else text
        raise ConfigError(f"{where}: {path} is not a valid Felis file: {reason}") from None


def table_columns(schema: object, table: str, where: str) -> list[dict]:
    """What a schema says of the columns of a table, see `skymill.schema_columns`.

    Raises
    ------
    ConfigError
        If there is no such table, or a column has a name that we do not take.
    """
    found = next((item for item in schema.tables if item.name == table), None)
    if found is None:
        names = ", ".join(item.name for item in schema.tables)
        raise ConfigError(f'{where}.table: {schema.name} has no table "{table}"; there are: {names}')
    primary_key = [found.primary_key] if isinstance(found.primary_key, str) else list(found.primary_key or ())
    columns = []
    for column in found.columns:
        if not re.fullmatch(r"[A-Za-z_]\w{0,63}", column.name, re.ASCII):
            raise ConfigError(f'{where}: {table} has a column "{column.name}"; letters, digits and underscores only')
        datatype = column.datatype.value
        mysql = column.mysql_datatype or MYSQL_TYPES[datatype].format(length=column.length)
        if datatype == "timestamp" and column.precision is not None and column.mysql_datatype is None:
            mysql += f"({column.precision})"
        if not column.nullable or column.id in primary_key:
            mysql += " NOT NULL"
        unit = column.ivoa_unit or column.fits_tunit
        columns.append({"name": column.name, "type": mysql, "datatype": datatype, "unit": unit and str(unit)})
    return columns


def _planned(database: str) -> dict:
    """The first plan file of an earlier run in this folder; empty if there is none that can be read."""
    try:
        return read_json(Path("results") / database / "ingest" / "plan_0.json")
    except SkymillError:
        return {}


def _known(planned: Mapping, table: str, schema: Mapping, path: Path) -> list[dict] | None:
    """The columns as the plan holds them, if they were read from the same file."""
    held = planned.get("identity", {}).get("tables", {}).get(table, {}).get("schema", {})
    same = all(held.get(key) == schema[key] for key in ("felis", "table"))
    if same and planned.get("schema_files", {}).get(schema["felis"]) == _hash(path):
        return held["columns"]
    return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
