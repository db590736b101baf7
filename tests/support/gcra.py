"""The shared count of requests as a few lines of Python: what the script in Valkey must do.

In: what was spent, what is wanted, the time. Out: what is granted and the room that is left. From
ITU-T I.371's generic cell rate algorithm, with the theoretical arrival time kept as a lead.
"""

from __future__ import annotations

import math


class Gcra:
    """One rate in requests a second with a burst; time in seconds, from the caller."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._interval_s = 1.0 / rate_per_s
        self._burst = burst
        self._paid_back_s = -math.inf

    def spend(self, owed: int, want: int, now_s: float) -> tuple[int, int]:
        """Debit `owed`, allowed or not; grant of `want` what there is room for."""
        ahead_s = max(0.0, self._paid_back_s - now_s) + owed * self._interval_s
        room = math.floor((self._burst * self._interval_s - ahead_s) / self._interval_s + 1e-6)
        granted = max(0, min(want, room))
        if owed + granted:
            self._paid_back_s = now_s + ahead_s + granted * self._interval_s
        return granted, room - granted
