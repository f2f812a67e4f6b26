"""Multipart forms read as a stream: an upload of any size needs the memory of one block."""

from __future__ import annotations

import re
from typing import Protocol

from .http_service import BodyReader

BLOCK = 1 << 20
MAX_FIELD = 1 << 24


class FormHandler(Protocol):
    """Receives the parts of a form in their order."""

    def field(self, name: str, value: str) -> None: ...

    def start_file(self, name: str, filename: str) -> None: ...

    def file_data(self, block: bytearray, start: int, end: int) -> bool:
        """Take ``block[start:end]``; false stops the upload here."""
        ...

    def end_file(self, cut: bool) -> None: ...


def boundary_of(content_type: str) -> bytes | None:
    """The boundary named in a multipart content type, or None if it is another type."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    if not content_type.lower().startswith("multipart/form-data") or not found:
        return None
    return found[1].encode("latin1")


def read_form(reader: BodyReader, boundary: bytes, handler: FormHandler) -> None:
    """Feed the parts of a form to a handler until its end, or until the body or the handler breaks off."""
    delimiter = b"\r\n--" + boundary
    block = bytearray(BLOCK)
    block[:2] = b"\r\n"  # the first delimiter has no line before it
    start, end = 0, 2

    def more() -> bool:
        """Move what is left to the front and read on."""
        nonlocal start, end
        block[: end - start] = block[start:end]
        start, end = 0, end - start
        got = reader.readinto(memoryview(block)[end:])
        end += got
        return got > 0

    filename: str | None = None
    name = ""
    value = b""
    in_part = False
    while True:
        found = block.find(delimiter, start, end)
        # Without a delimiter, the last bytes of the block may be the first of one.
        stop = found if found >= 0 else max(start, end - len(delimiter))
        if in_part and filename:
            if stop > start and not handler.file_data(block, start, stop):
                handler.end_file(True)
                return
        elif in_part:
            value += block[start:stop]
            if len(value) > MAX_FIELD:
                raise RuntimeError(f"the form field {name} is longer than {MAX_FIELD} bytes")
        start = stop
        if found < 0:
            if more():
                continue
            # The body has ended inside the part: the rest is all there will be, and is used as if complete.
            if in_part and filename:
                if end > start:
                    handler.file_data(block, start, end)
                handler.end_file(True)
            elif in_part:
                handler.field(name, (value + block[start:end]).decode("utf-8", "replace"))
            return
        if in_part and filename:
            handler.end_file(False)
        elif in_part:
            handler.field(name, value.decode("utf-8", "replace"))
        in_part = False
        start += len(delimiter)
        while end - start < 2 and more():
            pass
        if block[start : start + 2] == b"--" or end - start < 2:
            return
        while (head := block.find(b"\r\n\r\n", start, end)) < 0:
            if not more():
                return
        headers = block[start:head].decode("utf-8", "replace")
        name = _attribute(headers, "name") or ""
        filename = _attribute(headers, "filename")
        value = b""
        start = head + 4
        if filename:
            handler.start_file(name, filename)
        in_part = True


def _attribute(headers: str, key: str) -> str | None:
    found = re.search(rf'^content-disposition:.*?;\s*{key}="((?:[^"\\]|\\.)*)"', headers, re.I | re.M)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else None
