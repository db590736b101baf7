"""A tenant's program over Kafka, and what a gateway says of the submissions that it holds."""

from __future__ import annotations

import secrets
import struct
from typing import Any

import httpx
from confluent_kafka import Consumer, Producer

from inferbus_dev.topics import create_topics
from inferbus_gateway.hot import submissions
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from tests.support.gateway_process import GatewayProcess
from tests.support.gateway_side import GatewaySide


class Program:
    """A tenant's program: writes with librdkafka to a topic of this test alone."""

    def __init__(self, side: GatewaySide) -> None:
        self.tenant = f"t{secrets.token_hex(4)}"
        self.side = side
        self.topic = topics.topic(topics.SUBMISSIONS).for_tenant(self.tenant).name
        self._producer = Producer(
            {"bootstrap.servers": side.bootstrap, "message.max.bytes": 4 << 20}
        )

    async def start(self) -> None:
        wanted = topics.to_create((), tenants=(self.tenant,))
        await create_topics(
            self.side.bootstrap,
            [
                (one.name, one.partitions, one.replication, one.config)
                for one in wanted
                if self.tenant in one.name
            ],
        )

    def one(self, name: str, **fields: Any) -> m.SubmittedRequest:
        row = m.Tensor(name="x", datatype="FP32", shape=[1, 3], data=struct.pack("<3f", 1, 2, 3))
        said = {"model": self.side.model, "inputs": m.TensorSet(tensors=[row]), **fields}
        return m.SubmittedRequest(client_request_id=name, **said)

    def write(self, value: bytes, *, partition: int = 0, **headers: str) -> None:
        head: list[tuple[str, str | bytes | None]] = [
            (key.replace("_", "-"), said) for key, said in headers.items()
        ]
        self._producer.produce(self.topic, value, partition=partition, headers=head)
        assert self._producer.flush(10) == 0

    def flood(self, value: bytes, count: int) -> None:
        """Write a record so many times."""
        for _ in range(count):
            self._producer.produce(self.topic, value, partition=0)
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def submit(self, *requests: m.SubmittedRequest, partition: int = 0) -> None:
        self.write(m.Submission(requests=requests).SerializeToString(), partition=partition)

    async def gateway(self) -> GatewayProcess:
        return await self.side.gateway(INFERBUS_SUBMISSION_TENANTS=self.tenant)

    async def ended(self, *names: str) -> dict[str, m.Prediction]:
        """Wait for terminal records and return them by the program's own ids."""

        def found() -> dict[str, m.Prediction]:
            said = {one.client_request_id: one for _, one in self.side.all_predictions}
            return {name: said[name] for name in names if name in said}

        await self.side.until(lambda: len(found()) == len(names), 60.0)
        return found()

    def committed(self) -> int:
        """Return the sum of the group's committed offsets, as librdkafka reads them."""
        consumer = Consumer(
            {"bootstrap.servers": self.side.bootstrap, "group.id": submissions.GROUP}
        )
        try:
            from confluent_kafka import TopicPartition as Place  # noqa: PLC0415 -- two of one name

            places = consumer.committed([Place(self.topic, number) for number in range(4)], 10)
            return sum(max(0, place.offset) for place in places)
        finally:
            consumer.close()


async def metric(gateway: GatewayProcess, name: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics")).text
    (line,) = [one for one in text.splitlines() if one.startswith(f"{name} ")]
    return float(line.split()[1])
