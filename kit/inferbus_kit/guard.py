"""The guard around uvicorn's parser: what a connection may send, how slowly, and how much it waits.

In: bytes of clients that may be hostile. Out: requests within `Limits`; all else is refused with
one JSON error and a code in `x-inferbus-error-code`, or closed. uvicorn alone has no such bounds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

_NOTHING, _HEAD, _BODY, _REFUSED = range(4)
_LINGER_S = 2.0
_LINGER_BYTES = 8 << 20
_FREE_PIECES = 1024
_PIECE_BYTES = 64
_MAX_PIPELINED = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may do; `body_bytes` None is unbounded, for routes that stream."""

    head_bytes: int = 32 << 10
    n_headers: int = 100
    head_s: float = 10.0
    body_bytes: int | None = None
    bytes_per_s: int = 1 << 10
    slow_s: float = 10.0
    idle_s: float = 75.0
    n_connections: int = 4096


class _Refusal(Exception):  # noqa: N818 -- an answer, raised through the parser
    """Ends the request that is being read."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection within its limits.

    Invariants: no timer and no clock per request but one read of the loop's time as it begins;
    `look` is called about once a second; after a refusal nothing reaches the app any more, and
    what still arrives is dropped for 2 s so that the client can read why.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._part = _NOTHING
        self._since_s = self.loop.time()
        self._n_messages = self._n_head = self._n_body = self._n_pieces = self._mark = 0
        self._n_chunk = 0
        self._unread = 0
        self._unread_since_s = 0.0
        self._why = (400, "bad_http", "this is not a request of HTTP/1.1")

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._limits.n_connections:
            self._refuse(503, "too_many_connections", "too many connections; try again shortly")

    def data_received(self, data: bytes) -> None:
        if self._part == _REFUSED:
            self._n_body += len(data)
            if self._n_body > _LINGER_BYTES:
                self.transport.abort()
            return
        n_messages, self._n_chunk = self._n_messages, len(data)
        if self._part == _NOTHING:
            n_messages += 1
        super().data_received(data)
        if self._part == _HEAD and self._n_messages == n_messages:
            self._n_head += len(data)
            if self._n_head > self._limits.head_bytes:
                self._refuse(431, "headers_too_large", "the headers are over the limit")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._part, self._since_s = _HEAD, self.loop.time()
        self._n_messages += 1
        self._n_head = self._n_body = self._n_pieces = self._mark = 0
        if len(self.pipeline) > _MAX_PIPELINED:
            self._say(400, "too_many_pipelined", "too many requests wait on this connection")

    def on_header(self, name: bytes, value: bytes) -> None:
        # uvicorn's own lines, since this runs ten times a request.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"content-length" and int(value) > (self._limits.body_bytes or int(value)):
            self._say_too_large()
        self.headers.append((name, value))
        if len(self.headers) > self._limits.n_headers:
            self._say(431, "too_many_headers", "there are more headers than the limit")

    def on_headers_complete(self) -> None:
        # Only a chunk that is larger than the limit can hold a head that is, all others are counted.
        if self._n_chunk > self._limits.head_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._limits.head_bytes:
                self._say(431, "headers_too_large", "the headers are over the limit")
        self._part = _BODY
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._n_body += len(body)
        self._n_pieces += 1
        if self._limits.body_bytes is not None and self._n_body > self._limits.body_bytes:
            self._say_too_large()
        if self._n_pieces > _FREE_PIECES + self._n_body // _PIECE_BYTES:
            self._say(400, "tiny_pieces", "the body comes in too many tiny pieces")
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = _NOTHING
        super().on_message_complete()

    def on_response_complete(self) -> None:
        # uvicorn would arm a timer per request here; `look` closes what is idle instead.
        self.server_state.total_requests += 1
        self._since_s = self.loop.time() if self._part == _NOTHING else self._since_s
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())

    def look(self, now_s: float) -> None:
        """Close or refuse if the client is too slow or gone quiet."""
        limits, waited_s = self._limits, now_s - self._since_s
        self._look_at_unread(now_s)
        if self._part == _REFUSED:
            if waited_s > _LINGER_S:
                self.transport.abort()
        elif self._part == _HEAD:
            if waited_s > limits.head_s:
                self._refuse(408, "slow_headers", "the headers did not come in time")
        elif self._part == _BODY:
            if self.flow.read_paused:
                self._since_s, self._mark = now_s, self._n_body
            elif waited_s > limits.slow_s:
                if self._n_body - self._mark < limits.bytes_per_s * waited_s:
                    self._refuse(408, "slow_body", "the body comes too slowly")
                self._since_s, self._mark = now_s, self._n_body
        elif self.cycle is None:
            if waited_s > limits.head_s:
                self.transport.close()
        elif self.cycle.response_complete and waited_s > limits.idle_s:
            self.transport.close()

    def _look_at_unread(self, now_s: float) -> None:
        """Cut a client that does not read its answer."""
        limits, unread = self._limits, self.transport.get_write_buffer_size()
        if (
            not unread
            or unread + limits.bytes_per_s * limits.slow_s <= self._unread
            or not self._unread
        ):
            self._unread, self._unread_since_s = unread, now_s
        elif now_s - self._unread_since_s > limits.slow_s:
            self.transport.abort()

    def _say_too_large(self) -> None:
        limit = self._limits.body_bytes
        self._say(413, "request_too_large", f"the body is over {limit} bytes; send less at once")

    def _say(self, status: int, code: str, message: str) -> None:
        """Refuse from inside the parser."""
        self._why = (status, code, message)
        raise _Refusal

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's name and text
        """Answer what the parser stopped at."""
        self._refuse(*self._why)

    def _refuse(self, status: int, code: str, message: str) -> None:
        cycle = self.cycle
        reading = self._part == _BODY and not self.pipeline and not cycle.response_started
        free = cycle is None or cycle.response_complete or reading
        self._part, self._since_s, self._n_body = _REFUSED, self.loop.time(), 0
        if not free or self.transport.is_closing():
            self.transport.close()
            return
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        body = json.dumps({"error": message}).encode()
        self.transport.write(
            b"%scontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-inferbus-error-code: %s\r\nconnection: close\r\n\r\n%s"
            % (STATUS_LINE[status], len(body), code.encode(), body)
        )
        self.flow.resume_reading()
        self.transport.write_eof()
