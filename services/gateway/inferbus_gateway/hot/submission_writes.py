"""What becomes of submissions: frames, records of what cannot run, dead letters.

In: drafts that are full or due, requests that end here, records that nobody can read. Out: each on
the bus, however often that has to be tried; then its work is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from aiokafka.errors import KafkaError

from inferbus_gateway.hot.replies import terminal
from inferbus_gateway.hot.submission_work import LETTER_BYTES, Draft, Work
from inferbus_gateway.hot.submitted import Submitted, UnreadableSubmissionError
from inferbus_kit.consume import Record
from inferbus_kit.dlq import DeadLetters
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import Fail, watched
from inferbus_kit.produce import Delivery, Producer
from inferbus_schemas import envelope, ids, topics
from inferbus_schemas import messages as m

_log = structlog.get_logger("submissions")

_RETRY_S = 0.5


class SubmissionWrites:
    """Writes what submissions come to.

    Invariant: work is done only once Kafka has acknowledged what it came to; until then it is tried
    again, since the ids make twice as good as once.
    """

    def __init__(self, instance: str, producer: Producer, fail: Fail) -> None:
        self._instance = instance
        self._source = f"/inferbus/gateway/{instance}"
        self._producer = producer
        self._fail = fail
        self._letters: dict[str, DeadLetters] = {}
        """Of each topic its own, so that no tenant's wait for another's."""
        self._predictions = topics.topic(topics.PREDICTIONS)
        self._n_frames = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def frame(self, draft: Draft, now_ms: float) -> None:
        """Write a frame into its inbox."""
        value = draft.frame(self._instance, now_ms)
        topic = topics.topic(topics.REQUESTS, draft.lease.pool)
        self._n_frames += 1
        head = envelope.headers(
            topic.ce_type,
            self._source,
            f"{self._instance}/s{self._n_frames}",
            draft.members[0][1].request.traceparent,
        )
        self._spawn(
            self._until_written(
                lambda: self._producer.send(topic.name, draft.lease.inbox, value, headers=head),
                [work for work, _ in draft.members],
            )
        )

    def record(self, work: Work, one: Submitted, outcome: m.Outcome, error: InferbusError) -> None:
        """Write the record of a request that no worker gets."""
        said = terminal(one.request, 1, outcome, error.code, str(error), self._instance)
        ce_id = f"{ids.text(said.id)}/1/gateway"
        head = envelope.headers(self._predictions.ce_type, self._source, ce_id, said.traceparent)
        value, key = said.SerializeToString(), said.model.encode()
        partition = one.request.reply_partition
        self._spawn(
            self._until_written(
                lambda: self._producer.send(
                    self._predictions.name, partition, value, key=key, headers=head
                ),
                [work],
            )
        )

    def letter(self, work: Work, record: Record, error: UnreadableSubmissionError) -> None:
        """Write the dead letter of a record that cannot be read."""
        work.hold(LETTER_BYTES)
        self._spawn(self._until_buried(work, record, error))

    async def settle(self, timeout_s: float) -> None:
        """Wait for what is on its way, for so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _until_written(
        self, send: Callable[[], Awaitable[Delivery]], works: list[Work]
    ) -> None:
        async def acknowledged() -> None:
            await (await send())

        await _insist(acknowledged, "submission_not_passed_on")
        for work in works:
            work.done_one()

    async def _until_buried(
        self, work: Work, record: Record, error: UnreadableSubmissionError
    ) -> None:
        letters = self._letters.get(record.topic)
        if letters is None:
            letters = self._letters[record.topic] = DeadLetters(self._producer, self._instance)
        try:
            # Who has the partition now reads the record again, and tells of it.
            await _insist(
                lambda: letters.put(record, error, still=lambda: not work.part.revoked),
                "dead_letter_failed",
            )
        except Exception:  # noqa: BLE001 -- whatever a program wrote, it ends no gateway
            _log.exception("dead_letter_given_up", topic=record.topic, offset=record.offset)
        work.done_one()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = watched(asyncio.get_running_loop().create_task(work, name="submission"), self._fail)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _insist(attempt: Callable[[], Awaitable[None]], warning: str) -> None:
    """Try until it is done."""
    while True:
        try:
            await attempt()
        except (InferbusError, KafkaError) as error:
            _log.warning(warning, error=repr(error))
            await asyncio.sleep(_RETRY_S)
        else:
            return
