"""Calls that a model makes of itself: read the same however they are cut, held back no longer."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_schemas import messages as m
from inferbus_worker.engines import telling
from inferbus_worker.engines.call_text import CallsReader
from inferbus_worker.engines.pieces import OfferedCalls, Piece
from tests.worker.test_calls import JSON, TOOLS

NAMES = ["get_time", "get_weather", 'say "hi"']
ONE = '{"name": "get_time", "arguments": {"city": "Paris"}}'
SPACES = st.text(" \t\r\n", max_size=3)
CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(), JSON, max_size=4)),
    min_size=1,
    max_size=3,
)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """Return what a model might say: calls, calls with a mistake, or anything."""
    listed = [{"name": name, "arguments": arguments} for name, arguments in draw(CALLS)]
    raw = json.dumps(listed, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(BOOLEANS))
    text = f"{draw(SPACES)}<tool_call>{draw(SPACES)}{raw}{draw(SPACES)}</tool_call>{draw(AFTER)}"
    if draw(BOOLEANS):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=2)) + text[at + draw(st.integers(0, 2)) :]
    return text


BOOLEANS, AFTER = st.booleans(), st.text(max_size=3)


def cut(text: str, at: list[int]) -> list[str]:
    places = [0, *sorted(min(one, len(text)) for one in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


def read(pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    reader = CallsReader(NAMES)
    text = "".join([*map(reader.feed, pieces), reader.end()])
    return text, [(one.name, json.loads(bytes(one.arguments))) for one in reader.calls]


@given(answers() | st.text(), st.lists(st.integers(0, 300)))
def test_what_is_read_does_not_depend_on_the_cuts(text: str, at: list[int]) -> None:
    whole = read([text])
    assert read(cut(text, at)) == read(list(text)) == whole
    said, calls = whole
    assert said == ("" if calls else text)


@given(made=CALLS, before=SPACES, inside=SPACES, indent=st.sampled_from([None, 2]), after=AFTER)
def test_calls_are_what_was_written(
    made: list[tuple[str, Any]], before: str, inside: str, indent: int | None, after: str
) -> None:
    listed = [{"name": name, "arguments": arguments} for name, arguments in made]
    raw = json.dumps(listed, indent=indent)
    text = f"{before}<tool_call>{inside}{raw}{inside}</tool_call>{after}"
    assert read([text]) == ("", made)


@pytest.mark.parametrize(
    ("begun", "wrong"),
    [
        ("", "I"),
        (" \n", "T"),
        ("<tool", " "),
        ("<tool_call>", "{"),
        ("<tool_call>[", "]"),
        ("<tool_call>[ {", "'"),
        ('<tool_call>[{"name": "get_', "x"),
        ('<tool_call>[{"name": "get_time"', "}"),
        ('<tool_call>[{"name": "get_time", "arguments": ', '"'),
        ('<tool_call>[{"name": "get_time", "arguments": {"a": 0', "1"),
        ('<tool_call>[{"name": "get_time", "arguments": {"a": "\\u00', "g"),
        ('<tool_call>[{"name": "get_time", "arguments": {"a": "', "\n"),
        ('<tool_call>[{"name": "get_time", "arguments": {"a": [1,', "]"),
        ('<tool_call>[{"name": "get_time", "arguments": {"a": tr', "y"),
        ('<tool_call>[{"name": "get_time", "arguments": {"a": -1.5e+', "}"),
        ('<tool_call>[{"name": "get_time", "arguments": {"a":' + "[" * 31, "["),
        (f"<tool_call>[{ONE}", "<"),
        (f"<tool_call>[{ONE},", "]"),
        (f"<tool_call>[{ONE}]</tool", ">"),
    ],
)
def test_text_is_held_back_only_while_it_may_become_a_call(begun: str, wrong: str) -> None:
    reader = CallsReader(NAMES)
    assert "".join(map(reader.feed, begun)) == ""
    assert reader.feed(wrong) == begun + wrong
    assert reader.feed("<tool_call>") == "<tool_call>"
    assert reader.end() == ""
    assert not reader.calls


def test_half_of_a_surrogate_pair_is_no_argument() -> None:
    text = '<tool_call>[{"name": "get_time", "arguments": {"a": "\\ud800"}}]</tool_call>'
    assert read([text, "!"]) == (f"{text}!", [])


def pieces_of(texts: list[str], *, one_call: bool = False, end: str = "stop") -> list[Piece]:
    ids = (f"call_{number}" for number in itertools.count())
    reader = OfferedCalls(NAMES, lambda: next(ids), one_call=one_call)
    made = [Piece(text, (at,), [{"token": text}], n_tokens=1) for at, text in enumerate(texts)]
    made += [Piece(finish_reason=end), Piece(usage={"prompt_tokens": 7})]
    return [*(out for piece in made for out in reader.take(piece)), *reader.end()]


@given(answers(), st.lists(st.integers(0, 300)), st.sampled_from(["stop", "length"]))
def test_pieces_keep_what_they_stand_for(text: str, at: list[int], end: str) -> None:
    texts = [piece for piece in cut(text, at) if piece]
    out = pieces_of(texts, end=end)
    calls = [delta for piece in out for delta in piece.tool_calls]
    n_read = sum(piece.n_tokens for piece in out)
    assert [one for piece in out for one in piece.token_ids] == list(range(n_read))
    assert [one["token"] for piece in out for one in piece.logprobs] == texts[:n_read]
    finishes = [piece.finish_reason for piece in out if piece.finish_reason]
    assert finishes == ["tool_calls" if calls else end]
    assert "".join(piece.text for piece in out) == ("" if calls else text)
    assert calls or n_read == len(texts)
    assert out[-1].usage == {"prompt_tokens": 7}


def test_each_call_is_a_piece_and_the_answer_is_over() -> None:
    text = f"<tool_call>[{ONE},\n{ONE}]</tool_call>"
    for one_call, count in ((False, 2), (True, 1)):
        out = [one for one in pieces_of([*text, "more"], one_call=one_call) if one.is_said]
        assert [len(piece.tool_calls) for piece in out] == [1] * count + [0]
        assert [piece.tool_calls[0] for piece in out[:-1]] == [
            {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": "get_time", "arguments": '{"city": "Paris"}'},
            }
            for index in range(count)
        ]
        assert out[0].n_tokens == len(text)


def test_what_was_held_back_when_it_ended_is_text() -> None:
    reader = OfferedCalls(NAMES, str, one_call=False)
    assert not any(one.is_said for one in reader.take(Piece("<tool_", n_tokens=1)))
    (left,) = reader.end()
    assert (left.text, left.n_tokens) == ("<tool_", 1)
    assert reader.end() == []


USER = {"role": "user", "content": "hi"}


def test_the_model_is_told_in_the_one_system_message() -> None:
    said = m.Generation(tools=json.dumps(TOOLS))
    functions = [tool["function"] for tool in TOOLS]
    brief = {"role": "system", "content": "Be brief."}
    for chat in ([USER], [brief, USER]):
        for told, about in (
            (telling.of_demand(chat, functions), '{"name":"one"'),
            (telling.of_offer(chat, said), f"<tools>{said.tools}</tools>"),
        ):
            first, *rest = told
            assert rest == [USER]
            assert first["role"] == "system"
            assert about in first["content"]
            assert first["content"].startswith("Be brief.\n") == (len(chat) > 1)
    said.one_call = True
    (one, _), (more, _) = telling.of_offer([USER], said), telling.of_offer([USER], m.Generation())
    assert "more" not in one["content"]
    assert "more" in more["content"]


def test_calls_and_results_of_before_are_texts() -> None:
    call = {"id": "7", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    chat: list[dict[str, Any]] = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "8"}]},
        {"role": "tool", "tool_call_id": "7", "content": "noon"},
        {"role": "tool", "tool_call_id": "9", "content": "?"},
        {"role": "assistant", "content": "It is noon."},
    ]
    made = '{"name": "f", "arguments": {"a": 1}}'
    assert telling.plain(chat) == [
        USER,
        {"role": "assistant", "content": f"<tool_call>[\n{made},\n{made}\n]</tool_call>"},
        {
            "role": "user",
            "content": "Result of f: noon\nResult: ?",
        },
        chat[-1],
    ]
    assert telling.plain([USER]) == [USER]
