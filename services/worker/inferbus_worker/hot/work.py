"""The things that pass through the hot path: an inbox's frame, a request of it, a record for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from inferbus_kit.consume import Record
from inferbus_schemas import messages as m
from inferbus_worker.hot.pieces import Pieces

MAX_FRAME_AGE_MS = 15 * 60 * 1000
"""Nothing is written for an older frame: its readers have forgotten the ids."""


class Inbox(Protocol):
    """Where frames come from."""

    def frame_done(self, offset: int) -> None:
        """Every member of the frame at `offset` is done."""


class Keeper(Protocol):
    """Who takes the record of a request in the place of the prediction stream."""

    def keep(self, work: Work, record: m.Prediction) -> None:
        """Take the record that ends this attempt at a request; must not raise."""

    def again(self, work: Work) -> None:
        """Take back a request that made way for others and has no record; must not raise."""


class Frame:
    """A frame that was read and the number of its members that are not done.

    Invariants: the inbox hears of it exactly once, when the last member is done and nothing holds
    it any more.
    """

    __slots__ = ("_inbox", "_left", "append_ms", "headers", "offset", "partition")

    def __init__(self, inbox: Inbox, record: Record, n_members: int) -> None:
        self._inbox = inbox
        self._left = n_members
        self.partition = record.partition
        self.offset = record.offset
        self.append_ms = record.timestamp
        self.headers = record.headers

    def hold(self) -> None:
        """Stay open for one `member_done` more."""
        self._left += 1

    def member_done(self) -> None:
        """One member has its acknowledged record, or needs none."""
        self._left -= 1
        if self._left == 0:
            self._inbox.frame_done(self.offset)


@dataclass(slots=True, eq=False)
class Work:
    """One request on its way. Times are seconds of the monotonic clock.

    `data` and `shapes` stand in the order of the version's inputs; with a `keeper` its record goes
    there and nowhere else; `n_yields`: how often it made way for requests.
    """

    request: m.Request
    frame: Frame
    arrived_s: float
    deadline_s: float
    rows: int = 0
    n_bytes: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    data: tuple[bytes, ...] = ()
    n_alone_deaths: int = 0
    n_yields: int = 0
    keeper: Keeper | None = None

    def frame_age_ms(self, now_s: float) -> float:
        """Return how old its frame is at `now_s`, by the broker's clock."""
        return (now_s - self.deadline_s) * 1000 + self.request.ttl_ms


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that run together; `batch_id` names it in the records of its requests.

    With `pieces` it is one request, which runs piece by piece.
    """

    works: list[Work]
    rows: int
    batch_id: bytes
    started_s: float = 0.0
    started_ns: int = 0
    engine_us: int = field(default=0)
    pieces: Pieces | None = None
