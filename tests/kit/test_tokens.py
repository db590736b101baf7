"""Tokens of a provider: the good ones, and every way in which others tried to make one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from inferbus_kit.errors import StartupError
from inferbus_kit.settings import TokenSettings
from inferbus_kit.tokens import Tokens
from inferbus_schemas import access
from inferbus_schemas.tokens import LEEWAY_S
from tests.support.provider import AUDIENCE, ISSUER, Provider, provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def idp() -> Iterator[Provider]:
    with provider() as made:
        yield made


def settings(url: str, **more: str) -> TokenSettings:
    given = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks_url": url, **more}
    return TokenSettings(**given)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(idp: Provider, *, again_s: float = 0.02) -> AsyncIterator[Tokens]:
    """Yield tokens that know the keys of the provider."""
    changes: list[int] = []
    tokens = Tokens(settings(idp.url), lambda: changes.append(1), again_s=again_s)
    task = asyncio.create_task(tokens.run())
    try:
        async with asyncio.timeout(10):
            while not changes:  # noqa: ASYNC110 -- it runs in a thread
                await asyncio.sleep(0.005)
        yield tokens
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_good_token_names_a_principal(idp: Provider, algorithm: str) -> None:
    kid = idp.add(algorithm)
    async with running(idp) as tokens:
        found = tokens.principal(idp.token(kid))
    assert found is not None
    assert (found.tenant, found.who) == ("acme", "acme/token:ada")
    assert found.scopes == {"infer:*", "models:read"}, "scopes of others are left out"
    assert found.expires_s == pytest.approx(time.time() + 300 + LEEWAY_S, abs=5)


BAD: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(time.time()) - LEEWAY_S - 5},
    "no end": {"exp": None},
    "too early": {"nbf": int(time.time()) + 24 * 3600},
    "other issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "other audience": {"aud": "another"},
    "no audience": {"aud": None},
    "no subject": {"sub": None},
    "no tenant": {"tenant": None},
    "tenant is no name": {"tenant": "../x"},
    "tenant is a list": {"tenant": ["acme"]},
    "subject with a line": {"sub": "a\nb"},
    "scope is a number": {"scope": 7},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
async def test_a_token_that_says_the_wrong_thing(idp: Provider, changes: dict[str, Any]) -> None:
    kid = idp.add()
    async with running(idp) as tokens:
        assert tokens.principal(idp.token(kid)) is not None
        assert tokens.principal(idp.token(kid, **changes)) is None


async def test_clocks_may_differ_by_a_minute(idp: Provider) -> None:
    kid = idp.add()
    async with running(idp) as tokens:
        late: dict[str, Any] = {"exp": int(time.time()) - LEEWAY_S + 20}
        early: dict[str, Any] = {"nbf": int(time.time()) + LEEWAY_S - 20}
        assert tokens.principal(idp.token(kid, **late)) is not None
        assert tokens.principal(idp.token(kid, **early)) is not None


def _part(said: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")


async def test_forged_tokens_open_nothing(idp: Provider) -> None:
    kid, stranger = idp.add("RS256"), idp.add("RS256", published=False)
    good = idp.token(kid)
    _, body, signature = good.split(".")
    # HMAC with the public key as its secret: the algorithm is ours to choose, not the token's.
    public = jwt.PyJWK(idp.keys[0]).key
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 -- here alone

    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    confused = f"{_part({'alg': 'HS256', 'kid': kid})}.{body}"
    mac = hmac.new(pem, confused.encode(), hashlib.sha256).digest()
    forged = [
        f"{_part({'alg': 'none', 'kid': kid})}.{body}.",
        f"{_part({'alg': 'None', 'kid': kid})}.{body}.{signature}",
        f"{confused}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}",
        f"{_part({'alg': 'ES256', 'kid': kid})}.{body}.{signature}",
        idp.token(stranger),
        idp.token(stranger, head={"kid": kid}),
        idp.token(stranger, head={"kid": kid, "jwk": idp.keys[0]}),
        idp.token(stranger, head={"kid": kid, "jku": idp.url, "x5u": idp.url}),
        *(idp.token(kid, head={"kid": bad}) for bad in ("../../dev/null", "", "x' OR 1=1", "\x00")),
        good[:-2],
        good.replace(body, body[:-1] + ("A" if body[-1] != "A" else "B")),
        "",
        ".",
        "..",
        "a.b.c",
        f"{_part({'alg': 'RS256', 'kid': [kid]})}.{body}.{signature}",
        f"{_part({'alg': 'RS256', 'kid': kid, 'crit': ['x'], 'x': 1})}.{body}.{signature}",
        idp.token(kid, note="A" * 9000),
    ]
    async with running(idp) as tokens:
        assert tokens.principal(good) is not None
        for token in forged:
            assert tokens.principal(token) is None, token[:80]


async def test_keys_that_are_not_for_us_are_left_out(idp: Provider) -> None:
    weak, other, good = idp.add("RS256", bits=1024), idp.add("ES256"), idp.add("ES256")
    idp.keys[1]["use"] = "enc"
    idp.keys += [{"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}, {"kid": 7}, "x", {}]  # type: ignore[list-item]
    async with running(idp) as tokens:
        assert tokens.principal(idp.token(good)) is not None
        assert tokens.principal(idp.token(weak)) is None
        assert tokens.principal(idp.token(other)) is None
        shared = jwt.encode({"sub": "x"}, "secret" * 8, "HS256", headers={"kid": "shared"})
        assert tokens.principal(shared) is None


async def test_a_new_key_is_fetched_and_a_withdrawn_one_forgotten(idp: Provider) -> None:
    old = idp.add()
    async with running(idp) as tokens:
        idp.keys.clear()
        new = idp.add()
        async with asyncio.timeout(10):
            while tokens.principal(idp.token(new)) is None:  # noqa: ASYNC110 -- a plain poll
                await asyncio.sleep(0.005)
        assert tokens.principal(idp.token(old)) is None


async def test_unknown_keys_do_not_make_us_ask_without_end(idp: Provider) -> None:
    kid = idp.add()
    async with running(idp, again_s=60.0) as tokens:
        stranger = idp.add(published=False)
        for _ in range(200):
            assert tokens.principal(idp.token(stranger)) is None
            await asyncio.sleep(0)
        assert tokens.principal(idp.token(kid)) is not None
    assert idp.n_asked == 1


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"keys": 1}', b"[" * 100_000, b" " * 300_000])
async def test_keys_stay_where_a_fetch_fails(idp: Provider, raw: bytes) -> None:
    kid = idp.add()
    async with running(idp) as tokens:
        idp.raw = raw
        fetched = tokens.n_fetches
        async with asyncio.timeout(10):
            while tokens.n_fetches < fetched + 2:
                tokens.principal(idp.token(idp.add(published=False)))
                await asyncio.sleep(0.005)
        assert tokens.principal(idp.token(kid)) is not None


async def test_a_redirect_is_not_followed(idp: Provider) -> None:
    idp.add()
    elsewhere = Tokens(settings(idp.url.replace("/keys", "/elsewhere")))
    await elsewhere._fetch()
    assert not elsewhere._keys


async def test_what_is_no_answer_of_http_ends_nothing(idp: Provider) -> None:
    broken = Tokens(settings(idp.url.replace("/keys", "/broken")))
    await broken._fetch()
    assert not broken._keys


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n["])
async def test_who_drips_an_answer_holds_no_fetch(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a withdrawn key would be good for as long as somebody likes."""
    monkeypatch.setattr("inferbus_kit.tokens.FETCH_TIMEOUT_S", 0.3)
    left = asyncio.Event()

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(begun)
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        left.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        tokens = Tokens(settings(f"http://127.0.0.1:{port}/keys"))
        async with asyncio.timeout(5):
            await tokens._fetch()
            await left.wait()
    assert not tokens._keys


async def test_a_set_of_keys_has_a_size(idp: Provider) -> None:
    kid = idp.add()
    idp.raw = json.dumps({"keys": idp.keys, "x": "x" * (300 << 10)}).encode()
    large = Tokens(settings(idp.url))
    await large._fetch()
    assert large.principal(idp.token(kid)) is None


@pytest.mark.parametrize(
    "more",
    [
        {"oidc_audience": ""},
        {"oidc_issuer": ""},
        {"oidc_jwks_url": "http://idp.example/keys"},
        {"oidc_jwks_url": "file:///etc/passwd"},
        {"oidc_jwks_url": "ftp://127.0.0.1/x"},
    ],
)
def test_settings_that_would_not_be_safe(more: dict[str, str]) -> None:
    with pytest.raises(StartupError, match="INFERBUS_OIDC"):
        Tokens(settings("https://idp.example/keys", **more))


def test_a_token_is_no_key() -> None:
    assert access.key_id("a.b.c") is None
