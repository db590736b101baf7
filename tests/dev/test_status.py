"""The status line: real metric names, right arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from inferbus_dev import status
from inferbus_dev.process import ChildSpec
from inferbus_dev.supervisor import Member, State
from inferbus_kit import metrics


def _page(requests: int, latency_s: float, rows: int) -> str:
    """Return a page as the services write it, from their own metrics."""
    registry = CollectorRegistry()
    gateway = metrics.gateway_metrics(registry)
    worker = metrics.worker_metrics(registry)
    logger = metrics.logger_metrics(registry)
    for _ in range(requests):
        gateway.requests.labels("m", "1", "ok").inc()
        gateway.request_seconds.labels("m", "1").observe(latency_s)
    worker.batch_rows.labels("m", "1").observe(rows)
    logger.stored_rows.labels("0").set(requests)
    logger.stored_rows.labels("1").set(1_000)
    logger.lag_records.labels("0").set(2)
    logger.lag_records.labels("1").set(3)
    return generate_latest(registry).decode()


def test_the_line_reads_what_the_services_count() -> None:
    window = status.Window()
    window.line(status.add(10.0, [_page(0, 0.0, 4)]), [])
    line = window.line(status.add(12.0, [_page(100, 0.005, 8), _page(20, 0.005, 4)]), [])
    assert line.startswith("60 req/s · p50 5.0 ms p99 6.0 ms · batch 8.0")
    assert line.endswith("lag 10 · 2,120 rows logged")


def test_counters_that_start_again_begin_a_new_window() -> None:
    window = status.Window()
    window.line(status.add(10.0, [_page(100, 0.005, 4)]), [])
    line = window.line(status.add(11.0, [_page(5, 0.005, 4)]), [])
    assert line.startswith("0 req/s · p50 - p99 -")


def test_rows_stay_while_their_logger_is_away() -> None:
    window = status.Window()
    window.line(status.add(10.0, [_page(100, 0.005, 4)]), [])
    assert window.line(status.add(11.0, []), []).endswith("1,100 rows logged")


def _troubled() -> Member:
    async def ready() -> bool:
        return False

    spec = ChildSpec(
        role="worker", index=0, argv=("true",), env=dict, log=Path("unused"), ready=ready
    )
    member = Member(spec)
    member.state, member.restarts, member.last_exit = State.BACKOFF, 3, -9
    return member


@pytest.mark.parametrize("width", range(1, 140))
def test_a_line_keeps_to_the_width_and_to_what_matters_most(width: int) -> None:
    window = status.Window()
    before = status.Reading(at_s=10.0)
    much = status.Reading(
        at_s=12.0,
        requests=246_912,
        latency={0.1: 200_000.0, float("inf"): 246_912.0},
        batches=1_000,
        batch_rows=64_000,
        lag=1_234_567,
        rows=12_345_678_901,
    )
    window.line(before, [], width)
    line = window.line(much, [], width, "Ctrl-C stops")
    assert len(line) <= width
    marks = ("req/s", "p50", "rows logged", "lag", "batch", "Ctrl-C")
    shown = [mark in line for mark in marks]
    assert shown == sorted(shown, reverse=True), "what matters less stayed, what matters more went"
    if width >= 76:
        assert line.startswith("123,456 req/s · p50")
        assert "12,345,678,901 rows logged" in line
    if width >= 120:
        assert all(shown)
    said = window.line(much, [_troubled()], width, "Ctrl-C stops")
    assert len(said) <= width
    if width >= 60:
        assert "worker-0 ended with -9, restarting (3 restarts)" in said


def test_nothing_answers() -> None:
    line = status.Window().line(status.add(1.0, []), [])
    assert line == "0 req/s · p50 - p99 - · batch - · lag 0 · 0 rows logged"


@pytest.mark.parametrize(("share", "expected"), [(0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (1.0, 2.0)])
def test_quantiles_are_linear_inside_a_bucket(share: float, expected: float) -> None:
    then = status.Reading(at_s=0.0)
    now = status.Reading(at_s=1.0, latency={1.0: 50.0, 2.0: 100.0, float("inf"): 100.0})
    assert status.quantile_s(then, now, share) == pytest.approx(expected)


def test_a_quantile_beyond_all_bounds_is_the_last_bound() -> None:
    now = status.Reading(at_s=1.0, latency={1.0: 1.0, float("inf"): 100.0})
    assert status.quantile_s(status.Reading(at_s=0.0), now, 0.5) == 1.0
