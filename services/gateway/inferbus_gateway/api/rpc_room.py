"""Calls that anybody may hold open: who watches health, or asks for descriptions.

In: such a call. Out: a place for it while it is open, of which an address has a share only, so
that nobody without a key fills the listener; or its end, in our own words.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeAlias

import grpc

from inferbus_gateway.hot.access import address_of
from inferbus_gateway.hot.rpc_messages import bare, refusal_metadata, status
from inferbus_gateway.hot.shares import Shares
from inferbus_kit.errors import InferbusError
from inferbus_schemas import ids

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Ends:
    """Ends calls in our own words, and counts why."""

    def __init__(self, new_id: Callable[[], bytes], count: Callable[[str], object]) -> None:
        self._new_id = new_id
        self._count = count

    async def __call__(self, context: Context, error: InferbusError) -> NoReturn:
        """End a call with an error."""
        self._count(error.code)
        beside = refusal_metadata(error, ids.text(self._new_id()))
        said = bare(error)
        await context.abort(status(said), str(said), beside)
        raise AssertionError  # `abort` raises


class Room:
    """The places of such calls."""

    def __init__(self, shares: Shares, ends: Ends) -> None:
        self._shares = shares
        self._ends = ends

    @contextlib.asynccontextmanager
    async def held(self, context: Context) -> AsyncIterator[None]:
        """Hold a place for a call, or end it."""
        with contextlib.ExitStack() as place:
            try:
                place.enter_context(self._shares.held(address_of(context.peer())))
            except InferbusError as error:
                await self._ends(context, error)
            yield
