"""What Valkey remembers of idempotency keys: where the one request of each stands on the bus.

In: a tenant's key. Out: its place, claimed by whoever came first, changed only by who knows what
stands there. A key is remembered for a day. Nothing here is needed for any other request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inferbus_gateway.hot.keyed import Name, Place
from inferbus_kit.lifecycle import cancel, watched

_log = structlog.get_logger("idempotency")

PREFIX: Final = "inferbus:idem:"
LIFE_S: Final = 86_400
TIMEOUT_S: Final = 0.25
"""A client waits for this one, but a request whose key is not known may run twice."""
_MAX_CONNECTIONS = 64
_PATIENCE = 3
"""Failures in a row after which Valkey is away; one slow answer is none."""
_LONGEST_PAUSE_S = 1.0
_UNDO_EVERY_S = 1.0
_UNDO_LOOKS = 10
"""What was sent before may arrive after."""
_MAX_UNDOING = 10_000

SWAP: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
DROP: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What stands under a key. `offset` is that of the answer's record, -1 while none is known.

    `gateway` and `life` name the process that sees the request through, since `claimed_ms`; no
    record of it stands before offset `since`, which no clock decides. `key` repeats a part of the
    key's digest: an answer of Valkey that is for somebody else is none.
    """

    key: str
    body: str
    id: str
    partition: int
    version: int
    pool: str
    gateway: str
    life: int
    since: int
    claimed_ms: int
    offset: int = -1

    @property
    def place(self) -> Place:
        """Where the request stands."""
        return Place(bytes.fromhex(self.id), self.partition, self.version, self.pool)


class KeysAwayError(Exception):
    """Valkey does not answer, or not in words that are understood.

    `asked`: it may have heard the question all the same, and done what it says.
    """

    def __init__(self, *, asked: bool = False) -> None:
        super().__init__()
        self.asked = asked


class Breaker:
    """Decides who waits for Valkey; pure.

    Invariants: it opens after `_PATIENCE` failures in a row; while it is open one call a pause goes
    through, and none beside it; a success closes it. Times are seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self.n_failures = 0
        self._shut_until_s = float("-inf")

    def lets(self, now_s: float) -> bool:
        """Tell whether a call may go through; the caller then says how it went."""
        if self.n_failures < _PATIENCE:
            return True
        if now_s < self._shut_until_s:
            return False
        self._shut_until_s = now_s + _LONGEST_PAUSE_S
        return True

    def failed(self, now_s: float) -> None:
        self.n_failures += 1
        pause_s = min(_LONGEST_PAUSE_S, 0.05 * 2 ** min(self.n_failures, 6))
        self._shut_until_s = now_s + pause_s

    def worked(self) -> None:
        self.n_failures = 0


class Keys:
    """The keys in Valkey.

    Invariants: of all claims of a key one wins; `swap` and `drop` do nothing where something else
    stands there than was thought; while Valkey is away nobody waits for it, but one call per pause;
    what is to be undone is, once Valkey answers again.
    """

    def __init__(self, url: str) -> None:
        self._client = _client(url) if url else None
        self._breaker = Breaker()
        self._undoing: dict[Stored, _Undoing] = {}
        self._undoer: asyncio.Task[None] | None = None

    async def claim(self, name: Name, mine: Stored) -> Stored | None:
        """Put `mine` under a key where nothing stands; else return what does.

        Raises:
            KeysAwayError: as all others.
        """
        call = self._redis.set(_key(name), _encode(mine), nx=True, get=True, ex=LIFE_S)
        return _decode(name, await self._call(call))

    async def get(self, name: Name) -> Stored | None:
        """Return what stands under a key."""
        return _decode(name, await self._call(self._redis.get(_key(name))))

    async def swap(self, name: Name, old: Stored, new: Stored) -> bool:
        """Put `new` in the place of `old`; tell whether that stood there."""
        args = (_key(name), _encode(old), _encode(new), LIFE_S)
        return bool(await self._call(self._redis.eval(SWAP, 1, *args)))

    async def drop(self, name: Name, old: Stored) -> bool:
        """Forget a key if `old` stands there; tell whether it did."""
        return bool(await self._call(self._redis.eval(DROP, 1, _key(name), _encode(old))))

    async def undo(self, name: Name, mine: Stored | None, before: Stored | None) -> None:
        """Put what was there `before` a claim or a swap back where `mine` stands, if that may be.

        `mine` may come to stand there only later, and Valkey may be away: then it is seen to.
        """
        if mine is None:
            return
        undoing = _Undoing(name, before)
        with contextlib.suppress(KeysAwayError):
            if await self._put_back(mine, undoing):
                return
        if self._client is None or len(self._undoing) >= _MAX_UNDOING:
            return
        self._undoing[mine] = undoing
        if self._undoer is None or self._undoer.done():
            work = asyncio.create_task(self._undo(), name="keys-undo")
            self._undoer = watched(work, None)

    async def _undo(self) -> None:
        while self._undoing:
            await asyncio.sleep(_UNDO_EVERY_S)
            with contextlib.suppress(KeysAwayError):
                for mine, undoing in list(self._undoing.items()):
                    done = await self._put_back(mine, undoing)
                    undoing.n_looks += 1
                    if done or undoing.n_looks >= _UNDO_LOOKS:
                        del self._undoing[mine]

    async def _put_back(self, mine: Stored, undoing: _Undoing) -> bool:
        if undoing.before is None:
            return await self.drop(undoing.name, mine)
        return await self.swap(undoing.name, mine, undoing.before)

    async def stop(self) -> None:
        """Close the connections."""
        await cancel(self._undoer)
        if self._client is not None:
            await self._client.aclose()

    @property
    def _redis(self) -> Redis:
        if self._client is None or not self._breaker.lets(time.monotonic()):
            raise KeysAwayError
        return self._client

    async def _call(self, call: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                said = await call
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.failed(time.monotonic())
            if self._breaker.n_failures == 1:
                # Its text may name the address, and that a password.
                _log.warning("keys_not_remembered", error=type(error).__name__)
            raise KeysAwayError(asked=True) from error
        if self._breaker.n_failures:
            _log.info("keys_remembered_again")
            self._breaker.worked()
        return said


@dataclass(slots=True)
class _Undoing:
    """What is to stand under a key again; None where nothing is."""

    name: Name
    before: Stored | None
    n_looks: int = 0


def _client(url: str) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return Redis.from_pool(pool)


def _key(name: Name) -> str:
    # In braces, as the counts are, so that a cluster keeps each in one place.
    return f"{PREFIX}{{{name.tenant}:{name.key_sha256.hex()}}}"


def part_of(name: Name) -> str:
    """Return what `Stored.key` says for a key."""
    return name.key_sha256.hex()[:16]


def _encode(stored: Stored) -> bytes:
    return msgspec.json.encode(stored)


def _decode(name: Name, raw: bytes | None) -> Stored | None:
    if raw is None:
        return None
    try:
        stored = msgspec.json.decode(raw, type=Stored)
    except msgspec.DecodeError as error:
        raise KeysAwayError from error
    if stored.key != part_of(name):
        raise KeysAwayError
    return stored
