"""Partition CSV files the way Qserv wants them, configured like its own partitioner, ``sph-partition``.

    python scripts/partition_csv.py -c Object.cfg --in.path a.csv --in.path b.csv --out.dir chunks

Writes to the output directory <prefix>_<chunk>.txt with the rows of each chunk, in the order of the input, and
<prefix>_<chunk>_overlap.txt with the rows of its overlap, by sub-chunk and then in the order of the input. With
part.pos and part.id also <prefix>_object_index.txt: id, chunk and sub-chunk of each row. With part.id but without
part.pos rows go where the object index of an earlier run (part.id-url) has their object, and there is no overlap.

Configuration files are JSON objects whose keys are the names of the options, nested at the dots, as in {"part": {"pos":
"ra, decl"}}. They are merged in the order given as JSON merge patches (RFC 7396): a later file wins, null removes a
key, lists are replaced. The command line wins over the files.

Input has no header line. A row must have as many fields as in.csv.field names; line ends are LF, CR LF or CR. A field
may hold a delimiter or a line end if it is escaped, and a delimiter if it is quoted. If both dialects are the same,
fields are copied byte by byte. Output fields that the input does not have are NULL; the chunk and sub-chunk fields are
overwritten if the input has them.

It fails, and leaves no file, if a row has an id that is not in the object index, or a position that is NULL, no number,
or not on the sky: RA must be from 0 to 360 deg, Dec from -90 to 90 deg. Files are moved to their names when all of them
are whole. Output files of an earlier run are an error; with --out.append the new rows are added to them, and overlap
files are ordered anew.

Not as in sph-partition: chunk statistics go to standard output as JSON, and not to a file <prefix>_index.bin; the first
field of a row may be quoted, too; fields may be longer than 255 bytes; part.chunk may be left out, and the rows get no
chunk number then.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from skymill.chunker import Chunker
from skymill.csv_dialect import Dialect
from skymill.csv_partitioner import Options, Partitioner
from skymill.errors import ConfigError, SkymillError, in_words, show


class Setting(NamedTuple):
    """An option of the command line and key of the configuration."""

    name: str
    kind: type
    help: str
    default: Any = None
    flags: tuple[str, ...] = ()


class Char(str):
    """A text of one character."""


def _dialect_settings(section: str, fields_help: str) -> list[Setting]:
    where = "input" if section == "in" else "output"
    return [
        Setting(f"{section}.csv.null", str, "text of NULL (NULL with quotes, else \\N with escapes, else nothing)"),
        Setting(f"{section}.csv.delimiter", Char, f"character between fields of the {where} (tab)", "\t"),
        Setting(f"{section}.csv.quote", Char, 'quote character (")', '"'),
        Setting(f"{section}.csv.no-quote", bool, "there is no quote character", False),
        Setting(f"{section}.csv.escape", Char, "escape character (\\)", "\\"),
        Setting(f"{section}.csv.no-escape", bool, "there is no escape character", False),
        Setting(f"{section}.csv.field", list, fields_help),
    ]


SETTINGS = [
    Setting("verbose", bool, "say which file is read, and how many rows each chunk gets", False, ("-v",)),
    Setting(
        "in.path", list, "input file, or directory of input files; repeatable; empty files are skipped", None, ("-i",)
    ),
    *_dialect_settings("in", "name of a field of the input; once for each field, in order"),
    Setting("part.pos", str, 'fields with RA and Dec [deg], as in "ra, decl"'),
    Setting("part.id", str, "field with the id of the object"),
    Setting("part.id-url", str, "object index to place rows by, file:///absolute/path, in the output dialect"),
    Setting("part.num-stripes", int, "stripes of the sky (18)", 18),
    Setting("part.num-sub-stripes", int, "sub-stripes of each stripe (100)", 100),
    Setting("part.overlap", float, "overlap radius [deg] (0.01)", 0.01),
    Setting("part.chunk", str, "field that gets the chunk number; appended to out.csv.field if it is not there"),
    Setting("part.sub-chunk", str, "field that gets the sub-chunk number, likewise (subChunkId)", "subChunkId"),
    Setting("part.prefix", str, "what the names of output files begin with (chunk)", "chunk"),
    Setting(
        "part.disable-chunks", bool, "write no chunk files: only check the input and write the object index", False
    ),
    Setting("out.dir", str, "directory for the output"),
    *_dialect_settings("out", "name of a field of the output; once for each field (those of the input)"),
    Setting("out.num-nodes", int, "must be 1: files are not spread over directories of nodes", 1),
    Setting("out.append", bool, "add rows to output files that exist already", False),
    Setting("mr.num-workers", int, "ignored: there is one worker"),
    Setting("mr.block-size", int, "ignored: blocks are 1 MiB"),
    Setting("mr.pool-size", int, "ignored: 256 MiB of text are collected before they are written"),
]
KIND_NAMES = {str: "a text", list: "a list of texts", int: "a whole number", float: "a number", bool: "true or false"}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-c", "--config-file", action="append", default=[], type=Path, help="configuration file; repeatable"
    )
    groups = {name: parser.add_argument_group(name) for name in ("in", "part", "out", "mr")}
    for setting in SETTINGS:
        section = setting.name.partition(".")[0]
        kwargs: dict[str, Any] = {
            "dest": setting.name,
            "default": argparse.SUPPRESS,
            "help": setting.help.replace("%", "%%"),
        }
        if setting.kind is bool:
            kwargs["action"] = "store_true"
        elif setting.kind is list:
            kwargs |= {"action": "append", "metavar": "TEXT"}
        else:
            kwargs |= {"type": setting.kind, "metavar": {int: "N", float: "X"}.get(setting.kind, "TEXT")}
        groups.get(section, parser).add_argument(*setting.flags, f"--{setting.name}", **kwargs)
    return parser


# -- the configuration --------------------------------------------------------------------------------------------------


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def read_config(paths: Sequence[Path]) -> dict[str, Any]:
    """Read and merge configuration files.

    Raises
    ------
    ConfigError
        If one of them is not a JSON object.
    """
    config: dict[str, Any] = {}
    for path in paths:
        try:
            patch = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"cannot read the configuration file {path}, it is no JSON: {error}") from None
        if not isinstance(patch, dict):
            raise ConfigError(f"{path}: it must hold a JSON object, like {{...}}")
        config = merge_patch(config, patch)
    return config


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested objects, their keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def check_value(setting: Setting, value: Any) -> Any:
    """Check the value of a key of a configuration file.

    Raises
    ------
    ConfigError
        If its type is not the one expected.
    """
    if setting.kind is Char:
        # A number is the code of a character.
        value = chr(value) if type(value) is int and 0 <= value < 256 else value
        if not isinstance(value, str) or len(value) != 1:
            raise ConfigError(f"{setting.name} = {show(value)}: it must be one character")
        return value
    kind = type(value)
    fits = kind is setting.kind or (setting.kind is float and kind is int)
    if setting.kind is list and fits:
        fits = all(isinstance(item, str) for item in value)
    if not fits:
        raise ConfigError(f"{setting.name} = {show(value)}: it must be {KIND_NAMES[setting.kind]}")
    return value


def resolve_settings(files: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The value of every setting: from the command line, else from the files, else the default.

    Keys of the files that are not known are reported and ignored: a file may serve other tools, too.
    """
    settings = {setting.name: setting for setting in SETTINGS}
    values = {name: setting.default for name, setting in settings.items()}
    for name, value in flatten(files).items():
        if name in settings:
            values[name] = check_value(settings[name], value)
        elif name.partition(".")[0] in ("in", "part", "out", "mr"):
            logging.warning("the configuration key %s is not known and is ignored", name)
    for name, value in arguments.items():
        values[name] = check_value(settings[name], value)
    return values


