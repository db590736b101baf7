"""Predictions out: one record per request, sent without waiting for the one before.

In: a request and how it ended. Out: a record on its reply partition; when that is acknowledged, the
member of its frame is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.errors import InferbusError
from inferbus_kit.produce import Delivery
from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m
from inferbus_schemas.terminal import is_terminal
from inferbus_worker.hot.work import Batch, Work

_log = structlog.get_logger("emit")

MAX_OUTPUT_BYTES = 4 << 20
CAPTURE_BYTES = 64 << 10
_MAX_LATE_S = 60.0
"""A worker never writes OK later than this after the deadline."""
_REMEMBERED = 200_000
_RETRY_S = 0.5
_EXPIRED = ("deadline_exceeded", "the deadline passed before the model could answer")


class Sender(Protocol):
    """The part of a producer that records need."""

    async def send(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: list[tuple[str, bytes]] = ...,
    ) -> Delivery: ...


@dataclass(slots=True, eq=False)
class _Outgoing:
    work: Work
    value: bytes
    headers: list[tuple[str, bytes]]
    outcome: int


@dataclass(frozen=True, slots=True)
class Served:
    """What records say about the version that answered."""

    version_sha256: bytes


def _nobody(_work: Work, _outcome: int) -> None:
    """Stand where the desk will stand."""


class OkAnswer(NamedTuple):
    """One request's part of a batch.

    `outputs` is a serialised TensorSet, `digest` its output_sha256, `row` its first row.
    """

    row: int
    outputs: bytes
    digest: bytes
    traceparent: str


class Emitter:
    """Builds and sends records.

    Invariants: one record per call; a member is done only when its record is acknowledged; a
    record that Kafka did not take is sent again, same bytes, but an OK never later than 60 s
    after the deadline; ids of acknowledged terminal records are remembered.
    """

    def __init__(
        self,
        sender: Sender,
        instance: str,
    ) -> None:
        topic = topics.topic(topics.PREDICTIONS)
        self._sender = sender
        self._topic = topic.name
        self._instance = instance
        self._const = envelope.headers(topic.ce_type, f"/inferbus/worker/{instance}", "")[1:]
        self.on_written: Callable[[Work, int], None] = _nobody
        self._waiting: deque[_Outgoing] = deque()
        self._wake = asyncio.Event()
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self.n_unacknowledged = 0

    def has_ended(self, request_id: bytes) -> bool:
        """Tell whether a terminal record of this id was acknowledged to this process."""
        return request_id in self._ended

    def ok(
        self,
        work: Work,
        batch: Batch,
        served: Served,
        answer: OkAnswer,
    ) -> None:
        """Write an answer."""
        outputs = answer.outputs
        if len(outputs) > MAX_OUTPUT_BYTES:
            self.ended(
                work,
                m.OUTCOME_OUTPUT_TOO_LARGE,
                "output_too_large",
                f"the answer has more than {MAX_OUTPUT_BYTES >> 20} MiB; send fewer rows or ask "
                "for fewer outputs",
                served,
            )
            return
        request = work.request
        tensors = request.tensors
        now_s = time.monotonic()
        record = m.Prediction(
            id=request.id,
            attempt=request.attempt,
            outcome=m.OUTCOME_OK,
            tenant=request.tenant,
            model=request.model,
            version=request.version,
            version_sha256=served.version_sha256,
            outputs=outputs,
            output_sha256=answer.digest,
            inputs=tensors if len(tensors) <= CAPTURE_BYTES else b"",
            input_sha256=hashlib.sha256(tensors).digest(),
            served_by=self._instance,
            client_request_id=request.client_request_id,
            batch_id=batch.batch_id,
            batch_row=answer.row,
            batch_size=batch.rows,
            queue_us=max(0, int((batch.started_s - work.arrived_s) * 1e6)),
            engine_us=batch.engine_us,
            latency_us=max(0, int((now_s - work.arrived_s) * 1e6)),
            traceparent=answer.traceparent,
        )
        self._put(work, record, m.OUTCOME_OK, answer.traceparent)

    def ended(
        self,
        work: Work,
        outcome: m.Outcome,
        code: str,
        message: str,
        served: Served | None = None,
    ) -> None:
        """Write any other end than OK."""
        record = self._record(work, outcome, code, message, served)
        self._put(work, record, outcome, work.request.traceparent)

    def _record(
        self, work: Work, outcome: m.Outcome, code: str, message: str, served: Served | None
    ) -> m.Prediction:
        request = work.request
        tensors = request.tensors
        return m.Prediction(
            id=request.id,
            attempt=request.attempt,
            outcome=outcome,
            tenant=request.tenant,
            model=request.model,
            version=request.version,
            version_sha256=served.version_sha256 if served is not None else b"",
            inputs=tensors if len(tensors) <= CAPTURE_BYTES else b"",
            input_sha256=hashlib.sha256(tensors).digest(),
            error_code=code,
            error_message=message,
            served_by=self._instance,
            client_request_id=request.client_request_id,
            latency_us=max(0, int((time.monotonic() - work.arrived_s) * 1e6)),
            traceparent=request.traceparent,
        )

    def attempt_failed(
        self, work: Work, code: str, message: str, served: Served | None = None
    ) -> None:
        """End this attempt where the gateway may try another, else the request."""
        retry = work.request.may_retry
        outcome = m.OUTCOME_ATTEMPT_FAILED if retry else m.OUTCOME_FAILED
        self.ended(work, outcome, code, message, served)

    def expired(self, work: Work, served: Served | None = None) -> None:
        """Write that the deadline passed before an engine could take it."""
        self.ended(work, m.OUTCOME_EXPIRED, *_EXPIRED, served)

    def _put(self, work: Work, record: m.Prediction, outcome: int, traceparent: str) -> None:
        self._waiting.append(self._outgoing(work, record, outcome, traceparent))
        self.n_unacknowledged += 1
        self.on_written(work, outcome)
        self._wake.set()

    def _outgoing(
        self, work: Work, record: m.Prediction, outcome: int, traceparent: str
    ) -> _Outgoing:
        request = work.request
        text = request.id.hex()
        ce_id = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}/{request.attempt}"
        headers = [("ce_id", ce_id.encode()), *self._const]
        if traceparent:
            headers.append(("traceparent", traceparent.encode()))
        return _Outgoing(work, record.SerializeToString(), headers, outcome)

    async def run(self) -> None:
        """Send what is put, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._send(self._waiting.popleft())

    async def _send(self, out: _Outgoing) -> None:
        if out.outcome == m.OUTCOME_OK and time.monotonic() > out.work.deadline_s + _MAX_LATE_S:
            out = self._outgoing(
                out.work,
                self._record(out.work, m.OUTCOME_EXPIRED, *_EXPIRED, None),
                m.OUTCOME_EXPIRED,
                "",
            )
        request = out.work.request
        try:
            delivery = await self._sender.send(
                self._topic,
                request.reply_partition,
                out.value,
                key=request.model.encode(),
                headers=out.headers,
            )
        except (InferbusError, KafkaError) as error:
            _log.warning("send_failed", error=repr(error))
            self._waiting.appendleft(out)
            await asyncio.sleep(_RETRY_S)
            return
        except AssertionError:
            # aiokafka's word for a partition that the topic does not have: nobody can be answered.
            _log.exception("no_such_reply_partition", partition=request.reply_partition)
            self._settle(out)
            return
        delivery.add_done_callback(lambda done: self._acknowledged(done, out))

    def _acknowledged(self, done: Delivery, out: _Outgoing) -> None:
        if not done.cancelled() and done.exception() is None:
            self._settle(out)
            return
        _log.warning("not_acknowledged", cancelled=done.cancelled())
        asyncio.get_running_loop().call_later(_RETRY_S, self._again, out)

    def _again(self, out: _Outgoing) -> None:
        self._waiting.append(out)
        self._wake.set()

    def _settle(self, out: _Outgoing) -> None:
        self.n_unacknowledged -= 1
        if is_terminal(out.outcome):
            self._ended[out.work.request.id] = None
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        out.work.frame.member_done()
