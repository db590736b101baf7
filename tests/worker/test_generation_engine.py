"""The engine llamacpp in its real process, on real weights: what engines that generate owe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from inferbus_models import smollm2
from inferbus_schemas import generation, tensors
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_worker.engines import wire
from inferbus_worker.engines.contract import EngineSpec
from inferbus_worker.engines.host import EngineHost
from inferbus_worker.errors import EngineError
from tests.support.sample_models import model_folder
from tests.worker.test_engines import Listener, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow


class Heard(Listener):
    """Keeps the pieces too."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[tuple[Any, wire.Tokens]] = []

    def on_tokens(self, token: Any, piece: wire.Tokens) -> None:
        self.pieces.append((token, piece))

    def texts(self, token: Any) -> list[str]:
        (body,) = [body for one, _, body in self.done if one == token]
        return [each.decode() for each in tensors.split_bytes(body)]

    def generated(self, token: Any) -> m.Generated:
        (done,) = [done for one, done, _ in self.done if one == token]
        assert not done.error
        return m.Generated.FromString(done.generated)

    def streamed(self, token: Any, choice: int = 0) -> list[wire.Tokens]:
        return [
            piece
            for one, piece in self.pieces
            if one == token and piece.choice == choice and (piece.n_tokens or piece.finish_reason)
        ]


@contextlib.asynccontextmanager
async def engine(folder: Path, scratch: Path) -> AsyncIterator[tuple[EngineHost, Heard]]:
    raw = (folder / manifests.MANIFEST_NAME).read_bytes()
    heard = Heard()
    spec = EngineSpec(manifests.parse(raw), raw, folder, scratch, 1, 0)
    host = EngineHost(spec, heard, heard.on_tokens)
    try:
        await host.start()
        yield host, heard
    finally:
        await host.stop()


def submit(
    host: EngineHost,
    token: Any,
    prompt: str,
    said: m.Generation | None = None,
    *more: str,
    tenant: str = "acme",
) -> None:
    data = tensors.join_bytes(one.encode() for one in (prompt, *more))
    head = wire.TensorHead(generation.PROMPT, "BYTES", (1 + len(more),), len(data))
    host.submit(token, [head], [data], b"" if said is None else said.SerializeToString(), tenant)


def text(**said: Any) -> m.Generation:
    return m.Generation(prompt_kind=m.PROMPT_KIND_TEXT, **said)


async def answered(heard: Heard, count: int) -> None:
    await until(lambda: len(heard.done) == count, 60.0)


async def test_many_at_once_say_what_each_says_alone(tmp_path: Path) -> None:
    questions = list(smollm2.QUESTIONS) * 3
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        for token, question in enumerate(questions):
            said = text(stream=True, temperature=0.0, max_tokens=16)
            submit(host, token, smollm2.prompt(question), said)
        await answered(heard, len(questions))
        order = [token for token, piece in heard.pieces if piece.n_tokens]
        for token, question in enumerate(questions):
            assert heard.texts(token) == [smollm2.QUESTIONS[question]]
            pieces = heard.streamed(token)
            assert "".join(piece.text for piece in pieces) == smollm2.QUESTIONS[question]
            assert pieces[-1].finish_reason == "stop"
            generated = heard.generated(token)
            assert generated.completion_tokens == sum(piece.n_tokens for piece in pieces) + 1
            assert generated.prompt_tokens == 16
            assert generated.first_token_us > 0
    turns = sum(one != other for one, other in pairwise(order))
    assert turns > 2 * len(questions), "they were generated one after another"


