"""The check of the log against the ledger of its clients.

In: the ledger, and the log in Postgres and Kafka. Out: every promise that the log does not keep.
The check shares no code with the logger: it computes digests and chains by itself, as the design's
page on the log says.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from inferbus_schemas import messages as m
from inferbus_schemas import tensors, topics
from tests.support.ledger import NONE, OUTCOME_UNKNOWN, Answer, Entries, read

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

AGREES: Final = {
    "invalid_input": {400, 413, 422},
    "poison": {422},
    "expired": {504},
    "deadline_exceeded": {504},
    "cancelled": {499},
    "output_too_large": {422},
    "failed": {500, 502, 503},
}
"""The statuses with which an answer may tell each outcome but `ok`."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept: which one, about what, and how."""

    invariant: str
    subject: str
    what: str


@dataclass(frozen=True, slots=True)
class Live:
    """When a version was the one that a gateway might pin (Unix seconds)."""

    version: int
    from_s: float
    until_s: float


async def check_ledger(
    ledger: Path,
    postgres_url: str,
    kafka_bootstrap: str,
    *,
    topic: str | None = None,
    tenant: str | None = None,
    live: Iterable[Live] | None = None,
) -> list[Violation]:
    """Return every violation of I1 to I5 and I7; the log must be at rest.

    No gateway may have been killed after it answered `outcome_unknown`: the record of such a
    request is the gateway's to write. See `unknown_ended` for when.

    Args:
        ledger: the file of all that was sent as this tenant, closed or synced.
        postgres_url: where the log is.
        kafka_bootstrap: where the topic is.
        topic: the one that is logged; the catalogue's where it is left out.
        tenant: whose rows must be in the ledger; all of them where it is left out.
        live: when each version could be pinned; without it, I7 compares answers and rows only.
    """
    entries = read(ledger)
    name = topic or topics.topic(topics.PREDICTIONS).name
    connection = await asyncpg.connect(postgres_url)
    try:
        rows = await connection.fetch(
            "SELECT request_id::text, k_partition, k_offset, outcome, output_sha256, output,"
            " version, served_by, client_request_id, tenant FROM log.predictions"
        )
        found = [
            *_answers(entries, rows),
            *_sent(entries, [row for row in rows if tenant in {None, row["tenant"]}]),
            *(_live(entries, live) if live is not None else ()),
            *await _offsets(connection, kafka_bootstrap, name),
            *await _chains(connection, name),
        ]
    finally:
        await connection.close()
    return found


async def unknown_ended(ledger: Path, postgres_url: str, timeout_s: float) -> None:
    """Wait, but no longer, until each `outcome_unknown` has a row: that may follow the answer."""
    told = [key for key, word in read(ledger).unknown.items() if word == OUTCOME_UNKNOWN]
    until_s = time.monotonic() + timeout_s
    connection = await asyncpg.connect(postgres_url)
    try:
        while time.monotonic() < until_s:
            ended = await connection.fetchval(
                "SELECT count(DISTINCT client_request_id) FROM log.predictions"
                " WHERE client_request_id = ANY($1)",
                told,
            )
            if ended == len(told):
                return
            await asyncio.sleep(0.2)
    finally:
        await connection.close()


def _answers(entries: Entries, rows: Sequence[asyncpg.Record]) -> Iterable[Violation]:
    """I1, I2 and the version of I7: each answer has its one row, and the row says the same."""
    by_id: dict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        by_id[row["request_id"]].append(row)
    logged = {row["client_request_id"] for row in rows}
    for answer in entries.answers:
        well = 200 <= answer.status < 300
        invariant = "I1" if well else "I2"
        if answer.request_id == NONE:
            if well or answer.status not in {400, 404, 413, 422, 429, 431, 503}:
                yield Violation(invariant, answer.key, f"{answer.status} without a request id")
            if answer.key in logged:
                yield Violation(invariant, answer.key, "refused, yet the log has a row of it")
            continue
        mine = by_id.get(answer.request_id, [])
        if len(mine) != 1:
            yield Violation(invariant, answer.key, f"{len(mine)} rows for one answer")
            continue
        yield from _one_answer(answer, mine[0], well=well)


