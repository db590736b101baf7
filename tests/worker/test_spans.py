"""Spans of batches of requests and rows of jobs, and where their contexts go; pure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from inferbus_kit.health import Health
from inferbus_kit.produce import Message
from inferbus_schemas import messages as m
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.tokens import TokenSender
from inferbus_worker.hot.work import Batch, Work
from tests.support.span_recorder import SpanRecorder

CHUNK, REQUEST = (f"00-{'a' * 32}-{at:016x}-01" for at in (1, 2))
NOBODY: Any = None


def work(traceparent: str, *, of_a_job: bool = False) -> Work:
    keeper = cast("Any", object()) if of_a_job else None
    return Work(m.Request(id=b"r", traceparent=traceparent), NOBODY, 0.0, 9.0, keeper=keeper)


def test_rows_of_a_chunk_are_one_link_and_no_spans() -> None:
    recorder = SpanRecorder()
    rows = [work(CHUNK, of_a_job=True) for _ in range(3)]
    asked = work(REQUEST)
    batch = Batch([*rows, asked, work("")], 5, b"b", started_s=1.0, started_ns=10**18)
    contexts = Spans(recorder, "requests").answered(batch)
    (name, said), (own, of_request) = recorder.spans
    assert (name, list(said["links"])) == ("batch", [CHUNK, REQUEST])
    assert (own, of_request["parent"]) == ("process requests", REQUEST)
    assert list(contexts) == [id(asked)]


def test_what_nobody_traces_has_no_span() -> None:
    recorder = SpanRecorder()
    assert not Spans(recorder, "requests").answered(Batch([work("")], 1, b"b"))
    recorder.on = False
    assert not Spans(recorder, "requests").answered(Batch([work(REQUEST)], 1, b"b"))
    assert not recorder.spans


class Sender:
    """Takes records and acknowledges them."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def send_many(
        self, _topic: str, _partition: int, messages: Sequence[Message]
    ) -> asyncio.Future[Any]:
        self.sent += messages
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


async def test_pieces_of_a_stream_carry_the_context_of_their_request() -> None:
    sender, left = Sender(), asyncio.Semaphore(0)
    tokens = TokenSender(sender, "w1", Loops(Health(), lambda _why: None))
    for one in (work(REQUEST), work("")):
        tokens.put(one, m.TokenChunk(id=bytes(16)), left.release)
    for _ in range(2):
        await left.acquire()
    contexts = [dict(one.headers).get("traceparent") for one in sender.sent]
    assert contexts == [REQUEST.encode(), None]