async def test_what_a_request_says_is_done(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    chat = json.dumps([{"role": "user", "content": "How old is the sun? Say it in JSON."}])
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        seeded = {"max_tokens": 6, "temperature": 1.0, "seed": 42}
        submit(host, "a", "Once upon a time", text(**seeded, n=2))
        submit(host, "b", "Once upon a time", text(**seeded))
        submit(host, "stop", "1, 2, 3, 4,", text(max_tokens=20, temperature=0.0, stop=["7"]))
        submit(host, "length", "1, 2, 3, 4,", text(max_tokens=3, temperature=0.0))
        submit(host, "probable", "1, 2, 3, 4,", text(max_tokens=2, top_logprobs=2, stream=True))
        submit(
            host,
            "json",
            chat,
            m.Generation(
                prompt_kind=m.PROMPT_KIND_CHAT,
                max_tokens=40,
                temperature=0.0,
                json_schema=json.dumps(schema),
            ),
        )
        several = text(max_tokens=3, temperature=0.0, n=5, stream=True)
        submit(host, "several", "1, 2, 3, 4,", several, "a, b, c,")
        ids = m.Generation(prompt_kind=m.PROMPT_KIND_TOKENS, max_tokens=2)
        submit(host, "ids", "[504,3575]", ids, "[504]")
        submit(host, "no ids", "[504]", ids, "[49152]")
        await answered(heard, 9)
    told = heard.texts("several")
    assert told == [heard.texts("length")[0]] * 5 + told[5:]
    assert len(set(told)) == 2
    assert heard.generated("several").completion_tokens == 30
    n_tokens = [heard.generated(one).prompt_tokens for one in ("length", "several")]
    assert n_tokens[0] < n_tokens[1] < 2 * n_tokens[0]
    for choice in range(10):
        streamed = heard.streamed("several", choice)
        assert "".join(piece.text for piece in streamed) == told[choice]
        assert streamed[-1].finish_reason == "length"
    assert heard.generated("ids").prompt_tokens == 3
    (wrong,) = [done for one, done, _ in heard.done if one == "no ids"]
    assert wrong.code == "invalid_input"
    assert wrong.bad_rows[0].startswith("prompt 1: ")
    assert len(heard.texts("a")) == 2
    assert heard.texts("a")[0] == heard.texts("b")[0]
    assert heard.texts("a")[0] != heard.texts("a")[1]
    assert heard.generated("a").completion_tokens == 12
    assert "5" in heard.texts("stop")[0]
    assert "7" not in heard.texts("stop")[0]
    assert [one.finish_reason for one in heard.generated("stop").choices] == ["stop"]
    assert [one.finish_reason for one in heard.generated("length").choices] == ["length"]
    probabilities = json.loads(heard.generated("probable").choices[0].logprobs)
    assert [len(one["top_logprobs"]) for one in probabilities] == [2, 2]
    assert len(heard.streamed("probable")[0].token_ids) == 1
    assert isinstance(json.loads(heard.texts("json")[0])["age"], int)


async def test_what_steers_the_choice_of_tokens_reaches_the_engine(tmp_path: Path) -> None:
    prompt = "1, 2, 3, 4,"
    greedy: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "stream": True}
    hot = greedy | {"temperature": 2.0, "seed": 5}
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        submit(host, "plain", prompt, text(top_logprobs=1, **greedy))
        submit(host, "cold", "Once upon a time", text(**greedy))
        submit(host, "hot", "Once upon a time", text(**hot))
        submit(host, "top_k", "Once upon a time", text(top_k=1, **hot))
        submit(host, "min_p", "Once upon a time", text(min_p=1.0, **hot))
        submit(host, "frequency", prompt, text(frequency_penalty=2.0, **greedy))
        submit(host, "stop", prompt, text(stop=["6, 7"], **greedy | {"max_tokens": 20}))
        await answered(heard, 7)
        first = heard.streamed("plain")[0].token_ids[0]
        biased = text(top_logprobs=1, logit_bias={first: -100.0}, **greedy)
        submit(host, "bias", prompt, biased)
        await answered(heard, 8)
    names = ("plain", "cold", "hot", "top_k", "min_p", "frequency", "stop", "bias")
    told = {name: "".join(piece.text for piece in heard.streamed(name)) for name in names}
    assert all([told[name]] == heard.texts(name) for name in names)
    assert told["plain"] == " 5, 6,"
    assert told["cold"] == told["top_k"] == told["min_p"] != told["hot"]
    assert told["plain"] != told["frequency"]
    biased_ids = [number for piece in heard.streamed("bias") for number in piece.token_ids]
    assert biased_ids
    assert first not in biased_ids
    assert told["stop"] == " 5, "
    assert heard.streamed("stop")[-1].finish_reason == "stop"


