"""Inputs of jobs that are named and not sent.

In: a URI of an allowed origin. Out: its bytes as they stream. A name is resolved once, and the
connection goes to the address that was checked; the certificate must be the name's; a redirect is
a new URI, checked from the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import urljoin

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from inferbus_gateway.control.jobs.origins import Origins, Stored, Web
from inferbus_gateway.errors import UriRefusedError, UriUnreadableError

_MAX_REDIRECTS = 5
_RESOLVE_S = 5.0
_WAIT_S = 30.0
_PIECE_BYTES = 256 << 10
_MAX_LOCATION = 4096


class Remote:
    """Reads what URIs name.

    Invariants: nothing is connected to that `Origins` did not allow; no credential of ours goes
    anywhere but to an allowed bucket's store; the body's bytes come as they are, never unpacked.
    """

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    @contextlib.asynccontextmanager
    async def open(self, uri: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the body of a URI.

        Raises:
            UriRefusedError: it may not be read.
            UriUnreadableError: it cannot be read.
        """
        place = self._origins.place(uri)
        if isinstance(place, Stored):
            yield _object(place)
            return
        async with (
            httpx.AsyncClient(
                verify=ssl.create_default_context(), trust_env=False, timeout=_WAIT_S
            ) as client,
            contextlib.AsyncExitStack() as answers,
        ):
            for _ in range(_MAX_REDIRECTS + 1):
                answer = await self._get(client, place)
                answers.push_async_callback(answer.aclose)
                if not answer.is_redirect:
                    yield _body(answer)
                    return
                where = answer.headers.get("location", "")[:_MAX_LOCATION]
                onward = self._origins.place(_joined(place, where))
                if isinstance(onward, Stored):
                    raise UriRefusedError("it redirects to another kind of place")
                place = onward
            raise UriUnreadableError("it redirects again and again")

    async def _get(self, client: httpx.AsyncClient, place: Web) -> httpx.Response:
        """Ask the first address that takes a connection."""
        failed: httpx.HTTPError | None = None
        for address in self._origins.addresses(await _resolve(place)):
            shown = f"[{address}]" if ":" in address else address
            asked = client.build_request(
                "GET",
                f"https://{shown}:{place.port}{place.target}",
                headers={"host": place.authority, "accept-encoding": "identity"},
                extensions={"sni_hostname": place.host.strip("[]")},
            )
            try:
                return await client.send(asked, stream=True)
            except httpx.HTTPError as error:
                failed = error
                if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    break
        raise UriUnreadableError(f"the input cannot be read: {_kind(failed)}") from failed


def _joined(place: Web, where: str) -> str:
    try:
        return urljoin(place.uri, where)
    except ValueError:
        raise UriRefusedError("it redirects to what is no URI") from None


async def _resolve(place: Web) -> list[str]:
    """Return the addresses that a host stands for now."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await loop.getaddrinfo(
                place.host.strip("[]"), place.port, type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError, UnicodeError) as error:
        raise UriUnreadableError("the input cannot be read: its host has no address") from error
    return [str(one[4][0]) for one in found]


async def _body(answer: httpx.Response) -> AsyncGenerator[bytes]:
    if answer.status_code != httpx.codes.OK:
        raise UriUnreadableError(f"the input cannot be read: its host says {answer.status_code}")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise UriUnreadableError("the input cannot be read: it comes with a Content-Encoding")
    try:
        async for piece in answer.aiter_raw(_PIECE_BYTES):
            yield piece
    except httpx.HTTPError as error:
        # Only its kind: its words may name what stands behind the name.
        raise UriUnreadableError(f"the input cannot be read: {_kind(error)}") from error


async def _object(place: Stored) -> AsyncGenerator[bytes]:
    try:
        found = await obstore.get_async(from_url(f"s3://{place.bucket}"), place.path)
        async for piece in found.stream(min_chunk_size=_PIECE_BYTES):
            yield bytes(piece)
    except (FileNotFoundError, BaseError, OSError) as error:
        raise UriUnreadableError("the input cannot be read from its bucket") from error


def _kind(error: httpx.HTTPError | None) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "its host is too slow"
    return "no connection to its host" if isinstance(error, httpx.ConnectError) else "it broke off"
