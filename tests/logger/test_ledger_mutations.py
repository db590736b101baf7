"""The checker that judges all chaos runs can fail: each damage to the log is found."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from inferbus_logger import audit
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from tests.support import predictions
from tests.support.forkserver import ForkServer
from tests.support.ledger import OUTCOME_UNKNOWN, Ledger
from tests.support.logs import Log, forked, fresh_log
from tests.support.reconcile import Live, Violation, check_ledger

VICTIM = "k-7"
UNKNOWN = {20: "reset by peer", 21: "reset by peer", 22: OUTCOME_UNKNOWN}
STATUS = {m.OUTCOME_OK: 200, m.OUTCOME_FAILED: 500, m.OUTCOME_DEADLINE_EXCEEDED: 504}


@dataclass(frozen=True, slots=True)
class World:
    """A log that agrees with its ledger; each test damages a copy."""

    log: Log
    ledger: Path


async def _make(
    stack: AsyncExitStack, bootstrap: str, url: str, loggers: ForkServer, path: Path
) -> World:
    log = await stack.enter_async_context(fresh_log(bootstrap, url, 2))
    rng = random.Random(7)
    records = []
    for n in range(60):
        outcome = {5: m.OUTCOME_FAILED, 6: m.OUTCOME_DEADLINE_EXCEEDED}.get(n, m.OUTCOME_OK)
        made = predictions.prediction(
            rng, int(time.time() * 1000), outcome=outcome, client_request_id=f"k-{n}"
        )
        records.append((n % 2, made))
    again = m.Prediction()
    again.CopyFrom(records[8][1])
    again.outcome = m.OUTCOME_FAILED
    receipts = await predictions.produce(bootstrap, log.topic, [*records, (0, again), (1, b"\xff")])
    with Ledger(path / "ledger") as ledger:
        for n, ((_, made), (partition, offset)) in enumerate(zip(records, receipts, strict=False)):
            key = made.client_request_id
            ledger.sent(key, made.input_sha256.hex())
            if n in UNKNOWN:
                ledger.unknown(key, UNKNOWN[n])
                continue
            ledger.answered(
                key,
                STATUS[made.outcome],
                request_id=ids.text(made.id),
                receipt=f"{partition}:{offset}",
                output_sha=made.output_sha256.hex() or "-",
                version=str(made.version),
                served_by=made.served_by,
            )
        ledger.sent("lost-on-the-way", hashlib.sha256().hexdigest())
        ledger.unknown("lost-on-the-way", "timeout")
        ledger.sent("shed", hashlib.sha256().hexdigest())
        ledger.answered("shed", 503)
    async with forked(loggers, log, path / "logger.log", log_partitions="0,1"):
        await log.caught_up()
    return World(log, path / "ledger")


@pytest.fixture(scope="module")
def world(
    kafka_bootstrap: str,
    postgres_url: str,
    loggers: ForkServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    path = tmp_path_factory.mktemp("world")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(_make(stack, kafka_bootstrap, postgres_url, loggers, path))
        finally:
            runner.run(stack.aclose())


async def _check(world: World, url: str, ledger: Path | None = None) -> list[Violation]:
    return await check_ledger(
        ledger or world.ledger, url, world.log.bootstrap, topic=world.log.topic, tenant="acme"
    )


async def _damaged(world: World, statement: str) -> tuple[set[str], bool]:
    """Damage a copy of the log; return what the checker and the audit say of it."""
    server, _, name = world.log.postgres_url.rpartition("/")
    copy = f"{name}_copy"
    connection = await asyncpg.connect(f"{server}/postgres")
    try:
        await connection.execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
        damaged = await asyncpg.connect(f"{server}/{copy}")
        try:
            done = await damaged.execute(statement)
            assert done not in {"UPDATE 0", "DELETE 0", "INSERT 0 0"}
        finally:
            await damaged.close()
        found = await _check(world, f"{server}/{copy}")
        report = await audit.verify(f"{server}/{copy}", world.log.topic)
        return {each.invariant for each in found}, report.ok
    finally:
        await connection.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        await connection.close()


async def test_an_undamaged_log_passes(world: World) -> None:
    assert await _check(world, world.log.postgres_url) == []
    report = await audit.verify(world.log.postgres_url, world.log.topic)
    assert report.findings == []
    assert sum(part.n_rows for part in report.partitions) == 60


# What must be found, and the damage; k-7 is VICTIM.
DAMAGE = {
    "drop a row": (
        {"I1", "I4", "I5"},
        "DELETE FROM log.predictions WHERE client_request_id = 'k-7'",
    ),
    "double a row": (
        {"I1", "I4", "I5"},
        """ALTER TABLE log.predictions DROP CONSTRAINT predictions_pkey CASCADE;
        INSERT INTO log.predictions
        SELECT * FROM log.predictions WHERE client_request_id = 'k-7'""",
    ),
    "drop the row of an unknown outcome": (
        {"I3", "I4", "I5"},
        "DELETE FROM log.predictions WHERE client_request_id = 'k-22'",
    ),
    "double the row of an unknown outcome": (
        {"I3", "I4", "I5"},
        """INSERT INTO log.predictions
        SELECT (jsonb_populate_record(p, jsonb_build_object('request_id', gen_random_uuid()))).*
        FROM log.predictions AS p WHERE client_request_id = 'k-22'""",
    ),
    "double an unanswered row": (
        {"I3", "I4", "I5"},
        """INSERT INTO log.predictions
        SELECT (jsonb_populate_record(p, jsonb_build_object('request_id', gen_random_uuid()))).*
        FROM log.predictions AS p WHERE client_request_id = 'k-20'""",
    ),
    "flip a bit of an output": (
        {"I1"},
        """UPDATE log.predictions SET output = set_bit(output, 150, 1 - get_bit(output, 150))
        WHERE client_request_id = 'k-7'""",
    ),
    "flip a byte of a digest": (
        {"I1", "I5"},
        """UPDATE log.predictions
        SET output_sha256 = set_byte(output_sha256, 3, 255 - get_byte(output_sha256, 3))
        WHERE client_request_id = 'k-7'""",
    ),
    "move a version": (
        {"I7", "I5"},
        "UPDATE log.predictions SET version = 4 WHERE client_request_id = 'k-7'",
    ),
    "name another server": (
        {"I1", "I5"},
        "UPDATE log.predictions SET served_by = 'x' WHERE client_request_id = 'k-7'",
    ),
    "move a row": (
        {"I1", "I4", "I5"},
        "UPDATE log.predictions SET k_offset = 999 WHERE client_request_id = 'k-7'",
    ),
    "turn an outcome": (
        {"I2", "I5"},
        "UPDATE log.predictions SET outcome = 'failed' WHERE client_request_id = 'k-6'",
    ),
    "make a failure a success": (
        {"I2", "I5"},
        "UPDATE log.predictions SET outcome = 'ok' WHERE client_request_id = 'k-5'",
    ),
    "add a row that nobody sent": (
        {"I3", "I5"},
        "UPDATE log.predictions SET client_request_id = 'nobody' WHERE client_request_id = 'k-7'",
    ),
    "change a column that no answer tells": (
        {"I5"},
        "UPDATE log.predictions SET engine_us = engine_us + 1 WHERE client_request_id = 'k-7'",
    ),
    "drop a batch": (
        {"I4", "I5"},
        "DELETE FROM log.log_batches WHERE part = 0 AND base_offset = 0",
    ),
    "hide a duplicate": (
        {"I4"},
        """UPDATE log.log_batches SET n_dups = 0, n_nonterminal = 0, kind = 'control',
        n_quarantined = 0, n_rows = 0 WHERE n_dups > 0""",
    ),
    "forget an offset": (
        {"I4"},
        "UPDATE log.sink_offsets SET next_offset = next_offset - 1 WHERE part = 1",
    ),
    "exchange the head": (
        {"I5"},
        "UPDATE log.sink_offsets SET chain = sha256(chain) WHERE part = 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_to_the_log_is_found(world: World, damage: str) -> None:
    wanted, statement = DAMAGE[damage]
    found, audit_ok = await _damaged(world, statement)
    assert wanted <= found
    assert not audit_ok


def _with_answer(world: World, path: Path, change: dict[int, str]) -> Path:
    """Return a copy of the ledger in which words of the victim's answer are others."""
    shutil.copy(world.ledger, path / "ledger")
    lines = (path / "ledger").read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"A {VICTIM} "))
    words = lines[at].split(" ")
    for number, word in change.items():
        words[number] = word
    lines[at] = " ".join(words)
    (path / "ledger").write_text("\n".join([*lines, ""]))
    return path / "ledger"


