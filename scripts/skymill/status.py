"""How far a dataset is: which chunks are selected, planned, generated, partitioned, loaded, committed, and which have failed.

The records are the source: plans, manifests, sentinels, commits. A chunk counts as generated or partitioned if that
need not be done again, so that a chunk that is loaded counts, though its bulk files are gone.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import SkymillError
from .failures import read_failures
from .files import read_json, write_json, write_text
from .plan import State, Transaction, loaded_chunks, present_id
from .selection import format_ranges

#: How far a chunk can come, in order.
STAGES = ("generated", "partitioned", "loaded", "committed")
NO_CHUNKS = np.empty(0, np.int64)
#: Failures that are printed; the files hold all.
SHOWN_FAILURES = 10


@dataclass
class TransactionStatus:
    """How far a transaction is.

    Attributes
    ----------
    name : `str`
    state : `str`
        planned, open, poisoned, partitioned (the end without a store), or committed.
    attempt : `int`
    chunks : `dict` [`str`, `numpy.ndarray`]
        Chunk ids: target, one for each of `STAGES`, failed.
    rows : `dict` [`str`, `dict`]
        Table -> stage -> rows; overlap tables and regular tables, too.
    failures : `list` [`dict`]
    """

    name: str
    state: str
    attempt: int
    chunks: dict[str, np.ndarray]
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[dict] = field(default_factory=list)

    def add_rows(self, stage: str, rows: Mapping[str, int]) -> None:
        for table, count in rows.items():
            stages = self.rows.setdefault(table, {})
            stages[stage] = stages.get(stage, 0) + count


def read_transaction(state: State, transaction: Transaction) -> TransactionStatus:
    """How far a transaction is, from its records."""
    root, name, target = state.root, transaction.name, transaction.chunks()
    empty = dict.fromkeys((*STAGES, "failed"), NO_CHUNKS)
    status = TransactionStatus(name, "planned", transaction.attempt, {"target": target, **empty})
    if transaction.committed:
        record = read_json(root / "ingest" / "transactions" / f"{name}.committed.json")
        status.state = "committed"
        for stage in STAGES:
            status.chunks[stage] = target
            status.add_rows(stage, record["rows"])
        return status
    transaction_id = present_id(root, name)
    if transaction.attempt and not _is_aborted(root, transaction):
        status.state, transaction_id = "poisoned", None
    elif transaction_id:
        status.state = "open"
    elif transaction.partitioned:
        status.state = "partitioned"
    loaded: dict[int, Mapping] = {}
    for tile in {tile for tile in transaction.tiles if tile.partition("r")[0] == tile}:
        loaded |= loaded_chunks(root, name, tile, transaction_id)
    rows = {"loaded": loaded}
    later = loaded
    for stage in ("partitioned", "generated"):
        made = _made_chunks(root, stage, name, set(target.tolist()))
        # What has gone further has the rows that its manifest says, or those that are loaded.
        rows[stage] = {chunk: made.get(chunk, entry) for chunk, entry in later.items()} | made
        later = rows[stage]
    for stage, entries in rows.items():
        status.chunks[stage] = np.array(sorted(entries), dtype=np.int64)
        for entry in entries.values():
            status.add_rows(stage, entry)
    regular = root / "ingest" / name / "regular.json"
    if transaction_id and regular.exists():
        status.add_rows("loaded", read_json(regular)["rows"])
    status.failures = read_failures(root, name)
    status.chunks["failed"] = np.array([failure["chunk"] for failure in status.failures], dtype=np.int64)
    return status


def _is_aborted(root: Path, transaction: Transaction) -> bool:
    """Whether the attempt before the present one has been aborted."""
    name = f"{transaction.name}.aborted.{transaction.attempt - 1}.json"
    return (root / "ingest" / "transactions" / name).exists()


def _made_chunks(root: Path, stage: str, name: str, planned: set[int]) -> dict[int, dict[str, int]]:
    """The chunks that a stage has made and whose bulk files are still there: the rows of each table."""
    made: dict[int, dict[str, int]] = {}
    for path in sorted((root / stage / name).glob("s*.json")):
        if not path.with_suffix("").is_dir():
            continue
        with contextlib.suppress(SkymillError):  # one that is being removed
            for chunk, entry in read_json(path)["chunks"].items():
                if int(chunk) in planned:
                    # What is generated of a halo is no table.
                    made[int(chunk)] = {t: file["rows"] for t, file in entry.items() if not t.endswith("_halo")}
    return made


@dataclass
class Status:
    """How far a dataset is.

    Attributes
    ----------
    state : `State`
    transactions : `list` [`TransactionStatus`]
        Those that are planned.
    chunks : `dict` [`str`, `numpy.ndarray`]
        Chunk ids: selected, target (selected now, or planned before), assigned (planned), `STAGES`, completed and
        failed.
    time : `str`
        When it was read.
    """

    state: State
    transactions: list[TransactionStatus]
    chunks: dict[str, np.ndarray]
    time: str

    @classmethod
    def read(cls, state: State) -> Status:
        """Read the records; changes nothing."""
        planned = [t for t in state.transactions.values() if state.new_wave is None or t.wave != state.new_wave["wave"]]
        transactions = [read_transaction(state, transaction) for transaction in planned]
        assigned = _union(t.chunks["target"] for t in transactions)
        chunks = {"selected": state.selection.chunks, "target": np.union1d(state.selection.chunks, assigned)}
        chunks["assigned"] = assigned
        for stage in (*STAGES, "failed"):
            chunks[stage] = _union(t.chunks[stage] for t in transactions)
        last = "partitioned" if state.store == "none" else "committed"
        chunks["completed"] = chunks[last]
        return cls(state, transactions, chunks, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def rows(self) -> dict[str, dict[str, int]]:
        """Rows of each table at each stage, over all transactions."""
        total = TransactionStatus("", "", 0, {}, rows={name: {} for name in self._table_names()})
        for transaction in self.transactions:
            for table, stages in transaction.rows.items():
                for stage, count in stages.items():
                    total.add_rows(stage, {table: count})
        return total.rows

    def _table_names(self) -> Iterable[str]:
        for table in self.state.dataset.tables_of("regular", "director", "child"):
            yield table.name
            if table.kind == "director":
                yield table.overlap_name

    def content(self) -> dict:
        """What status.json holds."""
        tables = self.rows()
        return {
            "database": self.state.dataset.database,
            "time": self.time,
            "store": self.state.store,
            "published": (self.state.root / "ingest" / "published.json").exists(),
            "up_to_date": not self.state.pending and (self.state.store == "none" or not self.state.needs_publish()),
            "chunks": _sets(self.chunks),
            "tables": self._tables(tables, self.chunks),
            "transactions": {
                t.name: {
                    "state": t.state,
                    "attempt": t.attempt,
                    "chunks": _sets(t.chunks),
                    "tables": self._tables(t.rows, t.chunks),
                }
                for t in self.transactions
            },
            "failures": [failure for t in self.transactions for failure in t.failures],
        }

    def _tables(self, rows: Mapping, chunks: Mapping[str, np.ndarray]) -> dict:
        """For each table: the chunks and rows that have come to each stage; a regular table has no chunks."""
        regular = {table.name for table in self.state.dataset.tables_of("regular")}
        return {
            table: {
                stage: ({} if table in regular else {"chunks": len(chunks[stage])}) | {"rows": stages.get(stage, 0)}
                for stage in STAGES
            }
            | (
                {}
                if table in regular
                else {"target": {"chunks": len(chunks["target"])}, "failed": {"chunks": len(chunks["failed"])}}
            )
            for table, stages in rows.items()
        }

    def text(self) -> str:
        """What status.md holds, and what is printed."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        content = self.content()
        counts = {name: len(ids) for name, ids in self.chunks.items()}
        yield f"# {content['database']}, {content['time']}\n"
        yield (
            f"{counts['selected']:,} chunks are selected; with those that were planned before, {counts['target']:,} are the target. "
            f"{counts['completed']:,} are complete, {counts['failed']:,} have failed. {self._outlook(content)}\n"
        )
        columns = ("target", *STAGES, "failed")
        lines = [[t.name, t.state, *(f"{len(t.chunks[column]):,}" for column in columns)] for t in self.transactions]
        new = counts["target"] - counts["assigned"]
        lines += [["", "not planned", f"{new:,}", *["0"] * (len(columns) - 1)]] if new else []
        lines.append(["all", "", *(f"{counts[column]:,}" for column in columns)])
        yield "Chunks of each transaction:\n"
        yield format_markdown(["transaction", "state", *columns], lines, 2) + "\n"
        if content["tables"]:
            yield "Rows of each table:\n"
            rows = [[t, *(f"{stages[s]['rows']:,}" for s in STAGES)] for t, stages in content["tables"].items()]
            yield format_markdown(["table", *STAGES], rows, 1) + "\n"
        yield "Chunk ids:\n"
        ids = [[name, f"{len(chunks):,}", _cut(format_ranges(chunks))] for name, chunks in self.chunks.items()]
        yield format_markdown(["set", "chunks", "ids"], ids, 1, left=(2,)) + "\n"
        failures = content["failures"]
        if failures:
            yield f"Failed chunks, the reasons in full in {self.state.root / 'failures'}:\n"
            for failure in failures[:SHOWN_FAILURES]:
                yield f"- {failure['chunk']} ({failure['transaction']}, {failure['tile']}, {failure['stage']}): {failure['error']}"
            if len(failures) > SHOWN_FAILURES:
                yield f"- and {len(failures) - SHOWN_FAILURES} more; status.json has them all"
            yield ""

    def _outlook(self, content: Mapping) -> str:
        left = np.setdiff1d(self.chunks["target"], self.chunks["completed"])
        if content["up_to_date"] and len(left):
            ids = _cut(format_ranges(left))
            return f"Nothing of this selection is left to do; {len(left):,} chunks were planned and are not selected: {ids}."
        if content["up_to_date"]:
            return "Nothing is left to do."
        chunks = sum(len(t.chunks()) for t in self.state.pending.values())
        done = sum(
            len(t.chunks["loaded" if self.state.store != "none" else "partitioned"])
            for t in self.transactions
            if t.name in self.state.pending
        )
        return (
            f"The next run has {chunks - done:,} chunks to do."
            if chunks > done
            else "The next run commits or publishes."
        )

    def write(self) -> list[Path]:
        """Write status.json, status.md and the files of chunk ids; returns their paths."""
        root = self.state.root
        write_json(root / "status.json", self.content())
        write_text(root / "status.md", self.text() + "\n")
        files = {"target": "target", "assigned": "assigned", "completed": "completed", "limbo": "failed"}
        for name, chunks in files.items():
            lines = format_ranges(self.chunks[chunks]).replace(",", "\n")
            write_text(root / f"{name}.clg", f"{lines}\n" if lines else "")
        return [root / name for name in ("status.json", "status.md", *(f"{name}.clg" for name in files))]


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    parts = list(parts)
    return np.unique(np.concatenate(parts)) if parts else NO_CHUNKS


def _sets(chunks: Mapping[str, np.ndarray]) -> dict:
    return {name: {"count": len(ids), "ids": format_ranges(np.sort(ids))} for name, ids in chunks.items()}


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length].rpartition(',')[0]},..."


def format_markdown(head: list[str], lines: list[list[str]], texts: int, left: tuple[int, ...] = ()) -> str:
    """A table in Markdown that can be read as it is: the first columns (``texts``) to the left, numbers to the right."""
    widths = [max(3, *(len(line[i]) for line in [head, *lines])) for i in range(len(head))]
    aligned = [i < texts or i in left for i in range(len(head))]

    def row(cells: list[str]) -> str:
        padded = (
            cell.ljust(w) if is_left else cell.rjust(w) for cell, w, is_left in zip(cells, widths, aligned, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, aligned, strict=True)]
    return "\n".join([row(head), row(rule), *map(row, lines)])
