"""Sends contributions to Qserv, each at most once, and holds what the server says of them against what was sent.

A worker records an upload that was broken off as finished, with the rows that had come; a bad value is a mere warning
unless it is in the first row. So a contribution counts as loaded only if the server has all its rows and bytes without
a warning. What was sent and got no answer is looked up once in the server's own list; it is never sent again in the
same transaction.
"""

from __future__ import annotations

import collections
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from ..config import Dataset, Table
from ..derived import QSERV_DIALECT
from ..errors import PoisonedError, SkymillError, show
from . import Contribution
from .qserv_http import LONG_S, QservClient, QservNoAnswer, QservRefusal, QservUnreachable, growing_delays

#: How often a worker is asked to read a file again that it could not read; the delays between add up to 25 s.
READ_TRIES = 8
#: Bytes that are looked at at a time.
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Shipment:
    """A contribution and the worker that it goes to; ``begun`` is its descriptor if the worker is at it already."""

    contribution: Contribution
    worker: str
    url: str
    begun: Mapping | None = None

    @property
    def fields(self) -> dict:
        """What a worker must be told of it, but the transaction."""
        sent = self.contribution
        # A regular table has no chunk, but the server insists on a number.
        return {"table": sent.table.name, "chunk": sent.chunk or 0, "overlap": int(sent.overlap), **QSERV_DIALECT}

    def is_same(self, held: Mapping) -> bool:
        """Whether a descriptor that the server has is one of this."""
        place = {key: self.fields[key] for key in ("table", "chunk", "overlap")}
        # A chunk is at one worker only; what another has of it would be there twice.
        place |= {"worker": self.worker} if self.contribution.chunk is None else {}
        return all(held[key] == value for key, value in place.items())

    def fault(self, held: Mapping) -> str:
        """What is wrong with a descriptor that the server has; empty if it is whole."""
        sent = self.contribution
        if held["status"] != "FINISHED":
            return f"its status is {held['status']}: {held['error'] or 'no error is given'}"
        if (held["num_rows"], held["num_rows_loaded"], held["num_bytes"]) != (sent.rows, sent.rows, sent.bytes):
            return (
                f"{held['num_rows']} rows in {held['num_bytes']} bytes were received and {held['num_rows_loaded']} loaded, of {sent.rows} "
                f"rows in {sent.bytes} bytes"
            )
        texts = "; ".join(warning["message"] for warning in held["warnings"][:3])
        return f"{held['num_warnings']} values do not fit their columns: {texts}" if held["num_warnings"] else ""

    def __str__(self) -> str:
        return f"{self.contribution.path} for {self.contribution.table_name} at worker {self.worker}"


