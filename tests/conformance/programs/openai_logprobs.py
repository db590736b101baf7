"""Log probabilities in the openai SDK, and what the library itself says.

`... <base URL> <key> <GGUF file>`. A server core of this process reads each beginning of a text
anew and tells its next token: what the stack says of a text that it went on with must be that.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import openai
import xllamacpp

SYSTEM, ASKED = "You are a helpful assistant.", "What is the capital of France?"
QUESTION = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASKED}]
IDS = [504, 3575, 282, 4649, 314]
"""The beginning of a text as ids of this model's vocabulary."""
NUMBERS = "1, 2, 3, 4,"
N_VOCABULARY = 49_152
N_TOKENS = 12
GREEDY = {"model": "smollm2", "temperature": 0, "max_tokens": N_TOKENS, "seed": 3}
SAMPLED = {"model": "smollm2", "temperature": 1.0, "max_tokens": N_TOKENS, "seed": 7}
NEAR = 0.02
"""Weights are of four bits, and what reads many tokens at once rounds elsewhere."""
ROUNDED = 1e-3
"""What the sum over the vocabulary may be beside one."""


class Library:
    """llama.cpp with nothing of ours around it."""

    def __init__(self, path: str) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = os.path.abspath(path)  # noqa: PTH100 -- as the library wants it
        params.n_ctx = 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = params.cache_ram_mib = 0
        params.ui = False
        with tempfile.TemporaryDirectory() as private:
            params.hostnames = [f"{private}/s.sock"]
            self._server = xllamacpp.Server(params)

    def after(self, prompt: list[int], n_told: int, n_tokens: int = 1) -> list[dict[str, Any]]:
        """Return the likeliest tokens that follow, each with so many that might have."""
        told: list[dict[str, Any]] = []
        asked = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0.0, "n_probs": n_told}
        self._server.handle_completions({**asked, "cache_prompt": False}, told.append)
        entries: list[dict[str, Any]] = told[0]["choices"][0]["logprobs"]["content"]
        return entries


def near(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=0.0, abs_tol=NEAR)


def sound(told: Sequence[float], chosen: float, *, greedy: bool) -> None:
    """Check the alternatives of one token against the chosen one and each other."""
    assert all(one <= 0 for one in (*told, chosen)), told
    assert list(told) == sorted(told, reverse=True), told
    assert math.fsum(map(math.exp, told)) <= 1 + ROUNDED, told
    assert chosen == told[0] if greedy else chosen <= told[0], (chosen, told)


def texts(client: openai.OpenAI, library: Library) -> None:
    """`/v1/completions`: the model's own probabilities, whatever the temperature."""
    asked = {**GREEDY, "prompt": IDS, "logprobs": 5}
    (choice,) = client.completions.create(**asked).choices
    _in_their_places(choice)
    said = choice.logprobs
    followed = library.after(IDS, 1, N_TOKENS)
    assert said.tokens == [one["token"] for one in followed]
    ids = [one["id"] for one in followed]
    rows = zip(said.tokens, said.token_logprobs, said.top_logprobs, strict=True)
    for at, (token, logprob, top) in enumerate(rows):
        (next_one,) = library.after([*IDS, *ids[:at]], 5)
        wanted = {one["token"]: one["logprob"] for one in next_one["top_logprobs"]}
        assert len(top) == len(wanted) == 5, (top, wanted)
        assert top[token] == logprob
        assert next_one["token"] == token
        assert all(near(one, wanted.get(name, one)) for name, one in top.items()), (top, wanted)
        # Two that are as likely as each other may stand in either order, and one of them outside.
        assert all(near(one, two) for one, two in zip(top.values(), wanted.values(), strict=True))
        sound(list(top.values()), logprob, greedy=True)
    (first,) = library.after(IDS, N_VOCABULARY)
    everything = [one["logprob"] for one in first["top_logprobs"]]
    assert len(everything) == N_VOCABULARY
    assert abs(math.fsum(map(math.exp, everything)) - 1) < ROUNDED
    told = list(said.top_logprobs[0].values())
    assert all(near(one, two) for one, two in zip(told, everything, strict=False))
    hot = client.completions.create(**asked | {"temperature": 1.9}).choices[0].logprobs
    assert hot.top_logprobs[0] == said.top_logprobs[0]
    none = client.completions.create(**asked | {"logprobs": 0}).choices[0].logprobs
    # The sum over the vocabulary is taken in another order.
    assert all(map(near, none.token_logprobs, said.token_logprobs))
    assert none.tokens == said.tokens
    assert none.top_logprobs == [{}] * N_TOKENS
    assert client.completions.create(**GREEDY, prompt=IDS).choices[0].logprobs is None


def streamed_texts(client: openai.OpenAI) -> None:
    """Choices of several prompts, and tokens that are held until it is known what they are."""
    whole = _streamed_text(client, {**SAMPLED, "prompt": [NUMBERS, "Once upon a time"], "n": 2})
    assert [one.index for one in whole.choices] == [0, 1, 2, 3]
    for said in (one.logprobs for one in whole.choices):
        for logprob, top in zip(said.token_logprobs, said.top_logprobs, strict=True):
            sound(list(top.values()), logprob, greedy=False)
    let_go = _streamed_text(client, {**GREEDY, "prompt": NUMBERS, "stop": "7, 9"}).choices[0]
    assert "7, 8" in let_go.text
    stopped = _streamed_text(client, {**GREEDY, "prompt": NUMBERS, "stop": "7, 8"}).choices[0]
    assert (stopped.text, stopped.finish_reason) == (" 5, 6, ", "stop")
    # Each is a character of three tokens.
    faces = _streamed_text(client, {**GREEDY, "prompt": "Emoji: \U0001f600 \U0001f603 \U0001f604"})
    assert ord(max(faces.choices[0].text)) > 0xFFFF


