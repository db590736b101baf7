"""The line before an engine that generates: requests before rows of jobs, not for ever; pure."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry

from inferbus_kit.metrics import worker_metrics
from inferbus_kit.telemetry import Tracing
from inferbus_schemas import generation, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import FileEntry, Manifest, Signature, TensorSpec
from inferbus_worker.engines import wire
from inferbus_worker.hot.emit import Served, Used
from inferbus_worker.hot.generate import GenerationMetrics, Generator
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.work import Work
from tests.support.worker_side import tensor_set

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFEST = Manifest(
    model="m",
    task="text-generation",
    engine="llamacpp",
    signature=Signature(
        (TensorSpec(generation.PROMPT, "BYTES", (1,)),),
        (TensorSpec(generation.TEXT, "BYTES", (-1,)),),
    ),
    files=(FileEntry("model.gguf", "0" * 64, 1),),
)


class Engine:
    """Takes everything once it is up."""

    def __init__(self) -> None:
        self.up = False
        self.taken: list[bytes] = []
        self.runs: list[Any] = []
        self.aborted: list[Any] = []

    def submit(self, token: Any, *_said: Any) -> None:
        self.taken.append(token.work.request.id)
        self.runs.append(token)

    def abort(self, token: Any) -> None:
        self.aborted.append(token)


def work(
    name: bytes,
    arrived_s: float,
    *,
    of_a_job: bool = False,
    n_prompts: int = 1,
    said: m.Generation | None = None,
) -> Work:
    data = tensors.join_bytes([b"hi"] * n_prompts)
    raw = tensor_set((generation.PROMPT, "BYTES", (n_prompts,), data))
    request = m.Request(id=name, tensors=raw, generation=said)
    keeper = cast("Any", object()) if of_a_job else None
    return Work(request, cast("Any", None), arrived_s, arrived_s + 3600, keeper=keeper)


def waiting_for(emitter: Any, tokens: Any = None, parallel: int = 99) -> tuple[Generator, Engine]:
    """Return a line and the engine that it waits for."""
    metrics = GenerationMetrics(worker_metrics(CollectorRegistry()), "m", 1)
    line = Generator(
        MANIFEST,
        Served(b""),
        parallel=parallel,
        instance="w",
        emitter=emitter,
        tokens=tokens,
        metrics=metrics,
        spans=Spans(Tracing("worker", "w", ""), "requests"),
    )
    engine = Engine()
    line.attach(engine)
    return line, engine


def test_rows_that_have_waited_long_enough_keep_their_place() -> None:
    line, engine = waiting_for(emitter=None)
    for one in (
        work(b"old row", 0.0, of_a_job=True),
        work(b"row", 5.0, of_a_job=True),
        work(b"first", 11.0),
        work(b"last row", 11.5, of_a_job=True),
        work(b"second", 12.0),
    ):
        line.add(one)
    assert line.oldest_s == 0.0
    engine.up = True
    line.pump(13.0)
    assert engine.taken == [b"old row", b"first", b"second", b"row", b"last row"]
    assert not engine.aborted


def test_what_is_aborted_at_its_deadline_has_cost_its_tokens() -> None:
    ended: list[Used] = []
    told = SimpleNamespace(expired=lambda _work, _served, used: ended.append(used))
    line, engine = waiting_for(told)
    engine.up = True
    line.add(work(b"slow", 0.0))
    line.pump(1.0)
    line.tick(3600.0)
    (run,) = engine.aborted
    run.n_chunks = 3
    choices = [m.Choice(finish_reason="cancelled")]
    said = m.Generated(prompt_tokens=5, completion_tokens=6, choices=choices)
    done = wire.Done(0, (), {}, "", 1, 0, generated=said.SerializeToString(), aborted=True)
    line.on_done(run, done, memoryview(b""))
    (used,) = ended
    assert used.generated == m.Generated(
        run=run.run, n_chunks=3, prompt_tokens=5, completion_tokens=6
    )
    assert line.idle


class Told:
    """Keeps how requests ended, and the chunks that left."""

    def __init__(self) -> None:
        self.ended_with: list[tuple[str, Used]] = []
        self.chunks: list[m.TokenChunk] = []

    def ended(self, *said: Any, used: Used) -> None:
        self.ended_with.append((said[2], used))

    def put(self, _work: Work, chunk: m.TokenChunk, acknowledged: Callable[[], None]) -> None:
        self.chunks.append(chunk)
        acknowledged()


@pytest.mark.parametrize("how", ["engine_lost", "engine_error"])
def test_what_left_of_a_stream_that_fails_has_cost_its_tokens(how: str) -> None:
    told = Told()
    line, engine = waiting_for(told, told)
    engine.up = True
    for name, stream in ((b"streamed", True), (b"whole", False)):
        one = work(name, 0.0)
        one.request.generation.stream, one.n_alone_deaths = stream, 1
        line.add(one)
    line.pump(1.0)
    for run in engine.runs:
        line.on_tokens(run, wire.Tokens(1, 0, "a b", 2, prompt_tokens=5))
        line.on_tokens(run, wire.Tokens(1, 0, "c", 1, prompt_tokens=5))
    assert [(one.n_tokens, one.prompt_tokens) for one in told.chunks] == [(2, 5), (1, 0)]
    if how == "engine_lost":
        line.on_down(list(engine.runs))
    else:
        for run in reversed(engine.runs):
            line.on_done(run, wire.Done(0, (), {}, "it broke", 1, 0), memoryview(b""))
    streamed, _whole = engine.runs
    used = m.Generated(run=streamed.run, n_chunks=2, prompt_tokens=5, completion_tokens=3)
    assert told.ended_with == [(how, Used()), (how, Used(used))]
    assert line.idle


def test_each_prompt_of_a_list_has_cost_its_tokens() -> None:
    told = Told()
    line, engine = waiting_for(told, told)
    engine.up = True
    said = m.Generation(n=2, stream=True)
    line.add(work(b"list", 0.0, n_prompts=2, said=said))
    line.pump(1.0)
    (run,) = engine.runs
    for choice, n_read in ((2, 7), (0, 5), (1, 5), (3, 7)):
        line.on_tokens(run, wire.Tokens(1, choice, "a", 1, prompt_tokens=n_read))
    assert [(one.choice, one.prompt_tokens) for one in told.chunks] == [
        (2, 7),
        (0, 5),
        (1, 0),
        (3, 0),
    ]
    line.on_down([run])
    used = m.Generated(run=run.run, n_chunks=4, prompt_tokens=12, completion_tokens=4)
    assert told.ended_with == [("engine_lost", Used(used))]


def test_a_choice_that_ends_makes_room() -> None:
    line, engine = waiting_for(emitter=None, parallel=4)
    engine.up = True
    now_s = time.monotonic()
    line.add(work(b"list", now_s, n_prompts=3, said=m.Generation(n=2)))
    line.add(work(b"pair", now_s, said=m.Generation(n=2)))
    line.pump(now_s)
    assert engine.taken == [b"list"]
    (run,) = engine.runs
    for choice in range(3):
        line.on_tokens(run, wire.Tokens(0, choice, "x", 1))
        line.on_tokens(run, wire.Tokens(0, choice, finish_reason="stop"))
        assert engine.taken == [b"list"]
    line.on_tokens(run, wire.Tokens(0, 3, finish_reason="length"))
    assert engine.taken == [b"list", b"pair"]
    assert line._n_choices == 4
    line.on_down([run])
    assert line._n_choices == 2


def test_more_than_a_request_may_hold_is_refused() -> None:
    refused: list[bytes] = []
    told = SimpleNamespace(ended=lambda one, *_why: refused.append(one.request.id))
    line, _ = waiting_for(told)
    chat = m.PROMPT_KIND_CHAT
    assert line.add(work(b"most", 0.0, n_prompts=16, said=m.Generation(n=2)))
    assert line.add(work(b"none said", 0.0, n_prompts=16))
    assert not line.add(work(b"prompts", 0.0, n_prompts=17))
    assert not line.add(work(b"n", 0.0, said=m.Generation(n=9)))
    assert not line.add(work(b"choices", 0.0, n_prompts=5, said=m.Generation(n=7)))
    assert not line.add(work(b"chats", 0.0, n_prompts=2, said=m.Generation(prompt_kind=chat)))
    assert refused == [b"prompts", b"n", b"choices", b"chats"]
