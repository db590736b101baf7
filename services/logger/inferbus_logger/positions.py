"""Where to read on, and when not to; pure.

In: what Postgres holds of a partition and what Kafka says of it. Out: one decision. Postgres is
the truth about how far the log goes; Kafka's committed offset is for lag dashboards only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """A partition's row of `log.sink_offsets`.

    Invariants: every offset from `start_offset` up to `next_offset` is accounted for in the
    batches of this `era`; an era begins with the first assignment or with a rewind.
    """

    partition: int
    topic_id: bytes
    era: int
    start_offset: int
    next_offset: int
    last_id: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """How far the log of a partition is, in which era."""

    era: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Bus:
    """What Kafka says of a partition: identity of the topic, first and next offset."""

    topic_id: bytes
    log_start: int
    log_end: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Nothing is stored yet: store `offset`, then decide again."""

    offset: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Read on at `offset`.

    Where `expect_id` is not empty, read the record before it first: it must have that id.
    """

    offset: int
    expect_id: bytes


@dataclass(frozen=True, slots=True)
class Skip:
    """Kafka dropped records before they were logged: note a gap up to `offset`, decide again."""

    offset: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not read this partition: an operator must decide; `reason` is the sentence for them."""

    reason: str


Decision = Begin | Resume | Skip | Stop


def decide(stored: Stored | None, bus: Bus) -> Decision:
    """Return what to do with a partition that was assigned or must be looked at again."""
    if stored is None:
        return Begin(bus.log_start)
    if stored.topic_id != bus.topic_id:
        return Stop(_advice(stored, "the topic was deleted and made again"))
    if bus.log_end < stored.next_offset:
        return Stop(
            _advice(stored, f"Kafka ends at {bus.log_end}, before the log's {stored.next_offset}")
        )
    if stored.next_offset < bus.log_start:
        return Skip(bus.log_start)
    readable = stored.next_offset > max(bus.log_start, stored.start_offset)
    return Resume(stored.next_offset, stored.last_id if readable else b"")


def another_record(stored: Stored) -> Stop:
    """Return the decision when the record before `next_offset` is not the one that was logged."""
    return Stop(_advice(stored, f"offset {stored.next_offset - 1} now holds another record"))


def _advice(stored: Stored, what: str) -> str:
    return (
        f"partition {stored.partition} is not logged: {what}, so Kafka lost records that the log "
        f"has; see the README of the logger, then run `inferbus log rewind --partition "
        f"{stored.partition} --to earliest --i-know-that-this-begins-a-new-era`"
    )
