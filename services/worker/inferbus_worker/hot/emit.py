"""Predictions out: one record per request, sent without waiting for the one before.

In: a request and how it ended. Out: a record on its reply partition; when that is acknowledged, the
member of its frame is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import Fail, cancel, watched
from inferbus_kit.produce import Delivery, Message
from inferbus_schemas import envelope, generation, topics
from inferbus_schemas import messages as m
from inferbus_schemas.terminal import is_terminal
from inferbus_worker.hot import parcels
from inferbus_worker.hot.work import MAX_FRAME_AGE_MS, Batch, Work

_log = structlog.get_logger("emit")

MAX_OUTPUT_BYTES = 4 << 20
CAPTURE_BYTES = 64 << 10
_MAX_LATE_S = 60.0
"""A worker never writes OK later than this after the deadline."""
_REMEMBERED = 200_000
_RETRY_S = 0.5
_CANCELLED = ("cancelled", "the request was cancelled")
_EXPIRED = ("deadline_exceeded", "the deadline passed before the model could answer")


class Sender(Protocol):
    """The part of a producer that records need."""

    async def send_many(
        self, topic: str, partition: int, messages: Sequence[Message]
    ) -> Delivery: ...


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A record on its way; `held_bytes` is what it keeps in memory until it is acknowledged."""

    work: Work
    message: Message
    outcome: int
    held_bytes: int


class _Lane:
    """Records for one partition, in order, and the task that sends them."""

    __slots__ = ("task", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Outgoing] = deque()
        self.task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """What records say about the version that answered."""

    version_sha256: bytes


def _nobody(_work: Work, _outcome: int) -> None:
    """Stand where the desk will stand."""


def _nobody_pays(_tenant: str, _n_tokens: int) -> None:
    """Stand where what was spent will be told."""


class OkAnswer(NamedTuple):
    """One request's part of a batch.

    `outputs` is a serialised TensorSet, `digest` its output_sha256, `row` its first row;
    `generated` and `cancelled` are for generations, of which a part is an answer too; of others
    `n_tokens` are those of the inputs, where their task counts them.
    """

    row: int
    outputs: bytes
    digest: bytes
    traceparent: str
    generated: m.Generated | None = None
    cancelled: bool = False
    n_tokens: int = 0


class Used(NamedTuple):
    """What a request that has no answer cost all the same; see `OkAnswer`."""

    generated: m.Generated | None = None
    n_tokens: int = 0


_NOTHING = Used()


