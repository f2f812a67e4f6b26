"""Compares what a store answers with the truth of generation, and says in words what differs.

A tile is verified at a time, so that the memory that it takes does not grow with the survey. What differs is a record
with the table, the chunk, the place (a worker of Qserv; empty for the embedded store), the fact, and both values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from . import facts
from .errors import SkymillError, counted
from .facts import Fact
from .files import read_json
from .plan import State
from .selection import expand_ranges, format_ranges, select_chunks
from .truth import TruthTables, truth_path

#: Facts of a table in a chunk that are told at most; how many more there are is told in the last.
MOST_FACTS = 40
#: Differences that the report in words shows.
MOST_SHOWN = 200
_EXTREMES = ("minimum of ", "maximum of ")


# -- what is verified -----------------------------------------------------------------------------------------------------


def tiles_to_verify(state: State, chunks: np.ndarray | None = None) -> list[tuple[str, str]]:
    """The transactions and tiles that the store shows: all, or those that hold any of some chunks.

    Raises
    ------
    SkymillError
        If there is nothing to verify, or a tile has no truth.
    """
    if state.store == "none":
        raise SkymillError(
            "ingest.store is none: there is no store to verify; `snakemake verify` needs one (key ingest.store)"
        )
    shown = [t for t in state.transactions.values() if t.committed]
    published = state.root / "ingest" / "published.json"
    if state.store == "embedded":
        names = read_json(published)["transactions"] if published.exists() else []
        shown = [t for t in shown if t.name in names]
    if not shown:
        raise SkymillError(f"nothing of {state.root} is published yet; run `snakemake` first")
    tiles = [
        (t.name, tile)
        for t in shown
        for tile, ranges in t.tiles.items()
        if chunks is None or np.isin(expand_ranges(ranges), chunks).any()
    ]
    if not tiles:
        raise SkymillError(
            "only: none of these chunks has been loaded; `snakemake status` lists those that are (completed.clg)"
        )
    missing = [tile for name, tile in tiles if not truth_path(state.root, name, tile).exists()]
    if missing:
        raise SkymillError(
            f"{len(missing)} tiles have no truth, {missing[0]} among them: it was removed from {state.root / 'generated'}, or they were "
            "made by an older version of skymill; there is nothing to compare them with; put the files back from a copy"
        )
    return tiles


class Verification:
    """What the rules of verification ask for; everything is worked out when it is needed.

    A run has a number. One that was stopped is gone on with under the same number; when it is finished there is a
    record of it, and the next has another number.

    Parameters
    ----------
    state : `State`
    config : `Mapping`
        The configuration; its key ``only`` may choose chunks.
    folder : `pathlib.Path`
        The folder of the configuration.
    """

    def __init__(self, state: State, config: Mapping, folder: Path):
        self._state, self._config, self._folder = state, config, folder

    @property
    def chunks(self) -> np.ndarray | None:
        """The chunks that are chosen; None for all."""
        if "only" not in self._config:
            return None
        return select_chunks(self._config["only"], self._state.dataset.chunker, self._folder, "only").chunks

    @property
    def only(self) -> str:
        """The chunks that are chosen, as ranges; empty for all."""
        return "" if self.chunks is None else format_ranges(self.chunks)

    @property
    def record(self) -> str:
        """The record of the next run."""
        folder = self._state.root / "verify"
        tiles_to_verify(self._state, self.chunks)  # refuses what cannot be verified, before any job starts
        number = sum(1 for _ in folder.glob("*.json"))
        chosen = f"-{hashlib.sha256(self.only.encode()).hexdigest()[:8]}" if self.only else ""
        return f"{folder}/{number:04d}{chosen}.json"

    @property
    def truth(self) -> list[str]:
        """The truth of all tiles that the store shows."""
        return [str(truth_path(self._state.root, name, tile)) for name, tile in tiles_to_verify(self._state)]

    def tiles(self, wildcards: object) -> list[str]:
        """The records of the tiles of a run."""
        folder = self._state.root / "verify" / wildcards.run
        return [f"{folder}/{name}/{tile}.json" for name, tile in tiles_to_verify(self._state, self.chunks)]


# -- comparison -----------------------------------------------------------------------------------------------------------


def agrees(expected: Fact, found: Fact) -> bool:
    """Whether a store's answer is the one expected; where that is a range, whether it lies in it."""
    if isinstance(expected, (list, tuple)):
        return found is not None and expected[0] <= found <= expected[1]
    return expected == found


def compare_facts(expected: Mapping[str, Fact], found: Mapping[str, Fact]) -> list[tuple[str, Fact, Fact]]:
    """The facts that differ: name, expected, found. What is missing counts as 0, an extreme as None."""
    different = []
    for name in expected.keys() | found.keys():
        nothing = None if name.startswith(_EXTREMES) else 0
        wanted, answer = expected.get(name, nothing), found.get(name, nothing)
        answer = nothing if answer is None else answer
        if not agrees(wanted, answer):
            different.append((name, wanted, answer))
    # First what is not expected at all: that rows of other chunks are there says more than what they do to the columns.
    order = {name: i for i, name in enumerate(expected)}
    return sorted(different, key=lambda part: (order.get(part[0], -1), part[0]))


