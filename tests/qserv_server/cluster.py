"""The servers of one data folder: MariaDB, the records, one controller and two workers."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import catalog, chunks, statistics, tables, transactions, worker
from .async_queue import AsyncQueue
from .faults import Fault, Faults
from .http_service import HttpService, Route
from .layout import Layout
from .mariadb import MariaDB
from .protocol import INSTANCE_ID, Keys, Request
from .records import database_json
from .state import Record, State

WORKER_NAMES = ("w1", "w2")
DATABASE_SCHEMA_VERSION = 15
ADDRESS = "127.0.0.1"
NUM_THREADS = max(1, min(8, os.cpu_count() or 1))


@dataclass
class Worker:
    """A worker's ingest service; ``cluster`` is what its services work with."""

    name: str
    cluster: Cluster
    service: HttpService
    queue: AsyncQueue
    up: threading.Event = field(default_factory=threading.Event)

    @property
    def location(self) -> Record:
        """Where contributions to the worker are sent (there is no binary service behind ``port``)."""
        port = self.service.port
        host = {"host": ADDRESS, "host_name": "localhost", "port": 25002}
        return {"worker": self.name} | host | {"http_host": ADDRESS, "http_host_name": "localhost", "http_port": port}


class Cluster:
    """Everything that the services need.

    Parameters
    ----------
    datadir
        Folder of MariaDB, the records, temporary files, the log, and the port numbers, which stay the same when the
        server is started again.
    controller_port
        Port of the controller, 0 for any (the first time) or the one that it had.
    """

    def __init__(self, datadir: Path, controller_port: int = 0, keys: Keys | None = None) -> None:
        datadir.mkdir(parents=True, exist_ok=True)
        self.datadir = datadir
        self.tmp = datadir / "tmp"
        self.tmp.mkdir(exist_ok=True)
        self._ports_file = datadir / "ports.json"
        ports = json.loads(self._ports_file.read_text()) if self._ports_file.exists() else {}
        self.keys = keys or Keys()
        self.mariadb = MariaDB(datadir / "mysql", ports.get("mariadb") or _free_port())
        self.state = State(datadir / "state.sqlite")
        self.layout = Layout(self.mariadb)
        self.faults = Faults(self._on_worker_down)
        self._locks: defaultdict[Any, threading.Lock] = defaultdict(threading.Lock)
        self._locks_guard = threading.Lock()
        self._abort_wait: float | None = None
        routes = [*ROUTES, *catalog.ROUTES, *tables.ROUTES, *transactions.ROUTES, *chunks.ROUTES, *statistics.ROUTES]
        port = controller_port or ports.get("controller") or _free_port()
        self.controller = HttpService("controller", port, routes, self, self.keys, self.faults, "HTTP-PROCESSOR ")
        self.workers = {name: self._worker(name, ports.get(name) or _free_port()) for name in WORKER_NAMES}

    def _worker(self, name: str, port: int) -> Worker:
        service = HttpService(name, port, worker.ROUTES, None, self.keys, self.faults, "INGEST-HTTP-SVC ")
        made = Worker(name, self, service, AsyncQueue(NUM_THREADS))
        service.context = made
        made.up.set()
        return made

    def start(self) -> Record:
        """Start all servers; the report of ports and process ids."""
        self.mariadb.start()
        self.layout.create_czar()
        for made in self.workers.values():
            made.service.start()
            made.queue.start(made)
        self.controller.start()
        ports = {"controller": self.controller.port, "mariadb": self.mariadb.port}
        ports |= {name: made.service.port for name, made in self.workers.items()}
        self._ports_file.write_text(json.dumps(ports))
        urls = {name: f"http://{ADDRESS}:{made.service.port}" for name, made in self.workers.items()}
        report = {"pid": os.getpid(), "controller": f"http://{ADDRESS}:{self.controller.port}", "workers": urls}
        return report | {
            "mariadb_pid": self.mariadb.pid,
            "mariadb_port": self.mariadb.port,
            "mariadb_socket": str(self.mariadb.socket),
        }

    def stop(self) -> None:
        """Stop all servers; what was under way stays as it is."""
        for service in (self.controller, *(made.service for made in self.workers.values())):
            service.stop()
        self.mariadb.stop()
        self.state.close()

    def lock(self, *key: Any) -> threading.Lock:
        """The lock of a named thing."""
        with self._locks_guard:
            return self._locks[key]

    # Lost workers ----------------------------------------------------------------------------------------------

    def _on_worker_down(self, fault: Fault | None) -> None:
        if fault is None:
            for made in self.workers.values():
                self._restore(made)
            return
        if fault.options["worker"] not in self.workers:
            raise ValueError(f"worker {fault.options['worker']!r} is unknown: use one of {', '.join(self.workers)}")
        made = self.workers[fault.options["worker"]]
        self._abort_wait = fault.options["abort_wait"]
        made.up.clear()
        made.service.lose(fault.options["mode"])
        if fault.options["seconds"] is not None:
            timer = threading.Timer(fault.options["seconds"], self._restore, [made])
            timer.daemon = True
            timer.start()

    def _restore(self, made: Worker) -> None:
        if not made.up.is_set():
            made.service.restore()
            made.up.set()

    def wait_for_workers(self) -> list[str]:
        """Wait until all workers are there; the names of those that were not, or still are not after the timeout."""
        lost = [made for made in self.workers.values() if not made.up.is_set()]
        deadline = None if self._abort_wait is None else time.monotonic() + self._abort_wait
        for made in lost:
            made.up.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return [made.name for made in lost]


