"""The relay: committed rows of the outbox become records, in order, at least once.

In: the session of the leader, on which the outbox is read. Out: records on `models.versions`,
`models.deployments` and `access.keys`, and topics whose last record per key is the database's,
whoever wrote there. Duplicates are harmless: readers apply only a higher generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.health import Health
from inferbus_kit.lifecycle import cancel
from inferbus_kit.metrics import RegistryMetrics
from inferbus_kit.produce import Producer
from inferbus_registry.database import Database
from inferbus_registry.outbox import leader, repository
from inferbus_registry.outbox.tail import Tail
from inferbus_schemas import envelope, topics

_log = structlog.get_logger("relay")

SOURCE = "/inferbus/registry"
_BATCH = 100
_IDLE_S = 1.0
_PATIENCE_S = 5.0
_KEEP_DAYS = 7
_PRUNE_EVERY_S, _PRUNED_AT_ONCE = 3600.0, 10_000

_NEXT = """
SELECT id, topic, key, message FROM registry.outbox
WHERE id > (SELECT published_id FROM registry.outbox_cursor) ORDER BY id LIMIT $1
"""
_ADVANCE = "UPDATE registry.outbox_cursor SET published_id = $1 WHERE published_id < $1"
_PENDING = """
SELECT count(*) FROM registry.outbox
WHERE id > (SELECT published_id FROM registry.outbox_cursor)
"""
_PRUNE = """
WITH gone AS (
  DELETE FROM registry.outbox WHERE id IN (
    SELECT id FROM registry.outbox
    WHERE id <= (SELECT published_id FROM registry.outbox_cursor)
    AND created_at < now() - make_interval(days => $1)
    ORDER BY id LIMIT $2)
  RETURNING 1)
SELECT count(*) FROM gone
"""


@dataclass(frozen=True, slots=True)
class Bus:
    """Where the relay publishes: the broker, and the real topic names by their short names."""

    bootstrap: str
    topics: Mapping[str, str]

    @classmethod
    def of_catalogue(cls, bootstrap: str) -> Bus:
        """Return the bus with the names of the catalogue."""
        names = {short: topics.topic(short).name for short in repository.MESSAGES}
        return cls(bootstrap, names)


class Relay:
    """Publishes for one leadership; made anew for the next.

    Invariants: a row is published before every row with a higher id, one at a time; the cursor
    moves only over acknowledged rows; after a turn with an empty outbox the last record of each
    key of the database is the database's message.
    """

    def __init__(
        self,
        bus: Bus,
        database: Database,
        session: leader.Session,
        *,
        instance: str,
        health: Health,
        metrics: RegistryMetrics,
        check_s: float,
    ) -> None:
        client_id = f"{instance}-outbox"
        self._bus = bus
        self._database = database
        self._session = session
        self._health = health
        self._metrics = metrics
        self._check_s = check_s
        self._wake = asyncio.Event()
        self._producer = Producer(bus.bootstrap, client_id=client_id)
        self._tails = {
            short: Tail(bus.bootstrap, name, repository.MESSAGES[short], client_id)
            for short, name in bus.topics.items()
        }
        self._prune_monotonic_s = 0.0
        self._ends = dict.fromkeys(bus.topics, 0)

    async def run(self) -> None:
        """Publish until the session, Postgres or Kafka fails; what failed is raised."""
        await self._session.add_listener(repository.CHANNEL, self._notified)
        try:
            await self._producer.start()
            for tail in self._tails.values():
                await tail.start()
            await self._raise_generation()
            watch = asyncio.create_task(self._watch_logs(), name="outbox-logs")
            try:
                while not watch.done():
                    await self._turn()
                watch.result()
            finally:
                await cancel(watch)
        finally:
            try:
                for tail in self._tails.values():
                    await tail.stop()
            finally:
                await self._producer.stop(timeout_s=1.0)

    def _notified(self, *_: object) -> None:
        self._wake.set()

    async def _raise_generation(self) -> None:
        """A database that was set back must not number below what readers have seen."""
        seen = [last.highest for tail in self._tails.values() for last in tail.last.values()]
        if seen:
            async with self._database.write() as tx:
                await repository.raise_generation(tx, max(seen))

    async def _turn(self) -> None:
        self._health.beat(leader.LOOP)
        self._wake.clear()
        while await self._drain():
            self._health.beat(leader.LOOP)
        for short, tail in self._tails.items():
            if tail.suspect:
                await self._repair(short, tail)
        await self._prune()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_S):
                await self._wake.wait()

    async def _prune(self) -> None:
        """Delete rows of long ago, some in a turn."""
        if time.monotonic() < self._prune_monotonic_s:
            return
        if await self._session.fetchval(_PRUNE, _KEEP_DAYS, _PRUNED_AT_ONCE) < _PRUNED_AT_ONCE:
            self._prune_monotonic_s = time.monotonic() + _PRUNE_EVERY_S

    async def _drain(self) -> bool:
        """Publish the next rows; tell whether there were any."""
        rows = await self._session.fetch(_NEXT, _BATCH)
        for row in rows:
            await self._publish(row["topic"], row["key"], row["message"], str(row["id"]))
            await self._session.execute(_ADVANCE, row["id"])
        self._metrics.pending.set(await self._session.fetchval(_PENDING))
        return bool(rows)

    async def _publish(self, short: str, key: str, body: bytes, ce_id: str) -> None:
        """Write one record and wait, as long as it takes, until Kafka has it.

        A message without bytes is a tombstone.
        """
        self._tails[short].expect(key, body)
        delivery = await self._producer.send(
            self._bus.topics[short],
            0,
            body or None,
            key=key.encode(),
            headers=envelope.headers(topics.topic(short).ce_type, SOURCE, ce_id),
        )
        while not (await asyncio.wait({delivery}, timeout=_PATIENCE_S))[0]:
            self._health.beat(leader.LOOP)
            self._metrics.pending.set(await self._session.fetchval(_PENDING))
            _log.warning("kafka_takes_nothing", topic=short, key=key)
        # A duplicate that the broker recognised is acknowledged with offset -1.
        self._ends[short] = max(self._ends[short], delivery.result().offset + 1)
        self._metrics.published.labels(self._bus.topics[short]).inc()

    async def _watch_logs(self) -> None:
        """End when a log was lost and made anew: the next leadership fills it from its start."""
        while True:
            await asyncio.sleep(self._check_s)
            for tail in self._tails.values():
                if await tail.lost():
                    raise BusUnavailableError("a topic of desired state was lost")

    async def _repair(self, short: str, tail: Tail) -> None:
        """Make the last record of each key the database's again."""
        await tail.reach(self._ends[short])
        tail.trust()
        async with self._database.read() as tx:
            desired = await repository.desired(tx, short)
        for one in desired:
            last = tail.last.get(one.key)
            highest = 0 if last is None else last.highest
            if last is None or last.sha256 != one.sha256 or highest > one.generation:
                await self._repair_key(short, one, highest)

    async def _repair_key(self, short: str, one: repository.Desired, highest: int) -> None:
        _log.warning(
            "republished", topic=short, key=one.key, generation=one.generation, found=highest
        )
        if highest > one.generation:
            async with self._database.write() as tx:
                await repository.reissue(tx, short, one.key, highest)
        else:
            await self._republish(short, one.key)

    async def _republish(self, short: str, key: str) -> None:
        async with self._database.read() as tx:
            body = await repository.message(tx, short, key)
        if body is not None:
            await self._publish(short, key, body, f"repair-{uuid.uuid4().hex}")
