"""Batches into Postgres, exactly once.

In: batches of one or more partitions, each with the head of its chain. Out: rows, offsets and
batch rows, all in one transaction, or nothing; what tenants read themselves is handed over before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from inferbus_logger import rows as r
from inferbus_logger.database import REFUSED_ROW, UNAVAILABLE, Connection
from inferbus_logger.fail_points import (
    AFTER_ANSWERS,
    AFTER_COMMIT,
    AFTER_COPY,
    AFTER_UPDATE,
    Reach,
    nowhere,
)
from inferbus_logger.plan import Batch
from inferbus_logger.rows import Item

_COLUMN_LIST: Final = ", ".join(r.COLUMNS)

# The rows are locked in the order of their partitions, so that two sinks with overlapping sets
# wait for one another and never in a circle.
_ADVANCE: Final = """
WITH wanted AS (
    SELECT * FROM unnest($2::int[], $3::int[], $4::bigint[], $5::bytea[], $6::bigint[],
                         $7::bytea[], $8::bytea[])
        AS w(part, era, base, prev, next_offset, last_id, chain)
), held AS (
    SELECT o.part FROM log.sink_offsets AS o JOIN wanted AS w ON o.part = w.part
    WHERE o.topic = $1 AND o.era = w.era AND o.next_offset = w.base AND o.chain = w.prev
    ORDER BY o.part FOR UPDATE OF o
)
UPDATE log.sink_offsets AS o
SET next_offset = w.next_offset, last_id = w.last_id, chain = w.chain, updated_at = now()
FROM wanted AS w JOIN held AS h ON h.part = w.part
WHERE o.topic = $1 AND o.part = w.part
RETURNING o.part
"""

_NOTE_BATCHES: Final = """
INSERT INTO log.log_batches (topic, part, era, base_offset, last_offset, n_rows, n_dups,
                             n_quarantined, n_nonterminal, kind, sha256, prev)
