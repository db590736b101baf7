"""A worker process on real Kafka: frames in, records out; deaths stand in test_worker_faults."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from inferbus_dev.ports import free_port
from inferbus_schemas import envelope, tensors, topics
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from tests.support import onnx_graphs
from tests.support.sample_models import model_folder
from tests.support.worker_side import Side, golden_request, request, tensor_set
from tests.worker.deployed_models import busy, committed, deployed, doubled, letters, number

pytestmark = pytest.mark.slow


async def test_three_real_models_answer_what_the_original_libraries_say(side: Side) -> None:
    models = {
        name: await deployed(side, model_folder(name))
        for name in ("breast-cancer", "digits", "minilm")
    }
    side.spawn()
    asked = []
    for model, manifest in models.values():
        inbox = await side.inbox_of(model, 1)
        asked += [
            (request(model, 1, golden_request(golden)), golden, manifest)
            for golden in manifest.golden
        ]
    (lease,) = side.fleet.workers(side.pool)
    memory = {one.model: one.memory_bytes for one in lease.beat.worker.residents}
    assert memory.keys() == {model for model, _ in models.values()}
    assert min(memory.values()) > 1 << 20, "a beat does not say what an engine takes"
    await side.send(inbox, *(one for one, _, _ in asked))
    for one, golden, manifest in asked:
        said = await side.answer(one.id)
        assert said.outcome == m.OUTCOME_OK, said
        assert (said.model, said.version, said.attempt) == (one.model, 1, 1)
        assert said.version_sha256.hex() == manifests.version_sha256(manifest)
        assert said.inputs == one.tensors
        assert said.engine_us > 0
        assert said.latency_us >= said.engine_us
        out = m.TensorSet.FromString(said.outputs)
        assert said.output_sha256 == tensors.output_sha256(out.tensors)
        for have, want in zip(out.tensors, golden.outputs, strict=True):
            kind = {"FP32": np.float32, "INT64": np.int64}[have.datatype]
            values = np.frombuffer(have.data, kind)
            np.testing.assert_allclose(values, np.array(want.data), atol=golden.tolerance)
    record = side.predictions[0][0]
    assert record.key == side.predictions[0][1].model.encode()
    envelope.check(record.headers, topics.topic(topics.PREDICTIONS).ce_type)
    assert len(record.headers) == 5


async def test_requests_of_a_poll_share_batches(side: Side, tmp_path: Path) -> None:
    model = await busy(side, tmp_path)

    def slow(n_rows: int, **fields: object) -> m.Request:
        values = np.full(n_rows, 300_000, np.int64)
        raw = tensor_set(("n", "INT64", values.shape, values.tobytes()))
        return request(model, 1, raw, **fields)

    side.spawn()
    inbox = await side.inbox_of(model, 1)
    first = slow(1)
    await side.send(inbox, first)
    many = [number(model, value) for value in range(40)]
    for at in range(0, 40, 10):
        await side.send(inbox, *many[at : at + 10])
    answers = [await side.answer(one.id) for one in many]
    assert [doubled(said) for said in answers] == [[2 * value] for value in range(40)]
    batches: dict[bytes, set[int]] = {}
    for said in answers:
        rows = batches.setdefault(said.batch_id, set())
        assert said.batch_row not in rows
        assert said.batch_row < said.batch_size <= 16
        rows.add(said.batch_row)
    assert len(batches) < 10
    # More rows than a batch run in pieces, and what came with them goes between two.
    large, small = slow(40), number(model, 7)
    await side.send(inbox, large, small)
    assert doubled(await side.answer(large.id)) == [600_000] * 40
    assert doubled(await side.answer(small.id)) == [14]
    ended = [said.id for _, said in side.predictions]
    assert ended.index(small.id) < ended.index(large.id)
    # Two hundred pieces take far longer than they have: the pieces end there, and others go on.
    endless, small = slow(3200, ttl_ms=1500), number(model, 8)
    await side.send(inbox, endless, small)
    assert doubled(await side.answer(small.id)) == [16]
    assert (await side.answer(endless.id)).outcome == m.OUTCOME_EXPIRED


async def test_what_cannot_run_gets_its_own_record(side: Side) -> None:
    model, manifest = await deployed(side, model_folder("breast-cancer"))
    side.spawn()
    inbox = await side.inbox_of(model, 1)
    good = golden_request(manifest.golden[0])
    wrong = tensor_set(("features", "FP32", (1, 3), bytes(12)))
    expect = {
        "expired": (request(model, 1, good, ttl_ms=0), m.OUTCOME_EXPIRED),
        "not held": (request(model, 7, good, attempt=2), m.OUTCOME_ATTEMPT_FAILED),
        "not held, last": (request(model, 7, good, may_retry=False), m.OUTCOME_FAILED),
        "wrong shape": (request(model, 1, wrong), m.OUTCOME_INVALID_INPUT),
        "no such output": (request(model, 1, good, outputs=["p"]), m.OUTCOME_INVALID_INPUT),
        "one output": (request(model, 1, good, outputs=["probabilities"]), m.OUTCOME_OK),
    }
    await side.send(inbox, *(one for one, _ in expect.values()))
    said = {name: await side.answer(one.id) for name, (one, _) in expect.items()}
    assert {name: one.outcome for name, one in said.items()} == {
        name: outcome for name, (_, outcome) in expect.items()
    }
    assert said["not held"].attempt == 2
    assert said["not held"].error_code == "version_not_held"
    assert "[-1, 30]" in said["wrong shape"].error_message
    out = m.TensorSet.FromString(said["one output"].outputs)
    assert [one.name for one in out.tensors] == ["probabilities"]
    assert all(one.outputs == b"" for one in said.values() if one.outcome != m.OUTCOME_OK)


async def test_a_redelivered_request_writes_nothing_new(side: Side, tmp_path: Path) -> None:
    model = await busy(side, tmp_path)
    side.spawn()
    inbox = await side.inbox_of(model, 1)
    once, other = number(model, 1), number(model, 2)
    await side.send(inbox, once)
    await side.answer(once.id)
    await asyncio.sleep(0.2)
    again = m.Request()
    again.CopyFrom(once)
    again.attempt = 2
    await side.send(inbox, again, other)
    await side.answer(other.id)
    await asyncio.sleep(0.3)
    assert len(side.answers(once.id)) == 1


async def test_unreadable_records_become_dead_letters_and_block_nothing(
    side: Side, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    side.spawn()
    inbox = await side.inbox_of(model, 1)
    offset = await side.send(inbox, raw=b"\xff\xff\xff no frame")
    nameless = number(model, 1, id=b"short")
    await side.send(inbox, nameless)
    after = number(model, 4)
    await side.send(inbox, after)
    assert doubled(await side.answer(after.id)) == [8]
    found = await letters(side, 2)
    head = dict(found[0].headers)
    assert found[0].value == b"\xff\xff\xff no frame"
    assert head["dlq_offset"] == str(offset).encode()
    assert await committed(side, inbox) == offset + 3


async def test_a_drained_worker_releases_its_inbox_with_the_end_that_it_read(
    side: Side, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    worker = side.spawn()
    inbox = await side.inbox_of(model, 1)
    slow = number(model, 300_000)
    end = await side.send(inbox, slow) + 1
    code = await asyncio.to_thread(worker.stop)
    assert code == 0
    assert doubled(await side.answer(slow.id)) == [600_000]
    lease = await side.until(
        lambda: (
            (found := side.fleet.lease(side.pool, inbox))
            and found.state == m.STATE_RELEASED
            and found
        )
    )
    assert lease.end_offset == end
    assert await committed(side, inbox) == end
    assert worker.engines() == []


async def test_versions_come_and_go_with_desired_state(side: Side, tmp_path: Path) -> None:
    model, manifest = await deployed(side, onnx_graphs.busy_folder(tmp_path / "busy"))
    side.spawn()
    inbox = await side.inbox_of(model, 1)
    second = side.publish_files(model_folder("breast-cancer"))
    await side.register(model, 2, second)
    await side.deploy(model, [1, 2], generation=time.time_ns())
    assert await side.inbox_of(model, 2) == inbox
    assert await side.inbox_of(model, 1) == inbox
    third = time.time_ns()
    await side.deploy(model, [2], generation=third)
    # A gateway that still acts on the older generation may yet ask for version 1.
    await side.beat_as_gateway(model, acts_on=third - 1, pinned=[2])
    await asyncio.sleep(1.5)
    assert side.fleet.holders(side.pool, model, 1)
    await side.beat_as_gateway(model, acts_on=third, pinned=[2])
    await side.until(lambda: not side.fleet.holders(side.pool, model, 1))
    gone = number(model, 1)
    await side.send(inbox, gone)
    assert (await side.answer(gone.id)).error_code == "version_not_held"
    kept = request(model, 2, golden_request(second.golden[0]))
    await side.send(inbox, kept)
    assert (await side.answer(kept.id)).outcome == m.OUTCOME_OK
    assert manifest.model == "test"


async def test_a_worker_with_nothing_to_hold_joins_and_is_ready(side: Side) -> None:
    port = free_port()
    worker = side.spawn(INFERBUS_METRICS_PORT=str(port))
    await side.until(lambda: side.fleet.workers(side.pool))

    async def get(path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        raw = (await reader.read()).decode()
        writer.close()
        return int(raw.split()[1]), raw

    async with asyncio.timeout(10):
        while (await get("/readyz"))[0] != 200:  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.05)
    assert (await get("/livez"))[0] == 200
    assert "inferbus_backlog_rows 0.0" in (await get("/metrics"))[1]
    assert await asyncio.to_thread(worker.stop) == 0
    key = f"worker/{worker.instance}"
    await side.until(lambda: side.fleet.member(key) is None)
    assert not side.fleet.workers(side.pool)
