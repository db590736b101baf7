"""Predictions as workers write them, for tests of who reads them.

In: a seed. Out: `Prediction` messages with true digests, and a producer that puts them on a topic.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

from aiokafka import AIOKafkaProducer

from inferbus_schemas import envelope, ids, tensors, topics
from inferbus_schemas import messages as m


def prediction(
    rng: random.Random,
    unix_ms: int,
    *,
    outcome: m.Outcome = m.OUTCOME_OK,
    payload_bytes: int = 240,
    **fields: object,
) -> m.Prediction:
    """Return a prediction with an id of that time; `fields` replace what it would say."""
    inputs = m.TensorSet(tensors=[_tensor("x", rng, payload_bytes)]).SerializeToString()
    answered = [_tensor("y", rng, 8)]
    made = m.Prediction(
        id=ids.uuid7(unix_ms, rng.getrandbits(80)),
        attempt=1,
        outcome=outcome,
        tenant="acme",
        model="breast-cancer",
        version=3,
        version_sha256=hashlib.sha256(b"3").digest(),
        inputs=inputs,
        input_sha256=hashlib.sha256(inputs).digest(),
        served_by="worker-0",
        batch_id=rng.randbytes(16),
        batch_row=1,
        batch_size=4,
        queue_us=rng.randrange(5000),
        engine_us=rng.randrange(5000),
        latency_us=rng.randrange(20000),
    )
    if outcome == m.OUTCOME_OK:
        made.outputs = m.TensorSet(tensors=answered).SerializeToString()
        made.output_sha256 = tensors.output_sha256(answered)
    else:
        made.error_code = m.outcome_name(outcome)
        made.error_message = "it did not end well"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _tensor(name: str, rng: random.Random, n_bytes: int) -> m.Tensor:
    return m.Tensor(name=name, datatype="UINT8", shape=[1, n_bytes], data=rng.randbytes(n_bytes))


def headers(made: m.Prediction) -> list[tuple[str, bytes]]:
    """Return the envelope of a prediction."""
    return envelope.headers(
        topics.topic(topics.PREDICTIONS).ce_type,
        "/inferbus/worker/test",
        f"{ids.text(made.id)}.{made.attempt}",
        made.traceparent,
    )


async def produce(
    bootstrap: str, topic: str, records: Iterable[tuple[int, m.Prediction | bytes]]
) -> list[tuple[int, int]]:
    """Write (partition, prediction or raw value) pairs in order; return (partition, offset)s."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, max_batch_size=1 << 20,
        linger_ms=5, max_request_size=8 << 20,
    )  # fmt: skip
    await producer.start()
    acks = []
    try:
        for partition, each in records:
            raw = each if isinstance(each, bytes) else each.SerializeToString()
            around = [] if isinstance(each, bytes) else headers(each)
            key = None if isinstance(each, bytes) else each.model.encode()
            acks.append(
                await producer.send(topic, raw, key=key, partition=partition, headers=around)
            )
        await producer.flush()
    finally:
        await producer.stop()
    return [(ack.result().partition, ack.result().offset) for ack in acks]


def mixture(
    rng: random.Random,
    unix_ms: int,
    count: int,
    partitions: Sequence[int],
    *,
    duplicate: float = 0.02,
    attempt_failed: float = 0.02,
    with_nul: float = 0.002,
    garbage: float = 0.002,
    tenant: str = "acme",
) -> tuple[list[tuple[int, m.Prediction | bytes]], set[bytes]]:
    """Return records for partitions and the ids that must have a row.

    Duplicates repeat an earlier id of the same partition with another outcome, so that a log that
    takes the second one differs.
    """
    out: list[tuple[int, m.Prediction | bytes]] = []
    wanted: set[bytes] = set()
    earlier: dict[int, list[m.Prediction]] = {}
    for n in range(count):
        partition = rng.choice(partitions)
        before = earlier.setdefault(partition, [])
        dice = rng.random()
        if before and dice < duplicate:
            late = prediction(rng, unix_ms, outcome=m.OUTCOME_DEADLINE_EXCEEDED, tenant=tenant)
            late.id = rng.choice(before).id
            out.append((partition, late))
            continue
        dice -= duplicate
        if dice < attempt_failed:
            lost = prediction(rng, unix_ms, outcome=m.OUTCOME_ATTEMPT_FAILED, tenant=tenant)
            out.append((partition, lost))
            continue
        dice -= attempt_failed
        if dice < garbage:
            out.append((partition, rng.randbytes(40) + b"\xff"))
            continue
        dice -= garbage
        made = prediction(rng, unix_ms + n // 50, tenant=tenant)
        if dice < with_nul:
            made.client_request_id = "a\x00b"
        before.append(made)
        wanted.add(made.id)
        out.append((partition, made))
    return out, wanted
