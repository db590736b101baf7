"""Tokens that were used and are to be paid for with time, and who must wait for it; pure.

In: tokens of chunks of jobs and batches, or of submissions, as records tell them, so that every
gateway knows the same. Out: how long a tenant or a key waits before it may hand in more. Rows are
never refused midway: what was begun runs to its end, and what comes next waits until the minutes
have paid for it.
"""

from __future__ import annotations

from collections import defaultdict

from inferbus_gateway.errors import RateLimitedError
from inferbus_schemas.access import Principal

MINUTE_MS = 60_000
KEPT_MS = 7 * 24 * 3600 * 1000


class Spent:
    """What each has used, by the minute.

    Invariants: a minute's tokens are paid back at the rate of the limit, after those of the minutes
    before; there is room as long as less than one minute of the rate is not paid back.
    """

    def __init__(self) -> None:
        self._used: dict[str, dict[int, int]] = defaultdict(dict)

    def add(self, who: str, n_tokens: int, at_ms: int) -> None:
        """Note tokens that were used at a time (UTC, ms)."""
        if n_tokens:
            used = self._used[who]
            minute = at_ms // MINUTE_MS
            used[minute] = used.get(minute, 0) + n_tokens
            for old in [one for one in used if (minute - one) * MINUTE_MS > KEPT_MS]:
                del used[old]

    def check(self, caller: Principal, tenant_per_min: int, now_ms: int) -> None:
        """Check that a caller may hand in more; spend nothing.

        Raises:
            RateLimitedError: its key or its tenant has used too much.
        """
        wait_s = max(
            self.wait_s(caller.who, caller.tokens_per_min, now_ms),
            self.wait_s(caller.tenant, tenant_per_min, now_ms),
        )
        if wait_s > 0:
            raise RateLimitedError(wait_s)

    def wait_s(self, who: str, per_min: int, now_ms: int) -> float:
        """Return 0 while there is room, or the seconds until there is; `per_min` 0 is no limit."""
        if per_min <= 0:
            return 0.0
        return max(0.0, self.free_ms(who, per_min) - now_ms) / 1000

    def free_ms(self, who: str, per_min: int) -> float:
        """Return from when on there is room (UTC, ms), by what is known now, with a limit."""
        paid_ms = 0.0
        for minute, n_tokens in sorted(self._used.get(who, {}).items()):
            paid_ms = max(paid_ms, minute * MINUTE_MS) + n_tokens * MINUTE_MS / per_min
        return paid_ms - MINUTE_MS
