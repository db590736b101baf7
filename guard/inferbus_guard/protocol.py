"""The guard around uvicorn's parser: what one connection may cost in bytes and in time.

In: bytes of a client that may be slow, endless or hostile. Out: requests for the app, or one short
refusal in the words of its path and a closed connection. httptools itself stores heads and trailers
without bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter

import httptools
import structlog
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from inferbus_guard.refusals import (
    BODY_TOO_LARGE,
    CROWDED,
    FRAMING,
    HEAD_TOO_LARGE,
    MALFORMED,
    SLOW_BODY,
    SLOW_HEAD,
    UNREAD,
    UPGRADE,
    Headers,
    Refusal,
    Refuse,
    refuse_plainly,
)

_log = structlog.get_logger("http")

HEAD, BODY, ANSWER, IDLE, REFUSED = range(5)
COPIED_BYTES = 64 << 10

Handler = Callable[["Exchange"], None]
"""Takes a request whose body is whole and answers it, now or later."""
Direct = Callable[[bytes], Handler | None]
"""Return who answers POST to a target, by its bytes in the request line, without ASGI."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do; times hold to within `sweep_s`, None is unlimited.

    `streamed` are paths whose handlers bound the body themselves, as they read it; `unread_bytes`
    is what all connections together may hold of answers that their clients do not read.
    """

    head_bytes: int = 32 << 10
    headers: int = 100
    pipelined: int = 100
    connections: int | None = None
    body_bytes: int | None = None
    streamed: frozenset[bytes] = frozenset()
    body_bytes_per_s: int = 1 << 10
    body_window_s: float = 10.0
    head_s: float = 10.0
    unread_s: float = 30.0
    unread_bytes: int = 256 << 20
    idle_s: float = 75.0
    linger_s: float = 1.0
    sweep_s: float = 0.5


BROKEN_BODY = b'{"error": "something went wrong here"}'
BROKEN_HEAD = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BROKEN_BODY)),
    (b"x-inferbus-error-code", b"internal"),
]


def _wire(status: int, headers: Headers, body: bytes, *, close: bool) -> bytes:
    parts = [STATUS_LINE[status]]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    parts.append(body)
    return b"".join(parts)


class Answers:
    """What a request writes to: uvicorn writes head and body apart, two packets and two calls.

    Invariants: a head of known length leaves with the first of its body; nothing else is held.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head, self._fresh = transport, b"", True
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._fresh and not data.endswith((b" chunked\r\n\r\n", b" Continue\r\n\r\n")):
            self._head, self._fresh = data, False
            return
        if self._head and len(data) < COPIED_BYTES:
            data, self._head = self._head + data, b""
        elif self._head:
            self._transport.write(self._head)
            self._head = b""
        self._transport.write(data)

    def end(self) -> None:
        """Let out what is held, as for HEAD, and expect the next head."""
        if self._head:
            self._transport.write(self._head)
        self._head, self._fresh = b"", True

    def close(self) -> None:
        self.end()
        self._transport.close()


