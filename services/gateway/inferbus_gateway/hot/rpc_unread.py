"""Answers that gRPC's core keeps until their clients read them: so many bytes, the others refused.

In: the size of an answer that is to be sent. Out: its bytes counted until they are given back, or a
refusal in its place: nothing here can end the call of a client that only does not read. Small
answers are not counted; how many there are is bounded by the number of calls and of what a stream
may have asked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from inferbus_gateway.errors import OverloadedError, TenantBusyError
from inferbus_gateway.hot.rpc_messages import Ended
from inferbus_kit.errors import InferbusError

SMALL_BYTES: Final = 64 << 10
"""What the core takes off a handler's hands at once, whoever reads."""


class Unread:
    """Bytes of answers on their way out.

    Invariants: at most `n_bytes` are held, and at most half of them for one tenant; a tenant for
    which none are is not remembered.
    """

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._held: Counter[str] = Counter()

    @property
    def n_bytes(self) -> int:
        """How much is held."""
        return self._held.total()

    def refusal(self, tenant: str, n_bytes: int) -> InferbusError | None:
        """Hold so many bytes for a tenant and return None, or return why that may not be.

        An error that was never raised holds no frame, and so no answer.
        """
        if n_bytes <= SMALL_BYTES:
            return None
        if self._held[tenant] + n_bytes > self._n_bytes // 2:
            return TenantBusyError("too many bytes of answers to you are unread; read them first")
        if self._held.total() + n_bytes > self._n_bytes:
            return OverloadedError("too many bytes of answers are unread here; try again shortly")
        self._held[tenant] += n_bytes
        return None

    def give(self, tenant: str, n_bytes: int) -> None:
        """Give back what was held."""
        if n_bytes > SMALL_BYTES:
            self._held[tenant] -= n_bytes
            if not self._held[tenant]:
                del self._held[tenant]

    def drop(self, tenant: str, future: asyncio.Future[Ended]) -> None:
        """Let go of an answer that nobody is sent; one that is not here is waited for no more."""
        if future.done() and not future.cancelled():
            self.give(tenant, future.result().n_bytes)
        else:
            future.cancel()
