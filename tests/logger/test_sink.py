"""Transactions of the sink against a real Postgres, without Kafka."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import asyncpg
import pytest

from inferbus_dev.services import NEWER
from inferbus_kit.errors import StartupError
from inferbus_logger import audit, database, rows
from inferbus_logger.migrate import migrate
from inferbus_logger.open import read_stored
from inferbus_logger.partitions import Partitions, bounds, default_rows, table_name
from inferbus_logger.plan import Batch, Buffer
from inferbus_logger.sink import FencedError, Planned, Sink, Written
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from tests.support import predictions

TOPIC = "test"
TODAY = dt.datetime.now(dt.UTC).date()


@dataclass(frozen=True)
class Record:
    value: bytes
    offset: int
    partition: int = 0
    timestamp: int = 0
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@pytest.fixture
async def connection(postgres_database: str) -> AsyncIterator[database.Connection]:
    """A database with tables, today's partitions and partitions 0 and 1 of the topic begun."""
    await migrate(postgres_database)
    one = await database.connect(postgres_database, "test")
    await Partitions().ahead(one, TODAY)
    for part in (0, 1):
        await one.execute(
            "INSERT INTO log.sink_offsets (topic, topic_id, part, era, start_offset, next_offset,"
            " last_id, chain) VALUES ('test', '', $1, 0, 0, 0, '', $2)",
            part,
            rows.NO_CHAIN,
        )
    yield one
    await database.close(one)


def _made(count: int, seed: int = 1) -> list[m.Prediction]:
    rng = random.Random(seed)
    return [predictions.prediction(rng, int(time.time() * 1000)) for _ in range(count)]


def _batch(made: Sequence[m.Prediction | bytes], base: int = 0, partition: int = 0) -> Batch:
    buffer = Buffer(partition, base)
    for offset, each in enumerate(made, base):
        value = each if isinstance(each, bytes) else each.SerializeToString()
        record = Record(value, offset, partition, int(time.time() * 1000))
        buffer.offer(rows.read(record, 0), 0.0)
    return buffer.take(0, 0.0)


async def _ids(connection: database.Connection) -> list[bytes]:
    found = await connection.fetch("SELECT request_id FROM log.predictions ORDER BY k_offset")
    return [row["request_id"].bytes for row in found]


async def _head(connection: database.Connection, partition: int = 0) -> tuple[int, bytes]:
    stored = (await read_stored(connection, TOPIC, [partition]))[partition]
    return stored.next_offset, stored.chain


async def _sound(url: str) -> None:
    report = await audit.verify(url, TOPIC)
    assert report.findings == []


async def test_rows_offset_and_batch_come_together(
    connection: database.Connection, postgres_database: str
) -> None:
    made = _made(5)
    sink = Sink(TOPIC)
    (first,) = await sink.write(connection, [Planned(_batch(made[:3]), rows.NO_CHAIN)])
    (second,) = await sink.write(connection, [Planned(_batch(made[3:], base=3), first.chain)])
    assert await _ids(connection) == [each.id for each in made]
    assert await _head(connection) == (5, second.chain)
    noted = await connection.fetch(
        "SELECT base_offset, last_offset, n_rows, prev, sha256 FROM log.log_batches ORDER BY 1"
    )
    assert [tuple(row) for row in noted] == [
        (0, 2, 3, rows.NO_CHAIN, first.chain),
        (3, 4, 2, first.chain, second.chain),
    ]
    await _sound(postgres_database)


async def test_partitions_share_a_transaction_or_none_is_written(
    connection: database.Connection, postgres_database: str
) -> None:
    sink = Sink(TOPIC)
    both = [Planned(_batch(_made(3, seed=part), partition=part), rows.NO_CHAIN) for part in (1, 0)]
    written = await sink.write(connection, both)
    assert [each.batch.partition for each in written] == [1, 0]
    # Partition 1 goes on, partition 0 is the same again: neither moves.
    again = [Planned(_batch(_made(2, seed=9), base=3, partition=1), written[0].chain), both[1]]
    with pytest.raises(FencedError):
        await sink.write(connection, again)
    assert await _head(connection, 1) == (3, written[0].chain)
    assert len(await _ids(connection)) == 6
    await _sound(postgres_database)


