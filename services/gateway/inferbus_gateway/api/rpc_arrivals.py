"""Messages of single calls on their way in: so many at a time, the others unread.

In: a call whose message was not asked for yet, of which the transport holds a window of 64 KiB at
most. Out: the message; or the call's end, where it came too slowly or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from grpc.aio import EOF

from inferbus_gateway.errors import InvalidRequestError, OverloadedError, SlowBodyError


class Arrivals:
    """The places of messages that are being received.

    Invariants: at most `n` are held, and at most `n_each` by one holder; who finds none waits for
    one, in order, for `patience_s` at most; a place is given back once the message is here, or
    `patience_s` after it was taken.
    """

    def __init__(self, n: int, n_each: int, patience_s: float) -> None:
        self._all = asyncio.Semaphore(max(1, n))
        self._n_each = max(1, n_each)
        self._patience_s = patience_s
        self._each: dict[str, asyncio.Semaphore] = {}
        self._n_here: Counter[str] = Counter()

    def full(self, holder: str) -> bool:
        """Tell whether one more message of a holder would have to wait."""
        each = self._each.get(holder)
        return self._all.locked() or (each is not None and each.locked())

    async def message(self, read: Callable[[], Awaitable[Any]], holder: str) -> Any:
        """Return the one message of a call.

        Args:
            read: of its context. (The iterator that calls give too would keep the message, in a
                cycle, until the collector comes.)
            holder: a tenant, or an address.

        Raises:
            SlowBodyError: it came too slowly.
            OverloadedError: there was no place for as long.
            InvalidRequestError: there is none.
        """
        async with self._place(holder):
            try:
                async with asyncio.timeout(self._patience_s):
                    message = await read()
            except TimeoutError:
                raise SlowBodyError("the message came too slowly; send it again, faster") from None
        if message is EOF:
            raise InvalidRequestError("the call has no message")
        return message

    @contextlib.asynccontextmanager
    async def _place(self, holder: str) -> AsyncIterator[None]:
        self._n_here[holder] += 1
        each = self._each.setdefault(holder, asyncio.Semaphore(self._n_each))
        try:
            async with contextlib.AsyncExitStack() as held:
                try:
                    async with asyncio.timeout(self._patience_s):
                        await held.enter_async_context(each)
                        await held.enter_async_context(self._all)
                except TimeoutError:
                    raise OverloadedError(
                        "too many messages are on their way in; try again"
                    ) from None
                yield
        finally:
            self._n_here[holder] -= 1
            if not self._n_here[holder]:
                del self._n_here[holder], self._each[holder]
