"""A worker process on real Kafka whose engines die, whose blobs lie, and that dies itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m
from tests.support import onnx_graphs
from tests.support.worker_side import Side
from tests.worker.deployed_models import busy, committed, deployed, doubled, letters, number

pytestmark = pytest.mark.slow

ENDLESS = 10**12


async def test_an_engine_that_is_killed_in_a_batch_costs_no_request(
    side: Side, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    worker = side.spawn()
    inbox = await side.inbox_of(model, 1)
    long = number(model, 1_000_000)
    others = [number(model, value) for value in range(8)]
    await side.send(inbox, long, *others)
    await asyncio.sleep(0.05)
    (engine,) = worker.engines()
    os.kill(engine, signal.SIGKILL)
    assert doubled(await side.answer(long.id)) == [2_000_000]
    assert [doubled(await side.answer(one.id)) for one in others] == [[2 * v] for v in range(8)]
    assert worker.engines() != [engine]
    assert all(len(side.answers(one.id)) == 1 for one in (long, *others))


@pytest.mark.timeout(240)
async def test_the_payload_that_kills_its_engine_is_found_and_the_others_succeed(
    side: Side, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    worker = side.spawn()
    inbox = await side.inbox_of(model, 1)
    poison = number(model, ENDLESS, ttl_ms=200_000)
    others = [number(model, value, ttl_ms=200_000) for value in range(5)]
    offset = await side.send(inbox, *others[:2], poison, *others[2:])
    n_kills = 0
    while not side.answers(poison.id):
        # The engine is up and busy with the poison once it burns CPU for this long.
        await asyncio.sleep(0.05)
        for engine in worker.engines():
            if _spins(engine) and not side.answers(poison.id):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(engine, signal.SIGSEGV)
                n_kills += 1
        assert n_kills < 12
    assert (await side.answer(poison.id)).outcome == m.OUTCOME_POISON
    assert [doubled(await side.answer(one.id)) for one in others] == [[2 * v] for v in range(5)]
    (letter,) = await letters(side, 1)
    assert list(m.RequestFrame.FromString(letter.value or b"").requests) == [poison]
    head = {name: value.decode() for name, value in letter.headers}
    envelope.check(letter.headers, topics.topic(topics.REQUESTS, side.pool).ce_type)
    assert (head["dlq_partition"], head["dlq_offset"]) == (str(inbox), str(offset))
    assert head["dlq_error"].startswith(f"PoisonInputError: request {poison.id.hex()} killed")
    assert head["dlq_error"].endswith(f"the last one ended by signal {signal.SIGSEGV:d}")
    assert "Segmentation fault" in head["dlq_log"]
    assert await committed(side, inbox) == offset + 1


def _spins(pid: int) -> bool:
    """Tell whether an engine has burned more CPU than its start can."""
    try:
        return _cpu_s(pid) > 1.5
    except OSError:
        return False


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_restart_continues_where_acknowledged_work_ended(
    side: Side, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    first = side.spawn()
    inbox = await side.inbox_of(model, 1)
    done = number(model, 1)
    await side.send(inbox, done)
    await side.answer(done.id)
    await asyncio.sleep(0.5)
    stuck = number(model, ENDLESS, ttl_ms=4000)
    await side.send(inbox, stuck)
    await asyncio.sleep(0.3)
    engines = first.engines()
    first.kill()
    waiting = [number(model, value) for value in range(3)]
    await side.send(inbox, *waiting)
    side.spawn()
    assert [doubled(await side.answer(one.id, 60)) for one in waiting] == [[0], [2], [4]]
    assert (await side.answer(stuck.id)).outcome == m.OUTCOME_EXPIRED
    assert len(side.answers(done.id)) == 1
    assert len(engines) == 1
    for engine in engines:
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


async def test_a_blob_with_another_digest_is_never_loaded(side: Side, tmp_path: Path) -> None:
    folder = onnx_graphs.busy_folder(tmp_path / "busy")
    model, manifest = await deployed(side, folder)
    entry = manifest.files[0]
    blob = side.store / "cas" / "sha256" / entry.sha256[:2] / entry.sha256
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + b"x")
    side.spawn()

    def resident() -> m.Resident | None:
        for lease in side.fleet.workers(side.pool):
            return next(iter(lease.beat.worker.residents), None)
        return None

    failed = await side.until(
        lambda: (one := resident()) and one.readiness == m.READINESS_FAILED and one
    )
    assert "digest" in failed.reason
    blob.write_bytes(whole)
    await side.inbox_of(model, 1)
