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
from typing import Any

import msgspec
import structlog
from aiokafka.errors import KafkaError

from inferbus_gateway import errors
from inferbus_gateway.control.following import (
    GONE,
    LOOK_EVERY_S,
    Answered,
    ChangedError,
    Following,
    LeftError,
    Running,
    note,
    recall,
    unknown,
)
from inferbus_gateway.control.idempotency import Keys, KeysAwayError, Stored, part_of
from inferbus_gateway.control.trail import SETTLED_MS, Trail
from inferbus_gateway.hot.keyed import DEGRADED, REPLAYED, Keyed, Name, Place
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.replies import Replies
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel, watched
from inferbus_schemas.membership import Membership

_log = structlog.get_logger("once")

_KEYS_AWAY = "it cannot be known now whether this key's first request ran; try again"


class Once:
    """Runs keyed requests.

    Invariants: each is answered once; of all that are one request at most one is open here, and
    those that are not count as pending all the same; an id that may have been handed over is never
    given up for another within `SETTLED_MS`, nor while its gateway lives, nor because Valkey is
    away; a refusal before any hand-over leaves no key behind; who waits for another one's answer
    holds nothing any more a moment after its client has left.
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
        pending: Pending,
    ) -> None:
        self._instance = instance
        self._life = life
        self._keys = keys
        self._replies = replies
        self._pending = pending
        self._running: dict[Name, Running] = {}
        self._held: set[Keyed] = set()
        self._follow = Following(
            bootstrap,
            instance,
            life,
            keys=keys,
            fleet=fleet,
            inherit=self._inherit,
            spawn=self._spawn,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, asked: Keyed) -> None:
        """Take a request that was admitted; it is answered later."""
        self._held.add(asked)
        self._pending.hold(asked.name.tenant, asked.size_bytes)
        self._spawn(self._take(asked))

    def _let_go(self, asked: Keyed) -> None:
        if asked in self._held:
            self._held.remove(asked)
            self._pending.let_go(asked.name.tenant, asked.size_bytes)

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
        running: Running | None = None
        try:
            while (running := self._running.get(asked.name)) is not None:
                if await self._join(running, asked):
                    return
            running = self._running[asked.name] = Running()
            try:
                await self._lead(running, asked)
            except InferbusError as error:
                unknown = isinstance(error, errors.OutcomeUnknownError)
                running.tell(None if unknown else error)
                raise
            finally:
                running.tell(None)
                del self._running[asked.name]
        except LeftError:
            pass
        except errors.OutcomeUnknownError as error:
            asked.refuse(error, None if running is None else running.place)
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            asked.refuse(error)
        finally:
            self._let_go(asked)

    async def _join(self, running: Running, asked: Keyed) -> bool:
        """Wait for the one that is on its way here; tell whether this one is answered by it."""
        with contextlib.suppress(InferbusError):
            # Its deadline may stand in its body.
            asked.prepare(running.place)
        while not running.end.done():
            if asked.gone:
                raise LeftError
            if (left_s := asked.deadline_s - time.monotonic()) <= 0:
                asked.mark = running.mark
                raise unknown()
            await asyncio.wait({running.end}, timeout=min(left_s, LOOK_EVERY_S))
        end = running.end.result()
        if isinstance(end, InferbusError):
            raise end
        if end is None:
            return False
        recall(asked, end)
        return True

    async def _lead(self, running: Running, asked: Keyed) -> None:
        """See to the first of a key, and whatever comes to stand there meanwhile."""
        stored = await self._begin(running, asked, known=False)
        while stored is not None:
            if stored.body != asked.name.body_sha256.hex():
                raise errors.KeyReusedError("this key was sent with another request before")
            try:
                await self._follow(running, asked, stored)
            except ChangedError as changed:
                stored = changed.now or await self._begin(running, asked, known=True)
            else:
                return

    async def _begin(self, running: Running, asked: Keyed, *, known: bool) -> Stored | None:
        """Claim a key and run its request; return what stands there where another came first.

        `known`: there was one before, so that without Valkey nothing can be done.
        """
        refusal: InferbusError | None = None
        mine: Stored | None = None
        stored: Stored | None = None
        try:
            running.place = asked.prepare(None)
            mine = self._stored(asked.name, running.place)
        except InferbusError as error:
            refusal = error
        try:
            if mine is None:
                stored = await self._keys.get(asked.name)
            else:
                stored = await self._keys.claim(asked.name, mine)
        except KeysAwayError as away:
            if known:
                await self._keys.undo(asked.name, mine if away.asked else None, None)
                raise errors.BusUnavailableError(_KEYS_AWAY) from away
            asked.mark = running.mark = DEGRADED
            if not away.asked:
                mine = None
        if stored is not None:
            return stored
        if refusal is not None:
            raise refusal
        await self._run(running, asked, mine, None)
        return None

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
            since=self._replies.position,
            claimed_ms=_now_ms(),
        )

    async def _run(
        self, running: Running, asked: Keyed, mine: Stored | None, before: Stored | None
    ) -> None:
        """Put a prepared request on the bus and answer it.

        `mine` is what stands under the key, or may come to; `before` what is to stand there again
        where the request is refused.
        """
        ended: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()

        def then(entry: Entry) -> None:
            if not ended.done():
                ended.set_result(entry)

        self._let_go(asked)
        try:
            asked.open(then)
        except Exception:
            await self._keys.undo(asked.name, mine, before)
            raise
        entry = await ended
        waiter = entry.waiter
        if waiter.prediction is not None:
            request = entry.request
            place = Place(entry.id, request.reply_partition, request.version, entry.pool)
            if before is not None:
                asked.mark = REPLAYED
            asked.ended(entry)
            running.tell(Answered(place, waiter.prediction, waiter.offset))
            await note(self._keys, asked.name, mine, waiter.offset)
            return
        if not isinstance(waiter.error, errors.OutcomeUnknownError):
            await self._keys.undo(asked.name, mine, before)
            running.tell(waiter.error)
        asked.ended(entry)

    async def _inherit(self, running: Running, asked: Keyed, stored: Stored, trail: Trail) -> None:
        """Go on with a request whose gateway is gone and that has no record.

        Raises:
            KeysAwayError: Valkey does not answer; ask again.
            ChangedError: somebody else did.
        """
        now_ms = _now_ms()
        young = now_ms - stored.claimed_ms < SETTLED_MS
        if young:
            mine = msgspec.structs.replace(
                stored, gateway=self._instance, life=self._life, claimed_ms=now_ms
            )
        elif trail.cut:
            raise errors.ResultNotRetainedError(GONE)
        else:
            running.place = asked.prepare(None)
            mine = self._stored(asked.name, running.place)
        try:
            if not await self._keys.swap(asked.name, stored, mine):
                raise ChangedError(await self._keys.get(asked.name))
        except KeysAwayError as away:
            running.place = asked.prepare(stored.place)
            await self._keys.undo(asked.name, mine if away.asked else None, stored)
            raise
        if not young:
            await self._run(running, asked, mine, None)
            return
        feeding = asyncio.create_task(self._feed(trail), name="once-feed")
        try:
            await self._run(running, asked, mine, stored)
        finally:
            await cancel(feeding)

    async def _feed(self, trail: Trail) -> None:
        """Let this gateway hear the records of a partition that is not its own."""
        while True:
            try:
                found = await trail.read()
            except KafkaError as error:
                _log.warning("answer_not_read", error=repr(error))
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                self._replies.apply((record for record, _ in found), time.monotonic())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
