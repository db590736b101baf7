"""Offsets, health, settings, traceparents: no server needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_kit.errors import StartupError
from inferbus_kit.health import Health, health_answer
from inferbus_kit.offsets import ContiguousOffsets
from inferbus_kit.settings import Settings, load
from inferbus_telemetry.spans import Tracing


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=30).flatmap(
        lambda gaps: st.tuples(st.just(gaps), st.permutations(range(len(gaps))))
    )
)
def test_offsets_commit_exactly_the_contiguous_prefix(case: tuple[list[int], list[int]]) -> None:
    gaps, order = case
    offsets = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    tracker = ContiguousOffsets(0)
    for offset in offsets:
        tracker.read(offset)
    done: set[int] = set()
    for index in order:
        before = tracker.committable
        moved = tracker.done(offsets[index])
        done.add(index)
        prefix = 0
        while prefix in done:
            prefix += 1
        assert tracker.committable == (offsets[prefix - 1] + 1 if prefix else 0)
        assert moved == (tracker.committable != before)
        assert tracker.n_open == len(offsets) - prefix


def test_offsets_refuse_a_step_back() -> None:
    tracker = ContiguousOffsets(5)
    with pytest.raises(ValueError, match="increasing"):
        tracker.read(4)
    tracker.read(7)
    with pytest.raises(ValueError, match="increasing"):
        tracker.read(7)
    assert not tracker.done(3)


def test_health_is_fed_by_the_loops() -> None:
    now = [0.0]
    health = Health(clock=lambda: now[0])
    assert health_answer(health, "/readyz") == (
        503,
        b'{"ready": false, "reasons": {"start": "starting"}}',
    )
    health.ready("start")
    health.watch("consume", 2.0)
    assert health_answer(health, "/readyz") == (200, b'{"ready": true, "reasons": {}}')
    now[0] = 2.5
    assert health.silent_loops() == ["consume"]
    status, _ = health_answer(health, "/livez") or (0, b"")
    assert status == 503
    health.beat("consume")
    assert not health.reasons()
    assert health_answer(health, "/other") is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4"])
def test_only_loopback_is_bound_where_callers_need_no_key(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("INFERBUS_HTTP_HOST", host)
    assert load(Settings).http_host == host
    monkeypatch.setenv("INFERBUS_AUTH", "local")
    with pytest.raises(StartupError, match="INFERBUS_HTTP_HOST: only a loopback address"):
        load(Settings)
    monkeypatch.setenv("INFERBUS_AUTH", "none")
    with pytest.raises(StartupError, match="INFERBUS_AUTH"):
        load(Settings)


def test_a_name_is_no_address_to_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERBUS_HTTP_HOST", "example.org")
    with pytest.raises(StartupError, match="INFERBUS_HTTP_HOST: it must be an IP address"):
        load(Settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_bound(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("INFERBUS_HTTP_HOST", host)
    assert load(Settings).http_host == host


def test_tracing_without_a_collector_costs_nothing_and_samples_nothing() -> None:
    tracing = Tracing("gateway", "g", "")
    sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert not tracing.sampled(sampled)
    assert tracing.span("x", parent=sampled) == ""


def test_the_callers_sampling_decision_is_kept() -> None:
    tracing = Tracing("gateway", "g", "http://127.0.0.1:9", ratio=1.0)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    assert tracing.sampled(f"{trace}-01")
    assert not tracing.sampled(f"{trace}-00")
    assert tracing.sampled("")
