"""Recomputes the chain of the log from its rows and compares it with what was noted.

In: Postgres. Out: a report of each partition with every place where rows, batches, offsets or
payloads disagree. It streams: memory does not grow with the log.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from google.protobuf.message import DecodeError

from inferbus_logger import database, rows
from inferbus_logger.database import Connection
from inferbus_schemas import messages as m
from inferbus_schemas import tensors

_PREFETCH: Final = 500
_PREFETCH_PAYLOADS: Final = 50
"""An output may have 4 MiB."""
_MAX_FINDINGS: Final = 100
_CHAINED_LIST: Final = ", ".join(rows.CHAINED)
_N_CHAINED: Final = len(rows.CHAINED)
_OFFSET_AT: Final = rows.CHAINED.index("k_offset")
_SHA_AT: Final = rows.CHAINED.index("output_sha256")


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where the log is not what it says it is."""

    partition: int
    era: int
    offset: int
    what: str


@dataclass(slots=True)
class PartitionReport:
    """What was found in one partition, all its eras together."""

    partition: int
    n_batches: int = 0
    n_rows: int = 0
    n_gaps: int = 0
    n_retired: int = 0
    next_offset: int = 0
    chain: str = ""


@dataclass(slots=True)
class AuditReport:
    """The outcome of an audit.

    Invariants: `ok` exactly when there is no finding; of many findings the first hundred are told.
    """

    partitions: list[PartitionReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    n_findings: int = 0

    @property
    def ok(self) -> bool:
        """Whether the log is what it says it is."""
        return self.n_findings == 0

    def find(self, partition: int, era: int, offset: int, what: str) -> None:
        """Note a finding."""
        self.n_findings += 1
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(Finding(partition, era, offset, what))


@dataclass(frozen=True, slots=True)
class Scope:
    """What to audit: partitions (None: all), offsets (both ends may be open), payloads too."""

    partitions: Sequence[int] | None = None
    first: int | None = None
    last: int | None = None
    payloads: bool = True


async def verify(postgres_url: str, topic: str, scope: Scope | None = None) -> AuditReport:
    """Audit the log of one topic in one snapshot, while loggers may go on writing.

    Raises:
        StartupError: Postgres does not answer, or has no log.
    """
    connection = await database.open_for_command(postgres_url, "inferbus verify")
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            audit = _Audit(connection, topic, scope or Scope(), await _sources(connection))
            return await audit.run()
    finally:
        await database.close(connection)


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where rows are: the table, retired days that are still there, and days that are gone."""

    tables: tuple[str, ...]
    gone_until: dt.datetime | None


async def _sources(connection: Connection) -> _Sources:
    retired = await connection.fetch(
        "SELECT day, table_name, to_regclass('log.' || table_name) IS NOT NULL AS here"
        " FROM log.retired_days"
    )
    gone = [row["day"] for row in retired if not row["here"]]
    until = (
        dt.datetime.combine(max(gone) + dt.timedelta(days=2), dt.time(), dt.UTC) if gone else None
    )
    here = tuple(f"log.{row['table_name']}" for row in retired if row["here"])
    return _Sources(("log.predictions", *here), until)


class _Audit:
    """One audit; see `verify`."""

    def __init__(self, connection: Connection, topic: str, scope: Scope, sources: _Sources) -> None:
        self._connection = connection
        self._topic = topic
        self._scope = scope
        self._sources = sources
        self._report = AuditReport()

    async def run(self) -> AuditReport:
        heads = await self._connection.fetch(
            "SELECT part, era, start_offset, next_offset, chain FROM log.sink_offsets"
            " WHERE topic = $1 AND ($2::int[] IS NULL OR part = ANY($2)) ORDER BY part",
            self._topic,
            self._scope.partitions,
        )
        for head in heads:
            await self._partition(head)
        if self._scope == Scope(payloads=self._scope.payloads):
            await self._strays()
        return self._report

    async def _strays(self) -> None:
        """Look for rows of partitions that were never logged."""
        stray = await self._connection.fetchrow(
            "SELECT k_partition, k_era, k_offset FROM log.predictions WHERE k_partition <>"
            " ALL(ARRAY(SELECT part FROM log.sink_offsets)) LIMIT 1"
        )
        if stray is not None:
            partition, era, offset = stray
            self.find(partition, era, offset, "this row is of a partition that was never logged")

    async def _partition(self, head: asyncpg.Record) -> None:
        report = PartitionReport(
            head["part"], next_offset=head["next_offset"], chain=head["chain"].hex()
        )
        self._report.partitions.append(report)
        eras = await self._connection.fetch(
            "SELECT DISTINCT era FROM log.log_batches WHERE topic = $1 AND part = $2"
            " UNION SELECT $3::int ORDER BY era",
            self._topic,
            head["part"],
            head["era"],
        )
        chain: bytes | None = rows.NO_CHAIN if self._scope.first is None else None
        for row in eras:
            era = _Era(self, report, row["era"], chain)
            await era.run(head)
            chain = era.chain

    def batches(self, partition: int, era: int) -> AsyncIterator[asyncpg.Record]:
        """Yield the batches that touch the scope, in order."""
        return self._connection.cursor(
            "SELECT base_offset, last_offset, n_rows, kind, sha256, prev, written_at"
            " FROM log.log_batches WHERE topic = $1 AND part = $2 AND era = $3"
            " AND ($4::bigint IS NULL OR last_offset >= $4)"
            " AND ($5::bigint IS NULL OR base_offset <= $5) ORDER BY base_offset",
            self._topic,
            partition,
            era,
            self._scope.first,
            self._scope.last,
            prefetch=_PREFETCH,
        ).__aiter__()

    async def rows(self, partition: int, era: int) -> AsyncIterator[tuple[Any, ...]]:
        """Yield rows as (values of CHAINED, input agrees, output), in order of their offsets."""
        payloads = "coalesce(sha256(input) = input_sha256, true), output"
        columns = f"{_CHAINED_LIST}, {payloads if self._scope.payloads else 'true, NULL::bytea'}"
        union = " UNION ALL ".join(
            f"SELECT {columns} FROM {table}"  # noqa: S608 -- names of our own
            " WHERE k_partition = $1 AND k_era = $2 AND k_offset >= $3"
            " AND ($4::bigint IS NULL OR k_offset <= $4)"
            for table in self._sources.tables
        )
        first, last = await self._ends(partition, era)
        cursor = self._connection.cursor(
            f"{union} ORDER BY k_offset",
            partition,
            era,
            first,
            last,
            prefetch=_PREFETCH_PAYLOADS if self._scope.payloads else _PREFETCH,
        )
        async for row in cursor:
            yield tuple(row)

    async def _ends(self, partition: int, era: int) -> tuple[int, int | None]:
        """Return the scope widened to whole batches."""
        found = await self._connection.fetchrow(
            "SELECT min(base_offset), max(last_offset) FROM log.log_batches"
            " WHERE topic = $1 AND part = $2 AND era = $3"
            " AND ($4::bigint IS NULL OR last_offset >= $4)"
            " AND ($5::bigint IS NULL OR base_offset <= $5)",
            self._topic,
            partition,
            era,
            self._scope.first,
            self._scope.last,
        )
        first, last = found or (None, None)
        if self._scope.first is None:
            first = 0
        return first or 0, None if self._scope.last is None else last

    def lost_with_retired_days(self, batch: asyncpg.Record) -> bool:
        """Tell whether rows of this batch may have gone with tables that an operator dropped."""
        until = self._sources.gone_until
        return until is not None and batch["written_at"] < until

    def find(self, partition: int, era: int, offset: int, what: str) -> None:
        self._report.find(partition, era, offset, what)

    @property
    def from_the_start(self) -> bool:
        """Whether the scope begins where the log begins."""
        return self._scope.first is None

    @property
    def to_the_head(self) -> bool:
        """Whether the scope reaches to the head."""
        return self._scope.last is None


class _Era:
    """One era of one partition: batches and rows, merged by offset."""

    def __init__(
        self, audit: _Audit, report: PartitionReport, era: int, chain: bytes | None
    ) -> None:
        self._audit = audit
        self._report = report
        self._era = era
        self.chain = chain
        self._next: int | None = None
        self._ahead: tuple[Any, ...] | None = None

    def _find(self, offset: int, what: str) -> None:
        self._audit.find(self._report.partition, self._era, offset, what)

    async def run(self, head: asyncpg.Record) -> None:
        """Go through all batches of the era and compare its end with the head."""
        latest = head["era"] == self._era
        if latest and self._audit.from_the_start:
            self._next = head["start_offset"]
        stream = self._audit.rows(self._report.partition, self._era)
        async for batch in self._audit.batches(self._report.partition, self._era):
            self._link(batch)
            await self._batch(batch, stream)
        if self._audit.to_the_head:
            await self._after_the_last(stream)
            if latest:
                self._compare(head)

    def _link(self, batch: asyncpg.Record) -> None:
        """Check that a batch follows the one before it, in offsets and in chain."""
        base = batch["base_offset"]
        if self._next is not None and base != self._next:
            self._find(self._next, f"no batch begins here; the next one begins at {base}")
        if self.chain is not None and batch["prev"] != self.chain:
            self._find(base, "its batch does not continue the chain of the one before")
        self._next = batch["last_offset"] + 1
        self.chain = batch["sha256"]
        self._report.n_batches += 1
        if batch["kind"] == "gap":
            self._report.n_gaps += 1

    async def _batch(self, batch: asyncpg.Record, stream: AsyncIterator[tuple[Any, ...]]) -> None:
        """Recompute one batch from its rows."""
        canonical: list[bytes] = []
        while (row := await self._row(stream)) is not None:
            offset = row[_OFFSET_AT]
            if offset > batch["last_offset"]:
                break
            self._ahead = None
            if offset < batch["base_offset"]:
                self._find(offset, "this row belongs to no batch")
                continue
            canonical.append(rows.canonical_of(row[:_N_CHAINED]))
            self._payload(row)
        self._report.n_rows += len(canonical)
        if len(canonical) < batch["n_rows"] and self._audit.lost_with_retired_days(batch):
            self._report.n_retired += batch["n_rows"] - len(canonical)
            return
        if len(canonical) != batch["n_rows"]:
            self._find(
                batch["base_offset"],
                f"its batch has {len(canonical)} rows and says {batch['n_rows']}",
            )
        elif rows.chain(batch["prev"], canonical) != batch["sha256"]:
            self._find(batch["base_offset"], "a row of its batch is not what was written")

    async def _row(self, stream: AsyncIterator[tuple[Any, ...]]) -> tuple[Any, ...] | None:
        if self._ahead is None:
            self._ahead = await anext(stream, None)
        return self._ahead

    def _payload(self, row: tuple[Any, ...]) -> None:
        *_, input_agrees, output = row
        if not input_agrees:
            self._find(row[_OFFSET_AT], "the input is not the one of its digest")
        if output is None or row[_SHA_AT] is None:
            return
        try:
            found = tensors.output_sha256(m.TensorSet.FromString(output).tensors)
        except (DecodeError, ValueError, OverflowError):
            found = b""
        if found != row[_SHA_AT]:
            self._find(row[_OFFSET_AT], "the output is not the one of its digest")

    async def _after_the_last(self, stream: AsyncIterator[tuple[Any, ...]]) -> None:
        while (row := await self._row(stream)) is not None:
            self._ahead = None
            self._find(row[_OFFSET_AT], "this row belongs to no batch")

    def _compare(self, head: asyncpg.Record) -> None:
        end = head["start_offset"] if self._next is None else self._next
        if end != head["next_offset"]:
            self._find(end, f"the batches end here, the offset says {head['next_offset']}")
        if self.chain is not None and head["chain"] != self.chain:
            self._find(end, "the chain of the batches is not the one beside the offset")
