"""Tokens of jobs: who has used them waits before the next job, and nobody else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway.control.jobs.spent import Spent
from inferbus_gateway.errors import RateLimitedError
from inferbus_schemas.access import principal

MINUTE_MS = 60_000


@given(
    used=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30)), max_size=30),
    per_min=st.integers(1, 5000),
    now_min=st.integers(30, 60),
)
def test_the_wait_is_that_of_a_bucket_that_holds_a_minute(
    used: list[tuple[int, int]], per_min: int, now_min: int
) -> None:
    spent = Spent()
    for n_tokens, minute in used:
        spent.add("acme", n_tokens, minute * MINUTE_MS + 17)
    debt = 0.0
    for minute in range(now_min):
        debt = max(0.0, debt + sum(n for n, at in used if at == minute) - per_min)
    debt += sum(n for n, at in used if at == now_min)
    want_s = max(0.0, debt - per_min) * 60 / per_min
    assert spent.wait_s("acme", per_min, now_min * MINUTE_MS) == pytest.approx(want_s, abs=1e-3)


def test_a_key_waits_for_itself_and_for_its_tenant() -> None:
    spent = Spent()
    busy, idle = (principal("acme", name, ()) for name in ("busy", "idle"))
    spent.add("acme", 3000, 0)
    spent.add("acme/busy", 3000, 0)
    spent.check(busy, 0, 0)
    spent.check(idle, 3000, 0)
    with pytest.raises(RateLimitedError) as refused:
        spent.check(idle, 1000, 0)
    assert refused.value.retry_after_s == 120
    spent.check(idle, 1000, 120_000)


def test_what_is_a_week_old_is_forgotten() -> None:
    spent = Spent()
    spent.add("acme", 10**9, 0)
    spent.add("acme", 1, 8 * 24 * 3600 * 1000)
    assert spent.wait_s("acme", 10, 8 * 24 * 3600 * 1000) == 0
