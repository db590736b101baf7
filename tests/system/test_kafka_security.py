"""The whole platform on a broker with TLS, passwords and an authorizer, by the documented ACLs."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer

from inferbus_kit import kafka
from inferbus_kit.errors import StartupError
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from tests.support import stacks
from tests.support.secure_broker import SecureBroker, secure_broker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations" / "kafka-clients.md"
SUBMISSIONS = topics.topic(topics.SUBMISSIONS).for_tenant("acme").name
ANSWERS = topics.topic(topics.ANSWERS).for_tenant("acme")
THEIRS = topics.topic(topics.ANSWERS).for_tenant("globex")
PREDICTIONS = topics.topic(topics.PREDICTIONS)
REFUSED = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}


def _submission(name: str = "over-tls") -> bytes:
    (inputs,) = stacks.sample_inputs("breast-cancer")[:1]
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 30]}
    data = base64.b64encode(struct.pack("<30f", *inputs[0]["data"][:30])).decode()
    request = {
        "model": "breast-cancer",
        "client_request_id": name,
        "inputs": {"tensors": [{**tensor, "data": data}]},
    }
    return json.dumps({"requests": [request]}).encode()


async def _write(
    broker: SecureBroker, user: str, topic: str, value: bytes | None = None
) -> KafkaError | None:
    """Submit as a user; return why the broker refused it."""
    ended: list[KafkaError | None] = []

    def done(error: KafkaError | None, _record: Any) -> None:
        ended.append(error)

    producer = Producer({**broker.librdkafka(user), "message.timeout.ms": 20_000})
    headers: Any = {"content-type": "application/json"}
    producer.produce(topic, value or _submission(), headers=headers, on_delivery=done)
    assert await asyncio.to_thread(producer.flush, 30) == 0
    return ended[0]


async def _read(broker: SecureBroker, user: str, topic: str, group: str) -> Message | int:
    """Return a topic's first record as a user's program reads it, or why the broker refused."""
    settings = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({**broker.librdkafka(user), **settings})
    consumer.subscribe([topic])
    try:
        async with asyncio.timeout(60):
            while True:
                record = await asyncio.to_thread(consumer.poll, 1.0)
                error = None if record is None else record.error()
                if error is not None and error.code() in REFUSED:
                    return error.code()
                if record is not None and error is None:
                    return record
    finally:
        await asyncio.to_thread(consumer.close)


async def _read_all(
    broker: SecureBroker, user: str, topic: topics.Topic, group: str
) -> list[m.Prediction]:
    """Return all that a topic has as a user's program reads it."""
    settings: dict[str, Any] = {"group.id": group, "auto.offset.reset": "earliest"}
    settings |= {"enable.auto.commit": False, "enable.partition.eof": True}
    consumer = Consumer({**broker.librdkafka(user), **settings})
    consumer.subscribe([topic.name])
    found: list[m.Prediction] = []
    ended: set[int | None] = set()
    try:
        async with asyncio.timeout(60):
            while len(ended) < topic.partitions["one-machine"]:
                record = await asyncio.to_thread(consumer.poll, 1.0)
                error = None if record is None else record.error()
                if record is not None and error is None:
                    found.append(m.Prediction.FromString(record.value() or b""))
                elif record is not None and error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    ended.add(record.partition())
    finally:
        await asyncio.to_thread(consumer.close)
    return found


async def _logged(url: str, name: str = "over-tls") -> list[tuple[str, str]]:
    """Wait for the log's rows of the submission; return tenants and outcomes."""
    log = await asyncpg.connect(url, ssl=False)
    try:
        async with asyncio.timeout(60):
            while True:
                rows = await log.fetch(
                    "SELECT tenant, outcome FROM log.predictions WHERE client_request_id = $1",
                    name,
                )
                if rows:
                    return [(row["tenant"], row["outcome"]) for row in rows]
                await asyncio.sleep(0.2)
    finally:
        await log.close()


