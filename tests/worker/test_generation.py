"""A worker that generates, on real Kafka with real weights: chunks, cancellations, deaths."""

from __future__ import annotations

import os
import secrets
import signal
from typing import TYPE_CHECKING, Any

import pytest

from inferbus_models import smollm2
from inferbus_schemas import generation, tensors, topics
from inferbus_schemas import messages as m
from tests.support.sample_models import model_folder
from tests.support.worker_side import Side, request, tensor_set
from tests.worker.deployed_models import deployed

if TYPE_CHECKING:
    from inferbus_kit.consume import Record

pytestmark = pytest.mark.slow

STORY = "Once upon a time"
ENDLESS = {"max_tokens": 1500, "temperature": 1.0, "seed": 1}


async def serving(side: Side) -> tuple[str, int]:
    """Return the model and the inbox of a worker that has it."""
    model, _ = await deployed(side, model_folder("smollm2"))
    side.spawn("first")
    return model, await side.inbox_of(model, 1)


def prompted(model: str, prompt: str, **said: Any) -> m.Request:
    raw = tensor_set((generation.PROMPT, "BYTES", (1,), tensors.join_bytes([prompt.encode()])))
    how = m.Generation(prompt_kind=m.PROMPT_KIND_TEXT, **said)
    return request(model, 1, raw, generation=how, ttl_ms=120_000)


def texts(said: m.Prediction) -> list[str]:
    (out,) = m.TensorSet.FromString(said.outputs).tensors
    assert said.output_sha256 == tensors.output_sha256([out])
    assert list(out.shape) == [len(said.generated.choices)]
    return [each.decode() for each in tensors.split_bytes(out.data)]


async def test_chunks_are_numbered_whole_and_before_their_record(side: Side) -> None:
    model, inbox = await serving(side)
    question = "What is the capital of France?"
    greedy = {"max_tokens": 16, "temperature": 0.0}
    streamed = prompted(model, smollm2.prompt(question), stream=True, include_usage=True, **greedy)
    whole = prompted(model, smollm2.prompt(question), **greedy)
    whole.owes_tokens, whole.tenant = True, f"t{secrets.token_hex(4)}"
    owed: list[m.TokensSpent] = []

    def spent(record: Record) -> None:
        said = m.TokensSpent.FromString(record.value or b"")
        if said.tenant == whole.tenant:
            owed.append(said)

    await side.follow(topics.topic(topics.SPENT).name, 0, "end", spent)
    await side.send(inbox, streamed, whole)
    said = await side.answer(streamed.id, 60)
    assert said.outcome == m.OUTCOME_OK, said
    assert texts(said) == [smollm2.QUESTIONS[question]]
    chunks = side.chunks_of(streamed.id)
    await side.until(lambda: len(side.chunks_of(streamed.id)) == said.generated.n_chunks)
    chunks = side.chunks_of(streamed.id)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    assert {chunk.run for chunk in chunks} == {said.generated.run}
    assert "".join(chunk.text for chunk in chunks) == smollm2.QUESTIONS[question]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert chunks[-1].include_usage
    assert {(chunk.tenant, chunk.model, chunk.version) for chunk in chunks} == {
        ("default", model, 1)
    }
    other = await side.answer(whole.id, 60)
    assert texts(other) == texts(said)
    await side.until(lambda: owed)
    assert [one.n_tokens for one in owed] == [generation.n_tokens(other)]
    assert other.generated.n_chunks == 0
    assert not side.chunks_of(whole.id)
    assert (other.generated.prompt_tokens, other.generated.completion_tokens) == (16, 8)


async def test_a_cancelled_one_ends_with_its_part_and_makes_room(side: Side) -> None:
    model, inbox = await serving(side)
    # Eight choices are what the engine takes at once: the second request waits for the first.
    endless = prompted(model, STORY, stream=True, n=8, **ENDLESS)
    waiting = prompted(model, STORY, stream=True, n=8, **ENDLESS)
    last = prompted(model, smollm2.prompt("What is the capital of Italy?"))
    await side.send(inbox, endless, waiting, last)
    await side.until(lambda: len(side.chunks_of(endless.id)) > 8)
    await side.cancel(waiting.id)
    never_began = await side.answer(waiting.id)
    assert (never_began.outcome, never_began.outputs) == (m.OUTCOME_CANCELLED, b"")
    await side.cancel(endless.id)
    said = await side.answer(endless.id)
    assert said.outcome == m.OUTCOME_CANCELLED
    assert said.error_code == "cancelled"
    parts = texts(said)
    await side.until(lambda: len(side.chunks_of(endless.id)) == said.generated.n_chunks)
    for choice, part in enumerate(parts):
        streamed = [one.text for one in side.chunks_of(endless.id) if one.choice == choice]
        assert part.startswith("".join(streamed))
    assert (await side.answer(last.id)).outcome == m.OUTCOME_OK
    # A cancellation may overtake its request.
    late = prompted(model, STORY, stream=True, **ENDLESS)
    await side.cancel(late.id)
    await side.cancel(late.id)
    last = prompted(model, smollm2.prompt("What is the capital of Italy?"))
    await side.send(inbox, last)
    await side.answer(last.id)
    await side.send(inbox, late)
    assert (await side.answer(late.id)).outcome == m.OUTCOME_CANCELLED


async def test_a_stream_is_never_run_twice(side: Side) -> None:
    model, inbox = await serving(side)
    first = side._workers[0]
    streamed = prompted(model, STORY, stream=True, **ENDLESS)
    whole = prompted(model, STORY, max_tokens=40, temperature=1.0)
    await side.send(inbox, streamed, whole)
    await side.until(lambda: side.chunks_of(streamed.id))
    for pid in first.engines():
        os.kill(pid, signal.SIGKILL)
    said = await side.answer(streamed.id)
    assert (said.outcome, said.error_code) == (m.OUTCOME_FAILED, "engine_lost")
    await side.until(lambda: len(side.chunks_of(streamed.id)) == said.generated.n_chunks)
    left = side.chunks_of(streamed.id)
    assert said.generated.prompt_tokens == left[0].prompt_tokens > 0
    assert said.generated.completion_tokens == sum(chunk.n_tokens for chunk in left)
    assert (await side.answer(whole.id, 60)).outcome == m.OUTCOME_OK

    again = prompted(model, STORY, stream=True, **ENDLESS)
    await side.send(inbox, again)
    await side.until(lambda: side.chunks_of(again.id))
    first.kill()
    side.spawn("second")
    said = await side.answer(again.id, 60)
    assert (said.outcome, said.error_code) == (m.OUTCOME_ATTEMPT_FAILED, "worker_lost")
    assert said.attempt == again.attempt
    assert len({chunk.run for chunk in side.chunks_of(again.id)}) == 1
