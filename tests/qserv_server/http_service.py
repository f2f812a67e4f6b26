"""HTTP on loopback: routes, bodies read as a stream, connections that can be cut on purpose."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from .faults import MATCH_KEYS, Faults
from .protocol import ApiError, DropConnection, HttpStatus, Keys, Request, envelope, key_mismatch, parse_json

log = logging.getLogger(__name__)


class BodyReader:
    """The bytes of a request's body, whether it has a length or comes in chunks.

    ``cut`` is true once the connection has ended before the body did.
    """

    def __init__(self, source: BufferedReader, headers: Any) -> None:
        self._source = source
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left = 0 if self._chunked else int(headers.get("Content-Length") or 0)
        self._ended = not self._chunked
        self.cut = False

    def readinto(self, view: memoryview) -> int:
        """Read what has come so far into ``view``, waiting for some; 0 means the end of the body."""
        if self.cut or (self._left == 0 and not self._next_chunk()):
            return 0
        got = self._source.readinto1(view[: self._left])
        self.cut = got == 0 < len(view)
        self._left -= got
        return got

    def _next_chunk(self) -> bool:
        if self._ended:
            return False
        line = self._source.readline()
        if line in (b"\r\n", b"\n"):  # the end of the chunk before
            line = self._source.readline()
        size = line.split(b";")[0].strip()
        if not size:
            self.cut = True
            return False
        self._left = int(size, 16)
        if self._left == 0:
            self._ended = True
            while self._source.readline() not in (b"\r\n", b"\n", b""):
                pass
        return self._left > 0

    def read_all(self) -> bytes:
        """The rest of the body."""
        parts = []
        block = bytearray(1 << 16)
        while got := self.readinto(memoryview(block)):
            parts.append(bytes(block[:got]))
        return b"".join(parts)

    def drain(self) -> None:
        """Read and forget the rest, so that a client that is still sending gets to read the answer."""
        block = memoryview(bytearray(1 << 18))
        while self.readinto(block):
            pass


@dataclass(frozen=True)
class Route:
    """A service: ``function(context, request)``, or ``function(context, request, reader, content_type)`` of an upload.

    ``pattern`` is a path with ``{name}`` for its parameters. ``keyed`` services check the authorization key; an
    upload checks it on its own, when the form fields are known.
    """

    method: str
    pattern: str
    function: Callable[..., dict[str, Any]]
    keyed: bool = False
    upload: bool = False


class HttpService:
    """One server: the controller, or the ingest service of a worker.

    Parameters
    ----------
    name
        ``controller`` or the worker's name.
    port
        Port on 127.0.0.1.
    routes, context
        The services and the object that each is called with.
    """

    def __init__(
        self, name: str, port: int, routes: list[Route], context: Any, keys: Keys, faults: Faults, key_context: str
    ) -> None:
        self.name = name
        self.port = port
        self.context = context
        self.keys = keys
        self.faults = faults
        self.key_context = key_context
        self._routes = [(r, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", r.pattern) + r"\Z")) for r in routes]
        self._server: _Server | None = None
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.dropping = False
        # Counts how often the service was lost: work begun before must not go on as if nothing had happened.
        self.generation = 0

    def start(self) -> None:
        """Listen and serve, in threads."""
        self._server = _Server(self)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True, name=self.name).start()

    def stop(self) -> None:
        """Stop listening and drop every connection."""
        self.generation += 1
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            for connection in self._sockets:
                _shutdown(connection)

    def lose(self, mode: str) -> None:
        """Go away as a killed process does: new connections are refused, or (``drop``) taken and closed."""
        self.stop()
        if mode == "drop":
            self.dropping = True
            self.start()

    def restore(self) -> None:
        """Be back after :meth:`lose`."""
        self.dropping = False
        if self._server is None:
            self.start()

    def match(self, method: str, path: str) -> tuple[Route | None, dict[str, str]]:
        """The service of a path and the parameters in it."""
        for route, pattern in self._routes:
            found = pattern.match(path)
            if found and route.method == method:
                return route, {key: unquote(value) for key, value in found.groupdict().items()}
        return None, {}

    def request_info(self, req: Request) -> dict[str, Any]:
        """What a fault may be matched with."""
        info = {"method": req.method, "path": req.path, "service": self.name}
        return info | {k: v for k, v in (req.body.values | req.params).items() if k in MATCH_KEYS}

    def enforce_key(self, req: Request) -> None:
        """Check the authorization key of a request."""
        if self.faults.take("refuse_key", self.request_info(req)):
            raise key_mismatch(self.key_context)
        if self.faults.take("echo_key", self.request_info(req)):
            key = req.body.optional("admin_auth_key", "str", req.body.optional("auth_key", "str", ""))
            raise ApiError(f"the key was {key}, or {json.dumps(key)}")
        self.keys.enforce(req, self.key_context)

    def track(self, connection: socket.socket, alive: bool) -> None:
        """Note that a connection was opened or has ended."""
        with self._lock:
            (self._sockets.add if alive else self._sockets.discard)(connection)


def _shutdown(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended already
        connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, service: HttpService) -> None:
        self.service = service
        super().__init__(("127.0.0.1", service.port), _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return not self.service.dropping

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection of %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "qserv-server"
    disable_nagle_algorithm = True
    rbufsize = 1 << 16
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self.server.service.track(self.connection, True)

    def finish(self) -> None:
        self.server.service.track(self.connection, False)
        with suppress(OSError):  # the client has gone, or the connection was dropped on purpose
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        log.info("%s %s", self.server.service.name, format % args)

    def _serve(self) -> None:
        service = self.server.service
        url = urlsplit(self.path)
        reader = BodyReader(cast(BufferedReader, self.rfile), self.headers)
        route, params = service.match(self.command, url.path)
        if route is None:
            reader.drain()
            self._reply(404, b"<html><head><title>404 Not Found</title></head></html>", "text/html")
            return
        req = Request(self.command, url.path, params, dict(parse_qsl(url.query, True)), self.client_address[0])
        generation = service.generation
        try:
            req.max_version = service.faults.api_version(service.request_info(req))
            if route.upload:
                content_type = self.headers.get("Content-Type", "")
                result = envelope(req, lambda: route.function(service.context, req, reader, content_type))
                reader.drain()
            else:
                content = reader.read_all()
                if reader.cut:
                    raise DropConnection
                result = envelope(req, lambda: self._call(route, req, content))
            if not req.path.startswith("/test/"):
                service.faults.after(service.request_info(req))
            if service.generation != generation:
                raise DropConnection
        except HttpStatus as ex:
            reader.drain()
            self._reply(ex.status, b"<html><head><title>error</title></head></html>", "text/html")
        except DropConnection:
            self.close_connection = True
            _shutdown(self.connection)
        else:
            if result["error"]:
                log.warning("%s %s %s: %s", service.name, req.method, req.path, result["error"])
            self._reply(200, json.dumps(result).encode(), "application/json")

    def _call(self, route: Route, req: Request, content: bytes) -> dict[str, Any]:
        service = self.server.service
        req.body = parse_json(content, self.headers.get("Content-Type", ""))
        if route.keyed:
            service.enforce_key(req)
        if not req.path.startswith("/test/"):
            service.faults.before(service.request_info(req))
        return route.function(service.context, req)

    def _reply(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = _serve