SELECT $1, * FROM unnest($2::int[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[],
                         $7::bigint[], $8::bigint[], $9::bigint[], $10::text[], $11::bytea[],
                         $12::bytea[])
"""

_QUARANTINE: Final = """
INSERT INTO log.predictions_quarantine (topic, k_partition, k_era, k_offset, has_row, error, raw)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
"""

_UNSTAGE: Final = f"""
INSERT INTO log.predictions ({_COLUMN_LIST})
SELECT DISTINCT ON (request_id) {_COLUMN_LIST} FROM pg_temp.staging
ORDER BY request_id, k_offset
ON CONFLICT DO NOTHING RETURNING k_offset
"""  # noqa: S608 -- names of columns


HandOver = Callable[[Sequence[Batch]], Awaitable[None]]
"""Is told what a transaction stores, when nothing but its commit is left to do."""


class Planned(msgspec.Struct, frozen=True):
    """A batch and the chain before it."""

    batch: Batch
    prev: bytes


class Written(msgspec.Struct, frozen=True):
    """A committed batch, as it was stored, and the chain after it."""

    batch: Batch
    chain: bytes


class FencedError(Exception):
    """Another owner moved the offset of a partition; nothing was written."""


class Sink:
    """Writes to one topic's log through one connection at a time.

    Invariants: a transaction moves `next_offset` from the batch's base to its end, or does
    nothing; rows, offset, batch row and quarantine of a batch become visible together; with
    `after_commit` not reached, only `next_offset` in Postgres tells what happened; what `hand_over`
    raises rolls the transaction back.
    """

    def __init__(
        self, topic: str, reach: Reach = nowhere, hand_over: HandOver | None = None
    ) -> None:
        self._topic = topic
        self._reach = reach
        self._hand_over = hand_over
        self.n_staged = 0

    async def write(self, connection: Connection, planned: Sequence[Planned]) -> list[Written]:
        """Write batches of distinct partitions in one transaction, by the fast path.

        Raises:
            FencedError: at least one was not the next one of its partition.
            asyncpg.UniqueViolationError: an id has a row already; see `write_staged`.
            any of REFUSED_ROW: a row cannot be stored; see `write_staged`.
        """
        written = [_after(each.prev, each.batch) for each in planned]
        async with connection.transaction():
            await self._advance(connection, planned, written)
            self._reach(AFTER_UPDATE)
            rows = [item.row for each in written for item in each.batch.rows if item.row]
            if rows:
                await _copy(connection, "predictions", "log", rows)
            self._reach(AFTER_COPY)
            await self._note(connection, planned, written)
            await self._tell(written)
        self._reach(AFTER_COMMIT)
        return written

    async def write_staged(self, connection: Connection, planned: Planned) -> Written:
        """Write one batch that holds ids which have rows, or rows that Postgres refuses.

        Raises:
            FencedError: it was not the next one of its partition.
        """
        self.n_staged += 1
        # Before the transaction, so that every one of its statements is about this batch.
        await connection.execute(
            "CREATE TEMP TABLE IF NOT EXISTS staging (LIKE log.predictions) ON COMMIT DELETE ROWS"
        )
        async with connection.transaction():
            # First of all the fence; the chain is known only when the rows are.
            await self._advance(connection, [planned], [Written(planned.batch, planned.prev)])
            self._reach(AFTER_UPDATE)
            kept = await _store(connection, planned.batch.rows)
            self._reach(AFTER_COPY)
            written = _after(planned.prev, _as_stored(planned.batch, kept))
            await connection.execute(
                "UPDATE log.sink_offsets SET chain = $3 WHERE topic = $1 AND part = $2",
                self._topic,
                planned.batch.partition,
                written.chain,
            )
            await self._note(connection, [planned], [written])
            await self._tell([written])
        self._reach(AFTER_COMMIT)
        return written

    async def _tell(self, written: Sequence[Written]) -> None:
        if self._hand_over is not None:
            await self._hand_over([each.batch for each in written])
            self._reach(AFTER_ANSWERS)

    async def _advance(
        self, connection: Connection, planned: Sequence[Planned], written: Sequence[Written]
    ) -> None:
        moved = await connection.fetch(
            _ADVANCE,
            self._topic,
            [each.batch.partition for each in planned],
            [each.batch.era for each in planned],
            [each.batch.base for each in planned],
            [each.prev for each in planned],
            [each.batch.end for each in planned],
            [each.batch.last_id for each in planned],
            [each.chain for each in written],
        )
        if len(moved) != len(planned):
            raise FencedError

    async def _note(
        self, connection: Connection, planned: Sequence[Planned], written: Sequence[Written]
    ) -> None:
        batches = [each.batch for each in written]
        await connection.execute(
            _NOTE_BATCHES,
            self._topic,
            [batch.partition for batch in batches],
            [batch.era for batch in batches],
            [batch.base for batch in batches],
            [batch.end - 1 for batch in batches],
            [len(batch.rows) for batch in batches],
            [batch.n_dups for batch in batches],
            [batch.n_quarantined for batch in batches],
            [batch.n_nonterminal for batch in batches],
            [batch.kind for batch in batches],
            [each.chain for each in written],
            [each.prev for each in planned],
        )
        quarantined = [
            (
                self._topic,
                batch.partition,
                batch.era,
                item.offset,
                item.row is not None,
                item.error,
                item.value,
            )
            for batch in batches
            for item in _quarantined(batch)
        ]
        if quarantined:
            await connection.executemany(_QUARANTINE, quarantined)


def _quarantined(batch: Batch) -> Iterable[Item]:
    yield from batch.quarantine
    for item in batch.rows:
        if item.error:
            yield item


def _after(prev: bytes, batch: Batch) -> Written:
    return Written(batch, r.chain(prev, (item.canonical for item in batch.rows)))


def _as_stored(batch: Batch, kept: Sequence[Item]) -> Batch:
    """Return the batch with what became rows, what has no row and what was there already."""
    rows = tuple(sorted((item for item in kept if item.row), key=lambda item: item.offset))
    lost = tuple(item for item in kept if item.row is None)
    return msgspec.structs.replace(
        batch,
        rows=rows,
        quarantine=(*batch.quarantine, *lost),
        n_quarantined=batch.n_quarantined + len(lost),
        n_dups=batch.n_dups + len(batch.rows) - len(kept),
    )


async def _copy(
    connection: Connection, table: str, schema: str | None, rows: Sequence[r.Row]
) -> None:
    await connection.copy_records_to_table(
        table, schema_name=schema, columns=r.COLUMNS, records=rows
    )


async def _store(connection: Connection, items: Sequence[Item]) -> list[Item]:
    """Insert rows whose ids have none; return what was stored, and as what.

    A refused row is found by bisection and stored reduced; one that is refused even so comes back
    without its row. Items that come back not at all had rows already.
    """
    if not items:
        return []
    try:
        async with connection.transaction():
            inserted = await _insert(connection, items)
    except UNAVAILABLE:
        raise
    except REFUSED_ROW as error:
        if len(items) == 1:
            return await _store_reduced(connection, items[0], error)
        half = len(items) // 2
        return [
            *await _store(connection, items[:half]),
            *await _store(connection, items[half:]),
        ]
    return [item for item in items if item.offset in inserted]


async def _insert(connection: Connection, items: Sequence[Item]) -> set[int]:
    await connection.execute("TRUNCATE pg_temp.staging")
    await _copy(connection, "staging", None, [item.row for item in items if item.row])
    return {row["k_offset"] for row in await connection.fetch(_UNSTAGE)}


async def _store_reduced(connection: Connection, item: Item, error: Exception) -> list[Item]:
    if item.row is None:
        return []
    why = str(error).partition("\n")[0].replace("\x00", "")[:200] or type(error).__name__
    small, canonical = r.reduced(item.row)
    reduced = msgspec.structs.replace(item, row=small, canonical=canonical, error=why)
    try:
        async with connection.transaction():
            inserted = await _insert(connection, [reduced])
    except UNAVAILABLE:
        raise
    except REFUSED_ROW:
        return [msgspec.structs.replace(item, row=None, canonical=b"", error=why)]
    return [reduced] if inserted else []
