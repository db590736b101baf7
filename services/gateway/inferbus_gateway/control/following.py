"""Requests that follow an earlier one with their key: they are answered from its record.

In: what stands under a key, and a request that was sent again. Out: the answer of the first; where
its gateway is gone and no record is there, the request is handed back to be gone on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from aiokafka.errors import KafkaError

from inferbus_gateway import errors
from inferbus_gateway.control.idempotency import Keys, KeysAwayError, Stored
from inferbus_gateway.control.readers import Readers
from inferbus_gateway.control.trail import Trail
from inferbus_gateway.hot.keyed import REPLAYED, Keyed, Name, Place
from inferbus_kit.errors import InferbusError
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership
from inferbus_schemas.terminal import is_terminal

_log = structlog.get_logger("once")

LOOK_EVERY_S = 0.5
GONE = "the answer that this key stands for is no longer kept"
_NOT_READ = "the answer cannot be read now; try again"


@dataclass(frozen=True, slots=True)
class Answered:
    """How a request ended: its record."""

    place: Place
    prediction: m.Prediction
    offset: int


@dataclass(slots=True)
class Running:
    """A key that this gateway works on; `end` is None where nothing is known of its end.

    `mark` is `DEGRADED` where the key keeps nobody from running it again elsewhere.
    """

    end: asyncio.Future[Answered | InferbusError | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    place: Place | None = None
    mark: str = ""

    def tell(self, end: Answered | InferbusError | None) -> None:
        if not self.end.done():
            self.end.set_result(end)


class ChangedError(Exception):
    """Something else stands under a key than what was followed: `now`, or nothing."""

    def __init__(self, now: Stored | None) -> None:
        super().__init__()
        self.now = now


class LeftError(Exception):
    """Whose request it is has left: nobody is to be answered."""


class Following:
    """Answers requests from the records of earlier ones.

    Invariants: a reader is open only while somebody waits; `inherit` is called only where the first
    one's gateway does not live and its partition was read to the end; who follows holds nothing any
    more a moment after its client has left.
    """

    def __init__(
        self,
        bootstrap: str,
        instance: str,
        life: int,
        *,
        keys: Keys,
        fleet: Membership,
        inherit: Callable[[Running, Keyed, Stored, Trail], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._bootstrap = bootstrap
        self._instance = instance
        self._life = life
        self._keys = keys
        self._fleet = fleet
        self._inherit = inherit
        self._spawn = spawn
        self._readers = Readers("answers")

    async def __call__(self, running: Running, asked: Keyed, stored: Stored) -> None:
        """Answer from the record of an earlier request, or go on with it.

        Raises:
            ChangedError: something else stands under the key now.
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
                raise unknown() from error
            _log.warning("answer_not_read", error=repr(error))
            raise errors.BusUnavailableError(_NOT_READ) from error
        finally:
            self._spawn(self._close(trail, tenant))

    async def _close(self, trail: Trail, tenant: str) -> None:
        try:
            await trail.stop()
        finally:
            self._readers.free(tenant)

    async def _read(self, running: Running, asked: Keyed, stored: Stored, trail: Trail) -> None:
        look_s = 0.0
        while not asked.gone:
            for record, said in await trail.read():
                if is_terminal(said.outcome):
                    end = Answered(stored.place, said, record.offset)
                    recall(asked, end)
                    running.tell(end)
                    await note(self._keys, asked.name, stored, record.offset)
                    return
            now_s = time.monotonic()
            if trail.caught_up and stored.offset >= 0:
                raise errors.ResultNotRetainedError(GONE)
            if now_s >= asked.deadline_s:
                raise unknown()
            if trail.caught_up and now_s >= look_s:
                look_s = now_s + LOOK_EVERY_S
                with contextlib.suppress(KeysAwayError):
                    if (now := await self._keys.get(asked.name)) != stored:
                        raise ChangedError(now)
                    if not self._lives(stored):
                        await self._inherit(running, asked, stored, trail)
                        return
        raise LeftError

    def _lives(self, stored: Stored) -> bool:
        """Tell whether another process sees a request through and beats.

        What this one sees through is running here, and not followed.
        """
        by = (stored.gateway, stored.life)
        return by != (self._instance, self._life) and any(
            (one.beat.instance, one.life) == by for one in self._fleet.gateways()
        )


def recall(asked: Keyed, end: Answered) -> None:
    """Answer a request from the record of another."""
    asked.prepare(end.place)
    asked.mark = REPLAYED
    asked.recalled(end.prediction, end.offset)


async def note(keys: Keys, name: Name, stored: Stored | None, offset: int) -> None:
    """Note where the answer stands, so that nobody need look for it."""
    if stored is not None and stored.offset < 0:
        with contextlib.suppress(KeysAwayError):
            await keys.swap(name, stored, msgspec.structs.replace(stored, offset=offset))


def unknown() -> InferbusError:
    """Return what is told whose first request has not ended in time."""
    return errors.OutcomeUnknownError(
        "the deadline passed and the first request with this key has not ended; ask again later"
    )