async def test_a_model_calls_of_itself_as_it_did_before(tmp_path: Path) -> None:
    functions = [{"name": name, "parameters": {"type": "object"}} for name in ("time", "sum")]
    tools = [{"type": "function", "function": one} for one in functions]

    def called(number: int, city: str) -> list[dict[str, Any]]:
        function = {"name": "time", "arguments": json.dumps({"city": city})}
        call = {"id": str(number), "type": "function", "function": function}
        ask = {"role": "user", "content": f"What time is it in {city}?"}
        return [ask, {"role": "assistant", "content": "", "tool_calls": [call]}]

    messages = [*called(1, "Rome"), *called(2, "Oslo"), *called(3, "Paris")[:1]]
    said: dict[str, Any] = {
        "tools": json.dumps(tools),
        "prompt_kind": m.PROMPT_KIND_CHAT,
        "temperature": 0.0,
        "stream": True,
    }
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        for name, max_tokens in (("auto", 60), ("none", 4)):
            asked = m.Generation(tool_choice=json.dumps(name), max_tokens=max_tokens, **said)
            submit(host, name, json.dumps(messages), asked)
        await answered(heard, 2)
    (choice,) = heard.generated("auto").choices
    (call,) = json.loads(choice.tool_calls)
    assert (heard.texts("auto"), choice.finish_reason) == ([""], "tool_calls")
    function = call["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("time", {"city": "Paris"})
    # All of it was held back, and then it is one piece and the end.
    first, last = heard.streamed("auto")
    (delta,) = json.loads(first.tool_calls)
    assert delta == {"index": 0, **call}
    assert last.finish_reason == "tool_calls"
    assert first.n_tokens == heard.generated("auto").completion_tokens
    assert heard.generated("auto").prompt_tokens > heard.generated("none").prompt_tokens > 0
    assert not heard.generated("none").choices[0].tool_calls
    assert len(heard.streamed("none")) == 5


async def test_a_seed_says_the_same_to_the_last_bit(tmp_path: Path) -> None:
    prompt = smollm2.prompt("What is the capital of France?")
    seeded = {"max_tokens": 3, "temperature": 1.0, "top_logprobs": 1}
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        submit(host, 7, prompt, text(seed=7, **seeded))
        await answered(heard, 1)
        submit(host, 8, prompt, text(seed=8, **seeded))
        await answered(heard, 2)
        # One slot of the engine has read the prompt now, this leaves its beginning in another.
        submit(host, "long", smollm2.prompt("abc def " * 50), text(max_tokens=1))
        await answered(heard, 3)
        submit(host, "both", prompt, text(seed=7, n=2, **seeded))
        await answered(heard, 4)
        for again in range(2):  # a seed of -1, in the place of which llama.cpp draws one
            submit(host, f"last {again}", prompt, text(seed=0xFFFFFFFF, **(seeded | {"n": 2})))
            await answered(heard, 5 + again)
    alone = [heard.generated(seed).choices[0].logprobs for seed in (7, 8)]
    assert [choice.logprobs for choice in heard.generated("both").choices] == alone
    first, second = (heard.generated(f"last {again}").choices for again in range(2))
    assert [one.logprobs for one in first] == [one.logprobs for one in second]


async def test_an_abort_ends_it_with_what_it_has(tmp_path: Path) -> None:
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        submit(host, "long", "Once upon a time", text(stream=True, max_tokens=1500))
        await until(lambda: len(heard.streamed("long")) > 4)
        host.abort("long")
        await answered(heard, 1)
        _, done, _ = heard.done[0]
        assert done.aborted
        assert heard.texts("long")[0]
        assert heard.generated("long").choices[0].finish_reason == "cancelled"
        submit(host, "after", smollm2.prompt("What is the capital of France?"))
        await answered(heard, 2)
        assert heard.texts("after") == ["The capital of France is Paris."]


async def test_what_a_tenant_asked_is_kept_for_it_and_tells_nothing_to_another(
    tmp_path: Path,
) -> None:
    asked = "Patient record: John Miller, born 1961, diagnosis: lymphoma, word tulip-4711"
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):

        async def cached(tenant: str, prompt: str) -> int:
            token = (tenant, prompt)
            n_done = len(heard.done)
            said = text(max_tokens=1, temperature=0.0, stream=True)
            submit(host, token, prompt, said, tenant=tenant)
            await answered(heard, n_done + 1)
            return int(heard.generated(token).cached_tokens)

        assert await cached("alice", asked) == 0
        assert await cached("bob", f"{asked} of") == 0
        assert await cached("bob", f"{asked} of nine") > 15
        assert await cached("carol", asked) == 0
        assert await cached("alice", f"{asked} of nine") > 15
        for number in range(8):  # as many as there are slots
            assert await cached("bob", f"{number} bottles stand on the wall") < 15
        assert await cached("alice", f"{asked} of nine, and ten") == 0
        assert await cached("dave", f"{number} bottles stand on the wall") == 0


