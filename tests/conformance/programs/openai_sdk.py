"""The openai SDK against a running stack, sync and async: `... <base URL> <key>`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai

QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
CAPITAL = {
    "instructions": "You are a helpful assistant.",
    "input": "What is the capital of France?",
}
ANSWER = "The capital of France is Paris."
GREEDY = {"model": "smollm2", "temperature": 0, "max_tokens": 16}


def whole(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(messages=QUESTION, **GREEDY)
    assert said.choices[0].message.content == ANSWER, said
    assert said.choices[0].finish_reason == "stop"
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    assert said.id.startswith("chatcmpl-")
    asked = [QUESTION[0], {"role": "user", "content": "Who wrote Hamlet?"}]
    free = client.chat.completions.create(messages=asked, model="smollm2", temperature=0)
    assert free.choices[0].finish_reason == "stop", free
    assert free.usage.completion_tokens > 16, free
    many = client.chat.completions.create(
        messages=QUESTION, model="smollm2", n=3, max_tokens=3, seed=7, temperature=1.0
    )
    assert [one.index for one in many.choices] == [0, 1, 2]
    again = client.chat.completions.create(
        messages=QUESTION, model="smollm2", n=3, max_tokens=3, seed=7, temperature=1.0
    )
    said_once = [one.message.content for one in many.choices]
    assert said_once == [one.message.content for one in again.choices], (many, again)
    probable = client.chat.completions.create(
        messages=QUESTION, logprobs=True, top_logprobs=2, **GREEDY
    )
    entries = probable.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries).startswith(ANSWER)
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    shaped = client.chat.completions.create(
        messages=[{"role": "user", "content": "How old is the sun?"}],
        model="smollm2",
        temperature=0,
        max_tokens=40,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "age",
                "schema": {
                    "type": "object",
                    "properties": {"years": {"type": "integer", "maximum": 99}},
                    "required": ["years"],
                    "additionalProperties": False,
                },
            },
        },
    )
    aged = json.loads(shaped.choices[0].message.content)
    assert aged.keys() == {"years"}, aged
    assert type(aged["years"]) is int, aged
    assert aged["years"] <= 99, aged
    text = client.completions.create(prompt="1, 2, 3, 4,", stop=["7"], **GREEDY)
    assert text.choices[0].text.strip().startswith("5, 6"), text
    assert "7" not in text.choices[0].text
    asked = ["1, 2, 3, 4,", "a, b, c, d,"]
    both = client.completions.create(prompt=asked, n=2, seed=3, **GREEDY)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    numbers, again, letters, _ = (choice.text for choice in both.choices)
    assert numbers == again
    assert numbers.strip().startswith("5, 6"), both
    assert letters.strip().startswith("e, f"), both
    assert both.usage.completion_tokens == 4 * 16


def lists(client: openai.OpenAI) -> None:
    """Several prompts as a stream, and prompts that are token ids."""
    greedy = {**GREEDY, "max_tokens": 4}
    asked = ["1, 2, 3, 4,", "a, b, c, d,"]
    whole = client.completions.create(prompt=asked, n=2, **greedy)
    chunks = list(
        client.completions.create(
            prompt=asked, n=2, stream=True, stream_options={"include_usage": True}, **greedy
        )
    )
    told = [""] * 4
    ends = {}
    for choice in (chunk.choices[0] for chunk in chunks[:-1]):
        told[choice.index] += choice.text
        ends |= {choice.index: choice.finish_reason}
    assert told == [choice.text for choice in whole.choices]
    assert ends == dict.fromkeys(range(4), "length")
    used = chunks[-1].usage
    assert used.completion_tokens == 4 * 4
    assert used.prompt_tokens == whole.usage.prompt_tokens
    alone = [client.completions.create(prompt=one, **greedy).usage for one in asked]
    assert used.prompt_tokens == sum(one.prompt_tokens for one in alone)
    # Ids of this model's vocabulary, which ends before the last one.
    ids = [[504, 3575, 282, 4649, 314], [504, 3575, 282, 4649]]
    both = client.completions.create(prompt=ids, **greedy)
    assert both.usage.prompt_tokens == 9
    one = client.completions.create(prompt=ids[0], **greedy)
    assert one.choices[0].text == both.choices[0].text
    for wrong in ([504, 49_152], [[504], [1 << 30]]):
        error = refused(
            lambda wrong=wrong: client.completions.create(prompt=wrong, **greedy),
            openai.BadRequestError,
        )
        assert error.code == "invalid_input", error


def streamed(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            messages=QUESTION, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk for chunk in chunks[1:] if chunk.choices and chunk.choices[0].delta.role] == []
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ANSWER, text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    plain = list(client.completions.create(prompt="1, 2, 3, 4,", stream=True, **GREEDY))
    assert plain[-1].choices[0].finish_reason == "length"
    with client.chat.completions.stream(messages=QUESTION, **GREEDY) as events:
        assert events.get_final_completion().choices[0].message.content == ANSWER


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "unit": {"$ref": "#/$defs/unit"},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def tools(client: openai.OpenAI) -> None:
    asked = {
        "model": "smollm2",
        "temperature": 0,
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER, TIME],
    }
    named = {"type": "function", "function": {"name": "get_time"}}
    for choice, names in (("required", {"get_weather", "get_time"}), (named, {"get_time"})):
        said = client.chat.completions.create(tool_choice=choice, **asked).choices[0]
        assert said.finish_reason == "tool_calls", said
        (call,) = said.message.tool_calls
        assert (call.type, said.message.content) == ("function", None)
        assert call.id
        assert call.function.name in names
        arguments = json.loads(call.function.arguments)
        assert isinstance(arguments["city"], str)
        if call.function.name == "get_weather":
            assert arguments["unit"] in {"celsius", "fahrenheit"}
        chunks = list(client.chat.completions.create(tool_choice=choice, stream=True, **asked))
        deltas = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or ()]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        assert {each.index for each in deltas} == {0}
        assert deltas[0].id
        assert deltas[0].function.name == call.function.name
        assert not any(each.id or each.function.name for each in deltas[1:])
        streamed = "".join(each.function.arguments for each in deltas)
        assert json.loads(streamed) == arguments, (streamed, arguments)
        with client.chat.completions.stream(tool_choice=choice, **asked) as events:
            final = events.get_final_completion().choices[0].message.tool_calls[0]
        assert json.loads(final.function.arguments) == arguments
    # What was called goes on as a chat, in which a model calls again as it has learned there.
    message = said.message.model_dump(exclude_none=True)
    answer = {"role": "tool", "tool_call_id": call.id, "content": "12:30"}
    more = {**asked, "messages": [*asked["messages"], message, answer]}
    none = client.chat.completions.create(tool_choice="none", **{**more, "max_tokens": 8})
    assert none.choices[0].message.content
    assert not none.choices[0].message.tool_calls


def asked_for_time(city: str) -> list[dict[str, Any]]:
    """Return a question and the call that answered it."""
    function = {"name": "get_time", "arguments": json.dumps({"city": city})}
    call = {"id": f"call_{city}", "type": "function", "function": function}
    question = {"role": "user", "content": f"What time is it in {city}?"}
    return [question, {"role": "assistant", "content": None, "tool_calls": [call]}]


def choosing(client: openai.OpenAI) -> None:
    """Text where a model may call, and calls that it makes of itself."""
    asked = {"model": "smollm2", "temperature": 0, "tools": [TIME]}
    question, _ = asked_for_time("Paris")
    said = client.chat.completions.create(messages=[question], max_tokens=4, **asked).choices[0]
    assert bool(said.message.tool_calls) == (said.finish_reason == "tool_calls"), said
    assert bool(said.message.content) == (said.finish_reason != "tool_calls"), said
    before = [message for city in ("Rome", "Oslo") for message in asked_for_time(city)]
    chat = {**asked, "messages": [*before, question], "max_tokens": 60}
    said = client.chat.completions.create(**chat).choices[0]
    with client.chat.completions.stream(**chat) as events:
        final = events.get_final_completion().choices[0]
    for one in (said, final):
        assert (one.finish_reason, one.message.content or "") == ("tool_calls", ""), one
        (call,) = one.message.tool_calls
        assert call.id
        assert (call.function.name, call.function.arguments) == ("get_time", '{"city": "Paris"}')


def responses(client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "temperature": 0, **CAPITAL}
    said = client.responses.create(**asked, max_output_tokens=16)
    assert (said.output_text, said.status) == (ANSWER, "completed"), said
    assert said.usage.output_tokens == 8
    cut = client.responses.create(**asked, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = list(client.responses.create(**asked, max_output_tokens=16, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ANSWER
    with client.responses.stream(**asked, max_output_tokens=16) as stream:
        assert stream.get_final_response().output_text == ANSWER
    error = refused(
        lambda: client.responses.create(**asked, previous_response_id="resp_1"),
        openai.BadRequestError,
    )
    assert error.param == "previous_response_id"


def called(client: openai.OpenAI) -> None:
    """Calls as items of a response: in it, in its events, and taken back."""
    clock = {"type": "function", **TIME["function"], "strict": True}
    asked = {"model": "smollm2", "temperature": 0, "max_output_tokens": 60, "tools": [clock]}
    question = {"role": "user", "content": "What time is it in Paris?"}
    demand = {"tool_choice": {"type": "function", "name": "get_time"}, "input": [question]}
    said = client.responses.create(**asked, **demand)
    (call,) = said.output
    assert (call.type, call.name, call.status) == ("function_call", "get_time", "completed"), said
    assert isinstance(json.loads(call.arguments)["city"], str)
    events = list(client.responses.create(stream=True, **asked, **demand))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    begun = ["created", "in_progress", "output_item.added"]
    whole = ["function_call_arguments.done", "output_item.done", "completed"]
    assert (kinds[:3], kinds[-3:]) == (begun, whole), kinds
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert "".join(event.delta for event in events[3:-3]) == call.arguments
    assert (events[-3].name, events[-3].arguments) == ("get_time", call.arguments)
    assert events[-1].response.output == [events[-2].item]
    with client.responses.stream(**asked, **demand) as stream:
        (final,) = stream.get_final_response().output
    assert (final.name, final.arguments) == (call.name, call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12:30"}
    less = {**asked, "tools": [], "max_output_tokens": 4}
    more = client.responses.create(input=[question, call, result], **less)
    assert more.output_text, more
    error = refused(
        lambda: client.responses.create(input="hi", **{**asked, "tools": [{"type": "web_search"}]}),
        openai.BadRequestError,
    )
    assert error.param == "tools"


def others(client: openai.OpenAI) -> None:
    assert "smollm2" in [model.id for model in client.models.list()]
    assert client.models.retrieve("smollm2").object == "model"
    # The SDK asks for base64 by itself, and for numbers when told to.
    packed = client.embeddings.create(model="minilm", input=["a cat", "a dog", "a car"])
    plain = client.embeddings.create(model="minilm", input="a cat", encoding_format="float")
    assert [len(one.embedding) for one in packed.data] == [384, 384, 384]
    # With the two that every text begins and ends with.
    assert (plain.usage.prompt_tokens, packed.usage.total_tokens) == (4, 12)
    one, other = packed.data[0].embedding, plain.data[0].embedding
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5
    order = client.post(
        "/rerank",
        cast_to=dict[str, Any],
        body={
            "model": "minilm",
            "query": "a sleeping kitten",
            "documents": ["the bank raised rates", "a cat naps on the couch", {"text": "a dog"}],
            "top_n": 2,
        },
    )
    assert [one["index"] for one in order["results"]] == [1, 2], order
    pairs = {"model": "minilm", "text_1": "a cat", "text_2": ["a cat", "interest rates"]}
    score = client.post("/score", cast_to=dict[str, Any], body=pairs)
    assert score["data"][0]["score"] > 0.999 > score["data"][1]["score"] + 0.5
    for call, kind in (
        (lambda: client.models.retrieve("nobody"), openai.NotFoundError),
        (lambda: client.embeddings.create(model="smollm2", input="a"), openai.BadRequestError),
        (
            lambda: client.chat.completions.create(messages=QUESTION, model="minilm"),
            openai.BadRequestError,
        ),
        (
            lambda: client.chat.completions.create(
                messages=[{"role": "user", "content": "word " * 3000}], model="smollm2"
            ),
            openai.BadRequestError,
        ),
    ):
        error = refused(call, kind)
        assert error.code, error
        assert error.request_id, error


def refused(call: Callable[[], object], kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(kind)


async def together(client: openai.AsyncOpenAI) -> None:
    async def one() -> str:
        stream = await client.chat.completions.create(messages=QUESTION, stream=True, **GREEDY)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*(one() for _ in range(4))) == [ANSWER] * 4
    said = await client.chat.completions.create(messages=QUESTION, **GREEDY)
    assert said.choices[0].message.content == ANSWER
    async with client.chat.completions.stream(messages=QUESTION, **GREEDY) as events:
        final = await events.get_final_completion()
    assert final.choices[0].message.content == ANSWER
    asked = {"model": "smollm2", "temperature": 0, "max_output_tokens": 16, **CAPITAL}
    answer = await client.responses.create(**asked)
    assert (answer.output_text, answer.status) == (ANSWER, "completed"), answer
    stream = await client.responses.create(**asked, stream=True)
    pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == ANSWER


def main() -> None:
    for prefix in ("/v1", "/openai/v1"):
        client = openai.OpenAI(base_url=sys.argv[1] + prefix, api_key=sys.argv[2], max_retries=0)
        whole(client)
        streamed(client)
        responses(client)
        others(client)
        if prefix == "/v1":
            lists(client)
            tools(client)
            choosing(client)
            called(client)
            asyncio.run(
                together(
                    openai.AsyncOpenAI(
                        base_url=sys.argv[1] + prefix, api_key=sys.argv[2], max_retries=0
                    )
                )
            )
    sys.stdout.write("fine\n")


if __name__ == "__main__":
    main()