class Loader:
    """Loads into a transaction.

    Parameters
    ----------
    client : `QservClient`
    database, transaction_id : `str`
    options : `Mapping`
        ``ingest.qserv`` of the configuration.
    """

    def __init__(self, client: QservClient, database: str, transaction_id: str, options: Mapping):
        self.client = client
        self.database = database
        self.transaction_id = transaction_id
        self.options = options

    def load(self, contributions: Sequence[Contribution], may_send: bool) -> Iterator[int | None]:
        """Load contributions that the transaction does not hold yet; yields each chunk as soon as the server has it whole.

        Raises
        ------
        PoisonedError
            If the transaction holds something that is not whole, or nobody knows what became of it.
        SkymillError
            If something else went wrong: nothing was sent then, or the server has it whole.
        """
        places = self._locate(list(dict.fromkeys(contribution.chunk for contribution in contributions)))
        shipments: dict[int | None, list[Shipment]] = {chunk: [] for chunk in places}
        for contribution in contributions:
            shipments[contribution.chunk] += [Shipment(contribution, *place) for place in places[contribution.chunk]]
        until = time.monotonic() + self.client.patience_s
        with ThreadPoolExecutor(self.options["parallel"]) as pool:
            missing_of = functools.partial(self._missing, until=until)
            left = dict(zip(shipments, pool.map(missing_of, shipments.values()), strict=True))
        missing = [shipment for sent in left.values() for shipment in sent]
        if missing and not may_send:
            raise SkymillError(
                f"transaction {self.transaction_id} of {self.database} is committed, but does not hold {missing[0]}; delete the database "
                "from Qserv and the results, and load again"
            )
        yield from (chunk for chunk, sent in left.items() if not sent)
        waiting = {chunk: len(sent) for chunk, sent in left.items()}
        pools = {shipment.url: ThreadPoolExecutor(self.options["parallel"]) for shipment in missing}
        try:
            futures = {pools[s.url].submit(self._ship, s): s.contribution.chunk for s in missing}
            for future in as_completed(futures):
                future.result()
                chunk = futures[future]
                waiting[chunk] -= 1
                if not waiting[chunk]:
                    yield chunk
        finally:
            for pool in pools.values():
                pool.shutdown(cancel_futures=True)

    def _locate(self, chunks: list[int | None]) -> dict[int | None, list[tuple[str, str]]]:
        """The workers that each chunk goes to, by name and address; None stands for the regular tables."""
        places: dict[int | None, list[tuple[str, str]]] = {chunk: [] for chunk in chunks}
        numbers = [chunk for chunk in chunks if chunk is not None]
        if numbers:
            body = {"transaction_id": int(self.transaction_id), "chunks": numbers}
            for place in self.client.call("POST", "/ingest/chunks", body, repeat=True)["locations"]:
                places[place["chunk"]].append(address(place))
        if None in places:
            answer = self.client.call("GET", "/ingest/regular", {"database": self.database})
            places[None] += [address(place) for place in answer["locations"]]
        for chunk, found in places.items():
            if not found:
                raise SkymillError(f"Qserv has no worker for {'regular tables' if chunk is None else f'chunk {chunk}'}")
        return places

    def _held(self, shipments: Sequence[Shipment], until: float) -> list[dict]:
        """What the server knows of shipments to one chunk.

        An upload whose sender has died may still be at work, and is waited for: it may end well, or have been left by
        its worker for good.
        """
        query = {"contrib": 1, "contrib_long": 1, "include_warnings": 1, "chunk": shipments[0].contribution.chunk or 0}
        for delay in growing_delays(2.0):
            found = self.client.transaction(self.database, self.transaction_id, **query)["contrib"]["files"]
            held = [descriptor for descriptor in found if any(shipment.is_same(descriptor) for shipment in shipments)]
            is_busy = any(descriptor["status"] == "IN_PROGRESS" and not descriptor["async"] for descriptor in held)
            if not is_busy or time.monotonic() + delay > until:
                return held
            time.sleep(delay)
        raise AssertionError  # the delays have no end

    def _missing(self, shipments: list[Shipment], until: float) -> list[Shipment]:
        """The shipments to a chunk that the server does not have, or has not finished."""
        held = self._held(shipments, until)
        missing = []
        for shipment in shipments:
            found = self._only(shipment, held)
            if found is None or _can_go_on(found):
                missing.append(replace(shipment, begun=found))
            elif shipment.fault(found):
                raise self._poisoned(shipment, shipment.fault(found))
        return missing

    def _only(self, shipment: Shipment, held: list[dict]) -> dict | None:
        """The one descriptor of a shipment, if there is any."""
        same = [contribution for contribution in held if shipment.is_same(contribution)]
        if len(same) > 1:
            raise self._poisoned(shipment, f"the server has it {len(same)} times")
        if same and same[0]["worker"] != shipment.worker:
            raise self._poisoned(shipment, f"it was sent to worker {same[0]['worker']}")
        return same[0] if same else None

    def _poisoned(self, shipment: Shipment, reason: object) -> PoisonedError:
        text = f"transaction {self.transaction_id} of {self.database}: {shipment}: {reason}"
        return PoisonedError(self.client.scrub(text))

    def _ship(self, shipment: Shipment) -> None:
        """Have a contribution loaded, at most once."""
        body = {"transaction_id": int(self.transaction_id), **shipment.fields}
        sent = shipment.contribution
        if not shipment.begun:
            refuse_other_than_ascii(sent)
        try:
            if shipment.begun:
                held = self._wait(shipment, shipment.begun)
            elif self.options["send"] == "push":
                held = self.client.upload(shipment.url, body, sent.path, sent.bytes)
            else:
                body |= {"url": self._reference(sent.path.absolute())}
                answer = self.client.call("POST", "/ingest/file-async", body, url=shipment.url)
                held = self._wait(shipment, answer["contrib"])
        except (QservRefusal, QservNoAnswer) as error:
            held = self._look_up(shipment, error)
        fault = shipment.fault(held)
        if fault and _can_go_on(held):
            raise SkymillError(self.client.scrub(f"{shipment}: {fault}; mend it and run again"))
        if fault:
            raise self._poisoned(shipment, fault)

    def _look_up(self, shipment: Shipment, error: SkymillError) -> dict:
        """What the server knows of a contribution after an error; that error, if it is sure that there is nothing."""
        try:
            held = self._only(shipment, self._held([shipment], time.monotonic() + self.client.patience_s))
            if held is not None:
                return self._wait(shipment, held)
        except (QservRefusal, QservNoAnswer, QservUnreachable) as second:
            raise self._poisoned(shipment, f"{error}; {second}") from None
        if isinstance(error, QservRefusal):
            raise error
        raise self._poisoned(shipment, f"{error}; the server does not know of it, or not yet")

    def _reference(self, path: Path) -> str:
        """The address at which a worker reads a file."""
        if self.options["send"] == "file":
            return f"file://{path}"
        if not path.is_relative_to(Path.cwd()):
            raise SkymillError(f"{path} is not below {Path.cwd()}, which ingest.qserv.base_url serves; use send: push")
        return f"{self.options['base_url'].rstrip('/')}/{quote(str(path.relative_to(Path.cwd())))}"

    def _wait(self, shipment: Shipment, held: Mapping) -> Mapping:
        """Wait until a worker has done what it was asked for; a file that it could not read is read again."""
        deadline = time.monotonic() + LONG_S
        waits, tries = growing_delays(2.0), itertools.islice(growing_delays(), READ_TRIES)
        while _can_go_on(held) and time.monotonic() < deadline:
            is_failed = held["status"] == "READ_FAILED"
            delay = next(tries if is_failed else waits, None)
            if delay is None:
                break
            time.sleep(delay)
            method = "PUT" if is_failed else "GET"
            held = self.client.call(method, f"/ingest/file-async/{held['id']}", url=shipment.url)["contrib"]
        return held


