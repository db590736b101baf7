"""Requests with an `Idempotency-Key`: each runs once, and is answered as often as it is asked.

In: keyed requests of any protocol. Out: the first of a key goes on the bus; the others are answered
from its record, wherever they come in. One whose gateway is gone goes on here, under the same id,
for the same version, in the same reply partition, so that it has one row.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from aiokafka.errors import KafkaError

from inferbus_gateway import errors
from inferbus_gateway.control.idempotency import Keys, KeysAwayError, Stored, part_of
from inferbus_gateway.control.trail import Trail
from inferbus_gateway.hot.keyed import DEGRADED, REPLAYED, Keyed, Name, Place
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.replies import Replies
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel, watched
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership
from inferbus_schemas.terminal import is_terminal

_log = structlog.get_logger("once")

YOUNG_MS = 900_000
"""Workers write nothing for frames older than this, so that an older request may have a new id."""
_MAX_READERS = 64
_LOOK_EVERY_S = 0.5
_GONE = "the answer that this key stands for is no longer kept"


@dataclass(frozen=True, slots=True)
class _Answered:
    """How a request ended: its record."""

    place: Place
    prediction: m.Prediction
    offset: int


@dataclass(slots=True)
class _Running:
    """A key that this gateway works on; `end` is None where nothing is known of its end."""

    end: asyncio.Future[_Answered | InferbusError | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def tell(self, end: _Answered | InferbusError | None) -> None:
        if not self.end.done():
            self.end.set_result(end)


class Once:
    """Runs keyed requests.

    Invariants: each is answered once; of all that are one request at most one is open here; an id
    that may have been handed over is never given up for another within `YOUNG_MS`, nor while its
    gateway lives; a refusal before any hand-over leaves no key behind.
    """

    def __init__(
        self,
        bootstrap: str,
        instance: str,
        life: int,
        *,
        keys: Keys,
        fleet: Membership,
        replies: Replies,
    ) -> None:
        self._bootstrap = bootstrap
        self._instance = instance
        self._life = life
        self._keys = keys
        self._fleet = fleet
        self._replies = replies
        self._running: dict[Name, _Running] = {}
        self._n_readers = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, asked: Keyed) -> None:
        """Take a request; it is answered later."""
        self._spawn(self._take(asked))

    async def stop(self) -> None:
        """Let what is answered be noted, for a moment, and close the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        for task in list(self._tasks):
            task.cancel()
        await self._keys.stop()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = watched(asyncio.get_running_loop().create_task(work, name="once"), None)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, asked: Keyed) -> None:
        try:
            while (running := self._running.get(asked.name)) is not None:
                if await self._join(running, asked):
                    return
            running = self._running[asked.name] = _Running()
            try:
                while not await self._try(running, asked):
                    pass
            except InferbusError as error:
                unknown = isinstance(error, errors.OutcomeUnknownError)
                running.tell(None if unknown else error)
                raise
            finally:
                running.tell(None)
                del self._running[asked.name]
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            asked.refuse(error)

    async def _join(self, running: _Running, asked: Keyed) -> bool:
        """Wait for the one that is on its way here; tell whether this one is answered by it."""
        left_s = max(0.0, asked.deadline_s - time.monotonic())
        try:
            end = await asyncio.wait_for(asyncio.shield(running.end), left_s)
        except TimeoutError:
            raise _unknown() from None
        if isinstance(end, InferbusError):
            raise end
        if end is None:
            return False
        self._recall(asked, end)
        return True

    def _recall(self, asked: Keyed, end: _Answered) -> None:
        asked.mark = REPLAYED
        asked.prepare(end.place)
        asked.recalled(end.prediction, end.offset)

    async def _try(self, running: _Running, asked: Keyed) -> bool:
        """See to the first of a key; False: what stands under the key has changed, begin again."""
        refusal: InferbusError | None = None
        mine: Stored | None = None
        try:
            mine = self._stored(asked.name, asked.prepare(None))
        except InferbusError as error:
            refusal = error
        try:
            if mine is None:
                stored = await self._keys.get(asked.name)
            else:
                stored = await self._keys.claim(asked.name, mine)
        except KeysAwayError:
            asked.mark, stored = DEGRADED, None
            if mine is not None:
                await self._run(running, asked, None, None)
                return True
        if stored is not None and stored != mine:
            if stored.body != asked.name.body_sha256.hex():
                raise errors.KeyReusedError("this key was sent with another request before")
            return await self._follow(running, asked, stored)
        if refusal is not None:
            raise refusal
        await self._run(running, asked, mine, None)
        return True

    def _stored(self, name: Name, place: Place) -> Stored:
        return Stored(
            key=part_of(name),
            body=name.body_sha256.hex(),
            id=place.id.hex(),
            partition=place.partition,
            version=place.version,
            pool=place.pool,
            gateway=self._instance,
            life=self._life,
        )

    async def _run(
        self, running: _Running, asked: Keyed, mine: Stored | None, before: Stored | None
    ) -> None:
        """Put a prepared request on the bus and answer it.

        Args:
            running: where others wait for its end.
            asked: the request.
            mine: what stands under the key; None where nobody knows.
            before: what stood there and is to stand again where the request is refused.
        """
        ended: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()

        def then(entry: Entry) -> None:
            if not ended.done():
                ended.set_result(entry)

        try:
            asked.open(then)
        except Exception:
            await self._undo(asked.name, mine, before)
            raise
        entry = await ended
        waiter = entry.waiter
        if waiter.prediction is not None:
            place = Place(
                entry.id, entry.request.reply_partition, entry.request.version, entry.pool
            )
            asked.ended(entry)
            running.tell(_Answered(place, waiter.prediction, waiter.offset))
            await self._note(asked.name, mine, waiter.offset)
            return
        if not isinstance(waiter.error, errors.OutcomeUnknownError):
            await self._undo(asked.name, mine, before)
            running.tell(waiter.error)
        asked.ended(entry)

    async def _undo(self, name: Name, mine: Stored | None, before: Stored | None) -> None:
        """Leave the key as it was before a request that Kafka never saw."""
        with contextlib.suppress(KeysAwayError):
            if mine is not None and before is None:
                await self._keys.drop(name, mine)
            elif mine is not None and before is not None:
                await self._keys.swap(name, mine, before)

    async def _note(self, name: Name, stored: Stored | None, offset: int) -> None:
        """Note where the answer stands, so that nobody need look for it."""
        if stored is not None and stored.offset < 0:
            with contextlib.suppress(KeysAwayError):
                await self._keys.swap(name, stored, msgspec.structs.replace(stored, offset=offset))

    async def _follow(self, running: _Running, asked: Keyed, stored: Stored) -> bool:
        """Answer from the record of an earlier request, or go on with it; False: begin again."""
        place = Place(bytes.fromhex(stored.id), stored.partition, stored.version, stored.pool)
        asked.mark = REPLAYED
        asked.prepare(place)
        if self._n_readers >= _MAX_READERS:
            raise errors.OverloadedError("too many answers are read again here; try again shortly")
        trail = Trail(self._bootstrap, f"{self._instance}-once", place, stored.offset)
        self._n_readers += 1
        try:
            await trail.start()
            return await self._read(running, asked, stored, trail)
        except (KafkaError, TimeoutError) as error:
            _log.warning("answer_not_read", error=repr(error))
            raise errors.BusUnavailableError("the answer cannot be read now; try again") from error
        finally:
            self._n_readers -= 1
            await trail.stop()

    async def _read(self, running: _Running, asked: Keyed, stored: Stored, trail: Trail) -> bool:
        look_s = 0.0
        while True:
            for record, said in await trail.read():
                if is_terminal(said.outcome):
                    asked.recalled(said, record.offset)
                    place = Place(said.id, stored.partition, stored.version, stored.pool)
                    running.tell(_Answered(place, said, record.offset))
                    await self._note(asked.name, stored, record.offset)
                    return True
            now_s = time.monotonic()
            if trail.caught_up and stored.offset >= 0:
                raise errors.ResultNotRetainedError(_GONE)
            if now_s >= asked.deadline_s:
                raise _unknown()
            if trail.caught_up and now_s >= look_s:
                look_s = now_s + _LOOK_EVERY_S
                with contextlib.suppress(KeysAwayError):
                    if await self._keys.get(asked.name) != stored:
                        return False
                    if not self._lives(stored):
                        return await self._inherit(running, asked, stored, trail)

    def _lives(self, stored: Stored) -> bool:
        """Tell whether the process that sees a request through still beats."""
        return any(
            (one.beat.instance, one.life) == (stored.gateway, stored.life)
            for one in self._fleet.gateways()
        )

    async def _inherit(self, running: _Running, asked: Keyed, stored: Stored, trail: Trail) -> bool:
        """Go on with a request whose gateway is gone and that has no record.

        Raises:
            KeysAwayError: Valkey does not answer; ask again.
        """
        young = time.time() * 1000 - ids.unix_ms(bytes.fromhex(stored.id)) < YOUNG_MS
        if young:
            mine = msgspec.structs.replace(stored, gateway=self._instance, life=self._life)
        elif trail.cut:
            raise errors.ResultNotRetainedError(_GONE)
        else:
            mine = self._stored(asked.name, asked.prepare(None))
            asked.mark = ""
        if not await self._keys.swap(asked.name, stored, mine):
            return False
        if not young:
            await self._run(running, asked, mine, None)
            return True
        feeding = asyncio.create_task(self._feed(trail), name="once-feed")
        try:
            await self._run(running, asked, mine, stored)
        finally:
            await cancel(feeding)
        return True

    async def _feed(self, trail: Trail) -> None:
        """Let this gateway hear the records of a partition that is not its own."""
        while True:
            try:
                found = await trail.read()
            except KafkaError as error:
                _log.warning("answer_not_read", error=repr(error))
                await asyncio.sleep(_LOOK_EVERY_S)
            else:
                self._replies.apply((record for record, _ in found), time.monotonic())


def _unknown() -> InferbusError:
    return errors.OutcomeUnknownError(
        "the deadline passed and the first request with this key has not ended; ask again later"
    )
