"""Say what a finished run has made, and ask the embedded store two questions.

    python scripts/summarize_run.py results/fakedb

Reads the records below the results folder; changes nothing.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from skymill.config import Dataset
from skymill.errors import SkymillError, counted
from skymill.files import read_json
from skymill.queries import count_neighbours, count_per_chunk


def table_rows(root: Path) -> list[tuple[str, int, int]]:
    """What the store holds: table, rows, and bytes of its Parquet files.

    Parameters
    ----------
    root : `pathlib.Path`
        ``results/<database>``.

    Raises
    ------
    SkymillError
        If nothing is published there.
    """
    published = read_json(root / "ingest" / "published.json")
    committed = root / "store" / "committed"
    lines = []
    for name, rows in published["rows"].items():
        size = sum(path.stat().st_size for path in committed.glob(f"*/{name}/*.parquet"))
        lines.append((name, rows, size))
    return lines


def format_table(head: list[str], lines: list[list[str]]) -> str:
    """A plain table: first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    rows = [head, ["-" * width for width in widths], *lines]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def ask(database: Path, root: Path) -> str:
    """The example queries with their answers, as text."""
    from skymill.stores.embedded import open_database

    identity = read_json(root / "ingest" / "plan_0.json")["identity"]
    director = Dataset.from_config(identity, root, check=False).tables_of("director")[0]
    radius_deg = identity["partitioning"]["overlap_deg"]
    parts = []
    with open_database(database) as connection:
        for title, query in (
            (f"The fullest chunks of {director.name}:", count_per_chunk(director)),
            (
                f"Pairs of {director.name} closer than {radius_deg} deg, by way of the overlap table:",
                count_neighbours(director, radius_deg),
            ),
        ):
            start = time.monotonic()
            answer = connection.execute(query)
            head = [column[0] for column in answer.description]
            table = format_table(
                head,
                [
                    [f"{value:,}" if head[i] != "chunkId" else str(value) for i, value in enumerate(row)]
                    for row in answer.fetchall()
                ],
            )
            parts.append(f"{title}\n\n{_indent(query)}\n\n{_indent(table)}\n\n  ({time.monotonic() - start:.2f} s)")
    return "\n\n".join(parts)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Say what a finished run has made, and ask the embedded store two questions."
    )
    parser.add_argument("root", type=Path, help="folder of the results, as results/fakedb")
    parser.add_argument("--since", type=float, help="when the run began, as seconds since 1970")
    options = parser.parse_args(arguments)
    try:
        path = options.root / "ingest" / "published.json"
        if not path.exists():
            raise SkymillError(f"there is no {path}; run `snakemake` first, it ends with publishing the database")
        published = read_json(path)
        lines = [[name, f"{rows:,}", f"{size:,}"] for name, rows, size in table_rows(options.root)]
        database = options.root / published["database"]
        print(
            f"\n{counted(published['chunks'], 'chunk')}\n\n{_indent(format_table(['table', 'rows', 'bytes (Parquet)'], lines))}\n"
        )
        seconds = f", made in {time.time() - options.since:.0f} s" if options.since else ""
        print(f"Database: {os.path.relpath(database)} ({database.stat().st_size:,} bytes{seconds})\n")
        print(ask(database, options.root))
    except SkymillError as error:
        print(f"summarize_run: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
