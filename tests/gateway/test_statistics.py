"""The figures of answered requests, and how they are shown."""

from __future__ import annotations

from typing import Any

from inferbus_gateway.hot.statistics import Figures, Statistics
from inferbus_schemas import messages as m


def record(**fields: Any) -> m.Prediction:
    return m.Prediction(outcome=m.OUTCOME_OK, **fields)


def test_answers_and_failures_are_counted_apart() -> None:
    statistics = Statistics()
    found = statistics.of("m", 2)
    assert statistics.of("m", 2) is found
    assert statistics.of("m", 3) is not found
    assert set(statistics.figures) == {("m", 2), ("m", 3)}
    first = record(queue_us=10, engine_us=20, latency_us=35, batch_size=5)
    second = record(queue_us=1, engine_us=20, latency_us=21, batch_row=3, batch_size=5)
    found.ended(first, 3, 0.5, 7.0)
    found.ended(second, 2, 0.25, 8.0)
    found.ended(m.Prediction(outcome=m.OUTCOME_FAILED), 9, 1.0, 9.0)
    found.ended(None, 9, 2.0, 10.0)
    assert (found.n_ok, found.ok_s, found.n_failed, found.failed_s) == (2, 0.75, 2, 3.0)
    assert (found.queue_us, found.engine_us, found.worker_us) == (11, 40, 56)
    assert (found.n_rows, found.n_executions, found.last_s) == (5, 1, 10.0)
    assert found.batches == {5: (1, 20)}


def test_sizes_of_batches_are_bounded() -> None:
    found = Figures()
    for _ in range(2):
        for size in range(1000):
            found.ended(record(batch_size=size, engine_us=3), size, 1.0, 1.0)
    assert len(found.batches) == 256
    assert set(found.batches.values()) == {(2, 6)}
    assert found.n_executions == 2000
