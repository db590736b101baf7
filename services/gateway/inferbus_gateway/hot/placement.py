"""Which worker gets a request: the better of two random holders; pure.

In: the fleet and rows in flight. Out: a lease. The random numbers come from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping

from inferbus_gateway.hot.pending import Inbox
from inferbus_schemas.membership import InboxLease, Membership


class Placement:
    """Power of two choices over backlog, as the last beat says it, plus own rows in flight.

    Invariants: a worker that is expired, draining or does not list the version READY is never
    chosen; the worker on which the last attempt failed is chosen only where there is no other.
    """

    def __init__(self, membership: Membership, seed: int) -> None:
        self._membership = membership
        self._state = seed & 0xFFFFFFFF or 1
        self._holders: dict[tuple[str, str, int], list[tuple[InboxLease, Inbox, int]]] = {}

    def fleet_changed(self) -> None:
        """Forget what was looked up; call it after each record of the heartbeats."""
        self._holders.clear()

    def holders(self, pool: str, model: str, version: int) -> list[InboxLease]:
        """Return the workers that may be given this version."""
        return [lease for lease, _, _ in self._look_up(pool, model, version)]

    def _look_up(self, pool: str, model: str, version: int) -> list[tuple[InboxLease, Inbox, int]]:
        """Return the holders with inbox and backlog; read out of the beat once, not per request."""
        key = (pool, model, version)
        found = self._holders.get(key)
        if found is None:
            found = self._holders[key] = [
                (lease, (lease.pool, lease.inbox), lease.beat.worker.backlog_rows)
                for lease in self._membership.holders(pool, model, version)
            ]
        return found

    def choose(
        self,
        pool: str,
        model: str,
        version: int,
        rows: Mapping[Inbox, int],
        *,
        avoid: Inbox | None = None,
    ) -> InboxLease | None:
        """Return the lease to place on; None where no live worker holds the version."""
        found = self._look_up(pool, model, version)
        if avoid is not None and len(found) > 1:
            found = [one for one in found if one[1] != avoid]
        if len(found) <= 1:
            return found[0][0] if found else None
        first = self._next() % len(found)
        second = self._next() % (len(found) - 1)
        second += second >= first
        one, inbox, backlog = found[first]
        other, other_inbox, other_backlog = found[second]
        load = backlog + rows.get(inbox, 0)
        return one if load <= other_backlog + rows.get(other_inbox, 0) else other

    def _next(self) -> int:
        # xorshift32 (Marsaglia 2003): cheap, and as good as two choices need.
        x = self._state
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        self._state = x
        return x