def _streamed_text(client: openai.OpenAI, more: dict[str, Any]) -> Any:
    """Check that pieces are together what the whole answer says; return that."""
    asked = {"logprobs": 3, **more}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(stream=True, **asked))
    for choice in whole.choices:
        parts = [one.choices[0] for one in chunks if one.choices[0].index == choice.index]
        told = [one.logprobs for one in parts if one.logprobs is not None]
        assert len(told) > 1, parts
        assert "".join(one.text for one in parts) == choice.text
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [each for one in told for each in getattr(one, name)]
            assert joined == getattr(choice.logprobs, name), (name, joined, choice.logprobs)
        assert [one.finish_reason for one in parts if one.finish_reason] == [choice.finish_reason]
        _in_their_places(choice)
    return whole


def _in_their_places(choice: Any) -> None:
    """Check that the tokens are the text, each where it says."""
    said = choice.logprobs
    assert "".join(said.tokens) == choice.text, choice
    lengths = itertools.accumulate(map(len, said.tokens), initial=0)
    assert [*said.text_offset, len(choice.text)] == list(lengths), choice


def chats(client: openai.OpenAI) -> None:
    """The same of chats: a template around a text changes no probability."""
    asked = {**GREEDY, "messages": QUESTION, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat.completions.create(**asked).choices
    entries = choice.logprobs.content
    written = "".join(
        f"<|im_start|>{role}\n{said}<|im_end|>\n"
        for role, said in (("system", SYSTEM), ("user", ASKED))
    )
    prompt = f"{written}<|im_start|>assistant\n"
    (text,) = client.completions.create(**GREEDY, prompt=prompt, logprobs=3).choices
    assert (text.text, text.finish_reason) == (choice.message.content, choice.finish_reason)
    # The token that ends a text has no characters; of a chat it is not told.
    assert [*(one.token for one in entries), ""] == text.logprobs.tokens
    for entry, logprob, top in zip(
        entries, text.logprobs.token_logprobs[:-1], text.logprobs.top_logprobs[:-1], strict=True
    ):
        assert bytes(entry.bytes).decode() == entry.token
        assert near(entry.logprob, logprob)
        told = {one.token: one.logprob for one in entry.top_logprobs}
        assert all(near(one, two) for one, two in zip(told.values(), top.values(), strict=True))
        sound(list(told.values()), entry.logprob, greedy=True)
        assert all(bytes(one.bytes).decode() == one.token for one in entry.top_logprobs)


def streamed_chats(client: openai.OpenAI) -> None:
    """Two choices of one stream, and one of which a beginning of `stop` was held."""
    two = _streamed_chat(client, {**SAMPLED, "n": 2})
    assert [one.index for one in two.choices] == [0, 1]
    assert two.choices[0].message.content != two.choices[1].message.content
    for entry in (each for one in two.choices for each in one.logprobs.content):
        told = [one.logprob for one in entry.top_logprobs]
        assert len(told) == 3
        sound(told, entry.logprob, greedy=False)
    (held,) = _streamed_chat(client, {**GREEDY, "stop": "is Paris!"}).choices
    assert held.message.content == "The capital of France is Paris."


def _streamed_chat(client: openai.OpenAI, more: dict[str, Any]) -> Any:
    """Check the chunks of each choice against the whole answer; return that."""
    asked = {**more, "messages": QUESTION, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked)
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**counted, **asked)
    assert {(one.id, one.created, one.model, one.object) for one in (*chunks, last)} == {
        (last.id, last.created, "smollm2", "chat.completion.chunk")
    }
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert [len(one.choices) for one in chunks] == [1] * len(chunks)
    assert [one.usage for one in chunks] == [None] * len(chunks)
    assert {one.choices[0].index for one in chunks} == {one.index for one in whole.choices}
    for choice in whole.choices:
        parts = [one.choices[0] for one in chunks if one.choices[0].index == choice.index]
        _grammar(parts)
        assert "".join(one.delta.content or "" for one in parts) == choice.message.content
        assert parts[-1].finish_reason == choice.finish_reason
        told = [each for one in parts if one.logprobs for each in one.logprobs.content]
        assert told == choice.logprobs.content
    with client.chat.completions.stream(**asked) as events:
        final = events.get_final_completion()
    for choice, built in zip(whole.choices, final.choices, strict=True):
        assert built.message.content == choice.message.content
        assert built.logprobs.content == choice.logprobs.content
        assert built.finish_reason == choice.finish_reason
    return whole


def _grammar(parts: Sequence[Any]) -> None:
    """Check the chunks of one choice: its role, pieces with their tokens, its end."""
    first, *pieces, end = parts
    assert (first.delta.role, first.delta.content) == ("assistant", ""), first
    assert first.logprobs is None
    assert [one.delta.role for one in (*pieces, end)] == [None] * (len(parts) - 1)
    assert [one.finish_reason for one in (first, *pieces)] == [None] * (len(parts) - 1)
    assert end.finish_reason in {"stop", "length"}, end
    assert (end.delta.content, end.delta.tool_calls) == (None, None), end
    for one in pieces:
        entries = one.logprobs.content
        assert one.logprobs.refusal is None
        assert "".join(entry.token for entry in entries) == (one.delta.content or ""), one


def main() -> None:
    base, api_key, path = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{base}/v1", api_key=api_key, max_retries=0)
    texts(client, Library(path))
    streamed_texts(client)
    chats(client)
    streamed_chats(client)
    sys.stdout.write("fine\n")
    sys.stdout.flush()
    os._exit(0)  # The library's threads have no end of their own.


if __name__ == "__main__":
    main()