def _one_answer(answer: Answer, row: asyncpg.Record, *, well: bool) -> Iterable[Violation]:
    place = f"{row['k_partition']}:{row['k_offset']}"
    if well and answer.receipt == NONE:
        yield Violation("I1", answer.key, "answered without a receipt")
    elif answer.receipt not in {NONE, place}:
        yield Violation("I1", answer.key, f"receipt {answer.receipt}, row at {place}")
    if not well:
        if answer.status not in AGREES.get(row["outcome"], set()):
            yield Violation("I2", answer.key, f"{answer.status}, row says {row['outcome']}")
        return
    if row["outcome"] != "ok":
        yield Violation("I1", answer.key, f"{answer.status}, row says {row['outcome']}")
    if (row["output_sha256"] or b"").hex() != answer.output_sha:
        yield Violation("I1", answer.key, "the row is of another output")
    if not _payload_agrees(row):
        yield Violation("I1", answer.key, "the stored output is not the one of its digest")
    if answer.version not in {NONE, str(row["version"])}:
        yield Violation("I7", answer.key, f"version {answer.version}, row says {row['version']}")
    if answer.served_by not in {NONE, row["served_by"]}:
        yield Violation("I1", answer.key, "the row names another server")


def _payload_agrees(row: asyncpg.Record) -> bool:
    if row["output"] is None:
        return True
    try:
        stored = m.TensorSet.FromString(row["output"])
    except ValueError:
        return False
    return bool(tensors.output_sha256(stored.tensors) == row["output_sha256"])


def _sent(entries: Entries, rows: Sequence[asyncpg.Record]) -> Iterable[Violation]:
    """I3: no row without a request; at most one where nobody answered, one where a gateway did."""
    counts = Counter(row["client_request_id"] for row in rows)
    for key in counts:
        if key not in entries.sent:
            yield Violation("I3", str(key), "a row of a request that was never sent")
    for key, word in entries.unknown.items():
        if counts[key] > 1 or (word == OUTCOME_UNKNOWN and counts[key] == 0):
            yield Violation("I3", key, f"{counts[key]} rows of one request, {word}")


def _live(entries: Entries, live: Iterable[Live]) -> Iterable[Violation]:
    """I7: the version could be pinned at some time between the send and the answer."""
    spans: dict[str, list[Live]] = defaultdict(list)
    for span in live:
        spans[str(span.version)].append(span)
    for answer in entries.answers:
        if answer.version == NONE:
            continue
        sent_s = entries.sent.get(answer.key, answer.at_s)
        if not any(
            span.from_s <= answer.at_s and sent_s <= span.until_s for span in spans[answer.version]
        ):
            yield Violation("I7", answer.key, f"version {answer.version} was not live")


async def _offsets(connection: asyncpg.Connection, bootstrap: str, topic: str) -> list[Violation]:
    """I4: every offset of every partition is accounted for, once, up to Kafka's end."""
    out: list[Violation] = []
    ends = await end_offsets(bootstrap, topic)
    heads = {
        row["part"]: row
        for row in await connection.fetch(
            "SELECT part, era, start_offset, next_offset FROM log.sink_offsets WHERE topic = $1",
            topic,
        )
    }
    for partition, end in ends.items():
        head = heads.get(partition)
        if head is None or head["next_offset"] != end:
            has = "nothing" if head is None else head["next_offset"]
            out.append(Violation("I4", f"partition {partition}", f"log has {has}, Kafka {end}"))
            continue
        at = head["start_offset"]
        for batch in await connection.fetch(
            "SELECT base_offset, last_offset, kind,"
            " n_rows + n_dups + n_nonterminal + n_quarantined AS n, n_rows,"
            " (SELECT count(*) FROM log.predictions p WHERE p.k_partition = b.part"
            " AND p.k_era = b.era AND p.k_offset BETWEEN b.base_offset AND b.last_offset) AS found"
            " FROM log.log_batches b WHERE topic = $1 AND part = $2 AND era = $3"
            " ORDER BY base_offset",
            topic,
            partition,
            head["era"],
        ):
            out += _one_batch(partition, at, batch)
            at = batch["last_offset"] + 1
        if at != end:
            out.append(Violation("I4", f"partition {partition}", f"batches end at {at}, not {end}"))
    return out


