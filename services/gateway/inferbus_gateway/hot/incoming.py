"""What arrives with a request: the headers that matter here and the body, whole and decompressed.

In: headers and ASGI messages. Out: `Head` and bytes, or the error that refuses them. Time and
size of what a connection sends are bounded before this, by the listener's guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from dataclasses import dataclass

from inferbus_gateway import errors
from inferbus_gateway.hot.compress import CODINGS
from inferbus_guard.refusals import Headers
from inferbus_kit.health import Receive

DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 600.0
_RESPOND_ASYNC = re.compile(rb"(?is)(?:.*,)?\s*respond-async\s*(?:[,;].*)?").fullmatch
"""A preference of that name, among others or with parameters (RFC 7240)."""


@dataclass(slots=True)
class Head:
    """What the headers say."""

    content_length: int = 0
    json_length: int | None = None
    timeout_ms: int | None = None
    encoding: bytes = b""
    traceparent: str = ""
    authorization: bytes | None = None
    host: bytes = b""
    respond_async: bool = False
    coding: bytes = b""
    idempotency_key: bytes | None = None


class Bodies:
    """Reads bodies within bounds.

    Invariants: no body is over `max_body_bytes`, also not decompressed; what all unfinished bodies
    that are read here hold together stays below `max_reading_bytes`. (The listener itself holds
    those of up to 64 KiB, one per connection.)
    """

    def __init__(self, max_body_bytes: int, max_reading_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self._max_reading_bytes = max_reading_bytes
        self._n_reading_bytes = 0

    async def read(self, receive: Receive, head: Head) -> bytes:
        """Return the body of a request.

        Raises:
            InferbusError: it is too large, cannot be decompressed, or the client left.
        """
        if head.content_length > self.max_body_bytes:
            raise errors.too_large(self.max_body_bytes)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.CancelledError("the client left")
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest_of_body(receive, body)
        if len(body) > self.max_body_bytes:
            raise errors.too_large(self.max_body_bytes)
        return self.decompress(body, head.encoding) if head.encoding else body

    async def _rest_of_body(self, receive: Receive, first: bytes) -> bytes:
        """Read on; what slow clients have sent so far counts as waiting here."""
        parts, size, more = [first], len(first), True
        self._n_reading_bytes += size
        try:
            while more and size <= self.max_body_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise errors.CancelledError("the client left")
                part: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                parts.append(part)
                size += len(part)
                self._n_reading_bytes += len(part)
                if self._n_reading_bytes > self._max_reading_bytes:
                    raise errors.OverloadedError("too many bodies are on their way; try again")
        finally:
            self._n_reading_bytes -= size
        return b"".join(parts)

    def decompress(self, body: bytes, encoding: bytes) -> bytes:
        """Return what a body holds.

        Raises:
            InferbusError: it is not what Content-Encoding says, or too large.
        """
        if encoding == b"identity":
            return body
        if encoding not in {b"gzip", b"deflate"}:
            raise errors.UnsupportedEncodingError("Content-Encoding must be gzip or deflate")
        # 47: zlib's own name for "gzip or zlib, look at the header".
        stream = zlib.decompressobj(47)
        try:
            out = stream.decompress(body, self.max_body_bytes + 1)
        except zlib.error:
            raise errors.InvalidRequestError("the body is not what Content-Encoding says") from None
        if len(out) > self.max_body_bytes:
            raise errors.too_large(self.max_body_bytes)
        if not stream.eof:
            raise errors.InvalidRequestError("the compressed body is cut off")
        if stream.unused_data:
            raise errors.InvalidRequestError("something follows the compressed body; leave it out")
        return out


def keeps(headers: Headers) -> bool:
    """Tell whether a client wants its generation to go on when it has left.

    Raises:
        InvalidRequestError: it says something else of that.
    """
    said = dict(headers).get(b"x-inferbus-on-disconnect", b"cancel")
    if said not in {b"keep", b"cancel"}:
        raise errors.InvalidRequestError("x-inferbus-on-disconnect is keep or cancel")
    return bool(said == b"keep")


async def left(receive: Receive) -> None:
    """Return when the client has left; the body must have been read."""
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass


def read_head(headers: Headers) -> Head:  # noqa: C901 -- one look at each header costs least
    """Return what the headers say; their names are in lower case."""
    head = Head()
    for name, value in headers:
        if name == b"inference-header-content-length":
            head.json_length = _whole(value, "Inference-Header-Content-Length")
        elif name == b"x-inferbus-timeout-ms":
            head.timeout_ms = _whole(value, "x-inferbus-timeout-ms")
        elif name == b"content-encoding":
            head.encoding = value.strip().lower()
        elif name == b"content-length":
            head.content_length = _whole(value, "Content-Length")
        elif name == b"host":
            head.host = value
        elif name == b"authorization":
            head.authorization = value
        elif name == b"traceparent":
            head.traceparent = value.decode("latin-1")
        elif name == b"prefer":
            head.respond_async |= _RESPOND_ASYNC(value) is not None
        elif name == b"accept-encoding" and value in CODINGS:
            head.coding = value
        elif name == b"idempotency-key":
            head.idempotency_key = value
    return head


def _whole(value: bytes, name: str) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 12:  # noqa: PLR2004 -- no header of ours needs more
        raise errors.InvalidRequestError(f"header {name} must be a whole number")
    return int(text)


def timeout_s(head: Head, timeout_us: int | None) -> float:
    """Return how long a request may take; the header stands over the body's parameter."""
    if head.timeout_ms is not None:
        if head.timeout_ms == 0:
            raise errors.InvalidRequestError("header x-inferbus-timeout-ms must be at least 1")
        return float(min(head.timeout_ms / 1e3, MAX_TIMEOUT_S))
    if timeout_us is not None:
        return float(min(timeout_us / 1e6, MAX_TIMEOUT_S))
    return DEFAULT_TIMEOUT_S
