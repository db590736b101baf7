"""What a record holds: limits, digests, headers, spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from inferbus_kit.telemetry import Tracing
from inferbus_schemas import messages as m
from inferbus_worker.hot import emit

if TYPE_CHECKING:
    pass
from tests.worker.test_execute import TOPIC, Bench, number


async def test_an_answer_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "MAX_OUTPUT_BYTES", 30)
    bench = Bench()
    bench.take(number(*range(8)))
    await bench.settle()
    (said,) = bench.sender.sent
    assert said.outcome == m.OUTCOME_OUTPUT_TOO_LARGE
    assert said.outputs == said.output_sha256 == b""


async def test_large_inputs_leave_their_digest_only() -> None:
    bench = Bench()
    small, large = number(1), number(*([1] * 9000))
    bench.take(small, large)
    await bench.settle()
    said = {one.id: one for one in bench.sender.sent}
    assert said[small.id].inputs == small.tensors
    assert said[large.id].inputs == b""
    assert len(said[large.id].input_sha256) == 32


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


class Recorder(Tracing):
    """Keeps spans instead of exporting them."""

    def __init__(self) -> None:
        super().__init__("worker", "w1", "")
        self.on = True
        self.spans: list[tuple[str, dict[str, Any]]] = []

    def span(self, name: str, **said: Any) -> str:
        self.spans.append((name, said))
        return f"00-{'1' * 32}-{len(self.spans):016x}-01"


async def test_a_batch_links_its_traced_requests_and_each_has_a_span() -> None:
    bench = Bench()
    recorder = bench.executor._tracing = Recorder()
    contexts = [f"00-{'a' * 32}-{at:016x}-01" for at in (1, 2)]
    requests = [number(at, traceparent=context) for at, context in enumerate(contexts)]
    bench.take(*requests, number(3))
    await bench.settle()
    (name, batch), *members = recorder.spans
    assert name == "batch"
    assert batch["links"] == contexts
    assert batch["attributes"]["inferbus.batch.requests"] == 3
    assert [name for name, _ in members] == [f"process {TOPIC.name}"] * 2
    assert [said["parent"] for _, said in members] == contexts
    said = {one.id: one.traceparent for one in bench.sender.sent}
    assert [said[one.id] for one in requests] == [
        f"00-{'1' * 32}-{number:016x}-01" for number in (2, 3)
    ]
