"""What the runs of a dataset have recorded: rows, bytes, state and times by chunk, by job, by transaction; and what failed.

Everything comes from plan files, manifests, sentinels, benchmark files and logs; the store is not asked. Runs may go on
meanwhile: what is not written yet counts as not done.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .config import Dataset
from .errors import SkymillError
from .files import read_json
from .plan import State, Transaction
from .selection import expand_ranges, format_ranges

#: Folders of manifests in the order of the stages, with the rule that writes each.
STAGES = {"generated": "generate_tile", "partitioned": "partition_tile", "ingest": "ingest_tile"}
#: How far a chunk has come; its state is an index.
STATES = ("to do", "generated", "partitioned", "loaded", "done", "failed")
DONE, FAILED = STATES.index("done"), STATES.index("failed")
#: What each rule has made if it did not fail, by the path of its log below ``logs``.
_MADE = {
    "make_regular": "visits/{}.npz",
    "convert_density": "density/{}.npy",
    "plan_wave": "ingest/plan_{}.json",
    "register_database": "ingest/database.json",
    "start_transaction": "ingest/transactions/{}.started.json",
    "generate_tile": "generated/{}.json",
    "partition_tile": "partitioned/{}.json",
    "ingest_tile": "ingest/{}.json",
    "make_tile": "ingest/{}.json",
    "ingest_regular": "ingest/{}/regular.json",
    "commit_transaction": "ingest/transactions/{}.committed.json",
    "publish_database": "ingest/publications/{}.json",
}
#: Snakemake looks at a job when it begins and half a second later: what it saw of a shorter job [s] says nothing.
SHORTEST_S = 1.0
_ERROR = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ERROR (.*)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Job:
    """A job, from its manifest and its benchmark file.

    Attributes
    ----------
    stage : `str`
        One of `STAGES`, or the name of a rule that is no stage of a tile.
    transaction, tile : `str`
        Empty if the job belongs to none.
    chunks, rows, bytes : `int`
        What it made; `bytes` is 0 where no manifest tells.
    seconds, cpu_seconds : `float`
        nan if the job was too short to be measured, and its record does not tell.
    host, ended : `str`
        Where and when (ISO 8601) it ended; empty if its record is too old to tell.
    memory_mb : `float`
        Most memory that it held; nan if it was too short to be measured.
    """

    stage: str
    transaction: str
    tile: str
    chunks: int
    rows: int
    bytes: int
    seconds: float
    cpu_seconds: float
    host: str
    ended: str
    memory_mb: float


@dataclass(frozen=True)
class Failure:
    """Something that failed and has not been made good.

    Attributes
    ----------
    chunks : `numpy.ndarray`, int64
        The chunks that wait for it.
    step, transaction, tile : `str`
    time, reason, file : `str`
        ``file`` tells more; it is relative to ``results/<database>``.
    """

    chunks: np.ndarray = field(compare=False)
    step: str
    transaction: str
    tile: str
    time: str
    reason: str
    file: str


class RunRecords:
    """The records of a dataset.

    Parameters
    ----------
    state : `State`

    Attributes
    ----------
    chunks : `numpy.ndarray`, int64, (n,)
        Chunks that are selected, planned or made, ascending.
    states : `numpy.ndarray`, uint8, (n,)
        Indices in `STATES`.
    rows, bytes : `dict` [`str`, `dict` [`str`, `numpy.ndarray`]]
        Stage -> table -> int64 (n,); -1 where there is no record.
    job_of : `dict` [`str`, `numpy.ndarray`]
        Stage -> index in `jobs` (int64, n), -1 where there is none.
    jobs : `list` [`Job`]
        Those of tiles first.
    failures : `list` [`Failure`]
    """

    def __init__(self, state: State):
        self.state = state
        self.root, self.dataset = state.root, state.dataset
        planned = [t.chunks() for t in state.transactions.values()]
        self.chunks = np.unique(np.concatenate([state.selection.chunks, *planned])).astype(np.int64)
        count = len(self.chunks)
        self.states = np.zeros(count, np.uint8)
        self.rows: dict[str, dict[str, np.ndarray]] = {stage: {} for stage in STAGES}
        self.bytes: dict[str, dict[str, np.ndarray]] = {stage: {} for stage in STAGES}
        self.job_of = {stage: np.full(count, -1, np.int64) for stage in STAGES}
        self.jobs: list[Job] = []
        for transaction in state.transactions.values():
            for stage in STAGES:
                for path in sorted((self.root / stage / transaction.name).glob("s*.json"), key=_retry_last):
                    self._read_manifest(stage, transaction, path)
            self._read_sentinels(transaction)
        self.jobs += _other_jobs(self.root)
        self.failures = self._read_failures()
        for failure in self.failures:
            at = self._places(failure.chunks)
            self.states[at[self.states[at] < STATES.index("loaded")]] = FAILED
        keep = (self.states > 0) | np.isin(self.chunks, state.selection.chunks)
        keep |= np.isin(self.chunks, np.concatenate([[], *(t.chunks() for t in state.pending.values())]))
        self._keep_only(keep)

    # -- reading --------------------------------------------------------------------------------------------------------

    def _places(self, chunks: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.chunks, np.asarray(chunks, np.int64))

    def _read_manifest(self, stage: str, transaction: Transaction, path: Path) -> None:
        try:
            manifest = read_json(path)
        except SkymillError:  # an abort has just removed it
            return
        tile = path.stem
        made = manifest["chunks"]
        if stage == "ingest":
            # All chunks of the tile, unless the manifest tells which.
            ids = expand_ranges(manifest.get("ids", transaction.tiles.get(tile, "")))
            rows, size = sum(manifest["rows"].values()), self._bytes_to_load(self._places(ids))
        else:
            ids = np.array([int(chunk) for chunk in made], np.int64)
            at = self._places(ids)
            tables = list(dict.fromkeys(name for entry in made.values() for name in entry))
            rows = size = 0
            for table in tables:
                found = np.array([(e[table]["rows"], e[table]["bytes"]) for e in made.values()], np.int64).reshape(
                    -1, 2
                )
                for target, values in ((self.rows[stage], found[:, 0]), (self.bytes[stage], found[:, 1])):
                    if table not in target:
                        target[table] = np.full(len(self.chunks), -1, np.int64)
                    target[table][at] = values
                rows, size = rows + int(found[:, 0].sum()), size + int(found[:, 1].sum())
        at = self._places(ids)
        self.job_of[stage][at] = len(self.jobs)
        # What vanished before it was loaded has to be made again.
        if stage == "ingest" or path.with_suffix("").is_dir():
            self.states[at] = self._reached(stage, transaction)
        folder, name = self.root / "benchmarks", f"{transaction.name}/{tile}.tsv"
        benchmark = folder / STAGES[stage] / name
        # With a scratch disk one job does all stages.
        benchmark = benchmark if benchmark.exists() else folder / "make_tile" / name
        self.jobs.append(_make_job(stage, transaction.name, tile, len(ids), rows, size, manifest, benchmark))

    def _reached(self, stage: str, transaction: Transaction) -> int:
        """The state of a chunk that is in a manifest of a stage."""
        if stage == "ingest":
            return DONE if transaction.committed else STATES.index("loaded")
        return DONE if stage == "partitioned" and self.state.store == "none" else STATES.index(stage)

    def _bytes_to_load(self, at: np.ndarray) -> int:
        """Bytes of the partitioned files of some chunks that are loaded."""
        known = [
            self.bytes["partitioned"][name][at] for name in self.loaded_tables if name in self.bytes["partitioned"]
        ]
        return int(sum(np.maximum(values, 0).sum() for values in known))

    @property
    def loaded_tables(self) -> list[str]:
        """Directors and children that are loaded, overlap tables included."""
        tables = [table for table in self.dataset.tables_of("director", "child") if table.ingest]
        return [name for t in tables for name in ([t.name, t.overlap_name] if t.kind == "director" else [t.name])]

    def _read_sentinels(self, transaction: Transaction) -> None:
        """The chunks of tiles that are not loaded as a whole yet; and rows, where no manifest has them."""
        started = self.root / "ingest" / "transactions" / f"{transaction.name}.{transaction.attempt}.started.json"
        folder = self.root / "ingest" / transaction.name
        if not started.exists() or not folder.is_dir():
            return
        present = read_json(started)["id"]
        by_table = self.rows["partitioned"]
        for path in folder.glob("s*/chunk_*.json"):
            at = int(self._places(int(path.stem.removeprefix("chunk_"))))
            is_known = any(values[at] >= 0 for values in by_table.values())
            if is_known and self.job_of["ingest"][at] >= 0:
                continue
            with contextlib.suppress(SkymillError):  # an abort has just removed it
                sentinel = read_json(path)
                if sentinel["transaction_id"] != present:
                    continue
                self.states[at] = max(self.states[at], self._reached("ingest", transaction))
                for name in self.loaded_tables if not is_known else ():
                    values = by_table.setdefault(name, np.full(len(self.chunks), -1, np.int64))
                    values[at] = sentinel["rows"].get(name, 0)

    def _read_failures(self) -> list[Failure]:
        found = []
        for path in sorted((self.root / "failures").glob("*/*/chunk_*.json")):
            with contextlib.suppress(SkymillError):  # it has just succeeded
                record = read_json(path)
                names = [record[key] for key in ("stage", "transaction", "tile")]
                shown = str(path.relative_to(self.root))
                found.append(Failure(np.array([record["chunk"]]), *names, record["time"], record["error"], shown))
        told = {(failure.transaction, failure.tile) for failure in found}
        for path, time, reason in _failed_logs(self.root):
            step, *place = path.relative_to(self.root / "logs").with_suffix("").parts
            planned = self.state.transactions.get(place[0].split(".")[0]) if place else None
            transaction, tile = (planned.name, "".join(place[1:])) if planned else ("", "".join(place))
            if (transaction, tile) in told:
                continue
            chunks = expand_ranges(planned.tiles.get(tile, "")) if planned else np.empty(0, np.int64)
            found.append(Failure(chunks, step, transaction, tile, time, reason, str(path.relative_to(self.root))))
        return sorted(found, key=lambda failure: (failure.transaction, failure.tile, failure.time))

    def _keep_only(self, keep: np.ndarray) -> None:
        self.chunks, self.states = self.chunks[keep], self.states[keep]
        for arrays in (*self.rows.values(), *self.bytes.values(), self.job_of):
            for name in arrays:
                arrays[name] = arrays[name][keep]

    # -- answers --------------------------------------------------------------------------------------------------------

    def best(self, values: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Rows or bytes of each table by chunk, as partitioned, else as generated; -1 where there is no record."""
        best = {}
        for table in self.dataset.tables_of("director", "child"):
            for name in [table.name, *([table.overlap_name] if table.kind == "director" else [])]:
                none = np.full(len(self.chunks), -1, np.int64)
                cut, made = (values[stage].get(name, none) for stage in ("partitioned", "generated"))
                best[name] = np.where(cut >= 0, cut, made)
        return best

    def totals(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Rows and bytes of each table by stage, a chunk that was made twice counted once; regular tables are among what is loaded."""
        totals: dict[str, dict[str, tuple[int, int]]] = {}
        for stage in ("generated", "partitioned"):
            totals[stage] = {
                name: (int(np.maximum(rows, 0).sum()), int(np.maximum(self.bytes[stage].get(name, 0), 0).sum()))
                for name, rows in self.rows[stage].items()
            }
        loaded = np.isin(self.states, (STATES.index("loaded"), DONE)) & (self.state.store != "none")
        totals["ingest"] = {}
        for table in self.dataset.tables_of("regular"):
            for transaction in self.state.transactions.values():
                path = self.root / "ingest" / transaction.name / "regular.json"
                rows = read_json(path)["rows"] if path.exists() else {}
                if table.name in rows:
                    totals["ingest"][table.name] = (rows[table.name], _size(self.root / "visits" / f"{table.name}.csv"))
        for name in self.loaded_tables if loaded.any() else ():
            rows, size = (v["partitioned"].get(name, np.zeros(len(loaded))) for v in (self.rows, self.bytes))
            totals["ingest"][name] = tuple(int(np.maximum(values[loaded], 0).sum()) for values in (rows, size))
        return totals

    def transactions(self) -> Iterator[dict]:
        """Each transaction: state, attempts with their ends, times, and what its jobs did."""
        for transaction in self.state.transactions.values():
            folder = self.root / "ingest" / "transactions"
            started = folder / f"{transaction.name}.{transaction.attempt}.started.json"
            committed = folder / f"{transaction.name}.committed.json"
            is_planned = (self.root / "ingest" / f"plan_{transaction.wave}.json").exists()
            state = "committed" if transaction.committed else "open" if started.exists() else "planned"
            recorded = read_json(committed) if committed.exists() else {}
            yield {
                "name": transaction.name,
                "state": state if is_planned else "to be planned",
                "id": read_json(started)["id"] if started.exists() else "",
                "tiles": len(transaction.tiles),
                "chunks": format_ranges(np.intersect1d(transaction.chunks(), self.chunks)),
                "started": _time_of(started),
                "committed": _time_of(committed),
                "workers": recorded.get("workers", {}),
                "aborted": [
                    read_json(path)["reason"] for path in sorted(folder.glob(f"{transaction.name}.*.poisoned.json"))
                ],
            }


def _retry_last(path: Path) -> tuple[str, int]:
    """Tiles in order, and the retries of a tile in the order in which they were made."""
    tile, _, retry = path.stem.partition("r")
    return tile, int(retry or 0)


def _make_job(
    stage: str, transaction: str, tile: str, chunks: int, rows: int, size: int, times: dict, benchmark: Path
) -> Job:
    measured = _read_benchmark(benchmark)
    return Job(
        stage=stage,
        transaction=transaction,
        tile=tile,
        chunks=chunks,
        rows=rows,
        bytes=size,
        seconds=times.get("seconds", measured["s"]),
        cpu_seconds=times.get("cpu_seconds", measured["cpu_time"]),
        host=times.get("host", ""),
        ended=times.get("ended", ""),
        memory_mb=measured["max_rss"],
    )


def _other_jobs(root: Path) -> Iterator[Job]:
    """Jobs that belong to no tile and were measured."""
    for path in sorted((root / "benchmarks").glob("*/*.tsv")):
        rule, name = path.parent.name, path.stem
        record = root / _MADE.get(rule, "{}").format(name)
        times = read_json(record) if record.suffix == ".json" and record.exists() else {}
        transaction = name if rule == "ingest_regular" else ""
        rows = times.get("rows", {})
        yield _make_job(rule, transaction, "" if transaction else name, 0, sum(rows.values()), 0, times, path)


def _read_benchmark(path: Path) -> dict[str, float]:
    """Times and memory of a benchmark file of Snakemake; nan where there is none, or the job was too short."""
    values = {"s": np.nan, "max_rss": np.nan, "cpu_time": np.nan}
    with contextlib.suppress(OSError, ValueError):
        head, line = path.read_text().splitlines()[:2]
        for name, text in zip(head.split("\t"), line.split("\t"), strict=True):
            if name in values:
                with contextlib.suppress(ValueError):  # "NA", "-"
                    values[name] = float(text)
    if values["s"] < SHORTEST_S:
        values["max_rss"] = values["cpu_time"] = np.nan
    return values


def _failed_logs(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Logs that end with an error, of jobs that have not made what they should since: path, time, error."""
    for rule, made in _MADE.items():
        for path in sorted((root / "logs").glob(f"{rule}.log")) + sorted((root / "logs" / rule).rglob("*.log")):
            name = path.relative_to(root / "logs" / rule).with_suffix("") if path.parent.name != "logs" else ""
            if (root / made.format(name)).exists():
                continue
            errors = _ERROR.findall(path.read_text(encoding="utf-8", errors="replace"))
            if errors and not errors[-1][1].startswith("KeyboardInterrupt"):
                # Of a traceback, the first line says where and the last says what.
                time, text = errors[-1]
                lines = text.strip().splitlines()
                yield path, time, lines[-1] if "Traceback (most recent call last):" in text else text.strip()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _time_of(path: Path) -> str:
    """When a record was written (ISO 8601, UTC); empty if it is not there."""
    if not path.exists():
        return ""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")


def read_records(root: Path, dataset: Dataset) -> RunRecords:
    """The records of a dataset; changes nothing.

    Raises
    ------
    SkymillError
        If the configuration is not that of the records.
    """
    return RunRecords(State.read(root, dataset))
