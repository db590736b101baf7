"""Answers that are generated: whole as one body, or streamed as they come.

In: a prompt that passed its checks, and the connection of its client. Out: the answer in the
route's dialect. A client that leaves cancels its request, unless it asked to keep it; what it would
have read is in the log all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inferbus_gateway import errors
from inferbus_gateway.hot import dialects
from inferbus_gateway.hot.answer import Headers
from inferbus_gateway.hot.dialects import Dialect
from inferbus_gateway.hot.incoming import Head, left, timeout_s
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.prompts import Ask
from inferbus_gateway.hot.requests import Requests, Waiter, failure
from inferbus_gateway.hot.route import Target
from inferbus_gateway.hot.streams import OpenStream, Streams
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Receive, Send
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal

DEFAULT_TIMEOUT_US = 300_000_000
"""How long a generation may take whose client says nothing."""
PING_S = 10.0
_RECONNECT = "this gateway stops; go on at /v1/streams/{} with the last event's id"

Reply = Callable[[int, Headers, bytes], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a route that generates. `keep`: go on when the client has left."""

    request_id: bytes
    caller: Principal
    target: Target
    ask: Ask
    dialect: Dialect
    head: Head
    span: str
    keep: bool = False
    client_request_id: str = ""

    def headers(self) -> Headers:
        """Return the headers of every answer."""
        return [
            (b"x-request-id", ids.text(self.request_id).encode()),
            (b"x-inferbus-model-version", self.target.version_header),
        ]


class EndedError(Exception):
    """A terminal record other than OK; its `error_code` says more than the kind of error."""

    def __init__(self, error: InferbusError, prediction: m.Prediction) -> None:
        super().__init__(str(error))
        self.error = error
        self.prediction = prediction


def ended(prediction: m.Prediction) -> InferbusError | None:
    """Return the error that a terminal record stands for; None where it is OK."""
    if prediction.outcome == m.OUTCOME_OK:
        return None
    if prediction.error_code == errors.ContextExceededError.code:
        return errors.ContextExceededError(prediction.error_message)
    return failure(prediction)


