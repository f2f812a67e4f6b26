"""The REST interface of Qserv's ingest system: requests, the envelope of each answer, keys, and what may be tried again.

Every request has a connection of its own: a kept one costs the workers 40 ms a request. No proxy of the environment is
used. What went wrong is told by the kind of error, for the kind decides what may be done next.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlencode, urlsplit

from ..errors import SkymillError

log = logging.getLogger("skymill.qserv")

#: The version of the API that we speak, and the oldest that a server may have.
VERSION = 55
#: How long to go on with what may be tried again [s].
PATIENCE_S = 120.0
#: Calls that the server answers only when all workers have done their part may take so long [s].
LONG_S = 8 * 3600.0
#: A silent connection is probed after so many seconds, every so many, so often: the other end may be gone.
KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8))


class QservRefusal(SkymillError):
    """The server has answered that it did not do it."""

    @property
    def is_for_key(self) -> bool:
        """Whether the key was refused: then nothing else was looked at."""
        return "failed to pass authorization requirements" in str(self)

    @property
    def is_for_state(self) -> bool:
        """Whether a transaction could not be ended because of its state; the server waits for whoever is ending it before it says so."""
        return "can't be ended at this time" in str(self)


class QservUnreachable(SkymillError):
    """There was no connection: nothing was sent."""


class QservNoAnswer(SkymillError):
    """The request was sent, wholly or in part, and no answer came: nobody knows what was done."""


def growing_delays(longest_s: float = 16.0) -> Iterator[float]:
    """Seconds to wait between tries: from 0.1, doubling, without an end."""
    return (min(0.1 * 2.0**n, longest_s) for n in itertools.count())


class QservClient:
    """Speaks with the controller and the workers.

    Parameters
    ----------
    url : `str`
        Address of the controller.
    auth_key, admin_auth_key : `str` or `None`
        The keys; they are taken out of every message.
    timeout_s : `float`
        Longest time without any answer [s].
    """

    def __init__(self, url: str, auth_key: str | None, admin_auth_key: str | None, timeout_s: float):
        self.url = url
        self.timeout_s = timeout_s
        self.patience_s = min(PATIENCE_S, timeout_s)
        self._keys = {"auth_key": auth_key or ""} | (
            {} if admin_auth_key is None else {"admin_auth_key": admin_auth_key}
        )
        self.key_names = list(self._keys)

    def scrub(self, text: str) -> str:
        """A text without the keys."""
        for key in filter(None, self._keys.values()):
            text = text.replace(key, "***").replace(json.dumps(key)[1:-1], "***")
        return text

    def call(
        self,
        method: str,
        path: str,
        body: Mapping | None = None,
        *,
        url: str | None = None,
        query: Mapping | None = None,
        key: str = "auth_key",
        repeat: bool = False,
        timeout_s: float | None = None,
    ) -> dict:
        """Call a service; whatever is no GET gets the key.

        Parameters
        ----------
        method, path, body, query
            The request.
        url : `str`, optional
            Of a worker; by default the controller's.
        key : `str`
            Which key.
        repeat : `bool`
            Whether the call may be made again when no answer came; a GET always may.
        timeout_s : `float`, optional
            Longest time without any answer, if it is not the usual.

        Raises
        ------
        QservRefusal, QservUnreachable, QservNoAnswer
        """
        keyed = {} if method == "GET" else {key: self._keys[key]}
        content = json.dumps({**(body or {}), **keyed}).encode() if body or keyed else b""
        # The server compares this header letter by letter, and ignores the body if it differs.
        headers = {"Content-Type": "application/json"} if content else {}
        # A server of another version is to answer this one, too.
        versioned = {} if path == "/meta/version" else {"version": VERSION}
        target = f"{url or self.url}{path}?{urlencode({**versioned, **(query or {})})}".rstrip("?")

        def send() -> dict:
            return self._exchange(method, target, headers, [content], timeout_s or self.timeout_s)

        return self._patiently(send, repeat or method == "GET")

    def upload(self, url: str, fields: Mapping, path: Path, size: int) -> dict:
        """Push a file to a worker as a stream: it is never in memory.

        Parameters
        ----------
        url : `str`
            Of the worker.
        fields : `Mapping`
            The form's fields; the key is put before them.
        path : `pathlib.Path`
        size : `int`
            Bytes that the file must have.

        Returns
        -------
        contribution : `dict`
            Its descriptor.

        Raises
        ------
        SkymillError
            If the file has not its size; nothing is sent then.
        QservRefusal, QservUnreachable, QservNoAnswer
        """
        boundary = secrets.token_hex(16)
        opening = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        # The server looks at the key as soon as the file begins.
        form = {"auth_key": self._keys["auth_key"], **fields}
        head = "".join(f'{opening}{name}"\r\n\r\n{value}\r\n' for name, value in form.items())
        head += f'{opening}file"; filename="{path.name}"\r\nContent-Type: text/csv\r\n\r\n'
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        target = f"{url}/ingest/csv?version={VERSION}"
        with open(path, "rb", buffering=0) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise SkymillError(
                    f"{path}: it has {found} bytes, its manifest says {size}; run again, which makes it anew"
                )

            def send() -> dict:
                return self._exchange("POST", target, headers, [head.encode(), file, tail], self.timeout_s)

            return self._patiently(send, repeat=False)["contrib"]

    def check_version(self) -> int:
        """The version of the controller.

        Raises
        ------
        SkymillError
            If it is too old, or the address is not that of a controller.
        """
        answer = self.call("GET", "/meta/version")
        if answer.get("kind") != "replication-controller":
            raise SkymillError(
                f"ingest.qserv.url = {self.url}: found the service {answer.get('kind')}; give the address of the Master Replication "
                "Controller"
            )
        if answer["version"] < VERSION:
            raise SkymillError(
                f"{self.url}: the server is too old: its API has version {answer['version']}, needed is {VERSION} or newer; upgrade Qserv"
            )
        return answer["version"]

    def server(self) -> dict:
        """The configuration of the server: workers, families, databases with their tables."""
        return self.call("GET", "/replication/config")["config"]

    def database(self, name: str) -> dict | None:
        """A database with its tables, if it is there."""
        return find_database(self.server(), name)

    def transaction(self, database: str, transaction_id: str, **query: object) -> dict:
        """A transaction of a database."""
        answer = self.call("GET", f"/ingest/trans/{transaction_id}", query={"database": database, **query})
        return answer["databases"][database]["transactions"][0]

    def transactions(self, database: str, **query: object) -> list[dict]:
        """All transactions of a database."""
        answer = self.call("GET", "/ingest/trans", query={"database": database, **query})
        return answer["databases"][database]["transactions"] or []

    def _patiently(self, call: Callable[[], dict], repeat: bool) -> dict:
        """Make a call, again and again if that is safe."""
        deadline = None
        for delay in growing_delays():
            try:
                return call()
            except (QservUnreachable, QservNoAnswer) as error:
                deadline = deadline or time.monotonic() + self.patience_s
                if time.monotonic() + delay > deadline or not (repeat or isinstance(error, QservUnreachable)):
                    raise
                log.warning("%s; trying again in %.1f s", error, delay)
                time.sleep(delay)
        raise AssertionError  # the delays have no end

    def _exchange(
        self, method: str, target: str, headers: Mapping, parts: Sequence[bytes | BinaryIO], timeout_s: float
    ) -> dict:
        """Send a request, and read the answer."""
        where = urlsplit(target)
        name = f"{method} {where.scheme}://{where.netloc}{where.path}"
        kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        try:
            port = where.port
        except ValueError:
            raise QservRefusal(f"{name}: the port must be a number up to 65535; correct the address") from None
        with contextlib.closing(kind(where.hostname, port, timeout=min(timeout_s, self.timeout_s))) as connection:
            try:
                connection.connect()
            except OSError as error:
                raise QservUnreachable(
                    self.scrub(
                        f"{name}: no connection: {error.strerror or error}; is the server up? Is its address right?"
                    )
                ) from None
            try:
                _watch(connection.sock, timeout_s)
                status, content = _send(connection, method, target.partition(where.netloc)[2], headers, parts)
                answer = json.loads(content) if status == 200 else {}
                if status == 200 and not (isinstance(answer, dict) and "success" in answer):
                    raise ValueError
            except ValueError:
                raise QservNoAnswer(
                    f"{name}: sent, but no answer came that is Qserv's; is {where.scheme}://{where.netloc} the right server?"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                text = str(error) or type(error).__name__
                raise QservNoAnswer(self.scrub(f"{name}: sent, but no answer came: {text}")) from None
        if status >= 500:
            raise QservNoAnswer(f"{name}: HTTP status {status} instead of an answer; the log of the server says why")
        if status != 200:
            raise QservRefusal(f"{name}: HTTP status {status}; is {where.scheme}://{where.netloc} the right server?")
        if answer.get("success") != 1:
            more = f" {json.dumps(answer['error_ext'])}" if answer.get("error_ext") else ""
            refusal = QservRefusal(self.scrub(f"{name}: {answer.get('error')}{more}"))
            if refusal.is_for_key:
                refusal = QservRefusal(f"{refusal}; see whether the keys under ingest.qserv are those of the server")
            raise refusal
        if answer.get("warning") and where.query:
            log.warning("%s: %s", name, self.scrub(answer["warning"]))
        return answer


def find_database(server: Mapping, name: str) -> dict | None:
    """A database in the configuration of a server, if it is there."""
    return next((database for database in server["databases"] if database["database"] == name), None)


def _watch(connection: socket.socket, timeout_s: float) -> None:
    connection.settimeout(timeout_s)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    headers: Mapping,
    parts: Sequence[bytes | BinaryIO],
) -> tuple[int, bytes]:
    """Send parts one behind the other as the body; returns the status and content of the answer."""
    sizes = [len(part) if isinstance(part, bytes) else os.fstat(part.fileno()).st_size for part in parts]
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in {**headers, "Content-Length": sum(sizes), "Connection": "close"}.items():
        connection.putheader(name, str(value))
    # A server that has had enough answers, and closes: then what it says is worth more than the broken pipe.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.endheaders()
        for part, size in zip(parts, sizes, strict=True):
            if isinstance(part, bytes):
                connection.send(part)
            elif size:
                connection.sock.sendfile(part, 0, size)
    response = connection.getresponse()
    return response.status, response.read()
