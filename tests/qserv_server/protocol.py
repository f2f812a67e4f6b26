"""What every service shares: typed access to request parameters, the checks of key and version, the reply envelope."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

API_VERSION = 55
INSTANCE_ID = "qserv-test"


class ApiError(Exception):
    """A refusal by a service: ``success=0`` with this text and ``error_ext``."""

    def __init__(self, message: str, ext: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.ext = ext or {}


class AuthError(Exception):
    """A missing or wrong key."""


class InvalidArgument(Exception):
    """A missing or illegal parameter."""


class DropConnection(Exception):
    """Close the connection without an answer."""


class HttpStatus(Exception):
    """Answer with this HTTP status instead of the JSON envelope."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


_TYPE_NAMES = {type(None): "null", dict: "object", list: "array", str: "string", bool: "boolean"}


def convert(value: Any, kind: str) -> Any:
    """Convert a JSON value as the server's JSON library does.

    ``kind`` is ``str``, ``int``, ``uint`` (negative numbers wrap around 2^32), ``float`` or ``json`` (anything).
    """
    if kind == "json":
        return value
    if kind == "str" and isinstance(value, str):
        return value
    if kind != "str" and isinstance(value, (int, float)):
        return float(value) if kind == "float" else int(value) % 2**32 if kind == "uint" else int(value)
    wanted = "string" if kind == "str" else "number"
    name = _TYPE_NAMES.get(type(value), "number")
    raise RuntimeError(f"[json.exception.type_error.302] type must be {wanted}, but is {name}")


class Body:
    """Parameters of a request's JSON body, or of the form fields of an upload."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values = values or {}

    def has(self, name: str) -> bool:
        return name in self.values

    def required(self, name: str, kind: str) -> Any:
        if name not in self.values:
            raise InvalidArgument(
                f"RequestBodyJSON::required<T>[static] required parameter {name} is missing in the request body"
            )
        return convert(self.values[name], kind)

    def optional(self, name: str, kind: str, default: Any) -> Any:
        return convert(self.values[name], kind) if name in self.values else default

    def required_list(self, name: str, kind: str) -> list[Any]:
        if name not in self.values:
            raise InvalidArgument(
                f"RequestBodyJSON::requiredColl<T> required parameter {name} is missing in the request body"
            )
        if not isinstance(self.values[name], list):
            raise InvalidArgument(
                f"RequestBodyJSON::requiredColl<T> a value of the required parameter {name} is not an array"
            )
        return [convert(value, kind) for value in self.values[name]]

    def unsigned(self, name: str, default: int | None = None) -> int:
        """An unsigned integer given as a number or, in a form field, as text."""
        context = "RequestBodyJSON::requiredUInt "
        if name not in self.values:
            if default is not None:
                return default
            raise InvalidArgument(f"{context}required parameter {name} is missing in the request body")
        value = self.values[name]
        if isinstance(value, int) and not isinstance(value, bool):
            if value >= 0:
                return value
            raise InvalidArgument(f"{context}a value of the required parameter {name} is a negative integer")
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        raise InvalidArgument(f"{context}a value of the required parameter {name} is not an unsigned integer")


@dataclass
class Request:
    """One request to a service.

    ``params`` come from the path, ``query`` from the query string; ``max_version`` is the newest version of the API
    that the service admits to.
    """

    method: str
    path: str
    params: dict[str, str]
    query: dict[str, str]
    client: str
    max_version: int = API_VERSION
    body: Body = field(default_factory=Body)
    warnings: list[str] = field(default_factory=list)
    is_admin: bool = False

    def check_version(self, minimum: int, warning: str = "") -> None:
        """Refuse a version of the API outside the range of the service; the body's number wins over the query's."""
        ext = {"min_version": minimum, "max_version": self.max_version}
        version = 0
        try:
            if "version" in self.query:
                version = int(self.query["version"])
            if self.body.has("version"):
                version = self.body.unsigned("version")
        except (ValueError, InvalidArgument):
            raise ApiError("The optional parameter version is not a number.", ext) from None
        if version == 0:
            self.warnings.append("No version number was provided in the request.")
        elif not minimum <= version <= self.max_version:
            if warning:
                self.warnings.append(warning)
            message = f"The requested version {version} of the API is not in the range supported by the service."
            raise ApiError(message, ext)

    def number(self, name: str, default: int) -> int:
        """A number of the query string."""
        try:
            return int(self.query.get(name, default))
        except ValueError:
            raise RuntimeError("stoll") from None

    def text(self, name: str) -> str:
        """A required text of the query string."""
        if not self.query.get(name):
            raise InvalidArgument(f"RequestQuery::requiredString mandatory parameter '{name}' is missing")
        return self.query[name]

    def flag(self, name: str) -> bool:
        """A required true or false, 1 or 0 of the query string."""
        if name not in self.query:
            raise InvalidArgument(f"RequestQuery::requiredBool mandatory parameter '{name}' is missing")
        value = self.query[name].lower()
        return value == "true" if value in ("true", "false") else self.number(name, 0) != 0


@dataclass(frozen=True)
class Keys:
    """The authorization keys that the servers were started with."""

    auth: str = ""
    admin: str = ""

    def enforce(self, req: Request, context: str) -> None:
        """Check the keys in the body; the administrator's key wins if both are there."""
        if req.body.has("admin_auth_key"):
            if req.body.required("admin_auth_key", "str") != self.admin:
                raise AuthError(
                    f"{context}administrator's authorization key 'admin_auth_key' in the request"
                    " doesn't match the one in server configuration"
                )
            req.is_admin = True
        elif req.body.has("auth_key"):
            if req.body.required("auth_key", "str") != self.auth:
                raise key_mismatch(context)
        else:
            raise AuthError(
                f"{context}none of the authorization keys 'auth_key' or 'admin_auth_key' was found"
                " in the request. Please, provide one."
            )


def key_mismatch(context: str) -> AuthError:
    """The refusal of a wrong ``auth_key``."""
    return AuthError(
        f"{context}authorization key 'auth_key' in the request doesn't match the one in server configuration"
    )


def parse_json(content: bytes, content_type: str) -> Body:
    """Parameters of a JSON body; a body of any other content type is silently ignored, as the server does."""
    if content_type != "application/json" or not content:
        return Body()
    try:
        values = json.loads(content)
    except ValueError:
        values = False
    if values is not None and not isinstance(values, dict):
        raise InvalidArgument("invalid format of the request body. A simple JSON object was expected")
    return Body(values)


def envelope(req: Request, service: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a service and wrap its result, or its failure, in the reply that every service gives."""
    ext: dict[str, Any] = {}
    result: dict[str, Any] = {}
    try:
        result = service()
        error = ""
    except (DropConnection, HttpStatus):
        raise
    except AuthError as ex:
        error = f"failed to pass authorization requirements, ex: {ex}"
    except ApiError as ex:
        error, ext = str(ex), ex.ext
    except InvalidArgument as ex:
        error = f"invalid parameters of the request, ex: {ex}"
    except Exception as ex:  # whatever else goes wrong is reported like this by the real server, too
        error = f"operation failed due to: {ex}"
    status = {"success": 0 if error else 1, "error": error, "error_ext": ext, "warning": "; ".join(req.warnings)}
    return result | status
