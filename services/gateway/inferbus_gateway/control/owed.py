"""What tenants owe for the tokens of their submissions; pure.

In: records of `access.spent`, which every gateway folds, so that all know the same. Out: whether a
tenant has to wait before another submission of it is handed to a worker.
"""

from __future__ import annotations

from typing import Protocol

from inferbus_gateway.control.jobs.spent import KEPT_MS, MINUTE_MS, Spent
from inferbus_schemas import messages as m


class Record(Protocol):
    """What a record of `access.spent` is read for; `timestamp` in ms since 1970."""

    timestamp: int
    key: bytes | None
    value: bytes | None


class Owed:
    """The debts of submissions.

    Invariants: each token of a record counts once, however often its minute is told; a minute that
    a worker's clock puts after its record counts from the record on; a limit of 0 is none.
    """

    def __init__(self, tenant_tokens_per_min: int) -> None:
        self._per_min = tenant_tokens_per_min
        self._told: dict[bytes, tuple[int, int]] = {}
        self._spent = Spent()
        self._until_ms: dict[str, float] = {}

    def apply(self, record: Record) -> None:
        """Take a record; a tombstone, of which there are none, changes nothing."""
        if record.value is None or not self._per_min:
            return
        said = m.TokensSpent.FromString(record.value)
        key = record.key or b""
        at_ms, before = self._told.get(key, (min(said.minute * MINUTE_MS, record.timestamp), 0))
        if said.n_tokens > before:
            self._told[key] = at_ms, said.n_tokens
            self._spent.add(said.tenant, said.n_tokens - before, at_ms)
            self._until_ms.pop(said.tenant, None)
            self._forget(record.timestamp - KEPT_MS)

    def _forget(self, before_ms: int) -> None:
        """Forget what was told of minutes before; nobody tells of them again."""
        while (oldest := next(iter(self._told))) and self._told[oldest][0] < before_ms:
            del self._told[oldest]

    def waits(self, tenant: str, now_ms: float) -> bool:
        """Tell whether a tenant is more than a minute's tokens ahead."""
        if not self._per_min:
            return False
        until_ms = self._until_ms.get(tenant)
        if until_ms is None:
            until_ms = self._spent.free_ms(tenant, self._per_min)
            self._until_ms[tenant] = until_ms
        return now_ms < until_ms