def _free_port() -> int:
    """A free port below those that outgoing connections use: it must still be free after a restart."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((ADDRESS, random.randrange(15_000, 32_000)))
            return int(probe.getsockname()[1])


# Services of the controller that concern the cluster itself ------------------------------------------------------


def version(cluster: Cluster, req: Request) -> Record:
    """GET /meta/version"""
    info = {"kind": "replication-controller", "id": "00000000-0000-0000-0000-000000000001", "instance_id": INSTANCE_ID}
    return info | {"database_schema_version": DATABASE_SCHEMA_VERSION, "version": req.max_version}


def config(cluster: Cluster, req: Request) -> Record:
    """GET /replication/config"""
    req.check_version(12)
    general = {
        "num-http-loader-processing-threads": NUM_THREADS,
        "num-async-loader-processing-threads": NUM_THREADS,
        "ingest-charset-name": "latin1",
        "ingest-num-retries": 1,
        "ingest-max-retries": 10,
        "loader-max-warnings": 64,
        "loader-port": 25002,
        "http-loader-port": 25004,
        "loader-tmp-dir": str(cluster.tmp),
        "http-loader-tmp-dir": str(cluster.tmp),
    }
    host = {"addr": ADDRESS, "name": "localhost"}
    fault = cluster.faults.take("disable_worker", cluster.controller.request_info(req))
    disabled = fault.options["worker"] if fault else ""
    workers = [
        {
            "name": made.name,
            "is-enabled": int(made.name != disabled),
            "is-read-only": 0,
            "svc-host": host,
            "fs-host": host,
            "loader-host": host,
        }
        | {"loader-port": 25002, "http-loader-host": host, "http-loader-port": made.service.port}
        for made in cluster.workers.values()
    ]
    names = cluster.state.database_names()
    controller = {"http-server-port": cluster.controller.port}
    return {
        "config": {
            "general": {"worker": general, "controller": controller},
            "workers": workers,
            "database_families": cluster.state.families(),
            "databases": [database_json(cluster.state.database(name)) for name in names],
            "czars": [],
            "meta": {},
        }
    }


def add_fault(cluster: Cluster, req: Request) -> Record:
    """POST /test/fault: not of Qserv, but of this server"""
    try:
        return {"fault": cluster.faults.add(req.body.values).id}
    except (ValueError, TypeError) as error:
        raise RuntimeError(str(error)) from error


def list_faults(cluster: Cluster, req: Request) -> Record:
    """GET /test/fault"""
    return {"faults": cluster.faults.report()}


def clear_faults(cluster: Cluster, req: Request) -> Record:
    """DELETE /test/fault"""
    cluster.faults.clear()
    return {}


ROUTES = [
    Route("GET", "/meta/version", version),
    Route("GET", "/replication/config", config),
    Route("POST", "/test/fault", add_fault),
    Route("GET", "/test/fault", list_faults),
    Route("DELETE", "/test/fault", clear_faults),
]