async def test_what_the_engine_refused_or_never_read_makes_no_slot_a_tenants_own(
    tmp_path: Path,
) -> None:
    asked = "Patient record: John Miller, born 1961, diagnosis: lymphoma, word tulip-4711"
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        said = text(max_tokens=1, temperature=0.0)
        submit(host, "asked", asked, said, tenant="alice")
        await answered(heard, 1)
        for number in range(8):  # as many as there are slots; the last one takes alice's
            begin = asked if number == 7 else f"{number} bottles"
            submit(host, number, begin + " one" * 3000, said, tenant="bob")
            await answered(heard, number + 2)
            assert heard.done[-1][1].code == "context_length_exceeded"
        submit(host, "guess", f"{asked} of", said, tenant="bob")
        await answered(heard, 10)
        assert heard.generated("guess").cached_tokens == 0


async def test_a_prompt_over_the_context_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        pid = host.pid
        submit(host, "long", "word " * 3000)
        await answered(heard, 1)
        _, done, _ = heard.done[0]
        assert done.code == "context_length_exceeded"
        assert done.bad_rows[0] == (
            "the prompt has 3001 tokens, and the model reads 2048 at most, prompt and answer "
            "together: shorten it"
        )
        assert host.pid == pid


async def test_a_death_gives_back_what_ran(tmp_path: Path) -> None:
    async with engine(model_folder("smollm2"), tmp_path) as (host, heard):
        submit(host, "one", "Once upon a time", text(stream=True, max_tokens=1500))
        submit(host, "two", "Once upon a time", text(max_tokens=1500))
        await until(lambda: heard.streamed("one"))
        os.kill(host.pid, signal.SIGKILL)
        await until(lambda: heard.down)
        assert heard.down == [["one", "two"]]
        await until(lambda: heard.n_up == 2)
        submit(host, "again", smollm2.prompt("What is the capital of Italy?"))
        await answered(heard, 1)
        assert heard.texts("again") == ["The capital of Italy is Rome."]


async def test_a_file_that_is_no_gguf_is_refused_with_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    source = model_folder("smollm2")
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    raw = json.loads((source / manifests.MANIFEST_NAME).read_bytes())
    (folder / manifests.MANIFEST_NAME).write_text(json.dumps(raw))
    with pytest.raises(EngineError, match=r"refuses the file|engine process died"):
        async with engine(folder, tmp_path):
            await asyncio.sleep(0)
    (folder / "model.gguf").write_bytes(b"ELF")
    with pytest.raises(EngineError, match="not a GGUF file"):
        async with engine(folder, tmp_path):
            await asyncio.sleep(0)
