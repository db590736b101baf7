"""The status line: real metric names, right arithmetic."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from inferbus_dev import status
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
    logger.rows.inc(requests)
    logger.lag_records.labels("0").set(2)
    logger.lag_records.labels("1").set(3)
    return generate_latest(registry).decode()


def test_the_line_reads_what_the_services_count() -> None:
    window = status.Window()
    window.line(status.add(10.0, [_page(0, 0.0, 4)]), [])
    line = window.line(status.add(12.0, [_page(100, 0.005, 8), _page(20, 0.005, 4)]), [])
    assert line.startswith("60 req/s · p50 5.0 ms p99 6.0 ms · batch 8.0 rows")
    assert line.endswith("lag 10 · 120 rows logged")


def test_counters_that_start_again_begin_a_new_window() -> None:
    window = status.Window()
    window.line(status.add(10.0, [_page(100, 0.005, 4)]), [])
    line = window.line(status.add(11.0, [_page(5, 0.005, 4)]), [])
    assert line.startswith("0 req/s · p50 - p99 -")


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