def _can_go_on(held: Mapping) -> bool:
    """Whether a worker is still at a contribution by reference, or may be asked to read its file again."""
    is_retriable = held["status"] == "READ_FAILED" and bool(held["retry_allowed"])
    return bool(held["async"]) and (held["status"] == "IN_PROGRESS" or is_retriable)


def address(place: Mapping) -> tuple[str, str]:
    """The name of a worker and the address of its ingest service, from a location."""
    host = place["http_host"] or place["http_host_name"]
    return place["worker"], f"http://{f'[{host}]' if ':' in host else host}:{place['http_port']}"


def refuse_other_than_ascii(contribution: Contribution) -> None:
    """Refuse a file with characters that Qserv would take for others: it reads all text as latin1, whatever it is told.

    Raises
    ------
    SkymillError
        Naming the row.
    """
    if all(column.type.kind != "string" for column in contribution.table.stored_columns):
        return
    row = 1
    with open(contribution.path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            if not block.isascii():
                row += block.count(b"\n", 0, next(i for i, byte in enumerate(block) if byte > 127))
                raise SkymillError(
                    f"{contribution.path}: row {row} holds a character that is not ASCII, which Qserv would not "
                    f"store as it is; change the strings of {contribution.table.name}, or leave it out with ingest: false"
                )
            row += block.count(b"\n")


def store_names(table: Table) -> list[str]:
    """The names of a table in the store: its own, and that of its overlap table."""
    return [table.name, *([table.overlap_name] if table.kind == "director" else [])]


def rows_in(dataset: Dataset, summary: Mapping) -> dict[str, int]:
    """The rows of each table, overlap tables included, in the server's summary of a transaction's contributions."""
    rows: collections.Counter[str] = collections.Counter()
    for name, counts in summary["table"].items():
        table = dataset.tables[name]
        # Each worker has a regular table whole.
        rows[name] += counts["num_rows_loaded"] // max(counts["num_files"] if table.kind == "regular" else 1, 1)
        rows[table.overlap_name] += counts.get("overlap", {}).get("num_rows_loaded", 0)
    return {name: count for name, count in rows.items() if count}


def worker_totals(files: Sequence[Mapping]) -> dict[str, dict[str, int]]:
    """Files, rows and bytes that each worker has, by the descriptors of contributions; a regular table is at every worker."""
    totals: dict[str, dict[str, int]] = {}
    for file in files:
        total = totals.setdefault(file["worker"], {"files": 0, "rows": 0, "bytes": 0})
        for key, count in (("files", 1), ("rows", file["num_rows_loaded"]), ("bytes", file["num_bytes"])):
            total[key] += count
    return dict(sorted(totals.items()))


def contents_fault(dataset: Dataset, contrib: Mapping, rows: Mapping[str, int]) -> str:
    """What is wrong with all contributions of a transaction together; empty if nothing is.

    Parameters
    ----------
    dataset : `Dataset`
    contrib : `Mapping`
        The server's summary of them, and their descriptors if it was asked for them.
    rows : `Mapping` [`str`, `int`]
        The rows of each table that must be there, overlap tables included.
    """
    summary = contrib["summary"]
    failed = {key: count for key, count in summary["num_files_by_status"].items() if count and key != "FINISHED"}
    if failed:
        return f"contributions are not finished: {', '.join(f'{count} {key}' for key, count in failed.items())}"
    if summary["num_warnings"] or summary["num_rows"] != summary["num_rows_loaded"]:
        return f"{summary['num_rows_loaded']} of {summary['num_rows']} rows are loaded, with {summary['num_warnings']} warnings"
    regular = {table.name for table in dataset.tables_of("regular")}
    places = collections.Counter(
        (file["table"], file["worker"] if file["table"] in regular else file["chunk"], file["overlap"])
        for file in contrib["files"]
    )
    table, place, _ = next((key for key, count in places.items() if count > 1), (None, None, None))
    if table is not None:
        return f"{table} was sent to {'worker' if table in regular else 'chunk'} {place} more than once"
    loaded, sent = rows_in(dataset, summary), {name: count for name, count in rows.items() if count}
    return "" if loaded == sent else f"it holds the rows {show(loaded)}, sent were {show(sent)}"
