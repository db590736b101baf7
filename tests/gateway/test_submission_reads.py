"""Submissions that a client library cannot read: stepped over, and nobody's record is lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer import message_accumulator
from aiokafka.producer import producer as aiokafka_producer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import TopicPartition
from confluent_kafka import Producer

from inferbus_gateway.hot.submission_reads import SubmissionReads
from inferbus_gateway.hot.submissions import Submissions
from inferbus_kit.consume import PartitionReader, Record
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from tests.guard.test_batches import number, written
from tests.support.program import Program
from tests.support.scripted_worker import echo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def submission(program: Program, *names: str) -> bytes:
    requests = [program.one(name) for name in names]
    return m.Submission(requests=requests).SerializeToString()


def write_packed(program: Program, codec: str, value: bytes, partition: int, n: int = 1) -> None:
    """Write a batch of equal records with a compression."""
    config = {
        "bootstrap.servers": program.side.bootstrap,
        "compression.type": codec,
        "linger.ms": 500,
        "batch.size": 12 << 20,
        "message.max.bytes": 12 << 20,
    }
    producer = Producer(config)
    for _ in range(n):
        producer.produce(program.topic, value, partition=partition)
    assert producer.flush(10) == 0


async def letters_of(program: Program, count: int) -> list[Record]:
    """Return so many dead letters."""
    reader = PartitionReader(
        program.side.bootstrap, topics.dead_letters(program.topic), 0, client_id="letters"
    )
    await reader.start()
    found: list[Record] = []
    async with asyncio.timeout(40):
        while len(found) < count:
            found += await reader.read(timeout_ms=200)
    await reader.stop()
    return found


class NoText(str):
    """The name of a header that the broker takes and that is not UTF-8."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return b"\xff\xfe"


