"""Requests as the pending map holds them, for tests of it.

In: a number and times of a virtual clock. Out: entries; a complaint where a map is not empty.
"""

from __future__ import annotations

from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import POOL

START_S = 1000.0


def entry(number: int, now_s: float, ttl_s: float = 30.0, rows: int = 1) -> Entry:
    request = m.Request(id=ids.uuid7(1, number), model="m", version=1, tensors=b"x" * 10)
    return Entry(request, POOL, n_rows=rows, deadline_s=now_s + ttl_s, waiter=None)


def empty(pending: Pending) -> None:
    assert len(pending) == 0
    assert (pending.n_bytes, pending.n_waiting) == (0, 0)
    assert not pending.rows
    assert not pending.inboxes()
    assert not pending._by_inbox
    assert not pending._exhausted
    assert not any(pending._wheel.values())
