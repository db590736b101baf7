"""Kafka in virtual time: a topic of heartbeats, inboxes, committed offsets, and who reads them.

In: beats and commits, and faults from a seeded generator. Out: what readers have seen by now.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership


@dataclass(slots=True)
class Bus:
    """Kafka as the leases see it: one topic of heartbeats, some inboxes, committed offsets."""

    rng: random.Random
    n_inboxes: int
    now_ms: int = 1_000_000
    away_until_ms: int = 0
    step_back_ms: int = 0
    beats: list[tuple[int, str, m.Heartbeat | None]] = field(default_factory=list)
    gone: list[bool] = field(default_factory=list)
    finished: list[list[bool]] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    late: list[tuple[int, str, m.Heartbeat | None]] = field(default_factory=list)
    late_frames: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.finished = [[] for _ in range(self.n_inboxes)]
        self.committed = [0] * self.n_inboxes

    @property
    def up(self) -> bool:
        return self.now_ms >= self.away_until_ms

    def append(self, key: str, beat: m.Heartbeat | None) -> None:
        self.beats.append((self.now_ms - self.step_back_ms, key, beat))
        self.gone.append(False)

    def compact(self, older_than_ms: int) -> None:
        """Drop what a later record of its key replaces; the active segment stays whole."""
        closed = 0
        while closed < len(self.beats) and self.beats[closed][0] < self.now_ms - older_than_ms:
            closed += 1
        later: set[str] = set()
        for offset in range(closed - 1, -1, -1):
            key = self.beats[offset][1]
            self.gone[offset] = self.gone[offset] or key in later
            later.add(key)

    def arrive(self) -> None:
        """Let late copies and late frames arrive."""
        if not self.up:
            return
        for due in [one for one in self.late if one[0] <= self.now_ms]:
            self.late.remove(due)
            self.append(due[1], due[2])
        for frame in [one for one in self.late_frames if one[0] <= self.now_ms]:
            self.late_frames.remove(frame)
            self.finished[frame[1]].append(False)

    def behind(self) -> frozenset[int]:
        return frozenset(
            inbox
            for inbox in range(self.n_inboxes)
            if self.committed[inbox] < len(self.finished[inbox])
        )


@dataclass(slots=True)
class Follower:
    """A reader of the heartbeats, as far behind as its luck wants."""

    bus: Bus
    fleet: Membership
    offset: int = 0
    deaf_until_ms: int = 0

    def read(self) -> None:
        if not self.bus.up or self.bus.now_ms < self.deaf_until_ms:
            return
        end = len(self.bus.beats)
        if self.bus.rng.random() < 0.2:
            end = self.bus.rng.randint(self.offset, end)
        for offset in range(self.offset, end):
            if not self.bus.gone[offset]:
                append_ms, key, beat = self.bus.beats[offset]
                self.fleet.apply(key, beat, offset=offset, append_ms=append_ms)
        self.offset = end
