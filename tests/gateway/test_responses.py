"""The shape of `/v1/responses`: what becomes of its bodies, which events it has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferbus_gateway import errors
from inferbus_gateway.hot import dialects, response_input, responses
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_schemas.generation import GenerationSettings
from tests.gateway.test_token_stream import REQUEST_ID, chunk, record

SETTINGS = GenerationSettings(context_tokens=2048, forced_calls=True)
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def read(**said: Any) -> m.Generation:
    return response_input.read({"model": "m", **said}, SETTINGS).generation


def whole(text: str, finish_reason: str = "stop", tool_calls: str = "") -> m.Prediction:
    said = record(2)
    tensor = m.Tensor(
        name="text_output", datatype="BYTES", shape=[1], data=tensors.join_bytes([text.encode()])
    )
    said.outputs = m.TensorSet(tensors=[tensor]).SerializeToString()
    said.generated.choices.append(m.Choice(finish_reason=finish_reason, tool_calls=tool_calls))
    return said


def test_a_body_becomes_a_chat() -> None:
    body = {
        "model": "m",
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "message", "role": "assistant", "content": "yes"},
        ],
        "max_output_tokens": 9,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    }
    ask = response_input.read(body, SETTINGS)
    roles = [(one["role"], one["content"]) for one in json.loads(ask.prompts[0])]
    assert roles == [("system", "be brief"), ("user", "hi"), ("assistant", "yes")]
    assert ask.generation.max_tokens == 9
    assert json.loads(ask.generation.json_schema) == {"type": "object"}
    assert read(input="hi", stream=True).stream


@pytest.mark.parametrize(
    "said",
    [
        {"input": []},
        {"input": 1},
        {"input": [{"type": "function_call"}]},
        {"input": [{"type": "function_call", "call_id": "1", "name": 2, "arguments": "{}"}]},
        {"input": [{"type": "function_call_output", "output": "1"}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": {}}]},
        {"input": [{"type": "item_reference", "id": "1"}]},
        {"input": [5]},
        {"input": "hi", "tools": {}},
        {"input": "hi", "tools": [{"type": "function"}]},
        {"input": "hi", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"input": "hi", "tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}},
        {"input": "hi", "tools": [FUNCTION], "parallel_tool_calls": 1},
        {"input": "hi", "tool_choice": "required"},
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        {"input": "hi", "previous_response_id": "resp_1"},
        {"input": "hi", "background": True},
        {"input": "hi", "tools": [{"type": "web_search"}]},
        {"input": "hi", "truncation": "auto"},
        {"input": "hi", "text": {"format": "json"}},
        {"input": "hi", "max_output_tokens": 1 << 30},
        {"input": "hi", "n": 2},
        {"input": "hi", "include": ["message.output_text.logprobs"]},
        {"input": "hi", "include": [{}]},
        {"input": "hi", "include": "x"},
        {"input": "hi", "reasoning": {"effort": "high"}},
        {"input": "hi", "reasoning": {"summary": "auto"}},
        {"input": "hi", "reasoning": "low"},
        {"input": "hi", "stream_options": {}},
    ],
)
def test_what_we_do_not_keep_or_know_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError):
        read(**said)


def test_what_changes_nothing_is_taken() -> None:
    said = {
        "user": "ada",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "prompt_cache_retention": "24h",
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "none", "summary": None},
        "stream_options": {"include_obfuscation": False},
    }
    assert read(input="hi", stream=True, **said) == read(input="hi", stream=True)


def test_functions_are_those_of_a_chat() -> None:
    choice = {"type": "function", "name": "f"}
    said = read(input="hi", tools=[FUNCTION], tool_choice=choice, parallel_tool_calls=False)
    function = {"name": "f", "parameters": {"type": "object"}, "strict": True}
    assert json.loads(said.tools) == [{"type": "function", "function": function}]
    assert json.loads(said.tool_choice) == {"type": "function", "function": {"name": "f"}}
    assert said.one_call
    assert not read(input="hi", tools=[FUNCTION], tool_choice="auto").one_call


def test_calls_and_their_results_are_those_of_a_chat() -> None:
    calls = [
        {"type": "function_call", "id": "x", "call_id": at, "name": "f", "arguments": "{}"}
        for at in "ab"
    ]
    parts = [{"type": "input_text", "text": "4"}]
    items = [
        {"role": "user", "content": "hi"},
        *calls,
        {"type": "function_call_output", "call_id": "a", "output": parts},
        {"type": "function_call_output", "call_id": "b", "output": "5"},
        {"type": "message", "role": "assistant", "content": "I look."},
        calls[0],
    ]
    ask = response_input.read({"model": "m", "input": items}, SETTINGS)
    _, first, *results, last = json.loads(ask.prompts[0])
    function = {"name": "f", "arguments": "{}"}
    made = [{"id": at, "type": "function", "function": function} for at in "ab"]
    assert first == {"role": "assistant", "content": "", "tool_calls": made}
    assert results == [
        {"role": "tool", "content": content, "tool_call_id": at} for at, content in ("a4", "b5")
    ]
    assert last == {"role": "assistant", "content": "I look.", "tool_calls": made[:1]}


def events_of(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in raw.decode().split("\n") if line[:6] == "data: "]


def test_events_are_named_and_counted() -> None:
    dialect = responses.Responses(REQUEST_ID)
    raw = dialect.events(chunk(0), "3:7")
    raw += dialect.events(chunk(1, text="", n_tokens=0, finish_reason="length"), "3:8")
    raw += dialect.end(whole("0 ", "length"), include_usage=False)
    events = events_of(raw)
    names = [line[7:] for line in raw.decode().split("\n") if line[:7] == "event: "]
    assert [event["type"] for event in events] == names
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert names[:5] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
    ]
    assert raw.count(b"id: 3:7\nevent: response.output_text.delta\n") == 1
    assert names[-1] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "0 "
    assert b"[DONE]" not in raw


@pytest.mark.slow
def test_an_error_amid_a_stream_is_one_to_the_sdk() -> None:
    import httpx2  # noqa: PLC0415 -- what the SDK itself imports, a second of it
    import openai  # noqa: PLC0415 -- as above
    from openai.types import chat as chats  # noqa: PLC0415 -- as above
    from openai.types import responses as events  # noqa: PLC0415 -- as above

    client = openai.OpenAI(api_key="k", base_url="http://127.0.0.1:9")

    def stream(dialect: Any, kind: Any) -> Any:
        raw = dialect.events(chunk(0), "3:7") + dialect.error(errors.StreamBrokenError("gone"))
        asked = httpx2.Request("POST", "http://127.0.0.1:9")
        answer = httpx2.Response(200, content=raw, request=asked)
        return openai.Stream(cast_to=kind, response=answer, client=client)

    for made in (dialects.Chat(REQUEST_ID), dialects.Text(REQUEST_ID)):
        with pytest.raises(openai.APIError, match="gone") as raised:
            list(stream(made, chats.ChatCompletionChunk))
        assert raised.value.code == "stream_broken"
    *before, last = stream(responses.Responses(REQUEST_ID), events.ResponseStreamEvent)
    assert isinstance(last, events.ResponseErrorEvent)
    assert (last.code, last.message, last.param) == ("stream_broken", "gone", None)
    assert last.sequence_number == len(before) == 5


def test_calls_are_items_of_their_own() -> None:
    function = {"name": "f", "arguments": ""}
    deltas: list[dict[str, Any]] = [
        {"index": 0, "id": "call_a", "type": "function", "function": function},
        {"index": 0, "function": {"arguments": '{"a": '}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "call_b", "function": {"name": "g", "arguments": "{}"}},
    ]
    dialect = responses.Responses(REQUEST_ID)
    chunks = [chunk(at, text="", tool_calls=json.dumps([one])) for at, one in enumerate(deltas)]
    chunks.append(chunk(4, text="", n_tokens=0, finish_reason="tool_calls"))
    parts = [dialect.events(one, f"3:{one.seq}") for one in chunks]
    calls = [
        {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    said = whole("", "tool_calls", json.dumps(calls))
    parts.append(dialect.end(said, include_usage=False))
    events = events_of(b"".join(parts))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    argued = "response.function_call_arguments"
    assert [event["type"] for event in events[2:]] == [
        "response.output_item.added",
        *[f"{argued}.delta"] * 2,
        f"{argued}.done",
        "response.output_item.done",
        "response.output_item.added",
        f"{argued}.delta",
        f"{argued}.done",
        "response.output_item.done",
        "response.completed",
    ]
    # The place of a chunk is that of its last event: who comes back after it misses none.
    assert [part.count(b"id: 3:") for part in parts] == [1, 1, 1, 1, 0, 0]
    assert all(b"id: 3:" in part[part.rindex(b"\n\n", 0, -2) :] for part in parts[3:4])
    final = events[-1]["response"]
    assert final == responses.Responses(REQUEST_ID).answer(said)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert final["output"] == done
    assert [(one["call_id"], one["name"], one["arguments"], one["status"]) for one in done] == [
        ("call_a", "f", '{"a": 1}', "completed"),
        ("call_b", "g", "{}", "completed"),
    ]
    assert len({one["id"] for one in done}) == 2


def test_text_before_a_call_and_no_answer_at_all_are_messages() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a'}}
    said = whole("I look.", "length", json.dumps([call]))
    dialect = responses.Responses(REQUEST_ID)
    raw = dialect.events(chunk(0, text="I look.", tool_calls=json.dumps([call])), "3:0")
    raw += dialect.end(said, include_usage=False)
    final = events_of(raw)[-1]["response"]
    assert final == responses.Responses(REQUEST_ID).answer(said)
    kinds = [(one["type"], one["status"]) for one in final["output"]]
    assert kinds == [("message", "completed"), ("function_call", "incomplete")]
    nothing = responses.Responses(REQUEST_ID)
    raw = nothing.events(chunk(0, text="", finish_reason="stop"), "3:0")
    raw += nothing.end(whole(""), include_usage=False)
    final = events_of(raw)[-1]["response"]
    assert [one["content"][0]["text"] for one in final["output"]] == [""]
    assert final == responses.Responses(REQUEST_ID).answer(whole(""))