def compare_tile(
    truth: TruthTables, chunks: Iterable[int], answers: Mapping[str, TruthTables]
) -> tuple[list[dict], int]:
    """Compare the chunks of a tile.

    Parameters
    ----------
    truth : `TruthTables`
        What is expected, of tables that are loaded.
    chunks : iterable of `int`
        The chunks that were asked for.
    answers : `Mapping` [`str`, `TruthTables`]
        What each place has answered. A chunk counts at the places that know it; if there is none, it is missing.

    Returns
    -------
    differences : `list` [`dict`]
    compared : `int`
        Facts that were compared.
    """
    differences, compared = [], 0
    chunks = list(chunks)
    for name, expected in truth.items():
        for chunk in chunks:
            places = [place for place, found in answers.items() if any(chunk in table for table in found.values())]
            for place in places or [""]:
                found = answers.get(place, {}).get(name, {}).get(chunk, {})
                wanted = expected.get(chunk, {})
                compared += len(wanted)
                differences += differ(name, chunk, place, wanted, found)
    # What is there and ought not to be.
    for place, tables in answers.items():
        for name, found in tables.items():
            for chunk in found.keys() - set(chunks):
                differences += differ(
                    name, chunk, place, {facts.ROWS: 0}, {facts.ROWS: found[chunk].get(facts.ROWS, 0)}
                )
    return differences, compared


def differ(
    table: str, chunk: int | None, place: str, expected: Mapping[str, Fact], found: Mapping[str, Fact]
) -> list[dict]:
    """The differences of a table in a chunk, as records."""
    different = compare_facts(expected, found)
    records = [
        {"table": table, "chunk": chunk, "place": place, "fact": name, "expected": wanted, "found": answer}
        for name, wanted, answer in different[:MOST_FACTS]
    ]
    if len(different) > MOST_FACTS:
        records[-1]["more"] = len(different) - MOST_FACTS
    return records


# -- report ---------------------------------------------------------------------------------------------------------------


def bad_chunks(differences: Iterable[Mapping]) -> dict[str, list[int]]:
    """The chunks of each table in which anything differs; a regular table has none."""
    found: dict[str, set[int]] = {}
    for record in differences:
        held = found.setdefault(record["table"], set())
        if record["chunk"] is not None:
            held.add(record["chunk"])
    return {table: sorted(chunks) for table, chunks in sorted(found.items())}


def in_words(record: Mapping) -> str:
    """A difference in words, on a line."""
    expected = record["expected"]
    if isinstance(expected, (list, tuple)):
        expected = str(expected[0]) if expected[0] == expected[1] else f"{expected[0]} to {expected[1]}"
    where = "" if record["chunk"] is None else f" chunk {record['chunk']}"
    place = f" on {record['place']}" if record["place"] else ""
    more = f" (and {record['more']} more facts)" if record.get("more") else ""
    return f"{record['table']}{where}{place}: {record['fact']}: expected {expected}, found {record['found']}{more}"


def write_report(record: Mapping) -> str:
    """A verification in Markdown."""
    differences = record["differences"]
    lines = [
        f"# Verification of {record['database']}",
        "",
        f"{'**Something differs.**' if differences else '**The store holds what was made.**'} "
        f"{counted(record['compared'], 'fact')} of {counted(record['chunks'], 'chunk')} in {counted(record['tiles'], 'tile')} were compared with the truth of generation"
        f"{', only of the chunks ' + record['only'] if record['only'] else ''}.",
        "",
        "| table | rows expected | rows found | chunks that differ |",
        "| --- | ---: | ---: | ---: |",
    ]
    bad = bad_chunks(differences)
    for table, rows in record["tables"].items():
        lines.append(f"| {table} | {rows['expected']:,} | {rows['found']:,} | {len(bad.get(table, []))} |")
    if differences:
        lines += [
            "",
            "## What differs",
            "",
            "| table | chunk | place | fact | expected | found |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for part in differences[:MOST_SHOWN]:
            cells = [part["table"], part["chunk"], part["place"], part["fact"], part["expected"], part["found"]]
            lines.append(
                "| " + " | ".join("" if cell is None else str(cell).replace("|", "\\|") for cell in cells) + " |"
            )
        if len(differences) > MOST_SHOWN:
            lines.append(f"\n{len(differences) - MOST_SHOWN:,} more are in verify.json.")
        lines += ["", "`snakemake repair` makes the chunks that differ again, and replaces them or says how to."]
    return "\n".join(lines) + "\n"
