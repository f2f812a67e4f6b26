"""Sends contributions to Qserv, each at most once, and holds what the server says of them against what was sent.

A worker records an upload that was broken off as finished, with the rows that had come; a bad value is a mere warning unless it is
in the first row. So a contribution counts as loaded only if the server has all its rows and bytes without a warning. What was sent and got no
answer is looked up once in the server's own list; it is never sent again in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from ..derived import QSERV_DIALECT
from ..errors import PoisonedError, SkymillError
from . import Contribution
from .qserv_http import LONG_S, QservClient, QservNoAnswer, QservRefusal, QservUnreachable, growing_delays

#: How often a worker is asked to read a file again that it could not read.
READ_TRIES = 5


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
        place = {key: self.fields[key] for key in ("table", "chunk", "overlap")} | {"worker": self.worker}
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
        with ThreadPoolExecutor(self.options["parallel"]) as pool:
            left = dict(zip(shipments, pool.map(self._missing, shipments.values()), strict=True))
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

    def _held(self, chunk: int | None) -> list[dict]:
        """The contributions to a chunk that the server knows of."""
        query = {"contrib": 1, "contrib_long": 1, "include_warnings": 1, "chunk": chunk or 0}
        return self.client.transaction(self.database, self.transaction_id, **query)["contrib"]["files"]

    def _missing(self, shipments: list[Shipment]) -> list[Shipment]:
        """The shipments to a chunk that the server does not have, or has not finished."""
        held = self._held(shipments[0].contribution.chunk)
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
        return same[0] if same else None

    def _poisoned(self, shipment: Shipment, reason: object) -> PoisonedError:
        text = f"transaction {self.transaction_id} of {self.database}: {shipment}: {reason}"
        return PoisonedError(self.client.scrub(text))

    def _ship(self, shipment: Shipment) -> None:
        """Have a contribution loaded, at most once."""
        body = {"transaction_id": int(self.transaction_id), **shipment.fields}
        sent = shipment.contribution
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
            held = self._only(shipment, self._held(shipment.contribution.chunk))
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
        tries = 0
        for delay in growing_delays(2.0):
            if not _can_go_on(held) or tries == READ_TRIES or time.monotonic() > deadline:
                break
            time.sleep(delay)
            tries += held["status"] == "READ_FAILED"
            method = "PUT" if held["status"] == "READ_FAILED" else "GET"
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