@pytest.mark.parametrize(
    ("change", "invariant"),
    [
        ({4: "-"}, "I1"),
        ({4: "1:0"}, "I1"),
        ({5: "00" * 32}, "I1"),
        ({6: "4"}, "I7"),
        ({2: "-"}, "I1"),
        ({3: "503", 4: "-"}, "I2"),
        ({2: "-", 3: "503", 4: "-"}, "I2"),
        ({1: "another-key"}, "I3"),
    ],
    ids=["no receipt", "receipt", "output", "version", "no id", "status", "refused", "key"],
)
async def test_another_answer_is_found(
    world: World, tmp_path: Path, change: dict[int, str], invariant: str
) -> None:
    path = _with_answer(world, tmp_path, change)
    if 1 in change:
        text = path.read_text()
        path.write_text(text.replace(f"S {VICTIM} ", "S another-key "))
    found = await _check(world, world.log.postgres_url, path)
    assert {each.invariant for each in found} == {invariant}


async def test_a_version_that_was_not_live_is_found(world: World) -> None:
    now_s = time.time()
    for live, wanted in (
        ([Live(3, now_s - 3600, now_s)], set()),
        ([Live(3, now_s - 7200, now_s - 3600), Live(4, now_s - 3600, now_s)], {"I7"}),
    ):
        found = await check_ledger(
            world.ledger,
            world.log.postgres_url,
            world.log.bootstrap,
            topic=world.log.topic,
            live=live,
        )
        assert {each.invariant for each in found} == wanted


async def test_records_that_are_not_logged_yet_are_found(world: World) -> None:
    made = predictions.prediction(random.Random(1), int(time.time() * 1000))
    await predictions.produce(world.log.bootstrap, world.log.topic, [(0, made)])
    found = await _check(world, world.log.postgres_url)
    assert {each.invariant for each in found} == {"I4"}


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    from tests.support import ledger  # noqa: PLC0415 -- its name is a fixture's elsewhere

    path = tmp_path / "ledger"
    with Ledger(path) as one:
        one.sent("a", "00")
        one.unknown("a", "timed out")
    path.write_bytes(path.read_bytes() + b"S b 0")
    entries = ledger.read(path)
    assert (set(entries.sent), entries.unknown) == ({"a"}, {"a": "timed_out"})