@pytest.mark.parametrize("path", ["direct", "staged"])
async def test_who_comes_second_is_fenced(
    connection: database.Connection, postgres_database: str, path: str
) -> None:
    """A zombie inside its transaction and an owner at once: the second waits, then is fenced."""
    other = await database.connect(postgres_database, "other")
    planned = Planned(_batch(_made(4)), rows.NO_CHAIN)
    zombie = Planned(_batch(_made(2, seed=5)), rows.NO_CHAIN)
    sink = Sink(TOPIC)
    try:
        holding = connection.transaction()
        await holding.start()
        await sink.write(connection, [planned])
        if path == "staged":
            waiting = asyncio.create_task(_one(sink, other, zombie))
        else:
            waiting = asyncio.create_task(_many(sink, other, zombie))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await holding.commit()
        with pytest.raises(FencedError):
            await waiting
    finally:
        await database.close(other)
    assert (await _head(connection))[0] == 4
    assert len(await _ids(connection)) == 4
    await _sound(postgres_database)


async def _one(sink: Sink, connection: database.Connection, planned: Planned) -> Written:
    return await sink.write_staged(connection, planned)


async def _many(sink: Sink, connection: database.Connection, planned: Planned) -> Written:
    (written,) = await sink.write(connection, [planned])
    return written


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE log.sink_offsets SET era = 1",
        "UPDATE log.sink_offsets SET chain = sha256('')",
        "UPDATE log.sink_offsets SET next_offset = 3",
    ],
)
async def test_any_other_head_fences(connection: database.Connection, change: str) -> None:
    await connection.execute(change)
    sink = Sink(TOPIC)
    with pytest.raises(FencedError):
        await sink.write(connection, [Planned(_batch(_made(1)), rows.NO_CHAIN)])
    with pytest.raises(FencedError):
        await sink.write_staged(connection, Planned(_batch(_made(1)), rows.NO_CHAIN))
    assert await _ids(connection) == []


async def test_ids_with_rows_become_duplicates(
    connection: database.Connection, postgres_database: str
) -> None:
    made = _made(6)
    sink = Sink(TOPIC)
    (first,) = await sink.write(connection, [Planned(_batch(made[:4]), rows.NO_CHAIN)])
    late = Planned(_batch([made[1], made[4], made[3], made[5]], base=4), first.chain)
    with pytest.raises(asyncpg.UniqueViolationError):
        await sink.write(connection, [late])
    assert (await _head(connection))[0] == 4
    written = await sink.write_staged(connection, late)
    assert (len(written.batch.rows), written.batch.n_dups) == (2, 2)
    assert await _ids(connection) == [each.id for each in made]
    await _sound(postgres_database)


async def test_refused_rows_are_bisected_out(
    connection: database.Connection, postgres_database: str
) -> None:
    """A payload that Postgres refuses goes, its row stays; a row that it refuses goes whole."""
    await connection.execute(
        "ALTER TABLE log.predictions ADD CHECK (input IS NULL OR length(input) < 5000),"
        " ADD CHECK (model <> 'refused')"
    )
    made = _made(40)
    made[7].inputs = bytes(6000)
    made[23].model = "refused"
    sink = Sink(TOPIC)
    batch = _batch([*made[:30], made[2], b"\xff", *made[30:]])
    with pytest.raises(asyncpg.CheckViolationError):
        await sink.write(connection, [Planned(batch, rows.NO_CHAIN)])
    written = await sink.write_staged(connection, Planned(batch, rows.NO_CHAIN))
    assert await _ids(connection) == [each.id for n, each in enumerate(made) if n != 23]
    assert (written.batch.n_quarantined, written.batch.n_dups) == (2, 1)
    stored = await connection.fetchrow(
        "SELECT input, input_sha256 FROM log.predictions WHERE k_offset = 7"
    )
    assert stored is not None
    assert tuple(stored) == (None, made[7].input_sha256)
    quarantined = await connection.fetch(
        "SELECT k_offset, has_row, raw FROM log.predictions_quarantine ORDER BY 1"
    )
    assert [tuple(row) for row in quarantined] == [
        (7, True, made[7].SerializeToString()),
        (23, False, made[23].SerializeToString()),
        (31, False, b"\xff"),
    ]
    assert (await _head(connection))[0] == batch.end
    await _sound(postgres_database)


async def test_what_a_text_cannot_hold_does_not_take_the_slow_path(
    connection: database.Connection, postgres_database: str
) -> None:
    made = _made(3)
    made[1].client_request_id = "a\x00b"
    made[2].latency_us = (1 << 64) - 1
    await Sink(TOPIC).write(connection, [Planned(_batch(made), rows.NO_CHAIN)])
    assert await connection.fetchval("SELECT count(*) FROM log.predictions_quarantine") == 2
    await _sound(postgres_database)


