"""POST /v2/models/{m}[/versions/{v}]/infer: plain ASGI, from the body's bytes to the answer's.

In: one HTTP request. Out: one answer whose record is in the log. Until the frame is handed to the
producer a request may be refused with 503; after that only a terminal record ends it.
"""

from __future__ import annotations

import asyncio
import os
import time

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Histogram

from inferbus_gateway import errors
from inferbus_gateway.hot import oip
from inferbus_gateway.hot.answer import Answer, ok, reject, send
from inferbus_gateway.hot.incoming import Bodies, Head, read_head, timeout_s
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

_log = structlog.get_logger("infer")

TENANT = "local"
"""The tenant of every request until there is authentication."""
_SAMPLE_EVERY = 8
_ID_BYTES = 10
"""Of these 80 random bits an id takes 74."""
_ENTROPY_BYTES = 400 * _ID_BYTES
_TIMING = "parse=%.0f,produce=%.0f,queue=%d,engine=%d,reply=%.0f,respond=%.0f"
_HOPS = ("parse", "produce", "queue", "engine", "reply", "respond")
_US = 1e6
_BROKEN = "something went wrong here; the request id names it in our log"


class Waiter:
    """Where one request waits for its end; resolved once.

    `prediction` and `offset` are set by a terminal record; `error` where Kafka never saw the
    request or where no record came in time.
    """

    __slots__ = ("error", "future", "offset", "prediction", "read_s", "span")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self.prediction: m.Prediction | None = None
        self.offset = -1
        self.read_s = 0.0
        self.error: InferbusError | None = None
        self.span: OpenSpan | None = None

    def resolve(self, prediction: m.Prediction, offset: int, read_s: float) -> None:
        """A terminal record ended the request."""
        self.prediction, self.offset, self.read_s = prediction, offset, read_s
        self._wake()

    def refuse(self, error: InferbusError) -> None:
        """Nothing of the request was handed over."""
        self.error = error
        self._wake()

    def give_up(self) -> None:
        """No record came in time."""
        self.error = errors.OutcomeUnknownError(
            "the deadline passed and it is not known how the request ended; "
            "look its id up in the log later"
        )
        self._wake()

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Infer:
    """The hot route.

    Invariants: every accepted request is registered before its frame leaves; every answer but a
    refusal names the record that it was made from, or says that none is known; while `refusing`
    says why, nothing is accepted; while `draining`, each answer closes its connection.
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
        bodies: Bodies,
    ) -> None:
        self._instance = instance
        self._routes = routes
        self._pending = pending
        self._publisher = publisher
        self._replies = replies
        self._metrics = metrics
        self._tracing = tracing
        self._bodies = bodies
        self._entropy, self._entropy_at = b"", _ENTROPY_BYTES
        self._n_answers = 0
        self._hops = [metrics.hop_seconds.labels(name) for name in _HOPS]
        self._counters: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        self.refusing = ""
        self.draining = False

    def new_id(self) -> bytes:
        """Mint a request id."""
        at = self._entropy_at
        if at == _ENTROPY_BYTES:
            self._entropy, at = os.urandom(_ENTROPY_BYTES), 0
        self._entropy_at = at + _ID_BYTES
        bits = int.from_bytes(self._entropy[at : at + _ID_BYTES], "big")
        return ids.uuid7(time.time_ns() // 1_000_000, bits)

    async def __call__(
        self, scope: Scope, receive: Receive, send_: Send, model: str, version: str
    ) -> None:
        """Answer one request."""
        request_id = self.new_id()
        try:
            self._admit()
            head = read_head(scope)
            body = await self._bodies.read(receive, head)
            answer = await self._answer(head, body, model, version, request_id)
        except InferbusError as error:
            self._metrics.rejected.labels(error.code).inc()
            answer = reject(error, ids.text(request_id))
        except Exception:  # noqa: BLE001 -- each request is answered in our own words
            _log.exception("infer_failed", request_id=ids.text(request_id))
            answer = reject(InferbusError(_BROKEN), ids.text(request_id))
        if self.draining:
            answer.headers.append((b"connection", b"close"))
        await send(send_, answer)

    def _admit(self) -> None:
        if self.refusing:
            raise errors.BusUnavailableError(f"{self.refusing}; try again shortly")
        if self._pending.full:
            raise errors.OverloadedError("too many requests wait here; try again shortly")

    async def _answer(
        self, head: Head, body: bytes, model: str, version: str, request_id: bytes
    ) -> Answer:
        start_s = time.monotonic()
        target = self._routes.resolve(model, version)
        parsed = oip.parse(body, head.json_length, target.manifest.signature)
        entry = self._entry(request_id, target, parsed, head, start_s)
        waiter: Waiter = entry.waiter
        self._publisher.place(entry)
        parsed_s = time.monotonic()
        await waiter.future
        prediction = waiter.prediction
        if waiter.span is not None:
            code = waiter.error.code if waiter.error is not None else ""
            waiter.span.end(
                inferbus__request_id=ids.text(request_id),
                inferbus__model=target.model,
                inferbus__version=target.version,
                inferbus__outcome=code if prediction is None else _outcome(prediction),
            )
        if prediction is None:
            return self._unanswered(waiter, request_id, target, start_s)
        answer = self._answered(entry, prediction, parsed, target, (start_s, parsed_s))
        self._count(target, _outcome(prediction), time.monotonic() - start_s)
        return answer

    def _unanswered(
        self, waiter: Waiter, request_id: bytes, target: Target, start_s: float
    ) -> Answer:
        error = waiter.error
        if not isinstance(error, errors.OutcomeUnknownError):
            raise error or InferbusError("the request ended without an answer")
        self._count(target, error.code, time.monotonic() - start_s)
        return reject(error, ids.text(request_id))

    def _answered(
        self,
        entry: Entry,
        prediction: m.Prediction,
        parsed: oip.Parsed,
        target: Target,
        times_s: tuple[float, float],
    ) -> Answer:
        request_id = ids.text(entry.id)
        receipt = f"{self._replies.partition}:{entry.waiter.offset}"
        try:
            if prediction.outcome != m.OUTCOME_OK:
                raise _failure(prediction)
            rendered = oip.render(
                m.TensorSet.FromString(prediction.outputs).tensors,
                model=target.model,
                version=target.version,
                client_request_id=parsed.client_request_id,
                binary=parsed.binary,
            )
        except (InferbusError, DecodeError) as error:
            if isinstance(error, DecodeError):
                error = errors.FailedError(
                    "the model's answer cannot be read; tell who deployed it"
                )
            return reject(
                error,
                request_id,
                code=prediction.error_code,
                receipt=receipt,
                version=target.version_header,
                served_by=prediction.served_by,
            )
        return ok(
            rendered,
            prediction,
            version=target.version_header,
            request_id=request_id,
            receipt=receipt,
            timing=self._timing(entry, prediction, *times_s),
        )

    def _entry(
        self, request_id: bytes, target: Target, parsed: oip.Parsed, head: Head, now_s: float
    ) -> Entry:
        self._admit()
        if len(parsed.tensors) > self._bodies.max_body_bytes:
            # A short JSON text may hold many numbers.
            raise self._bodies.too_large()
        # Whatever refuses comes before the span is opened: nobody would end it.
        deadline_s = now_s + timeout_s(head, parsed.timeout_us)
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
            deadline_s=deadline_s,
            waiter=waiter,
        )
        self._pending.add(entry, now_s)
        return entry

    def _count(self, target: Target, outcome: str, seconds: float) -> None:
        key = (target.model, target.version, outcome)
        counter = self._counters.get(key)
        if counter is None:
            labels = (key[0], str(key[1]))
            counter = self._counters[key] = (
                self._metrics.requests.labels(*labels, outcome),
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
        hops_us = (
            (parsed_s - start_s) * _US,
            produce_us,
            prediction.queue_us,
            prediction.engine_us,
            away_us - produce_us - prediction.queue_us - prediction.engine_us,
            (end_s - waiter.read_s) * _US,
        )
        self._n_answers += 1
        if self._n_answers % _SAMPLE_EVERY == 0:
            for hop, value in zip(self._hops, hops_us, strict=True):
                hop.observe(value / _US)
        return _TIMING % hops_us


def _outcome(prediction: m.Prediction) -> str:
    return "ok" if prediction.outcome == m.OUTCOME_OK else m.outcome_name(prediction.outcome)


def _failure(prediction: m.Prediction) -> InferbusError:
    kind = errors.BY_OUTCOME.get(prediction.outcome, errors.FailedError)
    return kind(prediction.error_message or "the request could not be answered")
