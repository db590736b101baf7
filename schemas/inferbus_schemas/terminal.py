"""The first terminal record by offset is a request's outcome, for every reader alike."""

from __future__ import annotations

from collections import deque

from inferbus_schemas import messages as m

WINDOW_MS = 60 * 60 * 1000
"""How long an id is remembered, in append time: a closed segment of requests may outlive its
15 minutes by ten, and workers write nothing for older frames."""


def is_terminal(outcome: int) -> bool:
    """Tell whether this outcome ends its request; unknown numbers do."""
    return outcome != m.OUTCOME_ATTEMPT_FAILED


class FirstTerminal:
    """The ids that have ended on one partition within the last hour of append time.

    Invariants: an id is reported first at most once an hour; memory is bounded by an hour's ids;
    append times may stand still but a step back does not shorten the memory of what was seen.
    """

    __slots__ = ("_latest_ms", "_order", "_seen")

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._order: deque[tuple[int, bytes]] = deque()
        self._latest_ms = 0

    def __len__(self) -> int:
        return len(self._seen)

    def first(self, request_id: bytes, outcome: int, append_ms: int) -> bool:
        """Tell whether this record is its request's outcome; remember it if so.

        Records of one partition must be passed in the order of their offsets.
        """
        self._latest_ms = max(self._latest_ms, append_ms)
        while self._order and self._order[0][0] < self._latest_ms - WINDOW_MS:
            self._seen.discard(self._order.popleft()[1])
        if not is_terminal(outcome) or request_id in self._seen:
            return False
        self._seen.add(request_id)
        self._order.append((self._latest_ms, request_id))
        return True
