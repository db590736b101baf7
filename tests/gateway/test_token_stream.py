"""One stream: bound to a run, without holes or doubles, whole only when it is."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway import errors
from inferbus_gateway.hot import dialects, generations
from inferbus_gateway.hot.generations import EventWriter
from inferbus_gateway.hot.pending import Entry, Frame, Pending
from inferbus_gateway.hot.streams import OpenStream
from inferbus_gateway.hot.token_stream import TokenStream
from inferbus_schemas import ids, tensors
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import lease

REQUEST_ID = ids.uuid7(1_700_000_000_123, 5)


def chunk(seq: int, run: int = 1, **said: object) -> m.TokenChunk:
    fields = {"text": f"{seq} ", "n_tokens": 1, "model": "m", "version": 2} | said
    return m.TokenChunk(id=REQUEST_ID, run=run, seq=seq, **fields)  # type: ignore[arg-type]


def record(n_chunks: int, run: int = 1, outcome: m.Outcome = m.OUTCOME_OK) -> m.Prediction:
    generated = m.Generated(run=run, n_chunks=n_chunks, prompt_tokens=2, completion_tokens=3)
    return m.Prediction(id=REQUEST_ID, outcome=outcome, model="m", version=2, generated=generated)


def test_it_is_whole_only_with_all_chunks_of_the_run_that_ended() -> None:
    stream = TokenStream()
    assert stream.take(chunk(0))
    stream.end(record(2), None)
    assert not stream.ended
    assert stream.take(chunk(1))
    assert stream.whole


def test_tokens_are_those_of_the_chunks_that_were_taken_and_of_the_prompt() -> None:
    stream = TokenStream()
    stream.take(chunk(0, n_tokens=2, prompt_tokens=7))
    stream.take(chunk(0, n_tokens=2, prompt_tokens=7))
    stream.take(chunk(0, run=2, n_tokens=9))
    stream.take(chunk(1, n_tokens=3))
    stream.take(chunk(3, n_tokens=9))
    assert stream.n_tokens == 12


def test_a_hole_is_an_error_and_stays_one() -> None:
    stream = TokenStream()
    stream.take(chunk(0))
    assert not stream.take(chunk(2))
    assert isinstance(stream.error, errors.StreamBrokenError)
    assert not stream.take(chunk(1))
    stream.end(record(3), None)
    assert not stream.whole


def test_another_run_is_ignored_and_its_end_is_an_error() -> None:
    stream = TokenStream()
    stream.take(chunk(0, run=1))
    assert not stream.take(chunk(0, run=2))
    assert not stream.take(chunk(1, run=2))
    assert stream.error is None
    stream.end(record(2, run=2), None)
    assert isinstance(stream.error, errors.StreamBrokenError)


def test_chunks_that_never_come_are_given_up() -> None:
    stream = TokenStream()
    stream.end(record(2), None)
    stream.overdue()
    assert isinstance(stream.error, errors.StreamBrokenError)
    whole = TokenStream()
    whole.take(chunk(0))
    whole.end(record(1), None)
    whole.overdue()
    assert whole.whole


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 5)), max_size=30),
    st.integers(0, 30),
    st.integers(0, 6),
)
def test_what_is_passed_on_is_always_a_prefix_of_one_run(
    arriving: list[tuple[int, int]], end_at: int, n_chunks: int
) -> None:
    stream = TokenStream()
    passed = []
    for number, (run, seq) in enumerate(arriving):
        if number == end_at:
            stream.end(record(n_chunks), None)
        if stream.take(chunk(seq, run)):
            passed.append((run, seq))
    assert [seq for _, seq in passed] == list(range(len(passed)))
    assert len({run for run, _ in passed}) <= 1
    if stream.whole:
        assert len(passed) == n_chunks


async def test_waiting_ends_with_news() -> None:
    stream = OpenStream(3)
    assert not await stream.wait(0.001)
    firsts: list[int] = []
    stream.on_first = lambda: firsts.append(1)
    stream.chunk(chunk(0), 7)
    stream.chunk(chunk(1), 8)
    assert await stream.wait(5)
    assert [offset for _, offset in stream.events] == [7, 8]
    assert firsts == [1]
    stream.events.clear()
    stream.leave()
    assert await stream.wait(5)


def test_a_forwarded_request_is_never_placed_again() -> None:
    pending = Pending()
    entry = Entry(
        m.Request(id=REQUEST_ID, model="m", version=1, may_retry=True),
        "default",
        n_rows=1,
        deadline_s=100.0,
        waiter=None,
    )
    pending.add(entry, 0.0)
    pending.placed(entry, lease(0), Frame())
    pending.forwarding(entry)
    assert pending.ended(entry.id, 1, m.OUTCOME_ATTEMPT_FAILED, 1.0) is None
    assert pending.to_place(50.0) == []
    due = pending.tick(2.0)
    assert due.exhausted == [entry]
    assert pending.tick(3.0).exhausted == []


def test_tokens_of_a_worker_that_was_given_up_end_the_request() -> None:
    """Its worker was taken for lost, and its first tokens come late: no second run begins."""
    pending = Pending()
    entry = Entry(
        m.Request(id=REQUEST_ID, model="m", version=1, may_retry=True),
        "default",
        n_rows=1,
        deadline_s=100.0,
        waiter=None,
    )
    pending.add(entry, 0.0)
    pending.placed(entry, lease(0), Frame())
    assert pending.lease_seen(lease(0), expired=True, now_s=1.0) == [entry]
    assert pending.to_place(1.0) == [entry]
    pending.forwarding(entry)
    assert pending.to_place(1.0) == []
    assert pending.tick(2.0).exhausted == [entry]
    assert pending.ended(entry.id, 1, m.OUTCOME_OK, 3.0) is entry, "the late worker may still win"


def _events(raw: bytes) -> list[dict[str, Any]]:
    lines = [line for line in raw.decode().split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_chat_events_have_the_grammar_that_clients_know() -> None:
    dialect = dialects.Chat(REQUEST_ID)
    raw = dialect.events(chunk(0), "3:7") + dialect.events(
        chunk(1, text="", n_tokens=0, finish_reason="stop"), "3:8"
    )
    assert raw.startswith(b"data: "), "the role has no place of its own"
    assert raw.count(b"id: 3:7\ndata: ") == raw.count(b"id: 3:8\ndata: ") == 1
    role, content, last = _events(raw)
    assert [one["created"] for one in (role, content, last)] == [1_700_000_000] * 3
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert content["choices"][0]["delta"] == {"content": "0 "}
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert dialect.end(record(2), include_usage=False) == b"data: [DONE]\n\n"
    (usage,) = _events(dialect.end(record(2), include_usage=True))
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 5


def test_the_choices_of_a_chat_begin_in_their_order() -> None:
    """The SDK of OpenAI appends those that it first hears of to a list."""
    dialect = dialects.Chat(REQUEST_ID)
    order = (2, 0, 1, 3)
    raw = b"".join(dialect.events(chunk(at, choice=one), f"3:{at}") for at, one in enumerate(order))
    choices = [one["choices"][0] for one in _events(raw)]
    assert [one["index"] for one in choices if "role" in one["delta"]] == [0, 1, 2, 3]
    assert [one["index"] for one in choices] == [0, 1, 2, 2, 0, 1, 3, 3]


def test_any_gateway_writes_the_same_bytes() -> None:
    chunks = [chunk(seq, choice=seq % 2) for seq in range(6)]
    for make in (dialects.Chat, dialects.Text):
        one, other = make(REQUEST_ID), make(REQUEST_ID)
        first = b"".join(one.events(each, f"0:{at}") for at, each in enumerate(chunks))
        again = b"".join(other.events(each, f"0:{at}") for at, each in enumerate(chunks))
        assert first == again


def test_only_the_last_event_of_a_protocol_stream_is_done() -> None:
    made = dialects.Triton("7")
    chunks = [chunk(0), chunk(1, text=""), chunk(2, text="", finish_reason="stop")]
    first, silent, last = (made.events(one, "0:1") for one in chunks)
    assert silent == b""
    said = [json.loads(one.partition(b"data: ")[2]) for one in (first, last)]
    assert [(one["text_output"], one["done"]) for one in said] == [("0 ", False), ("", True)]
    assert {one["model_name"] for one in said} == {"m"}


def test_whole_answers_and_tool_calls() -> None:
    said = record(0)
    tensor = m.Tensor(
        name="text_output", datatype="BYTES", shape=[1], data=tensors.join_bytes([b""])
    )
    said.outputs = m.TensorSet(tensors=[tensor]).SerializeToString()
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    said.generated.choices.append(
        m.Choice(finish_reason="tool_calls", tool_calls=json.dumps(calls))
    )
    message = dialects.Chat(REQUEST_ID).answer(said)["choices"][0]["message"]
    assert message["tool_calls"] == calls
    assert message["content"] is None
    assert dialects.Triton("7").answer(said)["text_output"] == ""
    with pytest.raises(ValueError, match="unpack"):
        dialects.texts(m.Prediction())


async def _written(chunks: list[m.TokenChunk], after: int = -1) -> bytes:
    """Return what a client reads of a chat whose chunks stand at offsets 0, 1, 2, ..."""
    stream, parts = OpenStream(3), list[bytes]()

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    for offset, one in enumerate(chunks):
        stream.chunk(one, offset)
    stream.end(record(len(chunks)), None)
    writer = EventWriter(send, [], dialects.Chat(REQUEST_ID))
    assert await writer.forward(stream, include_usage=False, after=after)
    return b"".join(parts)


async def test_a_cut_between_the_text_and_the_end_of_one_chunk_loses_and_repeats_no_text() -> None:
    told = json.dumps([{"token": "1 ", "logprob": -0.5, "top_logprobs": []}])
    chunks = [chunk(0), chunk(1, finish_reason="length", logprobs=told)]
    whole = await _written(chunks)
    events = whole.split(b"\n\n")[:-1]
    for n_seen in range(len(events) + 1):
        seen = events[:n_seen]
        places = [int(one.split(b"\n")[0].rpartition(b":")[2]) for one in seen if b"id: " in one]
        rest = await _written(chunks, after=places[-1] if places else -1)
        read = _events(b"\n\n".join([*seen, rest]))
        choices = [one["choices"][0] for one in read]
        assert "".join(one["delta"].get("content", "") for one in choices) == "0 1 "
        assert [one["logprobs"] for one in choices if one["logprobs"]] == [
            {"content": json.loads(told), "refusal": None}
        ]
        assert choices[-1]["finish_reason"] == "length"


def test_offsets_of_tokens_go_on_from_chunk_to_chunk_of_each_text() -> None:
    dialect = dialects.Text(REQUEST_ID)
    tokens = (("Ro", "me"), (" is",), (" old",))
    raw = b""
    for seq, (words, choice) in enumerate(zip((*tokens, tokens[0]), (0, 0, 0, 1), strict=True)):
        told = [{"token": one, "logprob": -0.5, "top_logprobs": []} for one in words]
        raw += dialect.events(chunk(seq, choice=choice, logprobs=json.dumps(told)), f"3:{seq}")
    found = [one["choices"][0]["logprobs"]["text_offset"] for one in _events(raw)]
    assert found == [[0, 2], [4], [7], [0, 2]]


async def test_a_silent_stream_is_kept_open_in_the_frame_of_server_sent_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a proxy and a browser look at: the head as sent, comments, nothing after the end."""
    monkeypatch.setattr(generations, "PING_S", 0.01)
    stream, told = OpenStream(3), list[Any]()
    pinged = asyncio.Event()

    async def send(message: Any) -> None:
        told.append(message)
        if message.get("body") == b": ping\n\n":
            pinged.set()

    owner: Any = SimpleNamespace(_streams=SimpleNamespace(leaving=asyncio.Event()))
    call: Any = SimpleNamespace(ask=SimpleNamespace(generation=m.Generation()))
    writer = EventWriter(send, [(b"x-request-id", b"r")], dialects.Chat(REQUEST_ID))
    pumping = asyncio.create_task(generations.Generations._pump(owner, call, stream, writer))
    await pinged.wait()
    pinged.clear()
    stream.chunk(chunk(0, finish_reason="stop"), 0)
    await pinged.wait()
    stream.end(record(1), None)
    await pumping
    head, *bodies = told
    assert (head["type"], head["status"]) == ("http.response.start", 200)
    assert head["headers"] == [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (b"x-request-id", b"r"),
    ]
    assert [one["more_body"] for one in bodies] == [True] * (len(bodies) - 1) + [False]
    frames = b"".join(one["body"] for one in bodies).split(b"\n\n")
    assert frames[0] == b": ping"
    assert frames[-2:] == [b"data: [DONE]", b""]
    for frame in frames[:-1]:
        lines = frame.split(b"\n")
        assert lines == [b": ping"] or lines[-1].startswith(b"data: "), frame
        assert all(line.startswith((b": ", b"id: ", b"data: ")) for line in lines)
