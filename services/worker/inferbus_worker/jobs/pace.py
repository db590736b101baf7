"""How many rows of jobs may be with an engine; pure.

In: what rows cost, and what interactive requests there are. Out: a number of rows to give now.
Beside interactive requests a job takes the engine for some milliseconds at a time and only while
none of them waits, yet never stands still for long; alone it fills the engine.
"""

from __future__ import annotations

_BESIDE_S = 0.004
_BESIDE_EVERY_S = 0.05
"""Kafka, the log and the gateways need the machine for each row as well."""
_ALONE_S = 0.05
_QUIET_S = 2.0
_STARVED_S = 0.25
_WEIGHT = 0.2
_FIRST_ROW_S = 0.001
_OVERHEAD_S = 0.0001
"""What a row costs outside its engine."""


class Pace:
    """The pace of one version's rows.

    Invariants: no more than `most` rows are out; at least one may go when none is out and none
    waits before it, or none went for a quarter of a second; times are seconds of one monotonic
    clock.
    """

    def __init__(self, least: int, most: int) -> None:
        """Begin without knowing what a row costs.

        Args:
            least: rows that the engine runs side by side, whatever each of them costs.
            most: rows that may be out at once.
        """
        self._least = least
        self._most = most
        self._row_s = _FIRST_ROW_S
        self._busy_s = float("-inf")
        self._gave_s = float("-inf")

    def took(self, row_s: float) -> None:
        """Note what a row cost its engine."""
        self._row_s += (row_s + _OVERHEAD_S - self._row_s) * _WEIGHT

    def room(self, n_out: int, interactive_rows: int, now_s: float) -> int:
        """Return how many rows may be given now.

        Args:
            n_out: rows that were given and have not come back.
            interactive_rows: rows of requests that are open on this worker.
            now_s: the present.
        """
        if interactive_rows:
            self._busy_s = now_s
        if now_s - self._busy_s > _QUIET_S:
            # The next rows stand ready while the engine works on those before them.
            share = max(self._least, int(_ALONE_S / self._row_s))
            room = min(share, 2 * share - n_out, self._most - n_out)
        else:
            waited_s = now_s - self._gave_s
            if waited_s < (_STARVED_S if n_out or interactive_rows else _BESIDE_EVERY_S):
                return 0
            room = min(max(1, int(_BESIDE_S / self._row_s)), self._most) - n_out
        if room <= 0:
            return 0
        self._gave_s = now_s
        return room
