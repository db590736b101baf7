"""Keys that open nothing: told to wait, longer each time, within bounds; good ones never are."""

from __future__ import annotations

import os

import httpx
import pytest

from inferbus_gateway import errors
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.guesses import FORGET_S, FREE, MAX_KNOWN, MAX_WAIT_S, Guesses
from inferbus_schemas import access
from inferbus_schemas.access import Keyring
from tests.gateway.key_records import bearer, record
from tests.gateway.test_gateway_keys import ask, put_key
from tests.support.gateway_side import GatewaySide
from tests.support.scripted_worker import prediction

ADA, BOB = "192.0.2.1", "192.0.2.2"


def test_the_wait_doubles_and_ends() -> None:
    guesses = Guesses()
    now_s = 1000.0
    assert [guesses.wait_s(ADA, now_s) for _ in range(FREE)] == [0.0] * FREE
    waits = []
    for _ in range(9):
        assert guesses.wait_s(ADA, now_s) == 0.0, "each wait ends with one that is looked at"
        waits.append(guesses.wait_s(ADA, now_s))
        assert guesses.wait_s(ADA, now_s + waits[-1] / 2) == waits[-1] / 2, "and grows by no other"
        assert guesses.wait_s(BOB, now_s) == 0.0
        now_s += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, MAX_WAIT_S, MAX_WAIT_S, MAX_WAIT_S]
    assert [guesses.wait_s(ADA, now_s + 2 * FORGET_S) for _ in range(FREE)] == [0.0] * FREE


def test_what_is_remembered_is_bounded_and_a_network_is_one() -> None:
    guesses = Guesses()
    for number in range(3 * MAX_KNOWN):
        guesses.wait_s(f"198.51.{number >> 8}.{number & 255}", 0.0)
    assert len(guesses) == MAX_KNOWN
    guesses = Guesses()
    for number in range(1000):
        guesses.wait_s(f"2001:db8:1:2::{number:x}", 0.0)
    assert len(guesses) == 1
    for odd in ("", "::ffff:192.0.2.1", "fe80::1%eth0", ":", "x" * 64):
        guesses.wait_s(odd, 0.0)
    assert len(guesses) == 6


def test_a_good_key_is_never_asked_to_wait() -> None:
    keys = Keyring()
    known = Access(keys, local=False)
    refused: list[type[Exception]] = []
    for number in range(FREE + 5):
        with pytest.raises((errors.UnauthorizedError, errors.TooManyBadKeysError)) as caught:
            known.check(bearer(2 + number), b"", ADA, access.MODELS_READ)
        refused.append(caught.type)
    assert refused == [errors.UnauthorizedError] * (FREE + 1) + [errors.TooManyBadKeysError] * 4
    keys.apply(record(1, "models:read"))
    assert known.check(bearer(1), b"", ADA, access.MODELS_READ).tenant == "acme"
    with pytest.raises(errors.UnauthorizedError):
        known.check(bearer(99), b"", BOB, access.MODELS_READ)
    with pytest.raises(errors.UnauthorizedError):
        known.check(None, b"", ADA, access.MODELS_READ)


@pytest.mark.slow
async def test_every_route_says_when_to_come_back(side: GatewaySide) -> None:
    good = access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))
    await put_key(side, good, f"infer:{side.model}")
    await side.worker(lambda request: [prediction(request)])
    gateway = await side.gateway(key=good)
    bad = access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))
    for _ in range(FREE + 1):
        assert (await ask(side, gateway, bad)).status_code == 401
    head = {"authorization": f"Bearer {bad}"}
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, headers=head) as http:
        # The wait is a second by now; each that meets its end doubles it.
        for method, path in (
            ("POST", side.path),
            ("GET", f"/v2/models/{side.model}"),
            ("GET", "/v1/models"),
            ("GET", "/v1/jobs"),
        ):
            while (got := await http.request(method, path)).status_code == 401:
                pass  # it met the end of a wait
            assert got.status_code == 429, path
            assert got.headers["x-inferbus-error-code"] == "too_many_bad_keys"
            assert 1 <= int(got.headers["retry-after"]) <= 10
    assert (await ask(side, gateway, good)).status_code == 200
