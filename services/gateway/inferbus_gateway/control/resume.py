"""`GET /v1/streams/{request_id}`: a stream goes on at any gateway, from what the bus keeps.

In: a request id and the last event that the client saw. Out: the events after it, exactly those
that the first gateway would have sent, then the live ones; past the retention of token chunks the
whole text. Nothing is asked of the gateway that the stream began at: it may be gone. A reader that
leaves cancels the request as its first one would have, once that gateway is gone.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from google.protobuf.message import DecodeError

from inferbus_gateway import errors
from inferbus_gateway.control.readers import Readers
from inferbus_gateway.control.span_reader import SLACK_MS, SpanReader
from inferbus_gateway.hot import dialects, kinds
from inferbus_gateway.hot.generations import PING_S, EventWriter, ended
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.streams import OpenStream, Streams
from inferbus_kit.consume import Record
from inferbus_kit.health import Receive, Send
from inferbus_kit.kafka import client_options, stop_client
from inferbus_kit.produce import Producer
from inferbus_schemas import ids, topics
from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease, Membership
from inferbus_schemas.terminal import is_terminal

_log = structlog.get_logger("resume")

_APPEARS_S = 30.0
"""A request of which nothing is on the bus after this does not stream, or not for this client."""
_LOST_AFTER_S = 8.0
_START_TIMEOUT_S = 10.0


class Resumer:
    """Reads streams again.

    Invariants: at most so many at once; a stream of another tenant is not found; no event that the
    client has seen is sent again, none between is left out; a run whose worker is lost is ended by
    a record here, since the gateway that should is perhaps lost too; no request is cancelled that
    was to be kept, or that another client reads here, or where it began.
    """

    def __init__(
        self,
        bootstrap: str,
        instance: str,
        *,
        producer: Producer,
        fleet: Membership,
        replies: Replies,
        streams: Streams,
        cancel: Callable[[bytes, str], None],
    ) -> None:
        self._bootstrap = bootstrap
        self._instance = instance
        self._producer = producer
        self._fleet = fleet
        self._replies = replies
        self._streams = streams
        self._cancel = cancel
        self._open = Readers("streams")
        self._reading: list[bytes] = []

    async def resume(self, name: str, last: str, tenant: str, receive: Receive, send: Send) -> None:
        """Send what follows the event `last` (`partition:offset`, or empty) of a tenant's stream.

        Raises:
            InferbusError: there is nothing to send.
        """
        request_id = _request_id(name, time.time() * 1000)
        partition, after = _place(last)
        self._open.take(tenant)
        self._reading.append(request_id)
        consumer = AIOKafkaConsumer(
            **client_options(self._bootstrap),
            client_id=f"{self._instance}-resume",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=200,
        )
        watching: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                reader = SpanReader(consumer, await self._places(partition))
                await consumer.start()
                await reader.seek(request_id)
            again = _Again(request_id, tenant, after)
            watching = asyncio.create_task(_watch(receive, again))
            await self._read(reader, again, send)
            if again.gone:
                self._left(again)
        except (KafkaError, TimeoutError) as error:
            _log.warning("resume_failed", error=repr(error))
            raise errors.BusUnavailableError("the stream cannot be read now; try again") from error
        finally:
            self._open.free(tenant)
            self._reading.remove(request_id)
            if watching is not None:
                watching.cancel()
            await stop_client(consumer)

    async def _places(self, partition: int | None) -> list[TopicPartition]:
        """Return where the stream may be: in one partition of both topics, or in any."""
        places = []
        for short in (topics.TOKENS, topics.PREDICTIONS):
            topic = topics.topic(short).name
            count = await self._producer.n_partitions(topic)
            if partition is not None and partition >= count:
                raise errors.StreamNotFoundError("no such stream")
            numbers = range(count) if partition is None else (partition,)
            places += [TopicPartition(topic, number) for number in numbers]
        return places

    async def _read(self, reader: SpanReader, again: _Again, send: Send) -> None:
        stream = await _find(reader, again)
        if stream is None:
            return
        await reader.narrow(stream.partition)
        dialect = kinds.dialect_of(again.form, again.request_id, again.client_request_id)
        head = [(b"x-request-id", ids.text(again.request_id).encode())]
        writer = EventWriter(send, head, dialect)
        caught_up, pinged_s = False, time.monotonic()
        while not again.gone:
            again.settle(caught_up=caught_up)
            if (caught_up or not again.cut) and await writer.forward(
                stream, include_usage=again.include_usage, after=again.after
            ):
                return
            if self._streams.leaving.is_set():
                await writer.close(errors.ReconnectError("this gateway stops; go on at another"))
                return
            if caught_up:
                self._end_where_lost(again)
            if time.monotonic() - pinged_s >= PING_S:
                pinged_s = time.monotonic()
                await writer.write(dialects.PING)
            # What is of others says nothing: on a busy partition there is always some.
            ours = again.take(await reader.read())
            caught_up = not ours and await reader.passed()

    def _left(self, again: _Again) -> None:
        """Have a run ended that nobody reads any more, unless it is to be kept."""
        chunk = again.running
        if chunk is None or not chunk.read_at or self._streams.leaving.is_set():
            return
        if chunk.id in self._streams or self._reading.count(chunk.id) > 1:
            return
        # There its own client may be, or may be thought to be for some seconds after its death.
        if chunk.read_at in {one.reader for one in self._fleet.gateways()}:
            return
        if (lease := self._lease_of(chunk)) is not None:
            self._cancel(chunk.id, lease.pool)

    def _lease_of(self, chunk: m.TokenChunk) -> InboxLease | None:
        """Return an inbox of the worker that sent a chunk; None where it has left the fleet."""
        for lease in self._fleet.every_lease():
            if lease.instance == chunk.served_by and not self._fleet.expired(lease):
                return lease
        return None

    def _end_where_lost(self, again: _Again) -> None:
        """End a run whose worker has left the fleet, once."""
        chunk, stream = again.running, again.stream
        if chunk is None or stream is None:
            return
        if self._lease_of(chunk) is not None:
            again.lost_s = 0.0
        elif not again.lost_s:
            again.lost_s = time.monotonic()
        elif time.monotonic() - again.lost_s > _LOST_AFTER_S and not again.ended_here:
            again.ended_here = True
            self._replies.write(
                m.Prediction(
                    id=chunk.id,
                    attempt=chunk.attempt,
                    outcome=m.OUTCOME_FAILED,
                    tenant=chunk.tenant,
                    model=chunk.model,
                    version=chunk.version,
                    error_code="worker_lost",
                    error_message="the worker was lost in the middle of its answer",
                    served_by=self._instance,
                    generated=m.Generated(form=chunk.form),
                ),
                stream.partition,
            )


class _Again:
    """One stream that is read again.

    Invariants: chunks and the first terminal record of the request's own partition only.
    """

    def __init__(self, request_id: bytes, tenant: str, after: int) -> None:
        self.request_id = request_id
        self._tenant = tenant
        self.after = after
        self.stream: OpenStream | None = None
        self.form: m.Form = m.FORM_CHAT
        self.client_request_id = ""
        self.include_usage = False
        self.last: m.TokenChunk | None = None
        self.gone = False
        self.lost_s = 0.0
        self.ended_here = False
        self._tokens = topics.topic(topics.TOKENS).name
        self._ce_id = f"{ids.text(request_id)}/".encode()

    def take(self, records: Iterable[Record]) -> bool:
        """Take what was read of either topic; tell whether any was of the request."""
        ours = [record for record in records if self._is_ours(record)]
        for record in ours:
            self.apply(record)
        return bool(ours)

    def apply(self, record: Record) -> None:
        """Take a record of the request, of either topic."""
        try:
            if record.topic == self._tokens:
                self._chunk(m.TokenChunk.FromString(record.value or b""), record)
            else:
                self._prediction(m.Prediction.FromString(record.value or b""), record)
        except DecodeError:
            _log.warning("undecodable", topic=record.topic, offset=record.offset)

    def _is_ours(self, record: Record) -> bool:
        if record.topic == self._tokens:
            return record.key == self.request_id
        return any(
            name == "ce_id" and value.startswith(self._ce_id) for name, value in record.headers
        )

    def _of(self, partition: int, tenant: str) -> OpenStream:
        if tenant != self._tenant:
            raise errors.StreamNotFoundError("no such stream")
        if self.stream is None:
            self.stream = OpenStream(partition)
        return self.stream

    def _chunk(self, chunk: m.TokenChunk, record: Record) -> None:
        stream = self._of(record.partition, chunk.tenant)
        self.include_usage = chunk.include_usage
        # Workers of before told no form.
        of_prompt = m.FORM_TEXT if chunk.prompt_kind == m.PROMPT_KIND_TEXT else m.FORM_CHAT
        self._write_as(chunk.form or of_prompt, chunk.client_request_id)
        self.last = chunk
        stream.chunk(chunk, record.offset)

    def _prediction(self, prediction: m.Prediction, record: Record) -> None:
        if is_terminal(prediction.outcome):
            stream = self._of(record.partition, prediction.tenant)
            self._write_as(prediction.generated.form, prediction.client_request_id)
            if stream.state.prediction is None:
                stream.end(prediction, ended(prediction))

    def _write_as(self, form: m.Form, client_request_id: str) -> None:
        # A record of a request that no worker ran says no form.
        if form != m.FORM_UNSPECIFIED:
            self.form, self.client_request_id = form, client_request_id

    @property
    def cut(self) -> bool:
        """Whether it broke at the first piece there is: the ones before it may be gone by age."""
        state = None if self.stream is None else self.stream.state
        return state is not None and state.error is not None and not state.n_taken

    @property
    def running(self) -> m.TokenChunk | None:
        """Return the newest chunk of a run whose end is not known; None where there is none."""
        if self.stream is None or self.stream.state.prediction is not None:
            return None
        return self.last

    def settle(self, *, caught_up: bool) -> None:
        """Where the chunks are gone from the bus, let the whole text stand for them.

        Raises:
            StreamNotFoundError: there never were any.
            StreamExpiredError: they are gone, and what followed some of them was asked for.
        """
        stream = self.stream
        said = None if stream is None else stream.state.prediction
        # What is cut off at its beginning looks like a hole at its first chunk.
        if stream is None or said is None or stream.state.n_taken:
            return
        if said.outcome != m.OUTCOME_OK:
            return
        # An answer of no chunks would else be whole, and empty.
        if not said.generated.n_chunks:
            raise errors.StreamNotFoundError("this request did not stream; its row has the answer")
        if not caught_up:
            return
        if self.after >= 0:
            raise errors.StreamExpiredError(
                "the pieces of this stream are gone; ask without Last-Event-ID for all of its text"
            )
        self._replace(stream, said)

    def _replace(self, stream: OpenStream, said: m.Prediction) -> None:
        stream.state.error = None
        stream.state.run = said.generated.run
        stream.events.clear()
        for index, (text, choice) in enumerate(
            zip(dialects.texts(said), said.generated.choices, strict=True)
        ):
            chunk = m.TokenChunk(
                id=said.id,
                choice=index,
                text=text,
                logprobs=choice.logprobs,
                tool_calls=_as_deltas(choice.tool_calls),
                finish_reason=choice.finish_reason,
                model=said.model,
                version=said.version,
                include_usage=self.include_usage,
            )
            stream.events.append((chunk, 0))
        stream.state.n_taken = said.generated.n_chunks

    def check_appears(self, now_ms: float) -> None:
        """Raise where nothing of the request has appeared in its time."""
        if now_ms - ids.unix_ms(self.request_id) > _APPEARS_S * 1000:
            raise errors.StreamNotFoundError("no such stream")


def _as_deltas(raw: str) -> str:
    """Return whole calls of tools, as a message has them, as the one delta of each."""
    if not raw:
        return ""
    calls = [{"index": index, **call} for index, call in enumerate(msgspec.json.decode(raw))]
    return msgspec.json.encode(calls).decode()


def _request_id(name: str, now_ms: float) -> bytes:
    try:
        request_id = uuid.UUID(kinds.bare_id(name)).bytes
    except ValueError:
        raise errors.StreamNotFoundError("no such stream") from None
    if not ids.is_uuid7(request_id) or ids.unix_ms(request_id) > now_ms + SLACK_MS:
        raise errors.StreamNotFoundError("no such stream")
    return request_id


def _place(last: str) -> tuple[int | None, int]:
    if not last:
        return None, -1
    partition, _, offset = last.partition(":")
    if not (partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()):
        raise errors.InvalidRequestError("Last-Event-ID must be the id of an event of ours")
    if len(partition) > 6 or len(offset) > 18:  # noqa: PLR2004 -- Kafka has no larger ones
        raise errors.InvalidRequestError("Last-Event-ID must be the id of an event of ours")
    return int(partition), int(offset)


async def _find(reader: SpanReader, again: _Again) -> OpenStream | None:
    """Read up to the first that there is of a stream; None where its reader leaves before.

    Raises:
        StreamNotFoundError: nothing of it appeared in its time.
    """
    while again.stream is None and not again.gone:
        again.take(await reader.read())
        if again.stream is None and await reader.passed():
            again.check_appears(time.time() * 1000)
    return again.stream


async def _watch(receive: Receive, again: _Again) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    again.gone = True
