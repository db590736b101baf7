"""POST /v2/models/{m}[/versions/{v}]/infer: plain ASGI, from the body's bytes to the answer's.

In: one HTTP request. Out: one answer whose record is in the log. Until the frame is handed to the
producer a request may be refused with 503; after that only a terminal record ends it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
import zlib
from dataclasses import dataclass

from prometheus_client import Counter, Histogram

from inferbus_gateway import errors
from inferbus_gateway.hot import oip
from inferbus_gateway.hot.answer import Answer, ok, reject, send
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.publish import Publisher
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.route import Routes, Target
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Receive, Scope, Send
from inferbus_kit.metrics import GatewayMetrics
from inferbus_kit.telemetry import OpenSpan, Tracing
from inferbus_schemas import ids
from inferbus_schemas import messages as m

DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 600.0
TENANT = "local"
"""The tenant of every request until there is authentication."""
_SAMPLE_EVERY = 8
_US = 1e6


class Waiter:
    """Where one request waits for its end; resolved once.

    `prediction` and `offset` are set by a terminal record; `refused` where Kafka never saw it;
    `unknown` where no record came in time.
    """

    __slots__ = ("future", "offset", "prediction", "read_s", "refused", "span", "unknown")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self.prediction: m.Prediction | None = None
        self.offset = -1
        self.read_s = 0.0
        self.refused = False
        self.unknown = False
        self.span: OpenSpan | None = None

    def resolve(self, prediction: m.Prediction, offset: int, read_s: float) -> None:
        """A terminal record ended the request."""
        self.prediction, self.offset, self.read_s = prediction, offset, read_s
        self._wake()

    def refuse(self, _entry: Entry) -> None:
        """Nothing of the request was handed over."""
        self.refused = True
        self._wake()

    def give_up(self) -> None:
        """No record came in time."""
        self.unknown = True
        self._wake()

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


@dataclass(slots=True)
class _Head:
    """What the headers say."""

    json_length: int | None = None
    timeout_ms: int | None = None
    encoding: bytes = b""
    traceparent: str = ""


class Infer:
    """The hot route.

    Invariants: every accepted request is registered before its frame leaves; every answer but a
    refusal names the record that it was made from, or says that none is known.
    """

    def __init__(
        self,
        *,
        instance: str,
        routes: Routes,
        pending: Pending,
        publisher: Publisher,
        replies: Replies,
        metrics: GatewayMetrics,
        tracing: Tracing,
        max_body_bytes: int,
    ) -> None:
        self._instance = instance
        self._routes = routes
        self._pending = pending
        self._publisher = publisher
        self._replies = replies
        self._metrics = metrics
        self._tracing = tracing
        self._max_body_bytes = max_body_bytes
        self._entropy = b""
        self._n_answers = 0
        self._counters: dict[tuple[str, int, int], tuple[Counter, Histogram]] = {}
        self.draining = False

    def new_id(self) -> bytes:
        """Mint a request id."""
        pool = self._entropy
        if len(pool) < 10:  # noqa: PLR2004 -- the 74 random bits of a UUIDv7
            pool = os.urandom(4000)
        self._entropy = pool[10:]
        return ids.uuid7(time.time_ns() // 1_000_000, int.from_bytes(pool[:10], "big"))

    async def __call__(
        self, scope: Scope, receive: Receive, send_: Send, model: str, version: str
    ) -> None:
        """Answer one request."""
        request_id = self.new_id()
        try:
            head = _read_head(scope)
            body = await self._body(receive, head.encoding)
            answer = await self._answer(head, body, model, version, request_id)
        except InferbusError as error:
            self._metrics.rejected.labels(error.code).inc()
            answer = reject(error, ids.text(request_id))
        await send(send_, answer)

    async def _answer(
        self, head: _Head, body: bytes, model: str, version: str, request_id: bytes
    ) -> Answer:
        start_s = time.monotonic()
        target = self._routes.resolve(model, version)
        parsed = oip.parse(body, head.json_length, target.manifest.signature)
        entry = self._entry(request_id, target, parsed, head, start_s)
        waiter: Waiter = entry.waiter
        self._publisher.place(entry)
        parsed_s = time.monotonic()
        await waiter.future
        if waiter.prediction is None:
            raise _refusal(waiter)
        self._metrics.in_flight.set(len(self._pending))
        prediction = waiter.prediction
        if waiter.span is not None:
            waiter.span.end(
                inferbus__request_id=ids.text(request_id),
                inferbus__model=target.model,
                inferbus__version=target.version,
                inferbus__outcome=m.outcome_name(prediction.outcome),
            )
        receipt = f"{self._replies.partition}:{waiter.offset}"
        if prediction.outcome != m.OUTCOME_OK:
            self._count(prediction, time.monotonic() - start_s)
            return _failure(prediction, request_id, receipt, target)
        rendered = oip.render(
            m.TensorSet.FromString(prediction.outputs).tensors,
            model=target.model,
            version=target.version,
            client_request_id=parsed.client_request_id,
            binary=parsed.binary,
        )
        timing = self._timing(entry, prediction, start_s, parsed_s)
        self._count(prediction, time.monotonic() - start_s)
        return ok(
            rendered,
            prediction,
            version=target.version_header,
            request_id=ids.text(request_id),
            receipt=receipt,
            timing=timing,
        )

    def _entry(
        self, request_id: bytes, target: Target, parsed: oip.Parsed, head: _Head, now_s: float
    ) -> Entry:
        if self.draining:
            raise errors.DrainingError("this gateway is stopping; send the request to another one")
        if self._pending.full:
            raise errors.OverloadedError("too many requests wait here; try again shortly")
        request = m.Request(
            id=request_id,
            tenant=TENANT,
            model=target.model,
            version=target.version,
            reply_partition=self._replies.partition,
            may_retry=True,
            criticality=2,
            client_request_id=parsed.client_request_id,
            outputs=parsed.outputs,
            tensors=parsed.tensors,
        )
        waiter = Waiter(asyncio.get_running_loop())
        if self._tracing.on and self._tracing.sampled(head.traceparent):
            waiter.span = self._tracing.open(
                "POST /v2/models/{model}/infer", parent=head.traceparent, kind="SERVER"
            )
            request.traceparent = waiter.span.traceparent
        entry = Entry(
            request,
            target.pool,
            n_rows=parsed.n_rows,
            deadline_s=now_s + _timeout_s(head, parsed),
            waiter=waiter,
        )
        self._pending.add(entry, now_s)
        return entry

    async def _body(self, receive: Receive, encoding: bytes) -> bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.CancelledError("the client left")
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts, size = [body], len(body)
            while message.get("more_body"):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise errors.CancelledError("the client left")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > self._max_body_bytes:
                    break
            body = b"".join(parts)
        if len(body) > self._max_body_bytes:
            raise self._too_large()
        return self._decompress(body, encoding) if encoding else body

    def _too_large(self) -> errors.TooLargeError:
        return errors.TooLargeError(
            f"the body is over {self._max_body_bytes} bytes; send fewer rows per request"
        )

    def _decompress(self, body: bytes, encoding: bytes) -> bytes:
        if encoding == b"identity":
            return body
        if encoding not in {b"gzip", b"deflate"}:
            raise errors.UnsupportedEncodingError("Content-Encoding must be gzip or deflate")
        # 47: zlib's own name for "gzip or zlib, look at the header".
        stream = zlib.decompressobj(47)
        try:
            out = stream.decompress(body, self._max_body_bytes + 1)
        except zlib.error:
            raise errors.InvalidRequestError("the body is not what Content-Encoding says") from None
        if len(out) > self._max_body_bytes:
            raise self._too_large()
        if not stream.eof:
            raise errors.InvalidRequestError("the compressed body is cut off")
        return out

    def _count(self, prediction: m.Prediction, seconds: float) -> None:
        key = (prediction.model, prediction.version, prediction.outcome)
        counter = self._counters.get(key)
        if counter is None:
            labels = (key[0], str(key[1]))
            counter = self._counters[key] = (
                self._metrics.requests.labels(*labels, m.outcome_name(key[2])),
                self._metrics.request_seconds.labels(*labels),
            )
        counter[0].inc()
        counter[1].observe(seconds)

    def _timing(
        self, entry: Entry, prediction: m.Prediction, start_s: float, parsed_s: float
    ) -> str:
        """Split the time by hop, in microseconds.

        The worker's clock is another one, so `reply` is what the other hops leave over of the
        time between the hand-over and the record's arrival here.
        """
        frame, waiter, end_s = entry.frame, entry.waiter, time.monotonic()
        away_us = (waiter.read_s - parsed_s) * _US
        bus_us = max(0.0, away_us - prediction.latency_us)
        acked_s = frame.acked_s if frame is not None else 0.0
        produce_us = min(bus_us, max(0.0, (acked_s - parsed_s) * _US)) if acked_s else bus_us / 2
        hops = {
            "parse": (parsed_s - start_s) * _US,
            "produce": produce_us,
            "queue": prediction.queue_us,
            "engine": prediction.engine_us,
            "reply": away_us - produce_us - prediction.queue_us - prediction.engine_us,
            "respond": (end_s - waiter.read_s) * _US,
        }
        self._n_answers += 1
        if self._n_answers % _SAMPLE_EVERY == 0:
            for name, value in hops.items():
                self._metrics.hop_seconds.labels(name).observe(value / _US)
        return ",".join([f"{name}={value:.0f}" for name, value in hops.items()])


def _failure(prediction: m.Prediction, request_id: bytes, receipt: str, target: Target) -> Answer:
    kind = errors.BY_OUTCOME.get(prediction.outcome, errors.FailedError)
    return reject(
        kind(prediction.error_message or "the request could not be answered"),
        ids.text(request_id),
        code=prediction.error_code,
        receipt=receipt,
        version=target.version_header,
        served_by=prediction.served_by,
    )


def _refusal(waiter: Waiter) -> InferbusError:
    if waiter.unknown:
        return errors.OutcomeUnknownError(
            "the deadline passed and it is not known how the request ended; "
            "look its id up in the log later"
        )
    return errors.NoWorkerError("no live worker could be given the request; try again shortly")


def _read_head(scope: Scope) -> _Head:
    head = _Head()
    for name, value in scope["headers"]:
        if name == b"inference-header-content-length":
            head.json_length = _whole(value, "Inference-Header-Content-Length")
        elif name == b"x-inferbus-timeout-ms":
            head.timeout_ms = _whole(value, "x-inferbus-timeout-ms")
        elif name == b"content-encoding":
            head.encoding = value.strip().lower()
        elif name == b"traceparent":
            head.traceparent = value.decode("latin-1")
    return head


def _whole(value: bytes, name: str) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 12:  # noqa: PLR2004 -- no header of ours needs more
        raise errors.InvalidRequestError(f"header {name} must be a whole number")
    return int(text)


def _timeout_s(head: _Head, parsed: oip.Parsed) -> float:
    if head.timeout_ms is not None:
        if head.timeout_ms == 0:
            raise errors.InvalidRequestError("header x-inferbus-timeout-ms must be at least 1")
        return float(min(head.timeout_ms / 1e3, MAX_TIMEOUT_S))
    if parsed.timeout_us is not None:
        return float(min(parsed.timeout_us / 1e6, MAX_TIMEOUT_S))
    return DEFAULT_TIMEOUT_S


def seed_of(instance: str) -> int:
    """Return a seed that differs between gateways and lives."""
    return int.from_bytes(hashlib.sha256(instance.encode()).digest()[:4], "big") ^ (
        random.SystemRandom().getrandbits(32)
    )
