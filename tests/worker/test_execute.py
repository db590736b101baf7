"""One version's work, with an engine that dies, refuses and answers as the test says."""

from __future__ import annotations

import asyncio
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.metrics import worker_metrics
from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Batching, FileEntry, Manifest, Signature, TensorSpec
from inferbus_telemetry.spans import Tracing
from inferbus_worker.engines import wire
from inferbus_worker.engines.process import Death
from inferbus_worker.hot import emit
from inferbus_worker.hot.consume import Desk
from inferbus_worker.hot.emit import Emitter, Served
from inferbus_worker.hot.execute import Executor, VersionMetrics
from inferbus_worker.hot.spans import Spans
from tests.support.worker_side import request, tensor_set

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferbus_kit.produce import Message
    from inferbus_worker.hot.work import Work

TOPIC = topics.topic(topics.REQUESTS, "default")
GOOD, POISON, ERROR, BAD = "good", "poison", "error", "bad"
KINDS = {GOOD: 0, POISON: 1 << 20, ERROR: 2 << 20, BAD: 3 << 20}
MANIFEST = Manifest(
    model="m",
    task="tensor",
    engine="onnx",
    signature=Signature((TensorSpec("n", "INT64", (-1,)),), (TensorSpec("twice", "INT64", (-1,)),)),
    files=(FileEntry("model.onnx", "0" * 64, 1),),
    batching=Batching(max_rows=8, max_wait_ms=5),
)


@dataclass
class Sender:
    """Takes records; acknowledges them at once, or as `plan` says: False is refused."""

    plan: list[bool] = field(default_factory=list)
    raises: int = 0
    error: Exception = field(default_factory=lambda: BusUnavailableError("down"))
    sent: list[m.Prediction] = field(default_factory=list)
    headers: list[dict[str, bytes]] = field(default_factory=list)

    async def send_many(
        self, topic: str, partition: int, messages: Sequence[Message]
    ) -> asyncio.Future[Any]:
        assert topic == topics.topic(topics.PREDICTIONS).name
        assert partition == 3
        if self.raises:
            self.raises -= 1
            raise self.error
        self.sent += [m.Prediction.FromString(one.value or b"") for one in messages]
        self.headers += [dict(one.headers) for one in messages]
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.plan and not self.plan.pop(0):
            done.set_exception(BusUnavailableError("refused"))
        else:
            done.set_result(None)
        return done


class Engine:
    """Runs batches when told: dies of poison, refuses errors, names bad rows, else doubles."""

    def __init__(self) -> None:
        self.up = True
        self.batches: list[tuple[Any, list[int]]] = []
        self.n_deaths = 0
        self.sizes: list[int] = []

    @property
    def n_in_flight(self) -> int:
        return len(self.batches)

    def submit(
        self, token: Any, heads: Sequence[wire.TensorHead], buffers: Sequence[bytes]
    ) -> None:
        assert self.up
        assert len(self.batches) < 2
        values = list(struct.unpack(f"<{heads[0].shape[0]}q", buffers[0]))
        self.sizes.append(len(values))
        self.batches.append((token, values))

    def run(self, executor: Executor) -> None:
        """Work until nothing is left."""
        while self.batches:
            if any(value >> 20 == 1 for value in self.batches[0][1]):
                tokens = [token for token, _ in self.batches]
                self.batches.clear()
                self.n_deaths += 1
                self.up = False
                death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
                executor.on_down(tokens, death)
                self.up = True
                executor.on_up()
                continue
            token, values = self.batches.pop(0)
            executor.on_done(token, *self._answer(values))

    def _answer(self, values: list[int]) -> tuple[wire.Done, memoryview]:
        bad = {row: "it is bad" for row, value in enumerate(values) if value >> 20 == 3}
        if bad:
            return wire.Done(0, (), bad, "", 1, 0), memoryview(b"")
        if any(value >> 20 == 2 for value in values):
            return wire.Done(0, (), {}, "it cannot", 1, 0), memoryview(b"")
        body = struct.pack(f"<{len(values)}q", *(2 * value for value in values))
        head = wire.TensorHead("twice", "INT64", (len(values),), len(body))
        return wire.Done(0, (head,), {}, "", 1, 0), memoryview(body)


