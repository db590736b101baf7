"""A stream that is read again: whose it is, what is left of it, which ids are none."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from inferbus_gateway import errors
from inferbus_gateway.control import resume
from inferbus_gateway.hot import kinds
from inferbus_gateway.hot.generations import EventWriter
from inferbus_gateway.hot.replies import terminal
from inferbus_schemas import ids, membership, tensors, topics
from inferbus_schemas import messages as m
from tests.gateway.test_token_stream import REQUEST_ID, chunk, record

TOKENS, PREDICTIONS = topics.topic(topics.TOKENS).name, topics.topic(topics.PREDICTIONS).name


def on(topic: str, offset: int, value: m.TokenChunk | m.Prediction) -> Any:
    """Return a record of either topic."""
    ce_id = f"{ids.text(REQUEST_ID)}/1".encode()
    return SimpleNamespace(
        topic=topic,
        partition=3,
        offset=offset,
        key=REQUEST_ID if topic == TOKENS else b"m",
        headers=(("ce_id", ce_id),),
        value=value.SerializeToString(),
    )


def whole(n_chunks: int) -> m.Prediction:
    said = record(n_chunks)
    said.tenant = "acme"
    tensor = m.Tensor(
        name="text_output", datatype="BYTES", shape=[1], data=tensors.join_bytes([b"0 1 "])
    )
    said.outputs = m.TensorSet(tensors=[tensor]).SerializeToString()
    said.generated.choices.append(m.Choice(finish_reason="stop"))
    said.generated.form = m.FORM_TEXT
    return said


async def written(again: resume._Again) -> str:
    """Return what a client would read."""
    parts: list[bytes] = []

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    assert again.stream is not None
    dialect = kinds.dialect_of(again.form, REQUEST_ID, again.client_request_id)
    writer = EventWriter(send, [], dialect)
    await writer.forward(again.stream, include_usage=False, after=again.after)
    return b"".join(parts).decode()


def test_a_stream_of_another_tenant_is_not_there() -> None:
    for topic, value in (
        (TOKENS, chunk(0, tenant="acme")),
        (PREDICTIONS, whole(1)),
    ):
        again = resume._Again(REQUEST_ID, "other", -1)
        with pytest.raises(errors.StreamNotFoundError):
            again.apply(on(topic, 0, value))


async def test_only_what_follows_is_sent() -> None:
    again = resume._Again(REQUEST_ID, "acme", 40)
    for seq in range(3):
        again.apply(on(TOKENS, 39 + seq, chunk(seq, tenant="acme")))
    again.apply(on(PREDICTIONS, 7, whole(3)))
    again.settle(caught_up=True)
    said = await written(again)
    assert said.count("id: ") == 1
    assert "id: 3:41\n" in said
    assert said.endswith("data: [DONE]\n\n")


async def test_past_the_retention_of_chunks_the_whole_text_is_given_once() -> None:
    again = resume._Again(REQUEST_ID, "acme", -1)
    again.apply(on(PREDICTIONS, 7, whole(3)))
    again.settle(caught_up=True)
    assert '"text":"0 1 "' in await written(again)
    cut = resume._Again(REQUEST_ID, "acme", -1)
    cut.apply(on(TOKENS, 41, chunk(2, tenant="acme")))
    cut.apply(on(PREDICTIONS, 7, whole(3)))
    cut.settle(caught_up=True)
    assert '"text":"0 1 "' in await written(cut)
    seen = resume._Again(REQUEST_ID, "acme", 40)
    seen.apply(on(PREDICTIONS, 7, whole(3)))
    with pytest.raises(errors.StreamExpiredError):
        seen.settle(caught_up=True)


async def test_pieces_that_are_gone_in_part_are_not_sent_before_all_was_read() -> None:
    """What is left of them looks like a hole, until the whole text stands for it."""
    again = resume._Again(REQUEST_ID, "acme", -1)
    again.apply(on(TOKENS, 41, chunk(2, tenant="acme")))
    cut = [again.cut]
    again.apply(on(PREDICTIONS, 7, whole(3)))
    again.settle(caught_up=True)
    cut.append(again.cut)
    assert cut == [True, False]
    fine = resume._Again(REQUEST_ID, "acme", -1)
    for seq in (0, 2):
        fine.apply(on(TOKENS, 40 + seq, chunk(seq, tenant="acme")))
    assert not fine.cut, "a hole behind what was sent is one"


async def read_again(chunks: list[m.TokenChunk], said: m.Prediction, after: int) -> str:
    """Return what a client reads whose stream lies on the topics, from behind a place."""
    again = resume._Again(REQUEST_ID, "acme", after)
    for one in chunks:
        again.apply(on(TOKENS, 40 + one.seq, one))
    again.apply(on(PREDICTIONS, 7, said))
    again.settle(caught_up=True)
    return await written(again)


@pytest.mark.parametrize(
    ("form", "end"),
    [
        (m.FORM_CHAT, "data: [DONE]\n\n"),
        (m.FORM_TEXT, "data: [DONE]\n\n"),
        (m.FORM_RESPONSES, "}\n\n"),
        (m.FORM_GENERATE, "}\n\n"),
    ],
)
async def test_each_form_goes_on_as_it_began(form: m.Form, end: str) -> None:
    said = whole(4)
    said.generated.form, said.client_request_id = form, "mine"
    fields: dict[str, Any] = {"tenant": "acme", "form": form, "client_request_id": "mine"}
    chunks = [chunk(seq, **fields) for seq in range(3)]
    chunks.append(chunk(3, **fields | {"text": "", "finish_reason": "stop"}))

    everything = await read_again(chunks, said, -1)
    assert everything.endswith(end)
    for after in (40, 41, 42):
        place = everything.index("\n\n", everything.index(f"id: 3:{after}\n")) + 2
        assert await read_again(chunks, said, after) == everything[place:]
    assert everything.count('"id":"mine"') == (4 if form == m.FORM_GENERATE else 0)


@pytest.mark.parametrize("form", [m.FORM_CHAT, m.FORM_RESPONSES])
async def test_calls_go_on_where_they_were_left(form: m.Form) -> None:
    function = {"name": "f", "arguments": "{}"}
    deltas: list[dict[str, Any]] = [
        {"index": at, "id": f"call_{at}", "type": "function", "function": function}
        for at in range(2)
    ]
    said = whole(3)
    said.generated.form = form
    fields: dict[str, Any] = {"tenant": "acme", "form": form, "text": ""}
    chunks = [chunk(at, tool_calls=json.dumps([one]), **fields) for at, one in enumerate(deltas)]
    chunks.append(chunk(2, finish_reason="tool_calls", **fields | {"n_tokens": 0}))

    everything = await read_again(chunks, said, -1)
    for after in (40, 41):
        place = everything.index("\n\n", everything.index(f"id: 3:{after}\n")) + 2
        assert await read_again(chunks, said, after) == everything[place:]


async def test_one_that_ended_before_its_first_piece_goes_on_in_its_form() -> None:
    how = m.Generation(form=m.FORM_GENERATE, stream=True)
    request = m.Request(id=REQUEST_ID, tenant="acme", client_request_id="mine", generation=how)
    ended = terminal(request, 1, m.OUTCOME_FAILED, "no_worker", "nobody is there", "gateway-0")
    again = resume._Again(REQUEST_ID, "acme", -1)
    again.apply(on(PREDICTIONS, 7, ended))
    assert (again.form, again.client_request_id) == (m.FORM_GENERATE, "mine")
    plain = m.Request(id=REQUEST_ID, tenant="acme")
    assert not terminal(plain, 1, m.OUTCOME_FAILED, "a", "b", "c").HasField("generated")


async def test_calls_that_stand_for_their_pieces_are_deltas() -> None:
    calls = [{"id": f"call_{n}", "type": "function", "function": {"name": "f"}} for n in range(2)]
    said = whole(3)
    said.generated.form = m.FORM_CHAT
    said.generated.choices[0].tool_calls = json.dumps(calls)
    again = resume._Again(REQUEST_ID, "acme", -1)
    again.apply(on(PREDICTIONS, 7, said))
    again.settle(caught_up=True)
    events = (await written(again)).split("\n\n")
    bodies = [json.loads(one.partition("data: ")[2]) for one in events if "tool_calls" in one]
    (deltas,) = [
        said
        for body in bodies
        if (said := body["choices"][0]["delta"].get("tool_calls")) is not None
    ]
    assert deltas == [{"index": index, **call} for index, call in enumerate(calls)]


class Busy:
    """Reads a partition on which there is always something of others, once all was read."""

    def __init__(self, *first: Any) -> None:
        self.first = list(first)
        other = ((("ce_id", b"of another/1"),), b"another")
        self.others = [
            SimpleNamespace(topic=topic, partition=3, offset=99, headers=other[0], key=other[1])
            for topic in (TOKENS, PREDICTIONS)
        ]

    async def read(self) -> list[Any]:
        await asyncio.sleep(0.001)
        found, self.first = self.first or self.others, []
        return found

    async def passed(self) -> bool:
        return not self.first

    async def narrow(self, _partition: int) -> None:
        return None


async def test_the_records_of_others_keep_no_reader_from_its_end() -> None:
    parts: list[bytes] = []

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    unused: Any = None
    streams: Any = SimpleNamespace(leaving=asyncio.Event())
    made = resume.Resumer(
        "", "g", producer=unused, fleet=unused, replies=unused, streams=streams, cancel=unused
    )
    again = resume._Again(REQUEST_ID, "acme", -1)
    reader: Any = Busy(on(PREDICTIONS, 7, whole(3)))
    async with asyncio.timeout(5):
        await made._read(reader, again, send)
    assert b"".join(parts).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("caught_up", [False, True])
def test_a_request_that_did_not_stream_is_no_stream(*, caught_up: bool) -> None:
    """It is told at once: an answer of no pieces would be whole, and empty."""
    again = resume._Again(REQUEST_ID, "acme", -1)
    again.apply(on(PREDICTIONS, 7, whole(0)))
    with pytest.raises(errors.StreamNotFoundError, match="did not stream"):
        again.settle(caught_up=caught_up)


class NoStreams(set[bytes]):
    """Nothing is streamed here."""

    leaving = asyncio.Event()


@pytest.mark.parametrize(("life", "cancelled"), [(1, []), (2, [(REQUEST_ID, "default")])])
def test_a_gateway_that_began_anew_under_its_name_is_another_reader(
    life: int, cancelled: list[Any]
) -> None:
    unused: Any = None
    here = membership.Member("gateway/g-0", m.Heartbeat(instance="g-0", life=life), 0, 0)
    lease = SimpleNamespace(instance="w", pool="default")
    fleet: Any = SimpleNamespace(
        gateways=lambda: [here], every_lease=lambda: [lease], expired=lambda _: False
    )
    streams: Any = NoStreams()
    told: list[Any] = []
    made = resume.Resumer(
        "", "g-1", producer=unused, fleet=fleet, replies=unused, streams=streams,
        cancel=lambda *what: told.append(what),
    )  # fmt: skip
    again = resume._Again(REQUEST_ID, "acme", -1)
    piece = chunk(0)
    piece.tenant, piece.served_by, piece.read_at = "acme", "w", membership.reader("g-0", 1)
    again.apply(on(TOKENS, 0, piece))
    made._left(again)
    assert told == cancelled


@pytest.mark.parametrize("name", ["", "x", "chatcmpl-", "9f" * 16, "../../etc", "\ud800"])
def test_what_is_no_id_of_ours_is_no_stream(name: str) -> None:
    with pytest.raises(errors.StreamNotFoundError):
        resume._request_id(name, time.time() * 1000)


def test_an_id_of_the_future_is_no_stream() -> None:
    now_ms = 1_700_000_000_000
    for ahead_ms, there in ((9_000, True), (11_000, False)):
        name = ids.text(ids.uuid7(now_ms + ahead_ms, 1))
        if there:
            assert resume._request_id(name, now_ms)
        else:
            with pytest.raises(errors.StreamNotFoundError):
                resume._request_id(name, now_ms)


def test_ids_are_taken_as_answers_name_them() -> None:
    for prefix in ("", "chatcmpl-", "cmpl-", "resp_"):
        assert resume._request_id(prefix + ids.text(REQUEST_ID), time.time() * 1000) == REQUEST_ID


@pytest.mark.parametrize("last", ["x", "1", "1:", ":1", "-1:2", "1:2:3", "9" * 40 + ":1", "٣:1"])
def test_a_place_that_is_none_is_refused(last: str) -> None:
    with pytest.raises(errors.InvalidRequestError):
        resume._place(last)
