"""The configuration as text: YAML read with care, checked against the JSON schema, and errors in words."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import re
from collections.abc import Iterable
from pathlib import Path

import jsonschema
import yaml

from .errors import ConfigError, did_you_mean, show

#: Keys whose values are never shown: somebody may have written the secret itself there, instead of the place where it
#: is.
SECRETS = {"auth_key", "admin_auth_key", "password"}
SCHEMA_PATH = Path(__file__).resolve().parents[2] / "workflow" / "schemas" / "config.schema.yaml"


@functools.cache
def load_schema() -> dict:
    """The JSON schema of the configuration."""
    return yaml.safe_load(SCHEMA_PATH.read_text(encoding="utf-8"))


def read_yaml(path: Path) -> dict:
    """Read a YAML mapping with the safe loader; a key that stands twice is an error.

    Raises
    ------
    ConfigError
        If the file cannot be read or is no such mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe loader
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not text in UTF-8; save it as such") from None
    except yaml.YAMLError as error:
        hint = "\nIndent with spaces, not with tabs" if "'\\t'" in str(error) else ""
        raise ConfigError(f"the configuration {path} is not valid YAML: {error}{hint}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the configuration {path} must be a mapping of keys; start from configs/fakedb/config.yaml")
    return content


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, but a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a single word", key_node.start_mark)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key}" stands twice; drop one of the two', key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


def check_schema(config: dict) -> None:
    """Check a configuration against the schema; numbers and booleans within mappings and lists that came as strings are turned into such.

    (Snakemake hands over what is inside ``--config keep='{generated: true}'`` as strings.)

    Raises
    ------
    ConfigError
        With up to five things that are wrong: key, value, what is allowed.
    """
    validator = jsonschema.Draft202012Validator(load_schema())
    errors = list(validator.iter_errors(config))
    if errors:
        _read_strings(config, errors)
        errors = sorted(validator.iter_errors(config), key=lambda e: (-len(e.absolute_path), str(e.absolute_path)))
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(_explain(error) for error in errors[:5])))


def _read_strings(config: dict, errors: Iterable[jsonschema.ValidationError]) -> None:
    """Replace strings that should be numbers or booleans, and are such when read as YAML, in place."""
    for error in errors:
        _read_strings(config, error.context)
        if error.validator == "type" and isinstance(error.instance, str) and len(error.absolute_path) > 1:
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.safe_load(error.instance)
                if isinstance(value, (bool, int, float)) and jsonschema.Draft202012Validator(error.schema).is_valid(
                    value
                ):
                    *outer, last = error.absolute_path
                    functools.reduce(operator.getitem, outer, config)[last] = value


def _found(error: jsonschema.ValidationError) -> str:
    """What was found, but nothing that may be a secret, or may hold one."""
    value, path = error.instance, set(error.absolute_path)
    if isinstance(value, (dict, list)) and path & {"ingest", *SECRETS}:
        return "a mapping" if isinstance(value, dict) else "a list"
    if path & SECRETS:
        return "this value"
    return re.sub(r"//.*@", "//***@", show(value))


def _explain(error: jsonschema.ValidationError, outer: str = "") -> str:
    """A validation error in words; `outer` describes the key if the part of the schema that it breaks does not."""
    where = _key_path(error.absolute_path)
    prefix = f"{where}: " if where else ""
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema.get("properties", {}))
        unknown = [key for key in error.instance if key not in allowed]
        if SECRETS & set(error.absolute_path):
            return f"{prefix}unknown key; allowed are {', '.join(allowed)}"
        hint = did_you_mean(unknown[0], allowed) if unknown else ""
        return f'{prefix}unknown key "{", ".join(unknown)}"; allowed are {", ".join(allowed)}{hint}'
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f'{prefix}the key "{missing[0]}" is missing'
    if error.validator == "enum":
        return f"{prefix}{_found(error)} is not allowed; allowed are {', '.join(map(str, error.validator_value))}"
    if error.validator == "pattern":
        name = error.instance
        if "tables" in where and "_" in str(name):
            return f'{prefix}the table name "{name}" has an underscore; letters and digits only: file names are split there'
    description = error.schema.get("description", outer)
    found = _found(error)
    limits = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above"}
    if error.validator in limits:
        return f"{prefix}{found} is not allowed; it must be {limits[error.validator]} {error.validator_value}. {description}".rstrip()
    if error.validator == "maxProperties":
        return f"{prefix}found are {', '.join(error.instance)}; write one of them. {description}".rstrip()
    if error.validator in ("minItems", "maxItems") and error.schema.get("minItems") == error.schema.get("maxItems"):
        return f"{prefix}{found} is not allowed; it must have {error.validator_value} entries. {description}".rstrip()
    if error.validator == "anyOf":
        keys = " or ".join(branch["required"][0] for branch in error.validator_value)
        return f"{prefix}the key {keys} is missing"
    if error.validator == "oneOf":
        # The branch that the value comes nearest to: its own errors say more than that none fits.
        same = [
            e
            for e in error.context
            if e.validator != "type"
            or (isinstance(error.instance, dict) and len(e.absolute_path) > len(error.absolute_path))
        ]
        keys = set(error.instance) if isinstance(error.instance, dict) else set()
        for branch in {e.schema_path[0] for e in same}:
            if keys & set(error.validator_value[branch].get("properties", {})):
                return _explain(next(e for e in same if e.schema_path[0] == branch), description)
        if same:
            return _explain(same[0], description)
    if error.validator == "type":
        words = {
            "integer": "a whole number",
            "number": "a number",
            "string": "a text (string)",
            "boolean": "true or false (boolean)",
            "object": "a mapping (object)",
            "array": "a list (array)",
            "null": "null",
        }
        kinds = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return f"{prefix}{found} is not allowed; it must be {' or '.join(words[kind] for kind in kinds)}. {description}".rstrip()
    return f"{prefix}{found} is not allowed. {description}".rstrip()


def _key_path(path: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def fill_defaults(config: dict) -> None:
    """Fill in the defaults of the schema, in place."""
    root = load_schema()
    _fill_defaults(config, root, root)


def _fill_defaults(value: object, schema: dict, root: dict) -> None:
    """Fill in the defaults of a schema's properties, in place."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, dict):
        for key, part in schema.get("properties", {}).items():
            if "default" in part and key not in value:
                value[key] = json.loads(json.dumps(part["default"]))
            if key in value:
                _fill_defaults(value[key], part, root)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            for part in value.values():
                _fill_defaults(part, extra, root)
    elif isinstance(value, list) and "items" in schema:
        for part in value:
            _fill_defaults(part, schema["items"], root)
