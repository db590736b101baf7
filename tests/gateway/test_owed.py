"""Tokens of submissions: told whole, counted once, paid for by the minutes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway.control.owed import Owed
from inferbus_schemas import messages as m

MINUTE_MS = 60_000


def told(tenant: str, minute: int, life: int, n_tokens: int, at_ms: int) -> Any:
    """Return the record of what one life of a worker has spent in a minute."""
    said = m.TokensSpent(tenant=tenant, minute=minute, n_tokens=n_tokens, life=life)
    key = f"{tenant}/{minute}/{life:016x}".encode()
    return SimpleNamespace(key=key, value=said.SerializeToString(), timestamp=at_ms)


def until_ms(owed: Owed, tenant: str) -> int:
    """Return the first second at which a tenant need not wait."""
    return next(at_ms for at_ms in range(0, 10**8, 1000) if not owed.waits(tenant, at_ms))


def test_each_token_is_owed_once_however_often_it_is_told() -> None:
    owed = Owed(1000)
    for n_tokens in (700, 2500, 2500, 700):
        owed.apply(told("acme", 2, 1, n_tokens, 3 * MINUTE_MS))
    assert until_ms(owed, "acme") == (2 + 1.5) * MINUTE_MS
    owed.apply(told("acme", 2, 2, 500, 3 * MINUTE_MS))
    assert until_ms(owed, "acme") == 4 * MINUTE_MS
    assert not owed.waits("other", 0)


def test_a_minute_that_has_not_come_counts_from_its_record_on() -> None:
    owed = Owed(1000)
    owed.apply(told("acme", 1 << 31, 1, 2000, 5 * MINUTE_MS))
    assert until_ms(owed, "acme") == 6 * MINUTE_MS


def test_without_a_limit_nobody_owes() -> None:
    owed = Owed(0)
    owed.apply(told("acme", 0, 1, 10**9, 0))
    assert not owed.waits("acme", 0)


@given(
    grown=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(1, 900)), max_size=30
    ),
    cut=st.integers(0, 30),
)
def test_a_gateway_that_reads_only_the_last_of_each_key_knows_the_same(
    grown: list[tuple[int, int, int]], cut: int
) -> None:
    whole, compacted = Owed(100), Owed(100)
    sums: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], Any] = {}
    for at, (minute, life, n_tokens) in enumerate(grown):
        sums[minute, life] = sums.get((minute, life), 0) + n_tokens
        record = told("acme", minute, life, sums[minute, life], 6 * MINUTE_MS + at)
        whole.apply(record)
        last[minute, life] = record
    records = list(last.values())
    for record in records[cut:] + records[:cut]:
        compacted.apply(record)
    for at_ms in range(0, 300 * MINUTE_MS, MINUTE_MS):
        assert whole.waits("acme", at_ms) == compacted.waits("acme", at_ms)
