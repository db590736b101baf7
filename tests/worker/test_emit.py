"""What a record holds: limits, digests, headers, spans."""

from __future__ import annotations

import asyncio
import hashlib
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from inferbus_schemas import generation
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Signature, TensorSpec
from inferbus_worker.hot import emit, execute
from inferbus_worker.hot.emit import Emitter, OkAnswer, Served
from inferbus_worker.hot.signature import RowSizes
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.work import Batch, Work
from tests.support.span_recorder import SpanRecorder
from tests.worker.test_execute import TOPIC, Bench, Sender, number

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_an_answer_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "MAX_OUTPUT_BYTES", 30)
    bench = Bench()
    bench.take(number(*range(8)))
    await bench.settle()
    (said,) = bench.sender.sent
    assert said.outcome == m.OUTCOME_OUTPUT_TOO_LARGE
    assert said.outputs == said.output_sha256 == b""


async def test_an_answer_that_would_be_too_large_is_never_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execute, "MAX_OUTPUT_BYTES", 64)
    bench = Bench()
    fits, large = number(*range(8)), number(*range(9))
    bench.take(fits, large)
    await bench.settle()
    assert bench.engine.sizes == [8]
    assert bench.outcomes() == {fits.id: [m.OUTCOME_OK], large.id: [m.OUTCOME_OUTPUT_TOO_LARGE]}


def test_only_what_the_signature_fixes_is_foreseen() -> None:
    open_, words = TensorSpec("open", "FP32", (-1, -1)), TensorSpec("words", "BYTES", (-1,))
    fixed, flat = TensorSpec("fixed", "FP64", (-1, 3)), TensorSpec("flat", "BOOL", (-1,))
    sizes = RowSizes(Signature((), (open_, words, fixed, flat)))
    assert sizes.of(()) == 25
    assert sizes.of(["words", "flat"]) == 1


async def _ended(
    end: Callable[[Emitter, Work], object], sender: Sender, **how: Any
) -> m.Prediction:
    """Return the record of a generation that ended."""
    frame: Any = SimpleNamespace(member_done=lambda: None)
    asked = m.Generation(form=m.FORM_TEXT, stream=True)
    request = m.Request(id=b"r", reply_partition=3, ttl_ms=1000, generation=asked)
    request.tensors = how.get("tensors", b"")
    now_s = time.monotonic()
    end(Emitter(sender, "w1"), Work(request, frame, now_s, now_s + how.get("left_s", 1.0)))
    for _ in range(5):
        await asyncio.sleep(0)
    (said,) = sender.sent
    return said


SPENT = m.Generated(
    run=7,
    n_chunks=2,
    prompt_tokens=5,
    completion_tokens=6,
    form=m.FORM_TEXT,
    choices=[m.Choice(finish_reason="cancelled")],
)
NO_BATCH = Batch([], 1, b"b")


def _large(emitter: Emitter, work: Work) -> None:
    emitter.ok(work, NO_BATCH, Served(b""), OkAnswer(0, bytes(31), b"", "", SPENT, n_tokens=4))


async def test_an_answer_that_is_too_large_has_cost_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emit, "MAX_OUTPUT_BYTES", 30)
    said = await _ended(_large, Sender())
    assert (said.outcome, said.outputs) == (m.OUTCOME_OUTPUT_TOO_LARGE, b"")
    assert (said.generated.run, said.generated.n_chunks) == (7, 2)
    assert not said.generated.choices
    assert generation.n_tokens(said) == 15


async def test_an_answer_that_comes_too_late_has_cost_its_tokens() -> None:
    said = await _ended(_large, Sender(), left_s=-100.0)
    assert (said.outcome, said.outputs) == (m.OUTCOME_EXPIRED, b"")
    assert generation.n_tokens(said) == 15


@pytest.mark.parametrize(
    "end",
    [
        lambda emitter, work: emitter.expired(work),
        lambda emitter, work: emitter.cancelled(work),
        lambda emitter, work: emitter.attempt_failed(work, "worker_lost", "it was lost"),
    ],
)
async def test_a_generation_that_never_began_tells_its_form(
    end: Callable[[Emitter, Work], object],
) -> None:
    said = await _ended(end, Sender())
    assert said.generated == m.Generated(form=m.FORM_TEXT)


async def test_a_request_that_generates_nothing_tells_no_form() -> None:
    bench = Bench()
    bench.take(number(1), age_ms=3_600_000)
    bench.executor.give_up("lost")
    bench.take(number(2))
    await bench.settle()
    assert bench.sender.sent
    assert not any(one.HasField("generated") for one in bench.sender.sent)


async def test_large_inputs_leave_their_digest_only() -> None:
    bench = Bench()
    small, large = number(1), number(*([1] * 9000))
    bench.take(small, large)
    await bench.settle()
    said = {one.id: one for one in bench.sender.sent}
    assert said[small.id].inputs == small.tensors
    assert said[large.id].inputs == b""
    assert len(said[large.id].input_sha256) == 32


@pytest.mark.parametrize("n_bytes", [65_536, 65_537])
@pytest.mark.parametrize(
    "end",
    [
        lambda emitter, work: emitter.ok(work, NO_BATCH, Served(b""), OkAnswer(0, b"y", b"", "")),
        lambda emitter, work: emitter.too_large(work, Served(b"")),
        lambda emitter, work: emitter.cancelled(work),
    ],
)
async def test_inputs_up_to_64_kib_stand_in_the_record_and_always_their_digest(
    end: Callable[[Emitter, Work], object], n_bytes: int
) -> None:
    tensors = b"x" * n_bytes
    said = await _ended(end, Sender(), tensors=tensors)
    assert said.inputs == (tensors if n_bytes == 65_536 else b"")
    assert said.input_sha256 == hashlib.sha256(tensors).digest()


async def test_records_carry_five_headers_and_a_context_where_there_is_one() -> None:
    bench = Bench()
    context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    plain, traced = number(1), number(2, traceparent=context, attempt=3)
    bench.take(plain, traced)
    await bench.settle()
    said = {one.id: head for one, head in zip(bench.sender.sent, bench.sender.headers, strict=True)}
    assert len(said[plain.id]) == 5
    assert said[traced.id]["traceparent"] == context.encode()
    assert said[traced.id]["ce_id"].endswith(b"/3")


async def test_a_batch_links_its_traced_requests_and_each_has_a_span() -> None:
    bench = Bench()
    recorder = SpanRecorder()
    bench.executor._spans = Spans(recorder, TOPIC.name)
    contexts = [f"00-{'a' * 32}-{at:016x}-01" for at in (1, 2)]
    requests = [number(at, traceparent=context) for at, context in enumerate(contexts)]
    bench.take(*requests, number(3))
    await bench.settle()
    (name, batch), *members = recorder.spans
    assert name == "batch"
    assert list(batch["links"]) == contexts
    assert batch["attributes"]["inferbus.batch.requests"] == 3
    assert [name for name, _ in members] == [f"process {TOPIC.name}"] * 2
    assert [said["parent"] for _, said in members] == contexts
    said = {one.id: one.traceparent for one in bench.sender.sent}
    assert [said[one.id] for one in requests] == [
        f"00-{'1' * 32}-{number:016x}-01" for number in (2, 3)
    ]
