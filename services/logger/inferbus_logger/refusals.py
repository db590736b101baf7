"""Which copies of answers are waited for and which are given up; pure, told the time.

In: what Kafka took, refused or did not answer, by place. Out: whether a place is waited for, passed
by or tried, and which tenants are in trouble.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from inferbus_logger.positions import Position

PATIENCE_S: Final = 10.0
"""A place that is refused for this long is not waited for any more."""
RETRY_S: Final = 30.0
"""How long nothing is tried there then."""


class Place(NamedTuple):
    """Where copies of one tenant come from; offsets count anew in each era."""

    tenant: str
    partition: int
    era: int


@dataclass(frozen=True, slots=True)
class _Stuck:
    """The first record that was not taken, and since when it is refused; None: no answer came."""

    offset: int
    since_s: float | None


@dataclass(frozen=True, slots=True)
class _GivenUp:
    """Until when nothing is tried, and whether the tenant is in trouble for it."""

    until_s: float
    told: bool = True


@dataclass(frozen=True, slots=True)
class _Closed:
    """A topic that refused all it was given; its tenant is not waited for, from when on."""

    since_s: float
    until_s: float


class Refusals:
    """What is known of places where Kafka does not take copies.

    Invariants: a place is given up `PATIENCE_S` after its own first refusal, whatever becomes of
    others, or at once where it was given up before and took nothing since, or where its refusals
    began after its topic had been given up and has taken nothing since. So a place is waited for
    once and not anew at each try, and so is a topic that is gone. No answer is no refusal: it
    begins the patience of its own place anew.
    """

    def __init__(self) -> None:
        self._missing: set[str] = set()
        self._stuck: dict[Place, _Stuck] = {}
        self._given_up: dict[Place, _GivenUp] = {}
        self._closed: dict[str, _Closed] = {}
        self._taken_s: dict[str, float] = {}

    def missing(self, tenant: str) -> bool:
        """Tell whether Kafka is known to show no topic of theirs."""
        return tenant in self._missing

    def note_missing(self, tenant: str) -> None:
        """Note that Kafka shows no topic of theirs."""
        self._missing.add(tenant)

    def note_found(self, tenant: str) -> None:
        """Note that Kafka shows their topic again: each place is tried, and waited for."""
        self._missing.discard(tenant)
        self._closed.pop(tenant, None)
        for place in [place for place in self._given_up if place.tenant == tenant]:
            del self._given_up[place]

    def passed_by(self, place: Place, now_s: float) -> bool:
        """Tell whether nothing should be tried here now."""
        closed = self._closed.get(place.tenant)
        if closed is not None and place.tenant in self._missing and now_s < closed.until_s:
            return True
        given_up = self._given_up.get(place)
        return given_up is not None and now_s < given_up.until_s

    def unanswered(self, place: Place, offset: int) -> None:
        """Note that Kafka did not say whether it took the record here."""
        self._stuck[place] = _Stuck(offset, None)

    def refused(self, place: Place, offset: int, tried_s: float, now_s: float) -> bool:
        """Note that the record was refused in a try that began then; tell whether to give it up."""
        stuck = self._stuck.get(place)
        since_s = tried_s if stuck is None or stuck.since_s is None else stuck.since_s
        self._stuck[place] = _Stuck(offset, since_s)
        closed = self._closed.get(place.tenant)
        late = closed is not None and closed.since_s < since_s
        if not (late or place in self._given_up or now_s - since_s >= PATIENCE_S):
            return False
        until_s = now_s + RETRY_S
        self._given_up[place] = _GivenUp(until_s)
        if self._taken_s.get(place.tenant, -math.inf) < since_s:
            self._closed[place.tenant] = _Closed(closed.since_s if closed else now_s, until_s)
        return True

    def taken(self, place: Place, now_s: float) -> None:
        """Note that a record was taken here; where others may be tried again, that is hope."""
        tenant = place.tenant
        self._missing.discard(tenant)
        self._closed.pop(tenant, None)
        self._taken_s[tenant] = now_s
        self._given_up.pop(place, None)
        for other, known in self._given_up.items():
            if other.tenant == tenant and known.told and now_s >= known.until_s:
                self._given_up[other] = _GivenUp(known.until_s, told=False)

    def done(self, place: Place) -> None:
        """Note that what was tried here was taken or given up."""
        self._stuck.pop(place, None)

    def look(self, log: Mapping[int, Position | None]) -> None:
        """Forget what is not so any more.

        Args:
            log: how far each partition of this process is; None where that is not known yet.
        """

        def over(place: Place, offset: float) -> bool:
            """Whether the partition is another's, or its log went on without this record."""
            if place.partition not in log:
                return True
            at = log[place.partition]
            return at is not None and (at.era != place.era or at.next_offset > offset)

        for place in [place for place, stuck in self._stuck.items() if over(place, stuck.offset)]:
            del self._stuck[place]
        for place in [place for place in self._given_up if over(place, math.inf)]:
            del self._given_up[place]
        here = {place.tenant for place in self._given_up}
        for tenant in self._closed.keys() - here:
            del self._closed[tenant]

    def trouble(self, tenant: str) -> bool:
        """Tell whether copies of theirs are missing, or wait."""
        return (
            tenant in self._missing
            or any(place.tenant == tenant for place in self._stuck)
            or any(place.tenant == tenant and known.told for place, known in self._given_up.items())
        )