def make_dialect(values: dict[str, Any], section: str) -> Dialect:
    """The dialect of the input or of the output."""
    quote = None if values[f"{section}.csv.no-quote"] else values[f"{section}.csv.quote"]
    escape = None if values[f"{section}.csv.no-escape"] else values[f"{section}.csv.escape"]
    null = values[f"{section}.csv.null"]
    if null is None:
        null = "NULL" if quote is not None else f"{escape}N" if escape is not None else ""
    characters = [values[f"{section}.csv.delimiter"], quote, escape]
    try:
        return Dialect(null.encode(), *(None if one is None else ord(one) for one in characters))
    except ValueError as error:
        raise ConfigError(f"{section}.csv: {error}") from None


def make_options(values: dict[str, Any]) -> Options:
    """Check settings against each other.

    Raises
    ------
    ConfigError
        If they do not go together.
    """
    in_fields = values["in.csv.field"]
    if not in_fields:
        raise ConfigError("in.csv.field is missing: it must name the fields of the input, in order")
    twice = next((name for index, name in enumerate(in_fields) if name in in_fields[:index]), None)
    if twice is not None:
        raise ConfigError(f"in.csv.field has {twice!r} twice: names must differ")
    if values["part.pos"] is None and values["part.id"] is None:
        raise ConfigError("give part.pos (to place rows by position) or part.id and part.id-url (by object)")
    position = None
    if values["part.pos"] is not None:
        position = tuple(name.strip() for name in values["part.pos"].split(","))
        if len(position) != 2 or not all(position):
            raise ConfigError(f'part.pos = {values["part.pos"]!r}: it must be two field names, as in "ra, decl"')
    index_path = None if position else _index_path(values["part.id-url"])
    roles = [("part.pos", name) for name in position or ()]
    roles += [(key, values[key]) for key in ("part.id", "part.chunk", "part.sub-chunk") if values[key] is not None]
    for index, (key, name) in enumerate(roles):
        if key in ("part.pos", "part.id") and name not in in_fields:
            raise ConfigError(f"{key} = {name!r}: in.csv.field has no such field; it has {', '.join(in_fields)}")
        if name in [other for _, other in roles[:index]]:
            raise ConfigError(f"{key} = {name!r}: the field has another role already")
    out_fields = list(values["out.csv.field"] or in_fields)
    for key in ("part.chunk", "part.sub-chunk"):
        if values[key] is not None and values[key] not in out_fields:
            out_fields.append(values[key])
    if values["out.num-nodes"] != 1:
        raise ConfigError(
            f"out.num-nodes = {values['out.num-nodes']}: only 1 is supported; spread the files afterwards"
        )
    if not values["out.dir"]:
        raise ConfigError("out.dir is missing: it must name the directory for the output")
    prefix = values["part.prefix"]
    if not prefix or "/" in prefix:
        raise ConfigError(f"part.prefix = {prefix!r}: it must be the beginning of a file name")
    try:
        overlap_deg = values["part.overlap"] if position else 0.0
        chunker = Chunker(values["part.num-stripes"], values["part.num-sub-stripes"], overlap_deg)
    except ValueError as error:
        raise ConfigError(f"part.num-stripes, part.num-sub-stripes, part.overlap: {error}") from None
    return Options(
        in_fields=in_fields,
        out_fields=out_fields,
        in_dialect=make_dialect(values, "in"),
        out_dialect=make_dialect(values, "out"),
        position_fields=position,
        id_field=values["part.id"],
        chunk_field=values["part.chunk"],
        sub_chunk_field=values["part.sub-chunk"],
        index_path=index_path,
        chunker=chunker,
        out_dir=Path(values["out.dir"]),
        prefix=prefix,
        write_chunks=not values["part.disable-chunks"],
        append=values["out.append"],
    )