class Emitter:
    """Builds and sends records.

    Invariants: one record per call, to the request's keeper where it has one; a member is done only
    when its record is acknowledged, or its frame is so old that nobody waits for it; a record that
    Kafka did not take is sent again, same bytes, but an OK never later than 60 s after the
    deadline; no error ends the sending; ids of acknowledged terminal records are remembered.
    """

    def __init__(
        self,
        sender: Sender,
        instance: str,
        fail: Fail | None = None,
    ) -> None:
        topic = topics.topic(topics.PREDICTIONS)
        self._sender = sender
        self._topic = topic.name
        self._instance = instance
        self._fail = fail
        self._const = envelope.headers(topic.ce_type, f"/inferbus/worker/{instance}", "")[1:]
        self.on_written: Callable[[Work, int], None] = _nobody
        self.on_spent: Callable[[str, int], None] = _nobody_pays
        self._lanes: dict[int, _Lane] = {}
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self.n_unacknowledged = 0
        self.unacknowledged_bytes = 0

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
            said = answer.generated
            used = Used(None if said is None else generation.usage(said), answer.n_tokens)
            self.too_large(work, served, used)
            return
        request = work.request
        tensors = request.tensors
        now_s = time.monotonic()
        outcome = m.OUTCOME_CANCELLED if answer.cancelled else m.OUTCOME_OK
        code, message = _CANCELLED if answer.cancelled else ("", "")
        record = m.Prediction(
            id=request.id,
            attempt=request.attempt,
            outcome=outcome,
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
            generated=answer.generated,
            input_tokens=answer.n_tokens,
            error_code=code,
            error_message=message,
        )
        if batch.pieces is not None:
            for rows, (count, engine_us) in sorted(batch.pieces.executions.items()):
                record.executions.add(rows=rows, count=count, engine_us=engine_us)
        self._put(work, record, outcome, answer.traceparent)

    def ended(
        self,
        work: Work,
        outcome: m.Outcome,
        code: str,
        message: str,
        served: Served | None = None,
        *,
        used: Used = _NOTHING,
    ) -> None:
        """Write any other end than OK."""
        record = self._record(work, outcome, (code, message), served, used)
        self._put(work, record, outcome, work.request.traceparent)

    def _record(
        self,
        work: Work,
        outcome: m.Outcome,
        why: tuple[str, str],
        served: Served | None,
        used: Used,
    ) -> m.Prediction:
        request = work.request
        generated = used.generated
        if generated is None and request.HasField("generation"):
            # A stream that ended before its first chunk is read again in the form it asked for.
            generated = m.Generated(form=request.generation.form)
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
            error_code=why[0],
            error_message=why[1],
            served_by=self._instance,
            client_request_id=request.client_request_id,
            latency_us=max(0, int((time.monotonic() - work.arrived_s) * 1e6)),
            traceparent=request.traceparent,
            generated=generated,
            input_tokens=used.n_tokens,
        )

    def too_large(self, work: Work, served: Served, used: Used = _NOTHING) -> None:
        """Write that the answer is, or would be, larger than a record may hold."""
        message = (
            f"the answer has more than {MAX_OUTPUT_BYTES >> 20} MiB; send fewer rows or ask "
            "for fewer outputs"
        )
        outcome = m.OUTCOME_OUTPUT_TOO_LARGE
        self.ended(work, outcome, "output_too_large", message, served, used=used)

    def attempt_failed(
        self, work: Work, code: str, message: str, served: Served | None = None
    ) -> None:
        """End this attempt where the gateway may try another, else the request."""
        retry = work.request.may_retry
        outcome = m.OUTCOME_ATTEMPT_FAILED if retry else m.OUTCOME_FAILED
        self.ended(work, outcome, code, message, served)

    def cancelled(self, work: Work, served: Served | None = None) -> None:
        """Write that nobody waited for it any more before it began."""
        self.ended(work, m.OUTCOME_CANCELLED, *_CANCELLED, served)

    def expired(self, work: Work, served: Served | None = None, used: Used = _NOTHING) -> None:
        """Write that the deadline passed before an engine could take it, or could end it."""
        self.ended(work, m.OUTCOME_EXPIRED, *_EXPIRED, served, used=used)

    def _put(self, work: Work, record: m.Prediction, outcome: int, traceparent: str) -> None:
        if work.keeper is not None:
            work.keeper.keep(work, record)
            return
        if work.request.owes_tokens:
            self.on_spent(record.tenant, generation.n_tokens(record))
        partition = work.request.reply_partition
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane()
        out = self._outgoing(work, record, outcome, traceparent)
        lane.waiting.append(out)
        self.n_unacknowledged += 1
        self.unacknowledged_bytes += out.held_bytes
        self.on_written(work, outcome)
        if lane.task is None:
            self._go(lane, partition)

    def _outgoing(
        self, work: Work, record: m.Prediction, outcome: int, traceparent: str
    ) -> _Outgoing:
        request = work.request
        text = request.id.hex()
        ce_id = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}/{request.attempt}"
        headers = [("ce_id", ce_id.encode()), *self._const]
        if traceparent:
            headers.append(("traceparent", traceparent.encode()))
        value = record.SerializeToString()
        message = Message(value, request.model.encode(), headers)
        return _Outgoing(work, message, outcome, len(value) + len(request.tensors))

    async def _send(self, lane: _Lane, partition: int) -> None:
        """Send what waits for one partition, all that fits at once, until nothing is left."""
        try:
            while lane.waiting:
                parcel = parcels.take(lane.waiting)
                if not await self._hand_over(lane, partition, parcel):
                    lane.waiting.extendleft(reversed(self._still_wanted(parcel)))
                    await asyncio.sleep(_RETRY_S)
        finally:
            lane.task = None

    async def _hand_over(self, lane: _Lane, partition: int, parcel: list[_Outgoing]) -> bool:
        """Tell whether the sender took the records; whether Kafka did is heard later."""
        try:
            messages = [self._timely(out) for out in parcel]
            delivery = await self._sender.send_many(self._topic, partition, messages)
        except (InferbusError, KafkaError) as error:
            _log.warning("send_failed", partition=partition, error=repr(error))
            return False
        except Exception:  # noqa: BLE001 -- whatever it is, those who wait want their answers
            _log.exception("send_failed", partition=partition)
            return False
        delivery.add_done_callback(partial(self._acknowledged, lane, partition, parcel))
        return True

    def _still_wanted(self, parcel: list[_Outgoing]) -> list[_Outgoing]:
        """Give up the records of frames that their readers have forgotten; return the others."""
        now_s = time.monotonic()
        wanted = []
        for out in parcel:
            if out.work.frame_age_ms(now_s) <= MAX_FRAME_AGE_MS:
                wanted.append(out)
                continue
            _log.error("record_given_up", id=out.work.request.id.hex())
            self._release(out)
        return wanted

    def _timely(self, out: _Outgoing) -> Message:
        """Return the message, unless it is an OK that comes too late to be one."""
        if out.outcome == m.OUTCOME_OK and time.monotonic() > out.work.deadline_s + _MAX_LATE_S:
            said = m.Prediction.FromString(out.message.value or b"")
            generated = generation.usage(said.generated) if said.HasField("generated") else None
            used = Used(generated, said.input_tokens)
            record = self._record(out.work, m.OUTCOME_EXPIRED, _EXPIRED, None, used)
            late = self._outgoing(out.work, record, m.OUTCOME_EXPIRED, "")
            out.message, out.outcome = late.message, late.outcome
        return out.message

    def _acknowledged(
        self, lane: _Lane, partition: int, parcel: list[_Outgoing], done: Delivery
    ) -> None:
        if not done.cancelled() and done.exception() is None:
            self._settle(parcel)
            return
        _log.warning("not_acknowledged", n_records=len(parcel))
        asyncio.get_running_loop().call_later(_RETRY_S, self._again, lane, partition, parcel)

    def _again(self, lane: _Lane, partition: int, parcel: list[_Outgoing]) -> None:
        lane.waiting.extend(self._still_wanted(parcel))
        self._go(lane, partition)

    def _go(self, lane: _Lane, partition: int) -> None:
        if lane.task is None:
            task = asyncio.create_task(self._send(lane, partition), name=f"send:{partition}")
            lane.task = watched(task, self._fail)

    def _settle(self, parcel: list[_Outgoing]) -> None:
        ended = self._ended
        for out in parcel:
            if is_terminal(out.outcome):
                ended[out.work.request.id] = None
            self._release(out)
        while len(ended) > _REMEMBERED:
            ended.popitem(last=False)

    def _release(self, out: _Outgoing) -> None:
        """Hold a record no longer."""
        self.n_unacknowledged -= 1
        self.unacknowledged_bytes -= out.held_bytes
        out.work.frame.member_done()

    async def stop(self) -> None:
        """Send no more."""
        for lane in list(self._lanes.values()):
            await cancel(lane.task)
