"""Daily partitions of `log.predictions`, bounded by the UUIDv7 of midnight (UTC).

In: the days that ids fall on. Out: partitions that are there before the rows are; old days are
taken out of the table, as tables of their own, and never dropped.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Final

import structlog

from inferbus_logger.database import Connection
from inferbus_logger.plan import Batch
from inferbus_schemas import ids

_log = structlog.get_logger("partitions")

DAYS_AHEAD: Final = 3
MAX_DISTANCE_DAYS: Final = 31
"""An id whose time is further from its record's than this gets no partition of its own: made-up
ids must not make tables. Its row lies in the default partition, which raises the alarm."""
LOCK_KEY: Final = 0x696E6665726C7061
"""Of the advisory lock under which partitions are made: "inferlpa"."""

_DAY_MS: Final = 86_400_000
_EPOCH: Final = dt.date(1970, 1, 1)


def day_of(id_bytes: bytes) -> dt.date | None:
    """Return the UTC day of a UUIDv7; None where the calendar ends before it."""
    try:
        return _EPOCH + dt.timedelta(days=ids.unix_ms(id_bytes) // _DAY_MS)
    except OverflowError:
        return None


def bounds(day: dt.date) -> tuple[uuid.UUID, uuid.UUID]:
    """Return the first id of a day and the first id of the next one.

    Version and variant bits are left out: they would cut off the lowest ids of the day.
    """
    first_ms = (day - _EPOCH).days * _DAY_MS
    return uuid.UUID(int=first_ms << 80), uuid.UUID(int=(first_ms + _DAY_MS) << 80)


def table_name(day: dt.date) -> str:
    """Return the name of a day's partition in the schema `log`."""
    return f"predictions_{day:%Y%m%d}"


def wanted(batches: Iterable[Batch], known: frozenset[dt.date]) -> set[dt.date]:
    """Return the days that these batches need and that are not known to be there."""
    days: set[dt.date] = set()
    for batch in batches:
        for item in batch.rows:
            day = day_of(item.id)
            if day is None or day in known or day in days or item.row is None:
                continue
            written: dt.datetime = item.row[3]
            if abs((day - written.date()).days) <= MAX_DISTANCE_DAYS:
                days.add(day)
    return days


class Partitions:
    """The partitions that this process knows to be there.

    Invariants: a day in `known` had its partition when it was added; only retention takes one
    away, long after its last row.
    """

    def __init__(self) -> None:
        self.known: frozenset[dt.date] = frozenset()

    async def cover(self, connection: Connection, batches: Iterable[Batch]) -> None:
        """See that the ids of these batches have partitions; outside of any transaction."""
        if days := wanted(batches, self.known):
            await self.make(connection, days)

    async def ahead(self, connection: Connection, today: dt.date) -> None:
        """Make today's partition and those of the days ahead."""
        days = {today + dt.timedelta(days=n) for n in range(DAYS_AHEAD + 1)}
        await self.make(connection, days - self.known)

    async def make(self, connection: Connection, days: Iterable[dt.date]) -> None:
        """Make the partitions of these days where they are missing; safe beside other loggers."""
        for day in sorted(days):
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
                if await self._attached(connection, day):
                    continue
                await self._attach(connection, day)
            _log.info("partition_made", day=day.isoformat())
        self.known |= frozenset(days)

    async def _attached(self, connection: Connection, day: dt.date) -> bool:
        found = await connection.fetchval(
            "SELECT 1 FROM pg_inherits WHERE inhrelid = to_regclass($1)",
            f"log.{table_name(day)}",
        )
        return found is not None

    async def _attach(self, connection: Connection, day: dt.date) -> None:
        """Make one partition; what already lies in the default partition moves along.

        ATTACH and not CREATE ... PARTITION OF: the latter locks out every reader and writer.
        """
        low, high = bounds(day)
        table = f"log.{table_name(day)}"
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (LIKE log.predictions INCLUDING ALL)"
        )
        await connection.execute(
            "WITH moved AS (DELETE FROM log.predictions_default"  # noqa: S608 -- a date
            f" WHERE request_id >= '{low}' AND request_id < '{high}' RETURNING *)"
            f" INSERT INTO {table} SELECT * FROM moved"
        )
        await connection.execute(
            f"ALTER TABLE log.predictions ATTACH PARTITION {table}"
            f" FOR VALUES FROM ('{low}') TO ('{high}')"
        )

    async def retire(self, connection: Connection, oldest_kept: dt.date) -> list[dt.date]:
        """Detach the partitions of days before `oldest_kept`; return those days."""
        names = await connection.fetch(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'log.predictions'::regclass"
            " AND c.relname ~ '^predictions_[0-9]{8}$' AND c.relname < $1 ORDER BY 1",
            table_name(oldest_kept),
        )
        days = [_day_of_table(row["relname"]) for row in names]
        for day in days:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
                if not await self._attached(connection, day):
                    continue
                name = table_name(day)
                await connection.execute(f"ALTER TABLE log.predictions DETACH PARTITION log.{name}")
                await connection.execute(
                    "INSERT INTO log.retired_days (day, table_name) VALUES ($1, $2)"
                    " ON CONFLICT DO NOTHING",
                    day,
                    name,
                )
            self.known -= {day}
            _log.info("partition_retired", day=day.isoformat(), table=f"log.{name}")
        return days


def _day_of_table(name: str) -> dt.date:
    return dt.datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=dt.UTC).date()


async def default_rows(connection: Connection) -> int:
    """Return how many rows lie outside all days, counted up to 1,000."""
    found = await connection.fetchval(
        "SELECT count(*) FROM (SELECT 1 FROM log.predictions_default LIMIT 1000) AS outside"
    )
    return int(found)