class Generations:
    """Runs calls.

    Invariants: every call's end is settled once, also when nobody waits any more; a stream's
    response begins with its first event, so that what fails before it has a status of its own;
    `[DONE]` follows only a stream of which nothing is missing.
    """

    def __init__(
        self,
        reader: str,
        *,
        requests: Requests,
        streams: Streams,
        metrics: GatewayMetrics,
    ) -> None:
        """Open calls; `reader` names this gateway as it reads streams (`membership.reader`)."""
        self._reader = reader
        self._requests = requests
        self._streams = streams
        self._first_token_seconds = metrics.first_token_seconds

    def open(self, call: Call, waiter: Waiter, reply_partition: int | None = None) -> Entry:
        """Put a call on the bus; its waiter is told how it ended."""
        generation = call.ask.generation
        generation.read_at = self._reader if generation.stream and not call.keep else ""
        return self._requests.open(
            call.request_id,
            call.target,
            call.ask.tensors(),
            caller=call.caller,
            n_rows=call.ask.n_choices,
            outputs=(),
            client_request_id=call.client_request_id,
            timeout_s=timeout_s(call.head, DEFAULT_TIMEOUT_US),
            waiter=waiter,
            traceparent=call.head.traceparent,
            span=call.span,
            generation=generation,
            reply_partition=reply_partition,
        )

    async def whole(self, call: Call, receive: Receive) -> tuple[m.Prediction, str] | None:
        """Return the prediction of a call and its receipt; None where the client left.

        Raises:
            EndedError: a record ended it otherwise.
            InferbusError: it was refused, or no record is known.
        """
        told: asyncio.Future[m.Prediction] = asyncio.get_running_loop().create_future()

        def then(entry: Entry) -> None:
            try:
                prediction = self._requests.settle(entry)
            except InferbusError as error:
                if not told.done():
                    told.set_exception(error)
            else:
                if not told.done():
                    told.set_result(prediction)

        entry = self.open(call, Waiter(then, time.monotonic()))
        leaving = asyncio.create_task(left(receive))
        try:
            either: set[asyncio.Future[Any]] = {told, leaving}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                self._leave(call)
                return None
        finally:
            leaving.cancel()
            told.cancel()
        prediction = told.result()
        if (error := ended(prediction)) is not None:
            raise EndedError(error, prediction)
        return prediction, self._requests.receipt(entry)

    async def stream(self, call: Call, receive: Receive, send: Send) -> None:
        """Stream the answer of a call.

        Raises:
            EndedError, InferbusError: it ended before anything was sent.
        """
        stream = self._streams.open(call.request_id)

        def then(entry: Entry) -> None:
            try:
                prediction = self._requests.settle(entry, stream.state.n_tokens)
            except InferbusError as error:
                stream.fail(error)
            else:
                stream.end(prediction, ended(prediction))

        leaving = asyncio.create_task(left(receive))
        start_s = time.monotonic()
        try:
            entry = self.open(call, Waiter(then, start_s))
            stream.on_first = lambda: self._forwarding(entry, start_s)
            leaving.add_done_callback(lambda _: stream.leave())
            writer = EventWriter(send, call.headers(), call.dialect)
            await self._pump(call, stream, writer)
            if stream.gone:
                self._leave(call)
        finally:
            leaving.cancel()
            self._streams.close(call.request_id)

    def _forwarding(self, entry: Entry, start_s: float) -> None:
        self._requests.forwarding(entry)
        self._first_token_seconds.labels(entry.request.model, str(entry.request.version)).observe(
            time.monotonic() - start_s
        )

    def _leave(self, call: Call) -> None:
        if not call.keep:
            self._requests.abandon(call.request_id)

    async def _pump(self, call: Call, stream: OpenStream, writer: EventWriter) -> None:
        while True:
            heard = await stream.wait(PING_S)
            if stream.gone:
                return
            if await writer.forward(stream, include_usage=call.ask.generation.include_usage):
                return
            if self._streams.leaving.is_set():
                said = _RECONNECT.format(ids.text(call.request_id))
                await writer.close(errors.ReconnectError(said))
                return
            if not heard:
                await writer.write(dialects.PING)


class EventWriter:
    """Writes server-sent events as one response.

    Invariants: the response begins with the first event; one that has begun is always ended, by
    `forward` or `close`.
    """

    def __init__(self, send: Send, headers: Headers, dialect: Dialect) -> None:
        self._send = send
        self._headers = headers
        self._dialect = dialect
        self._begun = False

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Write some events."""
        if not self._begun:
            self._begun = True
            head = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
                *self._headers,
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def forward(self, stream: OpenStream, *, include_usage: bool, after: int = -1) -> bool:
        """Write what there is of a stream; tell whether that was the end of it.

        Args:
            stream: where the events come from.
            include_usage: whether the client wants usage at the end.
            after: chunks up to this offset were read before and are only counted; of the one at it
                what follows its place is told again.

        Raises:
            EndedError, InferbusError: it ended badly before anything was sent.
        """
        parts = []
        while stream.events:
            chunk, offset = stream.events.popleft()
            events = self._dialect.events(chunk, f"{stream.partition}:{offset}")
            if offset > after:
                parts.append(events)
            elif offset == after and (rest := self._dialect.rest(chunk)):
                parts.append(rest)
        state = stream.state
        last = state.ended
        if last and state.error is not None:
            if not self._begun and not parts:
                if state.prediction is not None:
                    raise EndedError(state.error, state.prediction)
                raise state.error
            parts.append(self._error(state.error, state.prediction))
        elif last and state.prediction is not None:
            parts.append(self._dialect.end(state.prediction, include_usage=include_usage))
        if parts or last:
            await self.write(b"".join(parts), last=last)
        return last

    async def close(self, error: InferbusError) -> None:
        """End the response with an error; the client never sees it as whole."""
        await self.write(self._error(error, None), last=True)

    def _error(self, error: InferbusError, prediction: m.Prediction | None) -> bytes:
        code = "" if prediction is None else prediction.error_code
        return self._dialect.error(error, code)
