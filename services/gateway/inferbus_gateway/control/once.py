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
from inferbus_gateway.control.readers import Readers
from inferbus_gateway.control.trail import SETTLED_MS, Trail
from inferbus_gateway.hot.keyed import DEGRADED, REPLAYED, Keyed, Name, Place
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.replies import Replies
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel, watched
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership
from inferbus_schemas.terminal import is_terminal

_log = structlog.get_logger("once")

_LOOK_EVERY_S = 0.5
_GONE = "the answer that this key stands for is no longer kept"
_NOT_READ = "the answer cannot be read now; try again"
_KEYS_AWAY = "it cannot be known now whether this key's first request ran; try again"


@dataclass(frozen=True, slots=True)
class _Answered:
    """How a request ended: its record."""

    place: Place
    prediction: m.Prediction
    offset: int


@dataclass(slots=True)
class _Running:
    """A key that this gateway works on; `end` is None where nothing is known of its end.

    `mark` is `DEGRADED` where the key keeps nobody from running it again elsewhere.
    """

    end: asyncio.Future[_Answered | InferbusError | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    place: Place | None = None
    mark: str = ""

    def tell(self, end: _Answered | InferbusError | None) -> None:
        if not self.end.done():
            self.end.set_result(end)


class _ChangedError(Exception):
    """Something else stands under a key than what was followed: `now`, or nothing."""

    def __init__(self, now: Stored | None) -> None:
        super().__init__()
        self.now = now


class _LeftError(Exception):
    """Whose request it is has left: nobody is to be answered."""


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
        self._bootstrap = bootstrap
        self._instance = instance
        self._life = life
        self._keys = keys
        self._fleet = fleet
        self._replies = replies
        self._pending = pending
        self._running: dict[Name, _Running] = {}
        self._held: set[Keyed] = set()
        self._readers = Readers("answers")
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
        running: _Running | None = None
        try:
            while (running := self._running.get(asked.name)) is not None:
                if await self._join(running, asked):
                    return
            running = self._running[asked.name] = _Running()
            try:
                await self._lead(running, asked)
            except InferbusError as error:
                unknown = isinstance(error, errors.OutcomeUnknownError)
                running.tell(None if unknown else error)
                raise
            finally:
                running.tell(None)
                del self._running[asked.name]
        except _LeftError:
            pass
        except errors.OutcomeUnknownError as error:
            asked.refuse(error, None if running is None else running.place)
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            asked.refuse(error)
        finally:
            self._let_go(asked)

    async def _join(self, running: _Running, asked: Keyed) -> bool:
        """Wait for the one that is on its way here; tell whether this one is answered by it."""
        with contextlib.suppress(InferbusError):
            # Its deadline may stand in its body.
            asked.prepare(running.place)
        while not running.end.done():
            if asked.gone:
                raise _LeftError
            if (left_s := asked.deadline_s - time.monotonic()) <= 0:
                asked.mark = running.mark
                raise _unknown()
            await asyncio.wait({running.end}, timeout=min(left_s, _LOOK_EVERY_S))
        end = running.end.result()
        if isinstance(end, InferbusError):
            raise end
        if end is None:
            return False
        _recall(asked, end)
        return True

    async def _lead(self, running: _Running, asked: Keyed) -> None:
        """See to the first of a key, and whatever comes to stand there meanwhile."""
        stored = await self._begin(running, asked, known=False)
        while stored is not None:
            if stored.body != asked.name.body_sha256.hex():
                raise errors.KeyReusedError("this key was sent with another request before")
            try:
                await self._follow(running, asked, stored)
            except _ChangedError as changed:
                stored = changed.now or await self._begin(running, asked, known=True)
            else:
                return

    async def _begin(self, running: _Running, asked: Keyed, *, known: bool) -> Stored | None:
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
        self, running: _Running, asked: Keyed, mine: Stored | None, before: Stored | None
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
            running.tell(_Answered(place, waiter.prediction, waiter.offset))
            await self._note(asked.name, mine, waiter.offset)
            return
        if not isinstance(waiter.error, errors.OutcomeUnknownError):
            await self._keys.undo(asked.name, mine, before)
            running.tell(waiter.error)
        asked.ended(entry)

    async def _note(self, name: Name, stored: Stored | None, offset: int) -> None:
        """Note where the answer stands, so that nobody need look for it."""
        if stored is not None and stored.offset < 0:
            with contextlib.suppress(KeysAwayError):
                await self._keys.swap(name, stored, msgspec.structs.replace(stored, offset=offset))

    async def _follow(self, running: _Running, asked: Keyed, stored: Stored) -> None:
        """Answer from the record of an earlier request, or go on with it.

        Raises:
            _ChangedError: something else stands under the key now.
        """
        tenant = asked.name.tenant
        running.place = asked.prepare(stored.place)
        self._readers.take(tenant)
        trail = Trail(self._bootstrap, f"{self._instance}-once", stored)
        limit = asyncio.timeout(asked.deadline_s - time.monotonic())
        try:
            async with limit:
                await trail.start()
            await self._read(running, asked, stored, trail)
        except (KafkaError, TimeoutError) as error:
            if limit.expired():
                raise _unknown() from error
            _log.warning("answer_not_read", error=repr(error))
            raise errors.BusUnavailableError(_NOT_READ) from error
        finally:
            self._spawn(self._close(trail, tenant))

    async def _close(self, trail: Trail, tenant: str) -> None:
        try:
            await trail.stop()
        finally:
            self._readers.free(tenant)

    async def _read(self, running: _Running, asked: Keyed, stored: Stored, trail: Trail) -> None:
        look_s = 0.0
        while not asked.gone:
            for record, said in await trail.read():
                if is_terminal(said.outcome):
                    end = _Answered(stored.place, said, record.offset)
                    _recall(asked, end)
                    running.tell(end)
                    await self._note(asked.name, stored, record.offset)
                    return
            now_s = time.monotonic()
            if trail.caught_up and stored.offset >= 0:
                raise errors.ResultNotRetainedError(_GONE)
            if now_s >= asked.deadline_s:
                raise _unknown()
            if trail.caught_up and now_s >= look_s:
                look_s = now_s + _LOOK_EVERY_S
                with contextlib.suppress(KeysAwayError):
                    if (now := await self._keys.get(asked.name)) != stored:
                        raise _ChangedError(now)
                    if not self._lives(stored):
                        await self._inherit(running, asked, stored, trail)
                        return
        raise _LeftError

    def _lives(self, stored: Stored) -> bool:
        """Tell whether another process sees a request through and beats.

        What this one sees through is in `_running`, and not followed.
        """
        by = (stored.gateway, stored.life)
        return by != (self._instance, self._life) and any(
            (one.beat.instance, one.life) == by for one in self._fleet.gateways()
        )

    async def _inherit(self, running: _Running, asked: Keyed, stored: Stored, trail: Trail) -> None:
        """Go on with a request whose gateway is gone and that has no record.

        Raises:
            KeysAwayError: Valkey does not answer; ask again.
            _ChangedError: somebody else did.
        """
        now_ms = _now_ms()
        young = now_ms - stored.claimed_ms < SETTLED_MS
        if young:
            mine = msgspec.structs.replace(
                stored, gateway=self._instance, life=self._life, claimed_ms=now_ms
            )
        elif trail.cut:
            raise errors.ResultNotRetainedError(_GONE)
        else:
            running.place = asked.prepare(None)
            mine = self._stored(asked.name, running.place)
        try:
            if not await self._keys.swap(asked.name, stored, mine):
                raise _ChangedError(await self._keys.get(asked.name))
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
                await asyncio.sleep(_LOOK_EVERY_S)
            else:
                self._replies.apply((record for record, _ in found), time.monotonic())


def _recall(asked: Keyed, end: _Answered) -> None:
    asked.prepare(end.place)
    asked.mark = REPLAYED
    asked.recalled(end.prediction, end.offset)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _unknown() -> InferbusError:
    return errors.OutcomeUnknownError(
        "the deadline passed and the first request with this key has not ended; ask again later"
    )
