"""Faults that the servers can be told to commit: ``POST /test/fault`` on the controller, or the fixture's ``fault``."""

from __future__ import annotations

import fnmatch
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from .protocol import API_VERSION, DropConnection, HttpStatus

# kind: (default count, {option: default}); a count of -1 lasts until the fault is cleared.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    # Stop reading an upload after so many bytes of the file, load the whole rows so far, drop the connection.
    # keep_partial_row loads the broken last row, too.
    "cut_upload": (1, {"bytes": 0, "keep_partial_row": False}),
    # Answer with this HTTP status and do nothing.
    "http_error": (1, {"status": 500}),
    # Wait before the request is served.
    "hang": (1, {"seconds": 1.0}),
    # Serve the request, then drop the connection instead of answering.
    "drop_answer": (1, {}),
    # Drop the connection before the request is served.
    "drop_request": (1, {}),
    # Lose a worker, for so many seconds or (None) until the fault is cleared: its connections are dropped and new
    # ones refused (mode "refuse") or dropped ("drop"). Work of the controller that needs the worker blocks until it
    # is back, or for abort_wait seconds; an abort then fails.
    "worker_down": (1, {"worker": "w1", "seconds": None, "mode": "refuse", "abort_wait": None}),
    # Let the director index of a commit fail.
    "fail_commit": (1, {}),
    # Let a commit succeed without the director index: its answer, and the transaction's log, tell.
    "skip_index": (1, {}),
    # Let an abort fail to drop the table partitions.
    "fail_abort": (1, {}),
    # Refuse the keys of a request, right or wrong.
    "refuse_key": (1, {}),
    # Repeat the key of a request in the error of a refusal, as it is and as JSON writes it.
    "echo_key": (1, {}),
    # Show a worker as not enabled.
    "disable_worker": (1, {"worker": "w1"}),
    # Be a server of another version of the API.
    "version": (-1, {"version": API_VERSION}),
}
MATCH_KEYS = ("method", "path", "service", "database", "table", "chunk", "overlap", "transaction_id")


@dataclass
class Fault:
    """One fault: what, how many times more, which requests (all when ``match`` is empty), and how."""

    id: int
    kind: str
    count: int
    match: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    fired: int = 0

    def matches(self, info: dict[str, Any]) -> bool:
        """Whether a request is meant; values are compared as text, and may hold ``*`` and ``?``."""
        return all(fnmatch.fnmatchcase(str(info.get(key)), str(value)) for key, value in self.match.items())


class Faults:
    """The faults that wait to happen.

    Parameters
    ----------
    on_worker_down
        Called with the fault when a worker is to be lost, and with None when all are to come back.
    """

    def __init__(self, on_worker_down: Callable[[Fault | None], None] = lambda fault: None) -> None:
        self._faults: list[Fault] = []
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._on_worker_down = on_worker_down

    def add(self, spec: dict[str, Any]) -> Fault:
        """Add a fault.

        Raises
        ------
        ValueError
            If the kind, an option or a key of ``match`` is unknown.
        """
        kind = spec.get("kind")
        if kind not in KINDS:
            raise ValueError(f"kind of fault {kind!r} is unknown: use one of {', '.join(KINDS)}")
        count, defaults = KINDS[kind]
        options = {key: value for key, value in spec.items() if key not in ("kind", "count", "match")}
        match = dict(spec.get("match") or {})
        for name, given, allowed in (("option", options, defaults), ("match", match, MATCH_KEYS)):
            for key in set(given) - set(allowed):
                known = ", ".join(allowed) or "none"
                raise ValueError(f"{name} {key!r} of fault {kind} is unknown: use one of {known}")
        fault = Fault(next(self._ids), kind, int(spec.get("count", count)), match, defaults | options)
        if kind == "worker_down":
            self._on_worker_down(fault)
            fault.count, fault.fired = 0, 1
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all faults and bring lost workers back."""
        with self._lock:
            self._faults.clear()
        self._on_worker_down(None)

    def take(self, kind: str, info: dict[str, Any]) -> Fault | None:
        """The next fault of a kind that is meant for a request, counted as fired, or None."""
        with self._lock:
            for fault in self._faults:
                if fault.kind == kind and fault.count != 0 and fault.matches(info):
                    fault.count -= fault.count > 0
                    fault.fired += 1
                    return fault
        return None

    def before(self, info: dict[str, Any]) -> None:
        """Commit the faults that come before a request is served."""
        if fault := self.take("hang", info):
            time.sleep(fault.options["seconds"])
        if fault := self.take("http_error", info):
            raise HttpStatus(fault.options["status"])
        if self.take("drop_request", info):
            raise DropConnection

    def after(self, info: dict[str, Any]) -> None:
        """Commit the faults that come after a request was served and before it is answered."""
        if self.take("drop_answer", info):
            raise DropConnection

    def api_version(self, info: dict[str, Any]) -> int:
        """The version of the API that a request is served with."""
        fault = self.take("version", info)
        return fault.options["version"] if fault else API_VERSION

    def report(self) -> list[dict[str, Any]]:
        """All faults, with how often each has fired."""
        with self._lock:
            return [asdict(fault) for fault in self._faults]