def _one_batch(partition: int, at: int, batch: asyncpg.Record) -> Iterable[Violation]:
    subject = f"partition {partition} offset {batch['base_offset']}"
    if batch["base_offset"] != at:
        yield Violation("I4", subject, f"the batch before ends at {at}")
    width = batch["last_offset"] - batch["base_offset"] + 1
    if batch["kind"] == "data" and batch["n"] != width:
        yield Violation("I4", subject, f"{batch['n']} records accounted for of {width}")
    if batch["found"] != batch["n_rows"]:
        yield Violation("I4", subject, f"{batch['found']} rows, said {batch['n_rows']}")


async def chain_violations(postgres_url: str, topic: str) -> list[Violation]:
    """Return the violations of I5 alone."""
    connection = await asyncpg.connect(postgres_url)
    try:
        return await _chains(connection, topic)
    finally:
        await connection.close()


async def _chains(connection: asyncpg.Connection, topic: str) -> list[Violation]:
    """I5: sha256(previous || rows), over all columns but payloads, gives what was noted."""
    columns = [
        row["column_name"]
        for row in await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'log'"
            " AND table_name = 'predictions' ORDER BY ordinal_position"
        )
        if row["column_name"] not in {"input", "output"}
    ]
    out: list[Violation] = []
    for head in await connection.fetch(
        "SELECT part, chain FROM log.sink_offsets WHERE topic = $1 ORDER BY part", topic
    ):
        chain = bytes(32)
        rows = await connection.fetch(
            f"SELECT {', '.join(columns)} FROM log.predictions WHERE k_partition = $1"  # noqa: S608 -- names
            " ORDER BY k_era, k_offset",
            head["part"],
        )
        batches = await connection.fetch(
            "SELECT era, base_offset, last_offset, sha256, prev FROM log.log_batches"
            " WHERE topic = $1 AND part = $2 ORDER BY era, base_offset",
            topic,
            head["part"],
        )
        at = 0
        for batch in batches:
            subject = f"partition {head['part']} offset {batch['base_offset']}"
            if batch["prev"] != chain:
                out.append(Violation("I5", subject, "the batch does not follow the one before"))
            digest = hashlib.sha256(batch["prev"])
            place = (batch["era"], batch["last_offset"])
            while at < len(rows) and (rows[at]["k_era"], rows[at]["k_offset"]) <= place:
                digest.update(_canonical(rows[at]))
                at += 1
            chain = batch["sha256"]
            if digest.digest() != chain:
                out.append(Violation("I5", subject, "the chain does not recompute"))
        if chain != head["chain"] or at != len(rows):
            out.append(Violation("I5", f"partition {head['part']}", "the head is another one"))
    return out


def _canonical(row: asyncpg.Record) -> bytes:
    values: list[Any] = []
    for value in row.values():
        if isinstance(value, datetime):
            values.append((value - _EPOCH) // timedelta(microseconds=1))
        else:
            values.append(getattr(value, "bytes", value))
    return msgspec.msgpack.encode(values)


async def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    """Return the end of each partition of a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        await consumer.topics()
        consumer.subscribe([topic])
        for _ in range(100):
            if numbers := consumer.partitions_for_topic(topic):
                break
            await consumer.topics()
        places = [TopicPartition(topic, number) for number in sorted(numbers or ())]
        ends = await consumer.end_offsets(places)
    finally:
        await consumer.stop()
    return {place.partition: int(end) for place, end in ends.items()}