class Letters:
    """Notes of which requests letters are written."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []

    def poison(self, work: Work, death: asyncio.Future[Death]) -> None:
        assert not death.done()
        self.ids.append(work.request.id)


class Bench:
    """A desk with one executor, and what its inbox hears."""

    def __init__(self, sender: Sender | None = None) -> None:
        self.sender = sender or Sender()
        metrics = worker_metrics(CollectorRegistry())
        self.emitter = Emitter(self.sender, "w1")
        self.letters = Letters()
        self.desk = Desk(self.emitter, metrics, lambda: 0.0, TOPIC.ce_type)
        self.executor = Executor(
            MANIFEST,
            Served(b"v" * 32),
            emitter=self.emitter,
            letters=self.letters,
            metrics=VersionMetrics(metrics, "m", 1),
            spans=Spans(Tracing("worker", "w1", ""), TOPIC.name),
        )
        self.engine = Engine()
        self.executor.attach(self.engine)
        self.desk.executors["m", 1] = self.executor
        self.done: list[int] = []
        self.offset = 0

    def frame_done(self, offset: int) -> None:
        self.done.append(offset)

    def take(self, *requests: m.Request, age_ms: int = 0) -> None:
        value = m.RequestFrame(gateway="g", requests=requests).SerializeToString()
        now_ms = time.time() * 1000
        record = Record(value, self.offset, int(now_ms) - age_ms)
        self.offset += 1
        now_s = time.monotonic()
        said = self.desk.decode(record)
        for executor in self.desk.take(record, said, self, now_s, now_ms):
            executor.pump(now_s)

    async def settle(self) -> None:
        self.engine.run(self.executor)
        for _ in range(5):
            await asyncio.sleep(0)

    def outcomes(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for said in self.sender.sent:
            found.setdefault(said.id, []).append(said.outcome)
        return found


@dataclass
class Record:
    value: bytes | None
    offset: int
    timestamp: int
    topic: str = TOPIC.name
    partition: int = 0
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = tuple(envelope.headers(TOPIC.ce_type, "/g", "1"))


def number(value: int, *more: int, **fields: Any) -> m.Request:
    values = (value, *more)
    data = struct.pack(f"<{len(values)}q", *values)
    return request("m", 1, tensor_set(("n", "INT64", (len(values),), data)), **fields)


@settings(deadline=None, max_examples=80)
@given(
    frames=st.lists(
        st.lists(st.sampled_from([GOOD] * 6 + [POISON, ERROR, BAD]), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    )
)
def test_each_request_ends_once_and_only_the_guilty_fail(frames: list[list[str]]) -> None:
    async def scenario() -> None:
        bench = Bench()
        expected: dict[bytes, int] = {}
        values: dict[bytes, int] = {}
        for at, kinds in enumerate(frames):
            requests = []
            for index, kind in enumerate(kinds):
                value = KINDS[kind] + at * 10 + index
                one = number(value)
                requests.append(one)
                values[one.id] = value
                expected[one.id] = {
                    GOOD: m.OUTCOME_OK,
                    POISON: m.OUTCOME_POISON,
                    ERROR: m.OUTCOME_FAILED,
                    BAD: m.OUTCOME_INVALID_INPUT,
                }[kind]
            bench.take(*requests)
        await bench.settle()
        assert bench.outcomes() == {key: [outcome] for key, outcome in expected.items()}
        poison = [key for key, outcome in expected.items() if outcome == m.OUTCOME_POISON]
        assert sorted(bench.letters.ids) == sorted(poison)
        for said in bench.sender.sent:
            if said.outcome == m.OUTCOME_OK:
                out = m.TensorSet.FromString(said.outputs).tensors[0]
                assert struct.unpack("<q", out.data) == (2 * values[said.id],)
        assert sorted(bench.done) == list(range(len(frames)))
        assert bench.desk.n_open == bench.desk.open_rows == bench.desk.open_bytes == 0
        assert max(bench.engine.sizes) <= 8
        assert bench.executor.idle

    asyncio.run(scenario())


async def test_an_answer_counts_as_a_request_for_who_asks_when_there_was_one() -> None:
    bench = Bench()
    bench.take(number(1))
    bench.desk.last_s = came_s = time.monotonic() - 60.0  # a slow one
    await bench.settle()
    assert bench.desk.last_s > came_s + 50.0


async def test_finding_one_poison_among_eight_costs_few_lives() -> None:
    bench = Bench()
    bench.take(*(number(KINDS[POISON] if at == 5 else at) for at in range(8)))
    await bench.settle()
    assert bench.engine.n_deaths <= 5
    outcomes = [said.outcome for said in bench.sender.sent]
    assert sorted(outcomes) == [m.OUTCOME_OK] * 7 + [m.OUTCOME_POISON]


async def test_what_waits_for_a_dead_engine_expires_in_time_and_is_told() -> None:
    bench = Bench()
    bench.engine.up = False
    quick, patient = number(1, ttl_ms=30), number(2)
    bench.take(quick, patient)
    await asyncio.sleep(0.05)
    bench.executor.tick(time.monotonic())
    await bench.settle()
    assert bench.outcomes() == {quick.id: [m.OUTCOME_EXPIRED]}
    bench.engine.up = True
    bench.executor.on_up()
    await bench.settle()
    assert bench.outcomes()[patient.id] == [m.OUTCOME_OK]


async def test_an_engine_that_never_comes_back_gives_every_attempt_back() -> None:
    bench = Bench()
    bench.engine.up = False
    movable, last = number(1), number(2, may_retry=False)
    bench.take(movable)
    bench.executor.on_failed("it dies again and again")
    bench.take(last)
    await bench.settle()
    assert bench.outcomes() == {
        movable.id: [m.OUTCOME_ATTEMPT_FAILED],
        last.id: [m.OUTCOME_FAILED],
    }
    assert {said.error_code for said in bench.sender.sent} == {"engine_lost"}


async def test_rows_of_one_request_stay_together_and_in_order() -> None:
    bench = Bench()
    wide, narrow = number(*range(20)), number(99)
    bench.take(narrow, wide)
    await bench.settle()
    answers = {said.id: m.TensorSet.FromString(said.outputs) for said in bench.sender.sent}
    data = answers[wide.id].tensors[0].data
    assert list(struct.unpack("<20q", data)) == [2 * value for value in range(20)]
    assert bench.engine.sizes == [1, 8, 12]


async def test_the_first_bad_row_of_a_request_is_named() -> None:
    bench = Bench()
    bench.take(number(1), number(5, KINDS[BAD], 6))
    await bench.settle()
    bad = next(said for said in bench.sender.sent if said.outcome == m.OUTCOME_INVALID_INPUT)
    assert bad.error_message == "row 1: it is bad"


async def test_a_record_that_was_refused_is_sent_again_before_its_frame_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emit, "_RETRY_S", 0.01)
    bench = Bench(Sender(plan=[False], raises=1))
    one = number(1)
    bench.take(one)
    await bench.settle()
    assert bench.done == []
    assert not bench.emitter.has_ended(one.id)
    await asyncio.sleep(0.1)
    assert bench.outcomes() == {one.id: [m.OUTCOME_OK, m.OUTCOME_OK]}
    assert bench.sender.sent[0] == bench.sender.sent[1]
    assert bench.done == [0]
    assert bench.emitter.has_ended(one.id)
    assert bench.emitter.n_unacknowledged == 0


@pytest.mark.parametrize("error", [AssertionError("Unrecognized partition"), OSError("broken")])
async def test_no_error_of_the_sender_loses_an_answer_or_stops_a_partition(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(emit, "_RETRY_S", 0.01)
    bench = Bench(Sender(raises=2, error=error))
    one, two = number(1), number(2)
    bench.take(one)
    await bench.settle()
    bench.take(two)
    await bench.settle()
    assert not bench.emitter.has_ended(one.id)
    async with asyncio.timeout(5.0):
        while len(bench.done) < 2:  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.01)
    assert bench.outcomes() == {one.id: [m.OUTCOME_OK], two.id: [m.OUTCOME_OK]}
    assert bench.done == [0, 1]


async def test_what_nobody_waits_for_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "_RETRY_S", 0.01)
    monkeypatch.setattr(emit, "MAX_FRAME_AGE_MS", 60_000)
    bench = Bench(Sender(raises=1))
    old, new = number(1, ttl_ms=120_000), number(2, ttl_ms=120_000)
    bench.take(old, age_ms=61_000)
    bench.take(new)
    await bench.settle()
    await asyncio.sleep(0.05)
    assert bench.outcomes() == {new.id: [m.OUTCOME_OK]}
    assert sorted(bench.done) == [0, 1]
    assert not bench.emitter.has_ended(old.id)
    assert (bench.emitter.n_unacknowledged, bench.emitter.unacknowledged_bytes) == (0, 0)


async def test_answers_that_kafka_does_not_take_count_by_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emit, "_RETRY_S", 0.02)
    monkeypatch.setattr("inferbus_worker.hot.consume._MAX_OPEN_BYTES", 64 << 10)
    bench = Bench(Sender(raises=1))
    bench.take(number(*range(8000)))
    await bench.settle()
    assert (bench.desk.n_open, bench.desk.full) == (0, True)
    await asyncio.sleep(0.1)
    assert (len(bench.outcomes()), bench.desk.full) == (1, False)
    assert bench.emitter.unacknowledged_bytes == 0


async def test_an_answer_is_never_written_long_after_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emit, "_RETRY_S", 0.05)
    monkeypatch.setattr(emit, "_MAX_LATE_S", 0.0)
    bench = Bench(Sender(raises=1))
    one = number(1, ttl_ms=40)
    bench.take(one)
    await bench.settle()
    await asyncio.sleep(0.15)
    assert bench.outcomes() == {one.id: [m.OUTCOME_EXPIRED]}
    assert bench.done == [0]
