"""The shape of `/v1/responses`: what becomes of its bodies, which events it has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferbus_gateway import errors
from inferbus_gateway.hot import responses
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_schemas.generation import GenerationSettings
from tests.gateway.test_token_stream import REQUEST_ID, chunk, record

SETTINGS = GenerationSettings(context_tokens=2048)


def read(**said: Any) -> m.Generation:
    return responses.read({"model": "m", **said}, SETTINGS).generation


def whole(text: str, finish_reason: str = "stop") -> m.Prediction:
    said = record(2)
    tensor = m.Tensor(
        name="text_output", datatype="BYTES", shape=[1], data=tensors.join_bytes([text.encode()])
    )
    said.outputs = m.TensorSet(tensors=[tensor]).SerializeToString()
    said.generated.choices.append(m.Choice(finish_reason=finish_reason))
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
    ask = responses.read(body, SETTINGS)
    roles = [(one["role"], one["content"]) for one in json.loads(ask.prompt)]
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
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        {"input": "hi", "previous_response_id": "resp_1"},
        {"input": "hi", "background": True},
        {"input": "hi", "tools": [{"type": "web_search"}]},
        {"input": "hi", "truncation": "auto"},
        {"input": "hi", "text": {"format": "json"}},
        {"input": "hi", "max_output_tokens": 1 << 30},
        {"input": "hi", "n": 2},
    ],
)
def test_what_we_do_not_keep_or_know_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError):
        read(**said)


def test_events_are_named_and_counted() -> None:
    dialect = responses.Responses(REQUEST_ID)
    raw = dialect.events(chunk(0), "3:7")
    raw += dialect.events(chunk(1, text="", n_tokens=0, finish_reason="length"), "3:8")
    raw += dialect.end(whole("0 ", "length"), include_usage=False)
    events = [json.loads(line[6:]) for line in raw.decode().split("\n") if line[:6] == "data: "]
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
