"""Single requests that nobody waits for (`Prefer: respond-async`), each taken as a job of one row.

In: a request of the hot route, parsed. Out: the address of its job, or why it was not taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from inferbus_gateway.api.jobs import PATH, Parts
from inferbus_gateway.control.jobs.submit import Wish
from inferbus_gateway.hot.infer import SPAN
from inferbus_gateway.hot.keyed import key_sha256
from inferbus_gateway.hot.route import Target
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal


class Later:
    """Takes single requests that nobody waits for, as jobs of one row.

    Invariants: each is told once where its result will be, or why it was not taken.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(  # noqa: PLR0917 -- what one request is
        self,
        target: Target,
        row: m.Row,
        caller: Principal,
        key: bytes | None,
        version: str,
        traceparent: str,
        tell: Callable[[str | Exception], None],
    ) -> None:
        """Take one; `tell` is called later. With a key, sending it again is the same job.

        Raises:
            InvalidRequestError: the key is none.
        """
        name = "" if key is None else f"infer:{key_sha256(key).hex()}"
        wish = self._parts.wish(caller, target, name, version=version)
        work = self._take(wish, row, traceparent, tell)
        task = asyncio.create_task(work, name="respond-async")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(
        self, wish: Wish, row: m.Row, traceparent: str, tell: Callable[[str | Exception], None]
    ) -> None:
        async def single() -> AsyncIterator[m.Row]:
            yield row

        try:
            with self._parts.taking(wish, SPAN, traceparent) as named:
                job = await self._parts.submissions.submit_rows(named, single())
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            tell(error)
        else:
            tell(f"{PATH}/{ids.text(job.id)}")
