"""Write what `make bench` has measured into README.md and docs/performance.md, between their marks ``<!-- bench -->``.

    python scripts/write_figures.py

Reads results/bench.json; the table of a part that is not in it stays as it is. Fails if a row that README.md shows has
not been measured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from skymill.errors import SkymillError
from skymill.files import write_text

PROJECT = Path(__file__).resolve().parents[1]
#: What README.md shows: its words, and the row of the table.
SHORT = {
    "a chunk of fakedb (15,600 rows): generate, partition and load, start-up included": "fakedb: generate, partition, load (start-up included)",
    "a chunk of kpm50 (3.8 million rows; 0.94 GB of text, its overlap not counted): generate and partition": "kpm50 chunk: generate with halo and truth, write, partition, hash",
    "the same, in units of W: the time to write its rows once with polars, the fastest CSV writer": "kpm50 chunk / W",
    "values generated, without writing them": "kpm50: generation alone",
    "text partitioned by the workflow": "partition step of the workflow on Object",
    "text partitioned by `partition_csv.py`, 331 columns": "partition_csv on Object",
    "text partitioned by `partition_csv.py`, 5 columns": "partition_csv on ForcedSource",
    "points located, overlap included": "locate with overlap",
    "memory of a job, kpm50": "kpm50: peak memory of a job",
    "dry run of 146,332 chunks": "dry run of 146,332 chunks",
    "memory of the dry run": "dry run of 146,332 chunks, memory",
}
_MARKS = re.compile(r"(<!-- bench(?: (\w+))? -->\n).*?(<!-- /bench -->)", re.DOTALL)


def short_table(rows: dict[str, dict]) -> Iterator[str]:
    """The lines of README's table."""
    yield "| what | measured |"
    yield "| --- | --- |"
    for words, name in SHORT.items():
        if name not in rows:
            raise SkymillError(f'"{name}" has not been measured; run `make bench`')
        yield f"| {words} | {rows[name]['value']:,g} {rows[name]['unit']} |"


def part_table(rows: dict[str, dict], part: str) -> Iterator[str]:
    """The lines of the table of a part of `make bench`."""
    yield "| what | measured | | asked for |"
    yield "| --- | ---: | --- | --- |"
    for name, row in rows.items():
        if row.get("part") == part:
            yield f"| {name} | {row['value']:,g} | {row['unit']} | {row['target']} |"


def fill(text: str, rows: dict[str, dict]) -> str:
    """A document with its tables filled: ``<!-- bench -->`` is the short one, ``<!-- bench PART -->`` that of a part."""

    def table(match: re.Match) -> str:
        if match[2] and not any(row.get("part") == match[2] for row in rows.values()):
            return match[0]
        lines = part_table(rows, match[2]) if match[2] else short_table(rows)
        return match[1] + "\n" + "\n".join(lines) + "\n\n" + match[3]

    return _MARKS.sub(table, text)


def main(root: Path = PROJECT) -> int:
    """Run the command."""
    try:
        rows = json.loads((root / "results" / "bench.json").read_text(encoding="utf-8"))
        for path in (root / "README.md", root / "docs" / "performance.md"):
            write_text(path, fill(path.read_text(encoding="utf-8"), rows))
    except (OSError, SkymillError) as error:
        print(f"write_figures: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
