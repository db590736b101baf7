"""A route whose errors have one shape, whatever way out of it they take.

In: what a subclass says of a refusal. Out: its answer; an upload that was refused is read out for a
moment, since a connection closed on unread bytes takes the answer with it.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from inferbus_kit.errors import InferbusError

_CLIENT_LEFT = 499
_LINGER_S = 2.0


class RefusingRoute(APIRoute):
    """A route whose errors a subclass writes."""

    @staticmethod
    @abstractmethod
    def refused(error: InferbusError) -> Response:
        """Return the answer for an error."""

    @staticmethod
    @abstractmethod
    def wrong(error: RequestValidationError) -> InferbusError:
        """Return the error for parameters that FastAPI refused."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except InferbusError as error:
                answer = self.refused(error)
            except RequestValidationError as error:
                answer = self.refused(self.wrong(error))
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)
            if request.method == "POST" and not await _read_out(request):
                # What is left of an upload must not go on arriving.
                answer.headers["connection"] = "close"
            return answer

        return handler


async def _read_out(request: Request) -> bool:
    """Drop what still arrives of a refused upload; tell whether that was all of it."""
    try:
        async with asyncio.timeout(_LINGER_S):
            async for _ in request.stream():
                pass
    except (TimeoutError, ClientDisconnect):
        return False
    except RuntimeError:
        return True  # it was read to its end before
    return True
