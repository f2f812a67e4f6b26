"""Measure the speed of the steps, and compare it with what is asked for.

    make bench                                     # everything, in about a quarter of an hour
    python scripts/measure_speed.py fakedb chunk   # some parts; --list names them

Prints a table and writes ``results/bench.json``: name -> value, unit, target, ok; rows of parts that are not measured
stay as they are. Times are of the processor (user and system, children included), medians of several runs; start-up of
processes is included where the name says so. The exit code says whether all targets are met.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """A part: its module in ``benchmarks``, the function, which gets an empty folder and yields rows of the table, what it is, and its time."""

    module: str
    function: str
    words: str
    time: str


PARTS = {
    "fakedb": Part("tiles", "measure_fakedb", "small chunks, and the start-up of jobs", "40 s"),
    "locate": Part("partitioner", "measure_locate", "chunk and overlaps of points", "2 s"),
    "chunk": Part("chunk", "measure_chunk", "a chunk of kpm50 against the time to write its rows once", "3 min"),
    "truth": Part("truth", "measure_truth", "facts of rows against the time to write them", "40 s"),
    "partition_csv": Part("partitioner", "measure_partition_csv", "the partitioner for any CSV", "40 s"),
    "memory": Part("tiles", "measure_memory", "memory of the jobs of kpm50", "2 min"),
    "growth": Part("growth", "measure_growth", "what a further row costs; draws bench.png", "1 min"),
    "loading": Part("loading", "measure_loading", "loading into MariaDB as Qserv does; needs MariaDB", "4 min"),
    "dry_run": Part("tiles", "measure_dry_run", "a dry run of 146,332 chunks", "1 min"),
}
RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench.json"


def measure(part: str) -> dict[str, dict]:
    """The rows of a part; each says which part it belongs to."""
    function = getattr(importlib.import_module(f"benchmarks.{PARTS[part].module}"), PARTS[part].function)
    with tempfile.TemporaryDirectory(prefix="skymill-bench-") as folder:
        return {row: {"part": part, **values} for row, values in function(Path(folder))}


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for."""
    from skymill.files import write_json
    from summarize_run import format_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure; everything by default")
    parser.add_argument(
        "--list", action="store_true", help="only name the parts, and say what they are and how long they take"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.list:
        print("\n".join(f"{name:14} {part.words} ({part.time})" for name, part in PARTS.items()))
        return 0
    parts = options.parts or list(PARTS)
    start = time.monotonic()
    measured: dict[str, dict] = {}
    for part in parts:
        print(f"measuring {part} ...", file=sys.stderr, flush=True)
        found = measure(part)
        measured |= found
        # Part by part: what has been measured is not lost if the next part cannot be.
        old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept = {key: row for key, row in old.items() if row.get("part") in PARTS and row["part"] != part}
        write_json(RESULTS, kept | found)
    print(format_table(["what", "value", "unit", "target", "ok"], [
        [key, f"{r['value']:g}", r["unit"], r["target"], "" if not r["target"] else "yes" if r["ok"] else "NO"]
        for key, r in measured.items()
    ]))  # fmt: skip
    print(f"\n{time.monotonic() - start:.0f} s")
    return 0 if all(row["ok"] for row in measured.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
