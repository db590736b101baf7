"""Bodies of routes that generate: what is taken, what is refused and under which name."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferbus_gateway import errors
from inferbus_gateway.hot import prompts, response_input
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_schemas.generation import GenerationSettings

SETTINGS = GenerationSettings(context_tokens=2048, tools=True)
HELLO = [{"role": "user", "content": "hi"}]


def chat(**said: Any) -> prompts.Ask:
    return prompts.chat({"model": "m", "messages": HELLO, **said}, SETTINGS)


def responses(body: dict[str, Any]) -> m.Generation:
    return response_input.read(body, SETTINGS).generation


def refused(**said: Any) -> str:
    with pytest.raises(errors.InvalidRequestError) as caught:
        chat(**said)
    return str(getattr(caught.value, "param", caught.value.code))


def test_an_answer_without_a_bound_ends_with_the_context_in_a_chat_and_soon_elsewhere() -> None:
    assert chat().generation.max_tokens == 2048
    assert responses({"model": "m", "input": "hi"}).max_tokens == 2048
    assert text("hi").generation.max_tokens == 0, "the manifest's default"
    body = {"text_input": "hi"}
    assert prompts.triton(body, SETTINGS, stream=False).generation.max_tokens == 0


def test_what_is_said_is_what_the_bus_carries() -> None:
    ask = chat(
        temperature=0,
        top_p=0.5,
        seed=-1,
        stop="x",
        n=2,
        max_completion_tokens=7,
        logprobs=True,
        top_logprobs=3,
        logit_bias={"5": -100},
        stream=True,
        stream_options={"include_usage": True},
        user="someone",
        response_format={"type": "json_object"},
    )
    said = ask.generation
    assert said.prompt_kind == m.PROMPT_KIND_CHAT
    assert (said.temperature, said.top_p, said.seed, said.n, said.max_tokens) == (
        0.0,
        0.5,
        0xFFFFFFFF,
        2,
        7,
    )
    assert said.HasField("temperature")
    assert not said.HasField("top_k")
    assert (list(said.stop), dict(said.logit_bias)) == (["x"], {5: -100.0})
    assert (said.top_logprobs, said.stream, said.include_usage) == (3, True, True)
    assert json.loads(said.json_schema) == {"type": "object"}
    (tensor,) = m.TensorSet.FromString(ask.tensors()).tensors
    (prompt,) = tensors.split_bytes(tensor.data)
    assert json.loads(prompt) == HELLO


def test_what_asks_for_nothing_but_text_changes_nothing() -> None:
    talk = {"model": "m", "messages": HELLO}
    said = {"modalities": ["text"], "prompt_cache_retention": "24h"}
    assert prompts.chat({**talk, **said}, SETTINGS) == prompts.chat(talk, SETTINGS)


def test_messages_become_plain() -> None:
    ask = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "be"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "4"},
        ]
    )
    roles = [one["role"] for one in json.loads(ask.prompts[0])]
    assert roles == ["system", "assistant", "tool"]


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 2049}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template": "{{x}}"}, "chat_template"),
        ({"tool_choice": {"function": {"name": "f"}}}, "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": 2},
            "parallel_tool_calls",
        ),
        ({"response_format": {"type": "regex"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
        ),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x" * (2048 * 64 + 1)}]}, None),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_name(said: Any, param: str | None) -> None:
    assert refused(**said) == (param or "context_length_exceeded")


def test_a_model_without_template_or_tools_says_so() -> None:
    plain = GenerationSettings(context_tokens=64, chat=False)
    with pytest.raises(errors.ParameterError, match="no template"):
        prompts.chat({"model": "m", "messages": HELLO}, plain)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(errors.ParameterError, match="knows no tools"):
        prompts.chat(
            {"model": "m", "messages": HELLO, "tools": [tool]},
            GenerationSettings(context_tokens=64),
        )
    named = {"type": "function", "function": {"name": "f"}}
    said = chat(tools=[tool], tool_choice=named).generation
    assert (json.loads(said.tools), json.loads(said.tool_choice)) == ([tool], named)
    assert not said.one_call
    assert chat(tools=[tool], parallel_tool_calls=False).generation.one_call


def test_triton_bodies() -> None:
    body = {"text_input": "a", "id": "1", "parameters": {"max_tokens": 3, "stop_words": ["b"]}}
    said = prompts.triton(body, SETTINGS, stream=True).generation
    assert (said.max_tokens, list(said.stop), said.stream) == (3, ["b"], True)
    wrong: dict[str, Any]
    for wrong in ({"text_input": 1}, {"text_input": "a", "stream": False}, {"parameters": []}):
        with pytest.raises(errors.ParameterError):
            prompts.triton(dict(wrong), SETTINGS, stream=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = sorted(prompts._CHAT | prompts._TEXT)


@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_no_body_raises_anything_but_our_errors(body: dict[str, Any]) -> None:
    for read in (prompts.chat, prompts.text, partial(prompts.triton, stream=False)):
        with contextlib.suppress(errors.InvalidRequestError):
            read(body, SETTINGS)


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=40))
def test_no_bytes_raise_anything_but_our_errors(raw: bytes) -> None:
    with contextlib.suppress(errors.ParameterError):
        prompts.decode(raw)
    with pytest.raises(errors.ParameterError):
        prompts.decode(b"[" * 100_000)


@pytest.mark.parametrize(
    "parameters",
    [
        *(5, "x", [1], True, {"type": "array"}),
        {"anyOf": [{"type": "object"}, {"type": "null"}]},
        {"type": "object", "oneOf": [{"type": "null"}]},
        {"allOf": [{"type": "string"}]},
        {"const": 1},
        {"enum": ["a"]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "anyOf": [{"type": "null"}]}}},
        {"$ref": "#/$defs/b", "$defs": {"a": {"type": "object"}}},
        {"$ref": 1},
    ],
)
def test_parameters_of_a_tool_that_are_no_object_are_refused(parameters: Any) -> None:
    function = {"name": "f", "parameters": parameters}
    assert refused(tools=[{"type": "function", "function": function}]) == "tools"


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "object"}}},
    ],
)
def test_parameters_of_a_tool_that_are_an_object_are_taken(parameters: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert json.loads(chat(tools=[tool]).generation.tools) == [tool]


def test_tools_are_no_larger_than_a_prompt_may_be() -> None:
    def tools(n_bytes: int) -> list[Any]:
        function = {"name": "f", "description": "x" * n_bytes}
        return [{"type": "function", "function": function}]

    assert chat(tools=tools(1000)).generation.tools
    assert refused(tools=tools(SETTINGS.context_tokens * 64)) == "context_length_exceeded"


def test_a_request_s_own_id_is_bounded() -> None:
    assert prompts.own_id({"id": "x" * 256}) == "x" * 256
    assert prompts.own_id({}) == prompts.own_id({"id": 5}) == ""
    with pytest.raises(errors.InvalidRequestError, match="256"):
        prompts.own_id({"id": "x" * 257})
    with pytest.raises(errors.InvalidRequestError):
        prompts.own_id({"id": "\ud800"})


def text(prompt: Any, **said: Any) -> prompts.Ask:
    return prompts.text({"model": "m", "prompt": prompt, **said}, SETTINGS)


@pytest.mark.parametrize(
    ("prompt", "kind", "elements"),
    [
        ("x", m.PROMPT_KIND_TEXT, (b"x",)),
        (["x"], m.PROMPT_KIND_TEXT, (b"x",)),
        (["x", "y"], m.PROMPT_KIND_TEXT, (b"x", b"y")),
        ([1, 2], m.PROMPT_KIND_TOKENS, (b"[1,2]",)),
        ([[1, 2], [3]], m.PROMPT_KIND_TOKENS, (b"[1,2]", b"[3]")),
    ],
)
def test_prompts_are_texts_or_token_ids(
    prompt: Any, kind: m.PromptKind, elements: tuple[bytes, ...]
) -> None:
    ask = text(prompt, n=2, stream=True)
    assert (ask.prompts, ask.generation.prompt_kind) == (elements, kind)
    assert ask.n_choices == 2 * len(elements)
    (tensor,) = m.TensorSet.FromString(ask.tensors()).tensors
    assert list(tensor.shape) == [len(elements)]
    assert tuple(tensors.split_bytes(tensor.data)) == elements


NO_PROMPTS: tuple[Any, ...] = (
    *(None, 5, "", [], ["x", ""], ["x", 5], [5, "x"], [[]], [[5], "x"], [[5], []], {"a": 1}),
    *([True], [-1], [1 << 31], [0.5], [[5, "x"]], [[[5]]], ["x"] * 17, [[5]] * 17),
)


@pytest.mark.parametrize(
    ("said", "param"),
    [
        *[({"prompt": prompt}, "prompt") for prompt in NO_PROMPTS],
        ({"prompt": ["x"] * 16, "n": 3}, "n"),
        ({"prompt": [5] * 2049}, "context_length_exceeded"),
        ({"prompt": ["x", "y" * (2048 * 64 + 1)]}, "context_length_exceeded"),
    ],
)
def test_prompts_that_are_none_are_refused(said: Any, param: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        text(**said)
    assert getattr(caught.value, "param", caught.value.code) == param


def test_a_message_that_we_answered_comes_back_as_the_sdk_dumps_it() -> None:
    dumped: dict[str, Any] = {
        "role": "assistant",
        "content": "Rome.",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    again = prompts.chat(
        {"model": "m", "messages": [*HELLO, dumped, *HELLO], "audio": None, "prediction": None},
        SETTINGS,
    )
    assert b"Rome." in again.prompts[0]
    assert b"audio" not in again.prompts[0]
    assert refused(audio={"voice": "alloy"}) == "audio"
    with pytest.raises(errors.InvalidRequestError, match="field that we do not know"):
        prompts.chat(
            {"model": "m", "messages": [*HELLO, {**dumped, "audio": {"id": "x"}}]}, SETTINGS
        )
