"""Requests of more rows than run at once: others in between, deadlines in between, one end."""

from __future__ import annotations

import struct
import time

import pytest

from inferbus_schemas import messages as m
from tests.worker.test_execute import BAD, ERROR, KINDS, POISON, Bench, number


async def test_others_have_a_turn_between_the_pieces_of_a_large_request() -> None:
    bench = Bench()
    large = number(*range(40))
    smalls = [number(*range(8)) for _ in range(3)]
    bench.take(large)
    for small in smalls:
        bench.take(small)
    await bench.settle()
    assert bench.engine.sizes == [8, 8, 16, 8, 16, 8]
    assert bench.outcomes() == {one.id: [m.OUTCOME_OK] for one in (large, *smalls)}
    (said,) = [one for one in bench.sender.sent if one.id == large.id]
    (twice,) = m.TensorSet.FromString(said.outputs).tensors
    assert (list(twice.shape), said.batch_size) == ([40], 40)
    assert struct.unpack("<40q", twice.data) == tuple(range(0, 80, 2))
    ran = {one.rows: one.count for one in said.executions}
    assert ran == {8: 1, 16: 2}
    assert sum(one.engine_us for one in said.executions) == said.engine_us == 3
    others = [one for one in bench.sender.sent if one.id != large.id]
    batches = {one.batch_id for one in others}
    assert not any(one.executions for one in others)
    assert sum(ran.values()) + len(batches) == len(bench.engine.sizes)
    assert bench.executor.idle


async def test_a_large_request_ends_between_two_pieces_when_its_deadline_has_passed() -> None:
    bench = Bench()
    large = number(*range(40))
    bench.take(large)
    ((batch, values),) = bench.engine.batches
    bench.engine.batches.clear()
    batch.works[0].deadline_s = time.monotonic()
    bench.executor.on_done(batch, *bench.engine._answer(values))
    await bench.settle()
    assert bench.engine.sizes == [8]
    assert bench.outcomes() == {large.id: [m.OUTCOME_EXPIRED]}
    assert bench.executor.idle


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [(ERROR, m.OUTCOME_FAILED), (BAD, m.OUTCOME_INVALID_INPUT), (POISON, m.OUTCOME_POISON)],
)
async def test_a_piece_that_cannot_be_answered_ends_its_request_and_no_other(
    kind: str, outcome: m.Outcome
) -> None:
    bench = Bench()
    large, small = number(*range(20), KINDS[kind], *range(20)), number(1)
    bench.take(large)
    bench.take(small)
    await bench.settle()
    bench.executor.pump(time.monotonic() + 1.0)
    await bench.settle()
    assert bench.outcomes() == {large.id: [outcome], small.id: [m.OUTCOME_OK]}
    if kind == BAD:
        (said,) = [one for one in bench.sender.sent if one.id == large.id]
        assert said.error_message == "row 20: it is bad"
    assert bench.letters.ids == ([large.id] if kind == POISON else [])
    assert bench.executor.idle


async def test_what_is_left_of_a_large_request_is_given_back_with_the_engine() -> None:
    bench = Bench()
    large = number(*range(40))
    bench.take(large)
    ((batch, values),) = bench.engine.batches
    bench.engine.batches.clear()
    bench.engine.up = False
    bench.executor.on_done(batch, *bench.engine._answer(values))
    assert not bench.executor.idle
    assert bench.executor.oldest_s == batch.works[0].arrived_s
    bench.executor.on_failed("gone")
    await bench.settle()
    assert bench.outcomes() == {large.id: [m.OUTCOME_ATTEMPT_FAILED]}
    assert bench.executor.idle
