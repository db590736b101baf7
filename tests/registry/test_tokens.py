"""The registry's door with a provider that changes its keys, or is not there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx

from inferbus_dev.ports import free_port
from inferbus_kit.settings import TokenSettings
from inferbus_kit.tokens import Tokens
from inferbus_registry.app import Services, make_app
from inferbus_schemas import access
from tests.support.provider import AUDIENCE, ISSUER, provider
from tests.support.registry import authorization

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def no_key(_text: str) -> access.Principal | None:
    raise AssertionError("a token is no key")


@contextlib.asynccontextmanager
async def door(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a registry that takes the tokens of the provider there.

    What it knows and refuses is told by the door, so that nothing need stand behind it.
    """
    settings = TokenSettings(oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks_url=url)
    tokens = Tokens(settings, again_s=0.02)
    nothing = Services(None, None, None, None, None)  # type: ignore[arg-type]
    app = make_app(nothing, no_key, tokens.principal, local=False)
    fetching = asyncio.create_task(tokens.run())
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://registry/v1/registry"
        ) as client:
            yield client
    finally:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)


async def becomes(client: httpx.AsyncClient, token: str, code: str) -> None:
    """Wait until the registry refuses a token without scopes in this way."""
    async with asyncio.timeout(10):
        while True:
            answer = await client.get("/keys", headers=authorization(token))
            if answer.json()["code"] == code:
                return
            await asyncio.sleep(0.005)


async def test_a_new_key_is_fetched_and_a_withdrawn_one_forgotten() -> None:
    with provider() as idp:
        old = idp.token(idp.add())
        async with door(idp.url) as client:
            await becomes(client, old, "forbidden")
            idp.keys.clear()
            new = idp.token(idp.add())
            await becomes(client, new, "forbidden")
            await becomes(client, old, "unauthorized")


async def test_it_opens_where_the_provider_is_down_and_takes_tokens_once_it_is_there() -> None:
    port = free_port(taken=set())
    async with door(f"http://127.0.0.1:{port}/keys") as client:
        with provider() as other:
            kid = other.add()
            await becomes(client, other.token(kid), "unauthorized")
        with provider(port) as idp:
            idp.keys, idp.private = other.keys, other.private
            await becomes(client, idp.token(kid), "forbidden")
        await becomes(client, other.token(kid), "forbidden")