async def _acls_decide_who_may_read(broker: SecureBroker) -> None:
    """What a tenant has submitted does not let it read what all have been answered."""
    read = await _read_all(broker, "analytics", PREDICTIONS, "analytics.daily")
    said = {each.tenant: each for each in read}
    assert {each.tenant: each.client_request_id for each in read} == {
        "acme": "over-tls",
        "globex": "theirs",
    }

    assert await _write(broker, "acme-app", SUBMISSIONS, b"no submission") is None
    letters = topics.dead_letters(SUBMISSIONS)
    letter = await _read(broker, "acme-app", letters, "acme.letters")
    assert isinstance(letter, Message), letter
    assert letter.value() == b"no submission"

    # They are there, since their rows are.
    assert await _read_all(broker, "acme-app", ANSWERS, "acme.answers") == [said["acme"]]
    assert await _read_all(broker, "inferbus", THEIRS, "gateway.test") == [said["globex"]]
    forged = await _write(broker, "acme-app", ANSWERS.name)
    assert forged is not None
    assert forged.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED

    refused = {
        (user, topic, group): await _read(broker, user, topic, group)
        for user, topic, group in (
            ("acme-app", PREDICTIONS.name, "acme.daily"),
            ("acme-app", THEIRS.name, "acme.daily"),
            ("analytics", ANSWERS.name, "analytics.daily"),
            ("acme-app", ANSWERS.name, "analytics.daily"),
            ("acme-app", letters, "analytics.daily"),
            ("analytics", letters, "analytics.daily"),
        )
    }
    assert list(refused.values()) == [
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ], refused


async def test_acls_decide_who_may_write_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with secure_broker(tmp_path, ("inferbus", "acme-app", "analytics", "stranger")) as broker:
        assert await broker.allow(PAGE.read_text()) >= 10
        for name, value in broker.environment("inferbus").items():
            monkeypatch.setenv(name, value)
        kafka._security.cache_clear()
        try:
            for tenant in ("acme", "globex"):
                await stacks.cli("topics", "add-tenant", tenant, "--kafka", broker.bootstrap)
            env = {
                "INFERBUS_SUBMISSION_TENANTS": "local,acme,globex",
                "INFERBUS_ANSWER_TENANTS": "acme,globex",
            }
            async with stacks.running(env=env, kafka_bootstrap=broker.bootstrap) as stack:
                await stacks.push(stack, "breast-cancer")

                for topic in (SUBMISSIONS, SUBMISSIONS.replace("acme", "local")):
                    refused = await _write(broker, "stranger", topic)
                    assert refused is not None
                    assert refused.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
                refused = await _write(broker, "acme-app", SUBMISSIONS.replace("acme", "local"))
                assert refused is not None
                assert refused.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED

                assert await _write(broker, "acme-app", SUBMISSIONS) is None
                assert await _logged(stack.postgres) == [("acme", "ok")]
                globex = SUBMISSIONS.replace("acme", "globex")
                assert await _write(broker, "inferbus", globex, _submission("theirs")) is None
                assert await _logged(stack.postgres, "theirs") == [("globex", "ok")]
                await _acls_decide_who_may_read(broker)
        finally:
            kafka._security.cache_clear()


def test_half_a_name_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka._security.cache_clear()
    monkeypatch.setenv("INFERBUS_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(StartupError, match=r"^INFERBUS_KAFKA_SASL_PASSWORD: SASL needs it"):
        kafka.client_options("127.0.0.1:9092")
    monkeypatch.setenv("INFERBUS_KAFKA_SASL_USERNAME", "inferbus")
    monkeypatch.setenv("INFERBUS_KAFKA_SASL_PASSWORD", "not shown")
    monkeypatch.setenv("INFERBUS_KAFKA_CA_FILE", "no/such/file.pem")
    with pytest.raises(StartupError, match=r"^INFERBUS_KAFKA_CA_FILE") as said:
        kafka.client_options("127.0.0.1:9092")
    assert "not shown" not in str(said.value)
    monkeypatch.setenv("INFERBUS_KAFKA_SECURITY_PROTOCOL", "TLS")
    with pytest.raises(StartupError, match=r"^INFERBUS_KAFKA_SECURITY_PROTOCOL: "):
        kafka.client_options("127.0.0.1:9092")
