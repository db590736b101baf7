"""Programs on Kafka: submissions, kcat and the CloudEvents SDK, on a running stack."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import numpy as np
import pytest
from confluent_kafka import Consumer

from inferbus_dev.stack import Stack
from inferbus_gateway.control.owed import Owed
from inferbus_kit.consume import Record, StateReader
from inferbus_models import smollm2
from inferbus_schemas import messages as m
from inferbus_schemas import tensors, topics
from tests.support import clients, stacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="session"),
]

PREDICTIONS = topics.topic(topics.PREDICTIONS)
SUBMISSIONS = topics.topic(topics.SUBMISSIONS, tenant="local")


async def _run(*argv: str, given: bytes = b"") -> str:
    done = await clients.call(*argv, given=given)
    assert done.code == 0, done.out + done.err
    return done.out


def _features() -> np.ndarray[Any, np.dtype[np.float32]]:
    (inputs,) = stacks.sample_inputs("breast-cancer")[:1]
    return np.asarray(inputs[0]["data"], dtype="<f4")[:30]


def _tensor() -> dict[str, Any]:
    return {"name": "features", "datatype": "FP32", "shape": [1, 30]}


def _request(name: str, model: str, tensor: dict[str, Any], data: bytes) -> dict[str, Any]:
    given = {**tensor, "data": base64.b64encode(data).decode()}
    return {"model": model, "client_request_id": name, "inputs": {"tensors": [given]}}


def _submission(name: str) -> str:
    request = _request(name, "breast-cancer", _tensor(), _features().tobytes())
    return json.dumps({"requests": [request]})


async def _produce(stack: Stack, submission: str) -> None:
    """Submit from a process of its own."""
    program = (
        "import sys; from confluent_kafka import Producer; "
        "p = Producer({'bootstrap.servers': sys.argv[1]}); "
        "p.produce(sys.argv[2], sys.stdin.read(), headers={'content-type': 'application/json'}); "
        "sys.exit(p.flush(10))"
    )
    given = submission.encode()
    await _run(sys.executable, "-c", program, stack.kafka, SUBMISSIONS.name, given=given)


async def _record_of(stack: Stack, name: str) -> tuple[Any, m.Prediction]:
    """Wait for a prediction, read with librdkafka."""
    consumer = Consumer(
        {
            "bootstrap.servers": stack.kafka,
            "group.id": f"test-{name}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([PREDICTIONS.name])
    try:
        async with asyncio.timeout(60):
            while True:
                record = await asyncio.to_thread(consumer.poll, 1.0)
                if record is not None and not record.error():
                    said = m.Prediction.FromString(record.value() or b"")
                    if said.client_request_id == name:
                        return record, said
    finally:
        await asyncio.to_thread(consumer.close)


async def test_a_submission_gets_the_answer_that_http_gets(stack: Stack) -> None:
    await _produce(stack, _submission("as-http"))
    _, said = await _record_of(stack, "as-http")
    body = {"inputs": [{**_tensor(), "data": _features().tolist()}]}
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{stack.http}/v2/models/breast-cancer/infer", json=body)
    assert answer.headers["x-inferbus-output-sha256"] == said.output_sha256.hex()
    await stacks.at_rest(stack)
    log = await asyncpg.connect(stack.postgres, ssl=False)
    rows = await log.fetch(
        "SELECT request_id, tenant, outcome FROM log.predictions WHERE client_request_id = $1",
        "as-http",
    )
    await log.close()
    assert [(row["request_id"].bytes, row["tenant"]) for row in rows] == [(said.id, "local")]


async def test_a_prediction_is_a_cloudevent_for_its_sdk(stack: Stack) -> None:
    await _produce(stack, _submission("as-event"))
    record, said = await _record_of(stack, "as-event")
    program = Path(__file__).parent / "programs" / "cloudevents_kafka.py"
    name = f"{uuid.UUID(bytes=said.id)}/1"
    shown = await _run(sys.executable, str(program), stack.kafka, PREDICTIONS.name, name)
    event = json.loads(shown)
    assert event["type"] == PREDICTIONS.ce_type
    assert event["source"].startswith("/inferbus/worker/")
    assert event["datacontenttype"] == "application/protobuf"
    assert event["data_sha256"] == hashlib.sha256(record.value()).hexdigest()


def _owed(records: list[Record]) -> int:
    """Return what the one tenant owes: of each key what was told last, and of a worker all keys."""
    last = {one.key: m.TokensSpent.FromString(one.value or b"") for one in records}
    return sum(one.n_tokens for one in last.values() if one.tenant == "local")


async def test_a_submission_to_a_language_model_owes_its_tokens(stack: Stack) -> None:
    """It answers as over HTTP, its record holds the usage, and every gateway hears of it."""
    spent: list[Record] = []
    reader = StateReader(
        stack.kafka,
        topics.topic(topics.SPENT).name,
        spent.append,
        client_id="test-spent",
        on_failure=pytest.fail,
    )
    await reader.start()
    try:
        before = _owed(spent)
        prompt = smollm2.prompt("What is the capital of Italy?")
        asked = [prompt.encode()]
        requests = [
            _request(
                name,
                "smollm2",
                {"name": "text_input", "datatype": "BYTES", "shape": [len(prompts)]},
                tensors.join_bytes(prompts),
            )
            for name, prompts in (("one-prompt", asked), ("two-prompts", asked * 2))
        ]
        await _produce(stack, json.dumps({"requests": requests}))
        _, said = await _record_of(stack, "one-prompt")
        (text,) = m.TensorSet.FromString(said.outputs).tensors
        assert (said.outcome, text.name) == (m.OUTCOME_OK, "text_output")
        assert tensors.split_bytes(text.data) == [b"The capital of Italy is Rome."]
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            body = {"model": "smollm2", "prompt": prompt, "temperature": 0}
            answer = await http.post(f"{stack.http}/v1/completions", json=body)
        used, usage = said.generated, answer.json()["usage"]
        assert used.prompt_tokens == usage["prompt_tokens"] > len(prompt.split())
        assert used.completion_tokens == usage["completion_tokens"] > 1
        _, refused = await _record_of(stack, "two-prompts")
        assert refused.outcome == m.OUTCOME_INVALID_INPUT
        assert not refused.HasField("generated"), "it has one prompt, as over infer"
        # Neither what was refused nor what came over HTTP is owed.
        n_tokens = used.prompt_tokens + used.completion_tokens
        async with asyncio.timeout(30):
            while _owed(spent) < before + n_tokens:  # noqa: ASYNC110 -- nothing else tells
                await asyncio.sleep(0.05)
    finally:
        await reader.stop()
    assert _owed(spent) == before + n_tokens
    for per_min, waits in ((n_tokens // 2, True), (1 << 40, False)):
        gateways = Owed(per_min)
        for record in spent:
            gateways.apply(record)
        assert gateways.waits("local", spent[-1].timestamp) is waits


@pytest.mark.skipif(bool(clients.NO_KCAT), reason=clients.NO_KCAT)
async def test_kcat_submits_and_reads(stack: Stack, tmp_path: Path) -> None:
    lines = tmp_path / "submissions.jsonl"
    lines.write_text("".join(_submission(f"kcat-{n}") + "\n" for n in range(3)))
    head = ("-b", stack.kafka, "-t", SUBMISSIONS.name, "-H", "content-type=application/json")
    await _run("kcat", "-P", *head, "-l", str(lines))
    for number in range(3):
        _, said = await _record_of(stack, f"kcat-{number}")
        assert said.outcome == m.OUTCOME_OK
    seen = await _run(
        "kcat", "-C", "-b", stack.kafka, "-t", PREDICTIONS.name, "-e", "-q", "-f", "%h\n"
    )
    assert f"ce_type={PREDICTIONS.ce_type}" in seen


async def test_topics_tail_shows_submissions_as_json(stack: Stack) -> None:
    await _produce(stack, _submission("tailed"))
    said = ("topics", "tail", "inference.submissions", "--json", "--from-beginning")
    shown = await stacks.cli(*said, "--count", "1", "--kafka", stack.kafka)
    assert SUBMISSIONS.name in shown
    assert json.loads(shown.splitlines()[0])
