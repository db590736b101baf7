"""Submissions on a real broker, written by another library: placed once, refused in words, kept."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from aiokafka.structs import TopicPartition
from confluent_kafka.admin import AdminClient
from google.protobuf import json_format

from inferbus_gateway.hot import submission_work, submissions, submitted
from inferbus_kit.consume import PartitionReader
from inferbus_schemas import ids, topics
from inferbus_schemas import messages as m
from tests.support.gateway_side import GatewaySide, deployed
from tests.support.program import Program, metric
from tests.support.scripted_worker import echo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


async def test_each_request_has_one_record_under_the_tenant_of_its_topic(program: Program) -> None:
    worker = await program.side.worker(echo)
    await program.gateway()
    program.submit(program.one("a"), program.one("b"))
    program.submit(program.one("c"), partition=3)
    as_json = json_format.MessageToJson(m.Submission(requests=[program.one("d")]))
    program.write(as_json.encode(), content_type="application/json; charset=utf-8")
    found = await program.ended("a", "b", "c", "d")
    assert {one.outcome for one in found.values()} == {m.OUTCOME_OK}
    assert {one.tenant for one in found.values()} == {program.tenant}
    assert {one.id for one in found.values()} == {one.id for one in worker.requests}
    assert not any(one.may_retry for one in worker.requests)
    assert all(ids.is_uuid7(one.id) for one in found.values())
    await program.side.until(lambda: program.committed() == 3)


async def test_a_record_that_is_read_again_makes_the_same_ids(program: Program) -> None:
    worker = await program.side.worker(echo)
    first = await program.gateway()
    program.submit(program.one("a"), program.one("b"))
    before = await program.ended("a", "b")
    await program.side.until(lambda: program.committed() == 1)
    first.stop()
    reader = PartitionReader(
        program.side.bootstrap, program.topic, 0, client_id="again", group=submissions.GROUP
    )
    await reader.start()
    assert reader.tp == TopicPartition(program.topic, 0)
    assert await reader.commit(0)
    await reader.stop()
    n_before = len(worker.requests)
    await program.gateway()
    await program.side.until(lambda: len(worker.requests) == n_before + 2, 30.0)
    again = worker.requests[n_before:]
    assert {one.id for one in again} == {one.id for one in before.values()}
    known = {one.id: one.reply_partition for one in worker.requests[:n_before]}
    assert {one.id: one.reply_partition for one in again} == known


async def test_what_cannot_run_is_answered_in_words_and_what_cannot_be_read_is_a_dead_letter(
    program: Program,
) -> None:
    await program.side.worker(echo)
    await program.gateway()
    program.submit(
        program.one("unknown", model="no-such-model"),
        program.one("hostile", model="../x\r\n"),
        program.one("version", version="99"),
        program.one("outputs", outputs=["y", "no such"]),
        program.one("long id" * 40),
        program.one("fine"),
    )
    program.write(b"\xff\xff\xff")
    program.write(b"")
    program.write(b"<x/>", content_type="text/xml")
    program.write(b'{"requests": [{"model": 1}]}', content_type="application/json")
    program.write(b" " * (submitted.MAX_JSON_BYTES + 1), content_type="application/json")
    program.write(b"{" * 50_000, content_type="application/json")
    long_id = ("long id" * 40)[:256]
    found = await program.ended("unknown", "hostile", "version", "outputs", long_id, "fine")
    assert found["fine"].outcome == m.OUTCOME_OK
    for name, code in (
        ("unknown", "unknown_model"),
        ("hostile", "invalid_request"),
        ("version", "unknown_model"),
        ("outputs", "invalid_request"),
        (long_id, "invalid_request"),
    ):
        assert found[name].outcome == m.OUTCOME_INVALID_INPUT
        assert found[name].error_code == code
    assert found["hostile"].model == ""
    letters = PartitionReader(
        program.side.bootstrap, topics.dead_letters(program.topic), 0, client_id="letters"
    )
    await letters.start()
    said: list[str] = []
    async with asyncio.timeout(30):
        while len(said) < 6:
            said += [
                dict(record.headers)["dlq_error"].decode()
                for record in await letters.read(timeout_ms=200)
            ]
    await letters.stop()
    assert all("UnreadableSubmissionError" in one for one in said)
    await program.side.until(lambda: program.committed() == 7)


async def test_a_request_waits_for_a_worker_and_holds_up_no_other(program: Program) -> None:
    gateway = program.side.gateway(INFERBUS_SUBMISSION_TENANTS=program.tenant)
    starting = asyncio.create_task(gateway)
    # In one record and one model: never served yet, too late for it, not for this model.
    program.submit(
        program.one("early"),
        program.one("impatient", timeout_ms=1500),
        program.one("no such", model="no-such-model"),
    )
    found = await program.ended("no such", "impatient")
    assert found["no such"].error_code == "unknown_model"
    assert found["impatient"].outcome == m.OUTCOME_EXPIRED
    assert program.committed() == 0
    await program.side.worker(echo)
    await starting
    assert (await program.ended("early"))["early"].outcome == m.OUTCOME_OK
    await program.side.until(lambda: program.committed() == 1)


async def test_a_full_worker_leaves_submissions_where_they_are(program: Program) -> None:
    worker = await program.side.worker(echo)
    worker.backlog_rows = submissions.MAX_BACKLOG_ROWS
    await worker.beat()
    await program.gateway()
    program.submit(program.one("later"))
    await asyncio.sleep(1.0)
    assert not worker.requests
    assert program.committed() == 0
    worker.backlog_rows = 0
    assert (await program.ended("later"))["later"].outcome == m.OUTCOME_OK


async def test_a_request_that_waited_too_long_is_expired(program: Program) -> None:
    await program.side.worker(echo)
    gateway = await program.gateway()
    gateway.stop()
    program.submit(program.one("late", timeout_ms=1), program.one("in time"))
    await asyncio.sleep(0.05)
    await program.gateway()
    found = await program.ended("late", "in time")
    assert found["late"].outcome == m.OUTCOME_EXPIRED
    assert found["in time"].outcome == m.OUTCOME_OK


async def test_a_gateway_killed_in_the_middle_loses_nothing(program: Program) -> None:
    await program.side.worker(echo)
    first = await program.gateway()
    names = [f"r{number}" for number in range(400)]
    for at in range(0, 200, 4):
        program.submit(*map(program.one, names[at : at + 4]), partition=at % 3)
    await program.side.until(lambda: len(program.side.all_predictions) >= 20)
    first.kill()
    for at in range(200, 400, 4):
        program.submit(*map(program.one, names[at : at + 4]), partition=at % 3)
    await program.gateway()
    found = await program.ended(*names)
    assert {one.outcome for one in found.values()} == {m.OUTCOME_OK}
    by_name: dict[str, set[str]] = {}
    for _, one in program.side.all_predictions:
        by_name.setdefault(one.client_request_id, set()).add(str(uuid.UUID(bytes=one.id)))
    assert all(len(by_name[name]) == 1 for name in names), "a name has one id, however often"
    await program.side.until(lambda: program.committed() == 100)


async def test_a_tenant_that_is_behind_is_left_unread_and_holds_up_no_other(
    program: Program, kafka_bootstrap: str, tmp_path: Path
) -> None:
    """Bytes are bounded by pausing; the group goes on, and so does what was paused."""
    idle = GatewaySide(kafka_bootstrap, tmp_path)
    await idle.start()
    behind = Program(idle)
    await behind.start()
    try:
        await program.side.worker(echo)
        tenants = f"{program.tenant},{behind.tenant}"
        gateway = await program.side.gateway(
            INFERBUS_SUBMISSION_TENANTS=tenants, INFERBUS_MAX_ROWS=str(1 << 16)
        )
        large = m.Tensor(name="x", datatype="FP32", shape=[1 << 16, 3], data=bytes(12 << 16))
        # 48 records, 36 MiB, for a model that nobody has loaded.
        names = [f"large-{number}" for number in range(48)]
        for number, name in enumerate(names):
            one = behind.one(name, inputs=m.TensorSet(tensors=[large]))
            behind.submit(one, partition=number % 4)

        async def held() -> float:
            return await metric(gateway, "inferbus_submission_bytes")

        limit = submission_work.MAX_TENANT_BYTES
        await idle.until_async(held, lambda said: said >= limit, 30.0)
        # What one more fetch may bring: 2 MiB of each of the four partitions.
        assert await held() <= limit + (9 << 20)
        program.submit(program.one("mine"))
        assert (await program.ended("mine"))["mine"].outcome == m.OUTCOME_OK
        await asyncio.sleep(7.0)  # longer than the group's session
        assert limit <= await held() <= limit + (9 << 20)
        program.submit(program.one("still mine"))
        assert (await program.ended("still mine"))["still mine"].outcome == m.OUTCOME_OK
        assert behind.committed() == 0
        await idle.worker(echo)
        assert {one.outcome for one in (await behind.ended(*names)).values()} == {m.OUTCOME_OK}
        await behind.side.until(lambda: behind.committed() == 48)
        await idle.until_async(held, lambda said: said == 0)
    finally:
        await idle.stop()


async def test_a_tenant_over_its_rate_or_its_tokens_is_slowed_and_then_expired(
    program: Program, tmp_path: Path
) -> None:
    side = program.side
    other = Program(side)
    await other.start()
    worker = await side.worker(echo)
    owes = m.TokensSpent(tenant=other.tenant, minute=1 << 31, n_tokens=10**6)
    await side.write(topics.SPENT, 0, f"{other.tenant}/0/0", owes.SerializeToString())
    gateway = await side.gateway(
        INFERBUS_SUBMISSION_TENANTS=f"{program.tenant},{other.tenant}",
        INFERBUS_TENANT_REQUESTS_PER_S="0.01",
        INFERBUS_TENANT_BURST="3",
        INFERBUS_TENANT_TOKENS_PER_MIN="1000",
    )
    # Deadlines count from the append, and who was killed keeps its partitions for a session.
    await side.until(lambda: '"event": "assigned"' in gateway.log.read_text(), 30.0)
    names = [f"many-{number}" for number in range(12)]
    program.submit(*(program.one(name, timeout_ms=4000) for name in names))
    await side.until(lambda: worker.requests)
    async with deployed(side.bootstrap, tmp_path, manifest={"task": "text-embedding"}) as texts:
        counting = await texts.worker(echo)
        owed = other.one("owed", model=texts.model, timeout_ms=4000)
        other.submit(owed, other.one("one", timeout_ms=4000))
        found = await other.ended("one", "owed")
        assert found["one"].outcome == m.OUTCOME_OK, "what costs no tokens goes on"
        assert found["owed"].outcome == m.OUTCOME_EXPIRED
        assert not [one for one in counting.requests if one.client_request_id == "owed"]
    found = await program.ended(*names)
    outcomes = [one.outcome for one in found.values()]
    # The share of one gateway among those of other tests that are not forgotten yet.
    assert 1 <= outcomes.count(m.OUTCOME_OK) <= 4
    assert set(outcomes) == {m.OUTCOME_OK, m.OUTCOME_EXPIRED}
    await side.until(lambda: program.committed() == 1)


async def test_offsets_that_go_back_are_read_again_and_committed(program: Program) -> None:
    """The topic is made anew under a gateway that runs: its first record is the first again."""
    worker = await program.side.worker(echo)
    await program.gateway()
    for number in range(5):
        program.submit(program.one(f"before-{number}"))
    await program.ended(*(f"before-{number}" for number in range(5)))
    await program.side.until(lambda: program.committed() == 5)
    admin = AdminClient({"bootstrap.servers": program.side.bootstrap})
    admin.delete_topics([program.topic], operation_timeout=10)[program.topic].result(20)
    await program.start()
    program.submit(program.one("after"))
    assert (await program.ended("after"))["after"].outcome == m.OUTCOME_OK
    await program.side.until(lambda: program.committed() == 1, 30.0)
    assert [one.client_request_id for one in worker.requests].count("after") == 1