def _index_path(url: str | None) -> Path:
    """The path of the object index."""
    if url is None:
        raise ConfigError("part.id-url is missing: without part.pos rows are placed by an object index")
    scheme, path = "file://", url.removeprefix("file://")
    if not url.startswith(scheme) or not path.startswith("/") or path == "/":
        raise ConfigError(
            f"part.id-url = {url!r}: it must be file:// and an absolute path, as in file:///data/index.txt"
        )
    if not Path(path).is_file():
        raise ConfigError(f"part.id-url = {url!r}: there is no such file")
    return Path(path)


def list_inputs(names: Sequence[str] | None) -> list[Path]:
    """Files to read: those given, and those in directories given, by name; without empty ones.

    Raises
    ------
    ConfigError
        If a file is not there, or none has any text.
    """
    if not names:
        raise ConfigError("in.path is missing: it must name at least one file or directory")
    paths: list[Path] = []
    for path in map(Path, names):
        if not path.exists():
            raise ConfigError(f"in.path = {str(path)!r}: there is no such file or directory")
        paths += sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    paths = [path for path in paths if not path.is_file() or path.stat().st_size]
    if not paths:
        raise ConfigError(f"in.path = {', '.join(names)}: all files are empty")
    return paths


def keep_memory() -> None:
    """Have the C library keep freed memory: it is wanted again for the next block, and new pages are dear."""
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, 1 << 30)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = vars(make_parser().parse_args(arguments))
    logging.basicConfig(
        format="%(levelname)s: %(message)s", level=logging.INFO if "verbose" in given else logging.WARNING
    )
    try:
        values = resolve_settings(read_config(given.pop("config_file")), given)
        options = make_options(values)
        summary = Partitioner(options).run(list_inputs(values["in.path"]))
    except (SkymillError, OSError) as error:
        print(f"partition_csv: {in_words(error)}", file=sys.stderr)
        return 1
    report: dict[str, Any] = {
        "rows": summary.rows,
        "chunks": len(summary.chunk_rows.keys() | summary.overlap_rows.keys()),
        "overlap_rows": summary.overlap_rows.total(),
    }
    if values["verbose"]:
        report["rows_in_chunk"] = dict(sorted(summary.chunk_rows.items()))
        report["rows_in_overlap"] = dict(sorted(summary.overlap_rows.items()))
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
