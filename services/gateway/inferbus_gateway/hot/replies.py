"""The reply partition: records in, answered requests out; and the records that end requests here.

In: `inference.predictions` of one partition. Out: resolved waiters. The gateway also writes there:
DEADLINE_EXCEEDED and FAILED, which count only if they are the first terminal record.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from google.protobuf.message import DecodeError

from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_kit.consume import PartitionReader, Record
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel, watched
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, ids, topics
from inferbus_schemas import messages as m

_log = structlog.get_logger("replies")

CAPTURE_BYTES = 64 << 10
"""Inputs up to this size stand in the record that ends a request here."""
_AGAIN_S = 0.5

Spawn = Callable[[str, Coroutine[Any, Any, object]], asyncio.Task[Any]]


class Replies:
    """Reads one reply partition and ends the requests that its records end.

    Invariants: records are applied in the order of offsets; a request is resolved by its first
    terminal record; one that this gateway does not know is skipped; a record that ends a request
    here is sent until Kafka takes it, so that each accepted request has one.
    """

    def __init__(
        self,
        bootstrap: str,
        instance: str,
        pending: Pending,
        producer: Producer,
        beat: Callable[[], None],
    ) -> None:
        self._bootstrap = bootstrap
        self._instance = instance
        self._source = f"/inferbus/gateway/{instance}"
        self._pending = pending
        self._producer = producer
        self._beat = beat
        self._topic = topics.topic(topics.PREDICTIONS)
        self._reader: PartitionReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.partition = -1
        self.position = -1
        """All records below were applied; those of requests that begin now stand there or after."""
        self.n_undecodable = 0

    async def start(self, partition: int, spawn: Spawn) -> None:
        """Take a partition and read it from its end on, in a task that `spawn` starts.

        Raises:
            BusUnavailableError: no broker answered, or the end is not to be had.
        """
        self._reader = PartitionReader(
            self._bootstrap,
            self._topic.name,
            partition,
            client_id=f"{self._instance}-replies",
            start="end",
        )
        self.position = await self._reader.start()
        self.partition = partition
        self._task = spawn("replies", self._read(self._reader))

    async def stop(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        for task in list(self._tasks):
            task.cancel()
        await cancel(self._task)
        if self._reader is not None:
            await self._reader.stop()

    async def _read(self, reader: PartitionReader) -> None:
        while True:
            self._beat()
            try:
                records = await reader.read(timeout_ms=500)
            except OffsetOutOfRangeError:
                # The topic was made anew; what it said before is gone for every reader.
                _log.exception("replies_lost")
                await self._skip_to_end(reader)
                continue
            except KafkaError as error:
                _log.warning("replies_read_failed", error=repr(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            self.apply(records, time.monotonic())
            if records:
                self.position = records[-1].offset + 1

    def apply(self, records: Iterable[Record], now_s: float) -> None:
        """End the requests that these records end; they come in the order of offsets."""
        for record in records:
            try:
                prediction = m.Prediction.FromString(record.value or b"")
            except DecodeError:
                self.n_undecodable += 1
                _log.warning("undecodable_prediction", offset=record.offset)
                continue
            entry = self._pending.ended(
                prediction.id, prediction.attempt, prediction.outcome, now_s
            )
            if entry is not None:
                entry.waiter.resolve(entry, prediction, record.offset, now_s)

    async def _skip_to_end(self, reader: PartitionReader) -> None:
        try:
            end = (await reader.bounds())[1]
            reader.seek(end)
            self.position = end
        except (TimeoutError, KafkaError) as error:
            _log.warning("replies_end_unknown", error=repr(error))
            await asyncio.sleep(_AGAIN_S)

    def end(self, entry: Entry, outcome: m.Outcome, code: str, message: str) -> None:
        """Write a record that ends a request, unless another one comes first."""
        prediction = terminal(entry.request, entry.attempt, outcome, code, message, self._instance)
        self.write(prediction, entry.request.reply_partition)

    def write(self, prediction: m.Prediction, partition: int) -> None:
        """Write a record into a reply partition, however long Kafka takes."""
        task = watched(asyncio.create_task(self._write(prediction, partition), name="end"), None)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, prediction: m.Prediction, partition: int) -> None:
        head = envelope.headers(
            self._topic.ce_type,
            self._source,
            f"{ids.text(prediction.id)}/{prediction.attempt}/gateway",
            prediction.traceparent,
        )
        value, key = prediction.SerializeToString(), prediction.model.encode()
        while True:
            try:
                delivery = await self._producer.send(
                    self._topic.name, partition, value, key=key, headers=head
                )
                await delivery
            except (InferbusError, KafkaError) as error:
                _log.warning("end_not_written", error=repr(error))
                await asyncio.sleep(_AGAIN_S)
            else:
                return


def terminal(  # noqa: PLR0917 -- the fields of a record
    request: m.Request, attempt: int, outcome: m.Outcome, code: str, message: str, instance: str
) -> m.Prediction:
    """Return the record with which a gateway ends a request that no worker answers."""
    tensors = request.tensors
    asked = request.generation if request.HasField("generation") else None
    return m.Prediction(
        id=request.id,
        attempt=attempt,
        outcome=outcome,
        tenant=request.tenant,
        model=request.model,
        version=request.version,
        inputs=tensors if len(tensors) <= CAPTURE_BYTES else b"",
        input_sha256=hashlib.sha256(tensors).digest(),
        error_code=code,
        error_message=message,
        served_by=instance,
        client_request_id=request.client_request_id,
        traceparent=request.traceparent,
        generated=None if asked is None else m.Generated(form=asked.form),
    )