async def write_odd_header(
    program: Program, value: bytes, partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        for place in (message_accumulator, aiokafka_producer):
            patched.setattr(place, "DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
        producer = AIOKafkaProducer(bootstrap_servers=program.side.bootstrap)
        await producer.start()
        head = [(NoText("x"), b"v")]
        await producer.send_and_wait(program.topic, value, partition=partition, headers=head)
        await producer.stop()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_whatever_a_program_compresses_with_is_answered(program: Program, codec: str) -> None:
    await program.side.worker(echo)
    await program.gateway()
    write_packed(program, codec, submission(program, *(f"{codec}-{at}" for at in range(20))), 2)
    program.submit(program.one("behind"), partition=2)
    found = await program.ended(*(f"{codec}-{at}" for at in range(20)), "behind")
    assert {one.outcome for one in found.values()} == {m.OUTCOME_OK}


async def test_headers_without_values_are_as_if_they_were_not_there(program: Program) -> None:
    await program.side.worker(echo)
    gateway = await program.gateway()
    producer = Producer({"bootstrap.servers": program.side.bootstrap})
    for name in ("traceparent", "content-type", "x"):
        value = submission(program, f"null {name}")
        producer.produce(program.topic, value, partition=1, headers=[(name, None)])
        producer.produce(program.topic, b"\xff", partition=1, headers=[(name, None)])
    producer.produce(program.topic, None, partition=1)
    assert producer.flush(10) == 0
    program.submit(program.one("behind"), partition=1)
    found = await program.ended("null traceparent", "null content-type", "null x", "behind")
    assert {one.outcome for one in found.values()} == {m.OUTCOME_OK}
    assert len(await letters_of(program, 4)) == 4
    await program.side.until(lambda: program.committed() == 8)
    assert gateway.process.poll() is None


async def test_what_cannot_be_read_is_stepped_over_and_loses_nobodys_record(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    await program.side.worker(echo)
    gateway = await program.gateway()

    program.submit(program.one("first"))
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        write_packed(program, codec, bytes(900_000), 1, n=10)
    await write_odd_header(program, submission(program, "odd"), 3, monkeypatch)
    names = ["first"]
    for at in range(12):
        names.append(f"{at}")
        program.submit(program.one(f"{at}"), partition=at % 4)
    found = await program.ended(*names)
    assert {one.outcome for one in found.values()} == {m.OUTCOME_OK}
    letters = [dict(one.headers) for one in await letters_of(program, 5)]
    assert sorted(int(one["dlq_partition"]) for one in letters) == [1, 1, 1, 1, 3]
    told = {one["dlq_partition"]: one["dlq_error"] for one in letters}
    assert b"over 8 MiB when it is decompressed" in told[b"1"]
    assert b"the name of a header is not UTF-8" in told[b"3"]
    # 13 that were answered, 40 in four batches and 1 with the header.
    await program.side.until(lambda: program.committed() == 54)
    assert gateway.process.poll() is None
    worker_names = [one.client_request_id for _, one in program.side.all_predictions]
    assert sorted(worker_names) == sorted(names), "each once"


async def test_a_record_that_says_more_than_it_has_ends_no_gateway(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker takes it, since it reads 32 bits of a length."""
    await program.side.worker(echo)
    gateway = await program.gateway()
    far = number((1 << 31) + 1) + b"k"
    raw = bytearray(written(b"\0\0\0" + far + number(1) + b"v" + b"\0"))
    raw[:8] = bytes(8)

    class Lying(_DefaultRecordBatchBuilderPy):  # type: ignore[misc]
        def build(self) -> bytearray:
            return raw

    with monkeypatch.context() as patched:
        for place in (message_accumulator, aiokafka_producer):
            patched.setattr(place, "DefaultRecordBatchBuilder", Lying)
        producer = AIOKafkaProducer(bootstrap_servers=program.side.bootstrap)
        await producer.start()
        await producer.send_and_wait(program.topic, b"v", partition=2)
        await producer.stop()
    program.submit(program.one("behind"), partition=2)
    assert (await program.ended("behind"))["behind"].outcome == m.OUTCOME_OK
    (letter,) = await letters_of(program, 1)
    assert b"damaged" in dict(letter.headers)["dlq_error"]
    await program.side.until(lambda: program.committed() == 2)
    assert gateway.process.poll() is None


async def test_what_was_read_before_partitions_were_revoked_is_not_taken_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would stand as read and done in a partition that begins anew, and be committed past."""
    nothing: Any = None
    one = Submissions(
        "127.0.0.1:9", "g", ("t",), producer=nothing, placement=nothing, routes=nothing,
        health=nothing, fail=nothing, max_tensor_bytes=1, max_rows=1, enter=nothing,
        owes=nothing, tracing=nothing,
    )  # fmt: skip
    mine, other = TopicPartition("a", 0), TopicPartition("b", 0)
    taken: list[str] = []

    async def read(_places: Any, _timeout_ms: int) -> list[tuple[TopicPartition, str]]:
        return [(mine, "first"), (other, "of another"), (mine, "behind"), (other, "last")]

    async def take(_place: TopicPartition, record: str) -> None:
        taken.append(record)
        if record == "of another":
            await one.on_partitions_revoked([mine, other])

    monkeypatch.setattr(one._reads, "read", read)
    monkeypatch.setattr(one, "_take", take)
    await one._read(0)
    assert taken == ["first", "of another"]
    await one._consumer.stop()


class Failing:
    """Gives a record of each partition at a time; what it had drained as it fails is gone."""

    def __init__(self, *failures: str) -> None:
        self.failures = list(failures)
        self.at = {TopicPartition("a", 0): 0, TopicPartition("b", 0): 0}
        self._client = SimpleNamespace(send=None)

    def _fails(self, where: str) -> None:
        if self.failures and self.failures[0] == where:
            del self.failures[0]
            raise KafkaError(where)

    def assignment(self) -> set[TopicPartition]:
        return set(self.at)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at[place] = offset

    async def committed(self, place: TopicPartition) -> int:
        self._fails("committed")
        return 0 if place.topic == "a" else 5

    async def getmany(self, *places: TopicPartition, **_: Any) -> dict[TopicPartition, list[Any]]:
        found = {place: [(place.topic, self.at[place])] for place in places}
        for place in places:
            self.at[place] += 1
        self._fails("getmany")
        return found


@pytest.mark.parametrize("begun", [False, True])
async def test_an_error_costs_no_record_also_where_it_is_not_over_at_once(begun: bool) -> None:  # noqa: FBT001
    consumer: Any = Failing("getmany", "committed", "getmany", "committed", "committed")
    next_of: dict[TopicPartition, int] = {}
    if begun:
        next_of = {TopicPartition("a", 0): 3, TopicPartition("b", 0): 7}
        consumer.at = dict(next_of)
        consumer.failures = ["getmany", "getmany"]
    reads = SubmissionReads(consumer, next_of.get)
    n_failed = 0
    found: list[Any] = []
    while not found:
        try:
            found = await reads.read(consumer.assignment(), 0)
        except KafkaError:
            n_failed += 1
    assert n_failed == (2 if begun else 5)
    assert sorted(record for _, record in found) == (
        [("a", 3), ("b", 7)] if begun else [("a", 0), ("b", 5)]
    )
