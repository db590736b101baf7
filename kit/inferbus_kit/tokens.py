"""Tokens of an OpenID provider: its published keys (JWKS), fetched in the background.

In: an address, and tokens. Out: whom a token stands for, told without a call; what makes it good is
in `inferbus_schemas.tokens`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx
import structlog

from inferbus_kit.errors import StartupError
from inferbus_kit.settings import TokenSettings, is_loopback
from inferbus_schemas import access, tokens

_log = structlog.get_logger("tokens")

REFRESH_S = 300.0
_MAX_JWKS_BYTES = 256 << 10
FETCH_TIMEOUT_S = 10.0
"""For the whole answer, however it comes."""


class Tokens:
    """Knows one provider's tokens.

    Invariants: keys are fetched every `REFRESH_S` and, where a token names an unknown one, at most
    every `again_s`; keys that are there stay where a fetch fails; `on_change`, for who remembers
    what tokens opened, is called when they are others.
    """

    def __init__(
        self,
        settings: TokenSettings,
        on_change: Callable[[], object] = bool,
        *,
        again_s: float = 30.0,
    ) -> None:
        """Check the settings; nothing is fetched yet.

        Raises:
            StartupError: a part is missing, or the keys would come in the clear.
        """
        self._settings = settings
        self._on_change = on_change
        self._again_s = again_s
        # Of the machine, and of SSL_CERT_FILE, as elsewhere; httpx would bring its own.
        self._trusted = ssl.create_default_context()
        self._raw = b""
        self._keys: tokens.Keys = {}
        self._unknown = asyncio.Event()
        self.n_fetches = 0
        if not (settings.oidc_issuer and settings.oidc_audience and settings.oidc_jwks_url):
            raise StartupError(
                "INFERBUS_OIDC_ISSUER, INFERBUS_OIDC_AUDIENCE and INFERBUS_OIDC_JWKS_URL belong "
                "together: set all three or none"
            )
        if not _safe(settings.oidc_jwks_url):
            raise StartupError("INFERBUS_OIDC_JWKS_URL: it must be an https address")

    def principal(self, token: str) -> access.Principal | None:
        """Return whom a token stands for now, or None."""
        told = self._settings
        issuer, audience = told.oidc_issuer, told.oidc_audience
        try:
            found = tokens.claims(
                token, self._keys, issuer=issuer, audience=audience, now_s=time.time()
            )
        except tokens.UnknownKeyError:
            self._unknown.set()
            return None
        if found is None:
            return None
        return access.of_claims(
            found, told.oidc_tenant_claim, told.oidc_scope_claim, tokens.LEEWAY_S
        )

    async def run(self) -> None:
        """Fetch the keys, and again when it is time, until cancelled."""
        while True:
            await self._fetch()
            self._unknown.clear()
            await asyncio.sleep(self._again_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, REFRESH_S - self._again_s)):
                    await self._unknown.wait()

    async def _fetch(self) -> None:
        self.n_fetches += 1
        try:
            raw = await _get(self._settings.oidc_jwks_url, self._trusted)
            keys = tokens.usable_keys(json.loads(raw))
        except (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
            _log.warning("jwks_not_fetched", error=type(error).__name__)
            return
        if raw != self._raw:
            _log.info("jwks", n_keys=len(keys))
            self._raw, self._keys = raw, keys
            self._on_change()


def _safe(url: str) -> bool:
    try:
        parts = urlsplit(url)
        inside = parts.scheme == "http" and is_loopback(parts.hostname or "")
    except ValueError:
        return False
    return parts.scheme == "https" or inside


async def _get(url: str, trusted: ssl.SSLContext) -> bytes:
    """Return what is there; redirects are not followed: keys are where their operator says."""
    raw = b""
    async with (
        asyncio.timeout(FETCH_TIMEOUT_S),
        httpx.AsyncClient(verify=trusted, trust_env=False) as client,
        client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer,
    ):
        if answer.status_code != HTTPStatus.OK:
            raise ValueError(f"the answer is {answer.status_code}")
        async for piece in answer.aiter_raw():
            raw += piece
            if len(raw) > _MAX_JWKS_BYTES:
                raise ValueError("the JWKS is too large")
    return raw