class Exchange:
    """One request that is answered without ASGI: no task, no scope, one write.

    Invariants: `respond` takes effect once, and not at all on a connection that is gone; `left` is
    called when the connection is gone, also where all was answered. What uvicorn asks of a
    request's cycle stands here under its names.
    """

    __slots__ = (
        "_handler",
        "_protocol",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "left",
        "response_complete",
        "response_started",
        "waiting_for_100_continue",
    )

    def __init__(self, protocol: GuardedProtocol, handler: Handler, headers: Headers) -> None:
        self._protocol, self._handler, self.headers = protocol, handler, headers
        self.body = b""
        self.keep_alive = protocol.parser.should_keep_alive()
        self.left: Callable[[], object] = bool
        self.disconnected = self.response_started = self.response_complete = False
        self.waiting_for_100_continue = False

    @property
    def message_event(self) -> Exchange:
        """Stands where an ASGI task waits for messages."""
        return self

    def set(self) -> None:
        """Take what would wake such a task: here only that the connection is gone."""
        self.left()

    @property
    def peer(self) -> str:
        """Address of the connection's other end; empty where it has none."""
        client = self._protocol.client
        return client[0] if client else ""

    def handle(self) -> None:
        """Let the body, which is whole, be answered."""
        try:
            self._handler(self)
        except Exception:  # noqa: BLE001 -- a connection that is never answered is never closed
            _log.exception("handler_failed")
            self.respond(500, BROKEN_HEAD, BROKEN_BODY, close=True)

    def respond(self, status: int, headers: Headers, body: bytes, *, close: bool = False) -> None:
        """Write the answer; `close` ends the connection behind it."""
        if self.response_complete:
            return
        self.response_started = self.response_complete = True
        transport = self._protocol.transport
        if self.disconnected or transport.is_closing():
            return
        close = close or not self.keep_alive
        transport.write(_wire(status, headers, body, close=close))
        if close:
            transport.close()
        self._protocol.on_response_complete()


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Invariants: at most `_room` further bytes reach the parser before a head ends or a body byte
    comes; no timer per request, only `sweep` looks at time; a refusal never stands between the
    parts of another answer; after a refusal nothing reaches the parser.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        limits: Limits,
        direct: Direct | None = None,
        refuse: Refuse = refuse_plainly,
    ) -> None:
        super().__init__(config, state, {})
        self._direct, self._refuse_as, self.url = direct, refuse, b""
        self._limits, self._room, self._phase = limits, limits.head_bytes, HEAD
        self._since_s = self._read_s = self.loop.time()
        self._refusal, self._body_limit = MALFORMED, limits.body_bytes
        self._body_bytes = self._window_bytes = self._unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answers = Answers(transport)
        if len(self.connections) > (self._limits.connections or len(self.connections)):
            self._refuse(CROWDED)

    def data_received(self, data: bytes) -> None:
        view = data if len(data) < self._room else memoryview(data)
        at = 0
        while at < len(data) and self._phase != REFUSED:
            piece = view[at : at + self._room]
            self._room -= len(piece)
            at += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                # Upgrades are ignored, as RFC 9110 allows; what follows is the next request.
                at += int(upgrade.args[0]) - len(piece)
            except httptools.HttpParserError:
                self._refuse(self._refusal)
            if self._room == 0:
                self._refuse(FRAMING if self._phase == BODY else HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        if self.transport.is_closing():
            self._stop_parser(MALFORMED)  # what follows a last answer is nobody's
        # The scope is made by `_to_asgi`, for requests that need one.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._phase, self._since_s = HEAD, self.loop.time()

    def on_headers_complete(self) -> None:
        limits, body_bytes, chunked = self._limits, 0, False
        for name, value in self.headers:
            if name == b"content-length":
                body_bytes = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        if len(self.headers) > limits.headers or len(self.pipeline) >= limits.pipelined:
            self._stop_parser(HEAD_TOO_LARGE)
        streamed = self.url.partition(b"?")[0] in limits.streamed
        self._body_limit = None if streamed else limits.body_bytes
        if self._body_limit is not None and body_bytes > self._body_limit:
            self._stop_parser(BODY_TOO_LARGE)
        # httptools would skip this body, then read it as the next request.
        upgrade = self.parser.should_upgrade()
        if upgrade and (body_bytes or chunked):
            self._stop_parser(UPGRADE)
        plain = 0 < body_bytes <= COPIED_BYTES and not (chunked or upgrade)
        if not (plain and self._take_direct()):
            self._to_asgi()
        self.headers = []  # trailers go here and not into the scope of a running request
        self._phase, self._since_s, self._room = BODY, self.loop.time(), limits.head_bytes
        self._body_bytes = self._window_bytes = 0

    def _take_direct(self) -> bool:
        """Let a plain POST be answered without ASGI if somebody does so; tell whether."""
        if (
            self._direct is None
            or self.flow.write_paused  # ASGI waits until the client has read what it was sent
            or self.expect_100_continue
            or self._answering()
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
        ):
            return False
        handler = self._direct(self.url)
        if handler is None:
            return False
        self.cycle = Exchange(self, handler, self.headers)  # type: ignore[assignment]
        return True

    def _to_asgi(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()
        self.cycle.transport = self._answers  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._room = self._limits.head_bytes
        self._body_bytes += len(body)
        if self._body_bytes > (self._body_limit or self._body_bytes):
            self._stop_parser(BODY_TOO_LARGE)
        cycle: object = self.cycle
        if isinstance(cycle, Exchange):
            cycle.body = cycle.body + body if cycle.body else body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._since_s = self.loop.time()
        cycle: object = self.cycle
        if isinstance(cycle, Exchange):
            self._phase = ANSWER
            cycle.handle()
        else:
            super().on_message_complete()
            self._phase = IDLE if self.cycle.response_complete else ANSWER

    def on_response_complete(self) -> None:
        """Go on with the next request as uvicorn does, without its timer per request."""
        self.server_state.total_requests += 1
        self._answers.end()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase == ANSWER:
            self._phase, self._since_s = IDLE, self.loop.time()

    def _stop_parser(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise ValueError  # `feed_data` turns it into its own error

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, end our side and drop input for `linger_s`: a reset would eat the answer."""
        if self._phase == REFUSED or self.transport.is_closing():
            return
        cycle, in_body = self.cycle, self._phase == BODY
        self._phase, self._since_s = REFUSED, self.loop.time()
        headers, body = self._refuse_as(self.url, refusal)
        if in_body and (cycle.response_started or self.pipeline):
            self.transport.close()
        elif not in_body and self._answering():
            cycle.keep_alive = False  # earlier answers go out, the last one closes
        else:
            if in_body:
                cycle.disconnected = True
                cycle.message_event.set()
            self.flow.resume_reading()
            self.transport.write(_wire(refusal.status, headers, body, close=True))
            self.transport.write_eof()

    def _answering(self) -> bool:
        return self.cycle is not None and not (
            self.cycle.response_complete or self.cycle.disconnected
        )

    def sweep(self, now_s: float) -> None:
        """Close what is too slow; called every `sweep_s`."""
        limits, waited_s = self._limits, now_s - self._since_s
        if self._phase in (HEAD, BODY) and (
            self.flow.read_paused or (self._phase == BODY and self.cycle.waiting_for_100_continue)
        ):
            # Time in which we do not read, or have not yet said 100, is not the client's.
            self._since_s, self._window_bytes = now_s, self._body_bytes
        elif self._phase == HEAD and waited_s >= limits.head_s:
            if self._answering() or self._room < limits.head_bytes:
                self._refuse(SLOW_HEAD)
            else:  # nothing came that could be answered
                self.transport.close()
        elif self._phase == BODY and waited_s >= limits.body_window_s:
            if self._body_bytes - self._window_bytes < limits.body_bytes_per_s * waited_s:
                self._refuse(SLOW_BODY)
            self._since_s, self._window_bytes = now_s, self._body_bytes
        elif self._phase == IDLE and waited_s >= limits.idle_s:
            self.transport.close()
        elif self._phase == REFUSED and waited_s >= limits.linger_s and not self._answering():
            self.transport.abort()
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes == 0 or unread_bytes < self._unread_bytes:
            self._read_s = now_s
        elif now_s - self._read_s >= limits.unread_s:
            self.drop_unread()
        self._unread_bytes = unread_bytes

    def drop_unread(self) -> None:
        """End the connection, with what its client has not read."""
        self._refuse_as(self.url, UNREAD)
        self.transport.abort()


def sweep(connections: Iterable[GuardedProtocol], limits: Limits, now_s: float) -> None:
    """Close connections that are too slow, and those that hold most where all hold too much."""
    holding = []
    for connection in list(connections):
        connection.sweep(now_s)
        holding.append((connection.transport.get_write_buffer_size(), connection))
    too_much = sum(n_bytes for n_bytes, _ in holding) - limits.unread_bytes
    if too_much > 0:
        for n_bytes, connection in sorted(holding, key=itemgetter(0), reverse=True):
            connection.drop_unread()
            too_much -= n_bytes
            if too_much <= 0:
                break
