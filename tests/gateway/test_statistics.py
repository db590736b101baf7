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
    batch = {"batch_id": b"b" * 16, "batch_size": 5, "engine_us": 20}
    first = record(queue_us=10, latency_us=35, **batch)
    second = record(queue_us=1, latency_us=21, batch_row=3, **batch)
    found.ended(first, 3, 0.5, 7.0)
    found.ended(second, 2, 0.25, 8.0)
    found.ended(m.Prediction(outcome=m.OUTCOME_FAILED), 9, 1.0, 9.0)
    found.ended(None, 9, 2.0, 10.0)
    assert (found.n_ok, found.ok_s, found.n_failed, found.failed_s) == (2, 0.75, 2, 3.0)
    assert (found.queue_us, found.engine_us, found.worker_us) == (11, 40, 56)
    assert (found.n_rows, found.n_executions, found.last_s) == (5, 1, 10.0)
    assert found.batches == {5: (1, 20)}


def test_an_execution_counts_whoever_comes_first_in_its_batch() -> None:
    """Rows 0 and 1 are of a job, or of a request that was too late: no record of them comes."""
    found = Statistics().of("m", 1)
    batch = {"batch_id": b"b" * 16, "batch_size": 8, "engine_us": 7}
    found.ended(m.Prediction(outcome=m.OUTCOME_OUTPUT_TOO_LARGE), 1, 1.0, 1.0)
    found.ended(record(batch_row=2, **batch), 1, 1.0, 1.0)
    found.ended(None, 1, 1.0, 1.0)
    found.ended(record(batch_row=4, **batch), 1, 1.0, 1.0)
    assert (found.n_ok, found.n_failed, found.n_rows) == (2, 2, 2)
    assert (found.n_executions, found.batches) == (1, {8: (1, 7)})


def test_batches_that_end_amid_one_another_count_once_each() -> None:
    statistics = Statistics()
    for row in range(3):
        for batch in range(100):
            said = record(batch_id=batch.to_bytes(16, "big"), batch_row=row, batch_size=3)
            statistics.of("m", 1 + batch % 2).ended(said, 1, 1.0, 1.0)
    assert [one.n_executions for one in statistics.figures.values()] == [50, 50]


def test_a_record_that_names_no_batch_is_an_execution_of_its_own() -> None:
    found = Figures()
    for _ in range(2):
        found.ended(record(batch_size=1), 1, 1.0, 1.0)
    assert (found.n_executions, found.batches[1][0]) == (2, 2)


def test_each_piece_of_a_large_request_is_an_execution_of_its_own_size() -> None:
    found = Figures()
    pieces = [
        m.Executions(rows=8, count=3, engine_us=30),
        m.Executions(rows=2, count=1, engine_us=4),
    ]
    said = record(batch_id=b"b" * 16, batch_size=26, engine_us=34, executions=pieces)
    found.ended(said, 26, 1.0, 1.0)
    assert (found.n_executions, found.engine_us) == (4, 34)
    assert found.batches == {8: (3, 30), 2: (1, 4)}
    assert sum(size * count for size, (count, _) in found.batches.items()) == found.n_rows


def test_a_batch_is_known_again_among_those_that_are_remembered() -> None:
    found = Figures()
    n_batches = 20_000
    for number in range(n_batches):
        for again in (number, number - 8191):
            if again >= 0:
                said = record(batch_id=again.to_bytes(16, "big"), batch_size=1)
                found.ended(said, 1, 1.0, 1.0)
    assert found.n_executions == n_batches
    assert len(found._counted._seen) + len(found._counted._before) <= 2 * 8192


def test_sizes_are_bounded_and_what_is_over_is_counted_all_the_same() -> None:
    found = Figures()
    for turn in range(2):
        for size in range(1, 2001):
            batch = bytes([turn]) + size.to_bytes(15, "big")
            said = record(batch_id=batch, batch_size=size, engine_us=3)
            found.ended(said, size, 1.0, 1.0)
    assert found.n_executions == 4000
    assert found.batches == dict.fromkeys(range(1, 1025), (2, 6))
