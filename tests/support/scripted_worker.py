"""A worker that answers as its test says, and what it is asked.

In: the requests of its inbox. Out: records that a script makes of each.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from inferbus_kit.consume import PartitionReader
from inferbus_schemas import ids, membership, tensors, topics
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m

if TYPE_CHECKING:
    from tests.support.gateway_side import GatewaySide

Script = Callable[[m.Request], Sequence[m.Prediction]]
"""Makes the records that answer a request."""


def doubler() -> manifests.Signature:
    """Return a signature of one FP32 input and one FP32 output of three columns."""
    return manifests.Signature(
        inputs=(manifests.TensorSpec("x", "FP32", (-1, 3)),),
        outputs=(manifests.TensorSpec("y", "FP32", (-1, 3)),),
    )


def rows(*data: Sequence[float], **more: Any) -> dict[str, Any]:
    """Return the body of a request for `doubler`."""
    flat = [value for row in data for value in row]
    one = {"name": "x", "datatype": "FP32", "shape": [len(data), 3], "data": flat}
    return {"inputs": [one], **more}


def prediction(
    request: m.Request, outcome: m.Outcome = m.OUTCOME_OK, **fields: Any
) -> m.Prediction:
    """Return the record that answers a request; an OK one gives the inputs back as `y`."""
    said = m.Prediction(
        id=request.id,
        attempt=request.attempt,
        outcome=outcome,
        tenant=request.tenant,
        model=request.model,
        version=request.version,
        served_by="scripted",
        client_request_id=request.client_request_id,
        **fields,
    )
    if outcome == m.OUTCOME_OK:
        given = m.TensorSet.FromString(request.tensors).tensors
        out = [
            m.Tensor(name="y", datatype=one.datatype, shape=one.shape, data=one.data)
            for one in given
        ]
        said.outputs = m.TensorSet(tensors=out).SerializeToString()
        said.output_sha256 = tensors.output_sha256(out)
    return said


def echo(request: m.Request) -> list[m.Prediction]:
    """Give the inputs back."""
    return [prediction(request)]


def silence(_request: m.Request) -> list[m.Prediction]:
    """Never answer."""
    return []


def told(outcome: m.Outcome) -> Script:
    """Return the script of a worker that ends each request so."""
    return lambda request: [prediction(request, outcome, error_message="told so")]


class ScriptedWorker:
    """Owns an inbox, says that it is READY, and answers by a script.

    Invariants: it beats four times a second until `stop`; `frames` and `requests` hold all that it
    read; what the script returns is written in that order to the request's reply partition.
    """

    def __init__(self, side: GatewaySide, inbox: int, script: Script) -> None:
        self._side = side
        self.inbox = inbox
        self.script = script
        self.frames: list[m.RequestFrame] = []
        self.requests: list[m.Request] = []
        self.epoch = 1
        self.state = m.STATE_ACTIVE
        self.end_offset = 0
        self.backlog_rows = 0
        self._life = secrets.randbits(60)
        self._tasks: list[asyncio.Task[None]] = []
        self._reader: PartitionReader | None = None

    async def start(self) -> None:
        topic = topics.topic(topics.REQUESTS, self._side.pool).name
        self._reader = PartitionReader(
            self._side.bootstrap, topic, self.inbox, client_id="scripted", start="earliest"
        )
        await self._reader.start()
        await self.beat()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._read())]

    async def stop(self) -> None:
        """Fall silent, as a killed worker does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._reader is not None:
            await self._reader.stop()

    async def release(self, end_offset: int) -> None:
        """Give the inbox up, read up to `end_offset`."""
        self.state, self.end_offset = m.STATE_RELEASED, end_offset
        await self.beat()

    async def beat(self) -> None:
        side = self._side
        resident = m.Resident(
            model=side.model, version=side.version, readiness=m.READINESS_READY, generation=1
        )
        said = m.Heartbeat(
            instance=f"scripted-{self.inbox}",
            state=self.state,
            life=self._life,
            worker=m.WorkerBeat(
                pool=side.pool,
                inbox=self.inbox,
                epoch=self.epoch,
                end_offset=self.end_offset,
                backlog_rows=self.backlog_rows,
                residents=[resident],
            ),
        )
        key = membership.inbox_key(side.pool, self.inbox)
        await side.write(topics.HEARTBEATS, 0, key, said.SerializeToString())

    async def answer(self, *said: m.Prediction, partition: int) -> int:
        """Write records to a reply partition; return the last one's offset."""
        offset = -1
        for one in said:
            name, raw = f"{ids.text(one.id)}/{one.attempt}", one.SerializeToString()
            offset = await self._side.write(topics.PREDICTIONS, partition, one.model, raw, name)
        return offset

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            await self.beat()

    async def _read(self) -> None:
        assert self._reader is not None
        while True:
            for record in await self._reader.read(timeout_ms=100):
                frame = m.RequestFrame.FromString(record.value or b"")
                self.frames.append(frame)
                for request in frame.requests:
                    self.requests.append(request)
                    await self.answer(*self.script(request), partition=request.reply_partition)
