"""The servers as an object, for fixtures of tests and for benchmarks."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from .mariadb import MariaDB

TESTS = str(Path(__file__).resolve().parents[1])
#: Waits for the end of its input, which is the end of the process that has started it, however that came; then ends
#: MariaDB.
_GUARD = (
    "import pathlib, sys; sys.stdin.read(); sys.path.insert(0, sys.argv[1]); from qserv_server.mariadb import MariaDB; "
    "MariaDB(pathlib.Path(sys.argv[2])).stop()"
)


class QservCluster:
    """One controller, two workers and their MariaDB, as a process of its own.

    Parameters
    ----------
    datadir
        Folder of all that is stored; a server started again on it goes on where it was stopped, on the same ports.
        Its path must be short (the limit of a socket's path is 107 bytes).
    auth_key, admin_auth_key
        The keys that the servers ask for.
    """

    def __init__(self, datadir: Path | str, auth_key: str = "", admin_auth_key: str = "", controller_port: int = 0):
        self.datadir = Path(datadir).resolve()
        self.auth_key = auth_key
        self.admin_auth_key = admin_auth_key
        self.controller_port = controller_port
        self.report: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> QservCluster:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self, timeout: float = 60) -> None:
        """Start the servers and wait until they serve.

        Raises
        ------
        RuntimeError
            If they do not within ``timeout`` seconds.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.datadir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "qserv_server", "--until-eof", "--datadir", str(self.datadir)]
        for option, key in (("auth-key", self.auth_key), ("admin-auth-key", self.admin_auth_key)):
            path = self.datadir / option
            path.touch(mode=0o600)
            path.write_text(key)
            command += [f"--{option}-file", str(path)]
        if self.controller_port:
            command += ["--controller-port", str(self.controller_port)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))}
        pipe = subprocess.PIPE
        if self._guard is None:
            guard = [sys.executable, "-c", _GUARD, TESTS, str(self.datadir / "mysql")]
            self._guard = subprocess.Popen(guard, stdin=pipe, start_new_session=True)
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, start_new_session=True)
        line = self._read_line(time.monotonic() + timeout)
        if not line:
            self.stop()
            log = self.datadir / "server.log"
            tail = log.read_text()[-2000:] if log.exists() else ""
            raise RuntimeError(f"the server on {self.datadir} did not start within {timeout} s: {tail}")
        self.report = json.loads(line)

    def _read_line(self, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            return self._process.stdout.readline() if ready else b""

    def stop(self, timeout: float = 60) -> None:
        """Stop the servers and MariaDB, also one that was left by :meth:`kill`."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._release()
        MariaDB(self.datadir / "mysql").stop()
        if self._guard is not None:
            self._guard.communicate(timeout=60)
            self._guard = None

    def kill(self) -> None:
        """Kill the controller and the workers with SIGKILL; MariaDB stays, as a worker's does."""
        assert self._process is not None
        self._process.kill()
        self._release()

    def _release(self) -> None:
        assert self._process is not None
        self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None

    def restart(self) -> None:
        """Stop and start again, on the same ports."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        """Process id of the controller and the workers."""
        return int(self.report["pid"])

    @property
    def url(self) -> str:
        """URL of the controller."""
        return str(self.report["controller"])

    @property
    def worker_urls(self) -> dict[str, str]:
        """URL of each worker's ingest service by its name."""
        return dict(self.report["workers"])

    @property
    def socket(self) -> str:
        """Path of MariaDB's socket; user root, no password."""
        return str(self.report["mariadb_socket"])

    @property
    def mariadb_port(self) -> int:
        """MariaDB's port on 127.0.0.1."""
        return int(self.report["mariadb_port"])

    def sql(self, statement: str, *args: Any) -> list[tuple[Any, ...]]:
        """Run a statement in MariaDB (``%s`` stands for an argument) and return its rows.

        The tables of database ``db`` on worker ``w1`` are in ``w1_db``, those of the czar in ``db``, ``qservMeta``
        and ``qservCssData``.
        """
        connection = MariaDB(self.datadir / "mysql").connect(read_timeout=120, write_timeout=120)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, args or None)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def fault(self, kind: str, count: int | None = None, match: dict[str, Any] | None = None, **options: Any) -> None:
        """Tell the servers to commit a fault (see ``faults.KINDS`` for the kinds and their options).

        Parameters
        ----------
        count
            How many times, -1 for ever; by default once.
        match
            Which requests: values of ``method``, ``path``, ``service`` (``controller``, ``w1``, ``w2``),
            ``database``, ``table``, ``chunk``, ``overlap``, ``transaction_id``, with ``*`` and ``?``.
        """
        spec = {"kind": kind, "match": match or {}} | options | ({} if count is None else {"count": count})
        reply = requests.post(f"{self.url}/test/fault", json=spec, timeout=60).json()
        if not reply["success"]:
            raise ValueError(reply["error"])

    def faults(self) -> list[dict[str, Any]]:
        """The faults and how often each has fired."""
        return list(requests.get(f"{self.url}/test/fault", timeout=60).json()["faults"])

    def clear_faults(self) -> None:
        """Forget all faults and bring lost workers back."""
        requests.delete(f"{self.url}/test/fault", timeout=60)
