"""A private MariaDB: its own data folder, socket and loopback port, an ordinary process of the user."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

# Sized for tests: small buffers, nothing synced to the disk, strict mode (the default) as the workers have it.
# Without grant tables an empty folder is enough to start on: no installation step.
OPTIONS = (
    "--skip-grant-tables",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--bind-address=127.0.0.1",
    "--local-infile=1",
    "--performance-schema=0",
    "--sync-frm=0",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-autoextend-increment=4",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-stats-persistent=0",
    "--key-buffer-size=8M",
    "--aria-log-file-size=8M",
    "--aria-pagecache-buffer-size=4M",
    "--read-buffer-size=1M",
    "--character-set-server=latin1",
    "--lower-case-table-names=0",
)


def find_mariadbd() -> str | None:
    """Path of the MariaDB server program, or None if it is not installed."""
    return shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def quote(*names: str) -> str:
    """Quoted SQL identifier of ``name`` or ``database.table``."""
    return ".".join("`" + name.replace("`", "``") + "`" for name in names)


class MariaDB:
    """The server of one data folder.

    Parameters
    ----------
    datadir
        Folder of the server; created when missing.
    port
        TCP port on 127.0.0.1.
    """

    def __init__(self, datadir: Path, port: int = 0) -> None:
        self.datadir = datadir
        self.port = port
        self.socket = datadir / "mariadb.sock"
        self.pid_file = datadir / "mariadb.pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._idle: queue.SimpleQueue[pymysql.Connection] = queue.SimpleQueue()

    @property
    def pid(self) -> int | None:
        """Process id of the server that runs on this folder, or None."""
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # The file may be stale and its number taken by another process.
        return pid if os.fsencode(str(self.datadir)) in command else None

    def start(self, timeout: float = 60) -> None:
        """Start the server, or take over the one that already runs on the folder.

        Raises
        ------
        RuntimeError
            If MariaDB is not installed, or does not answer in time.
        """
        if len(os.fsencode(str(self.socket))) > 107:
            raise RuntimeError(f"the socket path {self.socket} is longer than 107 bytes: use a shorter data folder")
        self.datadir.mkdir(parents=True, exist_ok=True)
        if self.pid is None:
            program = find_mariadbd()
            if program is None:
                raise RuntimeError("mariadbd was not found: install it, for example apt-get install mariadb-server")
            command = [program, "--no-defaults", f"--datadir={self.datadir}", f"--socket={self.socket}"]
            command += [f"--port={self.port}", f"--pid-file={self.pid_file}", *OPTIONS]
            command += [f"--log-error={self.datadir / 'mariadb.log'}", f"--tmpdir={self.datadir}"]
            if os.geteuid() == 0:
                command.append("--user=root")
            self.socket.unlink(missing_ok=True)
            # A session of its own: a Ctrl-C in the terminal must not stop it behind our back.
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.connect().close()
                return
            except pymysql.err.OperationalError as error:
                died = self._process is not None and self._process.poll() is not None
                if died or time.monotonic() > deadline:
                    log = self.datadir / "mariadb.log"
                    raise RuntimeError(f"MariaDB did not start on {self.datadir} (see {log}): {error}") from error
            time.sleep(0.02)

    def stop(self, timeout: float = 60) -> None:
        """Stop the server of this folder by its process id, and wait until it has ended."""
        while not self._idle.empty():
            self._idle.get().close()
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + timeout
            while self.pid == pid and (self._process is None or self._process.poll() is None):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    break
                time.sleep(0.02)
        if self._process is not None:
            self._process.wait(timeout)
            self._process = None

    def connect(self, **options: Any) -> pymysql.Connection:
        """Open a connection through the socket, committing each statement."""
        return pymysql.connect(unix_socket=str(self.socket), user="root", autocommit=True, **options)

    @contextmanager
    def session(self) -> Iterator[pymysql.cursors.Cursor]:
        """A cursor of a pooled connection; a connection that saw an error is not used again."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self.connect()
        try:
            with connection.cursor() as cursor:
                yield cursor
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)

    def execute(self, statement: str, args: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        with self.session() as cursor:
            cursor.execute(statement, args)
            return list(cursor.fetchall())
