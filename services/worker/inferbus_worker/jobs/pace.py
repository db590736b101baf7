"""How many rows of jobs may be with an engine; pure.

In: what rows cost, how long turns take, what interactive requests there are. Out: a number of rows
to give now. Beside interactive requests a job takes turns of some milliseconds, only while none of
them waits, and then rests several times as long as its last turn took: a machine that is busy makes
turns longer and so rests too, whoever keeps it busy. It never stands still for long; alone it fills
the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

_BESIDE_S = 0.003
_LEAST_REST_S = 0.04
"""Kafka, the log and the gateways need the machine for each row as well."""
_LONGEST_REST_S = 0.25
_LONGEST_REST_BETWEEN_ANSWERS_S = 10.0
"""For rows that take seconds and slow requests to the same engine all the while."""
_RESTS = 8
"""Turns that would fit one rest."""
_ALONE_S = 0.05
_QUIET_S = 2.0
_WEIGHT = 0.2
_FIRST_ROW_S = 0.001
_OVERHEAD_S = 0.0001
"""What a row costs outside its engine."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The interactive requests of a worker: rows that are open, and when one came or ended last.

    Most are open for a millisecond: who only looked whether there are some now would see none.
    `beside_s`: when one last shared the version's engine with rows, which only generating ones do.
    """

    n_rows: int
    last_s: float
    beside_s: float = float("-inf")


class Pace:
    """The pace of one version's rows.

    Invariants: no more than `most` rows are out; once the rest after a turn is over, at least one
    may go when none is out and none waits before it, or none went for as long as a rest may be;
    times are seconds of one monotonic clock.
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
        self._gave_s = float("-inf")
        self._rests_since_s = float("-inf")
        self._rest_s = 0.0

    def took(self, row_s: float) -> None:
        """Note what a row cost its engine."""
        self._row_s += (row_s + _OVERHEAD_S - self._row_s) * _WEIGHT

    def ended(self, now_s: float) -> None:
        """Note that no row is out any more."""
        self._rests_since_s = now_s
        self._rest_s = _RESTS * (now_s - self._gave_s)

    def room(self, n_out: int, requests: Requests, now_s: float) -> int:
        """Return how many rows may be given now; `n_out` have not come back yet."""
        if not requests.n_rows and now_s - requests.last_s > _QUIET_S:
            # The next rows stand ready while the engine works on those before them.
            share = max(self._least, int(_ALONE_S / self._row_s))
            room = min(share, 2 * share - n_out, self._most - n_out)
        else:
            between_answers = now_s - requests.beside_s <= _QUIET_S
            longest_s = _LONGEST_REST_BETWEEN_ANSWERS_S if between_answers else _LONGEST_REST_S
            starved = now_s - self._gave_s >= longest_s
            rest_s = min(longest_s, max(_LEAST_REST_S, self._rest_s))
            rests = now_s - self._rests_since_s < rest_s
            if rests or ((n_out or requests.n_rows) and not starved):
                return 0
            turn = 1 if between_answers else max(1, int(_BESIDE_S / self._row_s))
            room = min(turn, self._most) - n_out
        if room <= 0:
            return 0
        self._gave_s = self._rests_since_s = now_s
        self._rest_s = 0.0
        return room