async def test_a_gap_and_a_hole_are_batches_without_rows(
    connection: database.Connection, postgres_database: str
) -> None:
    sink = Sink(TOPIC)
    gap = Planned(Batch(0, 0, 0, 50, kind="gap"), rows.NO_CHAIN)
    (written,) = await sink.write(connection, [gap])
    buffer = Buffer(0, 50)
    buffer.offer(rows.hole(50, 52), 0.0)
    (written,) = await sink.write(connection, [Planned(buffer.take(0, 0.0), written.chain)])
    assert await _head(connection) == (52, written.chain)
    await _sound(postgres_database)


async def test_an_id_far_from_its_time_lies_in_the_default_partition_until_its_day(
    connection: database.Connection, postgres_database: str
) -> None:
    day = TODAY + dt.timedelta(days=60)
    far = _made(2)
    midnight = dt.datetime.combine(day, dt.time(12), dt.UTC)
    far[0].id = ids.uuid7(int(midnight.timestamp() * 1000), 5)
    days = Partitions()
    batch = _batch(far)
    await days.cover(connection, [batch])
    await Sink(TOPIC).write(connection, [Planned(batch, rows.NO_CHAIN)])
    assert await default_rows(connection) == 1
    # When that day comes its partition is made, and the row moves.
    await days.make(connection, [day])
    assert await default_rows(connection) == 0
    assert await connection.fetchval(
        "SELECT tableoid::regclass::text FROM log.predictions WHERE request_id = $1",
        ids.text(far[0].id),
    ) == (f"log.{table_name(day)}")
    await _sound(postgres_database)


async def test_partitions_are_made_by_many_at_once(
    connection: database.Connection, postgres_database: str
) -> None:
    others = [await database.connect(postgres_database, "other") for _ in range(4)]
    days = [TODAY + dt.timedelta(days=n) for n in range(5, 9)]
    try:
        await asyncio.gather(*(Partitions().make(each, days) for each in others))
    finally:
        for each in others:
            await database.close(each)
    found = await connection.fetch(
        "SELECT relname FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid"
        " WHERE i.inhparent = 'log.predictions'::regclass"
    )
    assert {table_name(day) for day in days} <= {row["relname"] for row in found}


async def test_retired_days_stay_verifiable_and_dropped_ones_are_told(
    connection: database.Connection, postgres_database: str
) -> None:
    days = Partitions()
    old = TODAY - dt.timedelta(days=20)
    made = _made(4)
    for each in made[:2]:
        noon = dt.datetime.combine(old, dt.time(12), dt.UTC)
        each.id = ids.uuid7(int(noon.timestamp() * 1000), random.Random(each.id).getrandbits(80))
    batch = _batch(made)
    await days.cover(connection, [batch])
    await Sink(TOPIC).write(connection, [Planned(batch, rows.NO_CHAIN)])
    assert await days.retire(connection, TODAY - dt.timedelta(days=10)) == [old]
    assert old not in days.known
    assert len(await _ids(connection)) == 2
    await _sound(postgres_database)
    await connection.execute(f"DROP TABLE log.{table_name(old)}")
    # Written within the days whose rows are gone: told, and no finding.
    await connection.execute(
        "UPDATE log.log_batches SET written_at = written_at - interval '20 days'"
    )
    report = await audit.verify(postgres_database, TOPIC)
    assert report.findings == []
    assert [part.n_retired for part in report.partitions] == [2, 0]


async def test_migrating_twice_at_once_is_harmless_and_a_newer_version_is_told(
    postgres_database: str,
) -> None:
    await asyncio.gather(migrate(postgres_database), migrate(postgres_database))
    await migrate(postgres_database)
    connection = await database.open_for_command(postgres_database, "test")
    try:
        assert await connection.fetchval("SELECT count(*) FROM log.alembic_version") == 1
        await connection.execute("UPDATE log.alembic_version SET version_num = '9999'")
    finally:
        await database.close(connection)
    with pytest.raises(StartupError, match=rf"{NEWER} \(.*9999'\): run that one, or name") as said:
        await migrate(postgres_database)
    assert "\n" not in str(said.value)


def test_bounds_are_midnights() -> None:
    low, high = bounds(dt.date(1970, 1, 2))
    assert (low.int >> 80, high.int >> 80) == (86_400_000, 2 * 86_400_000)
