"""The line before an engine that generates: rows of jobs make way for requests; pure."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry

from inferbus_kit.metrics import worker_metrics
from inferbus_schemas import generation, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import FileEntry, Manifest, Signature, TensorSpec
from inferbus_telemetry.spans import Tracing
from inferbus_worker.engines import wire
from inferbus_worker.hot.emit import Served, Used
from inferbus_worker.hot.generate import Generator
from inferbus_worker.hot.generation_metrics import GenerationMetrics
from inferbus_worker.hot.runs import MAX_YIELDS
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

    def submit(self, token: Any, *_said: Any, **_how: Any) -> None:
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


class Keeper:
    """Keeps the rows that came back."""

    def __init__(self) -> None:
        self.back: list[bytes] = []

    def again(self, work: Work) -> None:
        self.back.append(work.request.id)


def rows_of(keeper: Keeper, *names: bytes, n_yields: int = 0) -> list[Work]:
    rows = [work(name, time.monotonic(), of_a_job=True) for name in names]
    for one in rows:
        one.keeper, one.n_yields = cast("Any", keeper), n_yields
    return rows


def aborted(line: Generator, run: Any) -> None:
    """Say what an engine says of a generation that it stopped."""
    line.on_done(run, wire.Done(0, (), {}, "", 1, 0, aborted=True), memoryview(b""))


def test_rows_make_way_for_a_request_but_the_one_that_answers() -> None:
    keeper = Keeper()
    line, engine = waiting_for(emitter=None, parallel=4)
    engine.up = True
    for row in rows_of(keeper, b"answers", b"answers too", b"reads", b"waits"):
        line.add(row)
    line.pump(0.0)
    for count in (1, 2):
        assert len(engine.runs) == count, "prompts of rows are read one after another"
        line.on_tokens(engine.runs[-1], wire.Tokens(0, 0, n_tokens=1))
    _answers, too, reads = engine.runs
    assert line.asked_s == float("-inf")
    now_s = time.monotonic()
    line.add(work(b"request", now_s))
    line.pump(now_s)
    assert engine.aborted == [too, reads]
    assert keeper.back == [b"waits"]
    line.add(work(b"next", now_s))
    assert engine.aborted == [too, reads], "they were told before"
    for run in engine.aborted:
        aborted(line, run)
    assert keeper.back == [b"waits", b"answers too", b"reads"]
    assert engine.taken[3:] == [b"request", b"next"]
    assert line.asked_s >= now_s
    assert not line._waiting


@pytest.mark.parametrize("where", ["in the engine", "in line"])
def test_a_row_that_made_way_often_enough_stays(where: str) -> None:
    keeper = Keeper()
    line, engine = waiting_for(emitter=None)
    engine.up = where == "in the engine"
    (young,) = rows_of(keeper, b"young")
    first, second = rows_of(keeper, b"first", b"second", n_yields=MAX_YIELDS)
    for row in (first, young, second):
        line.add(row)
        line.pump(0.0)
    before = len(engine.taken)
    line.add(work(b"request", time.monotonic()))
    assert keeper.back == [b"second", b"young"], "the first is the first of its keeper again"
    assert not engine.aborted
    engine.up = True
    line.pump(1.0)
    assert engine.taken[before:] == ([b"request"] if before else [b"first", b"request"])


def test_no_request_waits_behind_a_row_that_waits_for_another() -> None:
    keeper = Keeper()
    line, engine = waiting_for(emitter=None)
    engine.up = True
    (reads,) = rows_of(keeper, b"reads")
    (stays,) = rows_of(keeper, b"stays", n_yields=MAX_YIELDS)
    for one in (reads, stays, work(b"request", time.monotonic())):
        line.add(one)
        line.pump(0.0)
    assert engine.taken == [b"reads", b"request"]
    aborted(line, engine.aborted[0])
    assert engine.taken[2:] == [b"stays"]
    assert keeper.back == [b"reads"]


def test_a_row_that_makes_way_while_its_engine_dies_goes_back_with_that_death() -> None:
    keeper = Keeper()
    line, engine = waiting_for(emitter=None)
    engine.up = True
    (row,) = rows_of(keeper, b"row")
    line.add(row)
    line.pump(0.0)
    line.add(work(b"request", time.monotonic()))
    engine.up = False
    line.on_down(list(engine.aborted))
    assert (keeper.back, row.n_alone_deaths) == ([b"row"], 1)
    assert not line._runs


def test_a_call_that_is_kept_back_has_begun() -> None:
    line, engine = waiting_for(emitter=None)
    engine.up = True
    for row in rows_of(Keeper(), b"calls", b"next"):
        line.add(row)
    line.pump(0.0)
    line.on_tokens(engine.runs[0], wire.Tokens(0))
    assert engine.taken == [b"calls"]
    line.on_tokens(engine.runs[0], wire.Tokens(0, began=True))
    assert engine.taken == [b"calls", b"next"]


def test_a_row_that_reads_beside_a_request_reads_in_pieces() -> None:
    keeper = Keeper()
    line, engine = waiting_for(emitter=None)
    engine.up = True
    now_s = time.monotonic()
    line.add(work(b"request", now_s))
    (row,) = rows_of(keeper, b"row")
    line.add(row)
    line.pump(now_s)
    line.tick(now_s + 0.4)
    assert not engine.aborted
    line.tick(now_s + 0.6)
    (run,) = engine.aborted
    aborted(line, run)
    assert keeper.back == [b"row"]


def test_a_row_that_ends_before_it_hears_of_the_request_has_its_record() -> None:
    keeper = Keeper()
    told: list[bytes] = []
    emitter = SimpleNamespace(ok=lambda work, *_: told.append(work.request.id))
    line, engine = waiting_for(emitter)
    engine.up = True
    (row,) = rows_of(keeper, b"row")
    line.add(row)
    line.pump(0.0)
    line.add(work(b"request", time.monotonic()))
    (run,) = engine.aborted
    head = wire.TensorHead(generation.TEXT, "BYTES", (1,), 0)
    line.on_done(run, wire.Done(0, (head,), {}, "", 1, 0), memoryview(b""))
    assert (told, keeper.back) == ([b"row"], [])


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
    assert line.add(work(b"none said", 0.0, n_prompts=16, said=m.Generation()))
    assert not line.add(work(b"prompts", 0.0, n_prompts=17))
    assert not line.add(work(b"n", 0.0, said=m.Generation(n=9)))
    assert not line.add(work(b"choices", 0.0, n_prompts=5, said=m.Generation(n=7)))
    assert not line.add(work(b"chats", 0.0, n_prompts=2, said=m.Generation(prompt_kind=chat)))
    # Who asks by the signature, as over Kafka, has the one that it says.
    assert line.add(work(b"plain", 0.0))
    assert not line.add(work(b"plain list", 0.0, n_prompts=2))
    assert refused == [b"prompts", b"n", b"choices", b"chats", b"plain list"]


def test_while_the_engine_is_away_no_row_makes_way_again() -> None:
    keeper = Keeper()
    line, engine = waiting_for(emitter=None)
    now_s = time.monotonic()
    line.add(work(b"request", now_s))
    (row,) = rows_of(keeper, b"row")
    line.add(row)
    line.tick(now_s + 1)
    assert not keeper.back
    engine.up = True
    line.tick(now_s + 1)
    assert keeper.back == [b"row"]
