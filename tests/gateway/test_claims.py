"""Claims of idempotency keys in Valkey, and how long what they name is kept."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from inferbus_gateway.control import idempotency
from inferbus_gateway.control.idempotency import Keys, Stored
from inferbus_gateway.hot import keyed
from inferbus_schemas import topics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


async def test_of_many_claims_one_wins(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fifty connections at once are slow on a busy machine, and who is slow is no part of this.
    monkeypatch.setattr(idempotency, "TIMEOUT_S", 20.0)
    keys = Keys(valkey_url)
    name = keyed.Name("local", keyed.key_sha256(secrets.token_hex(8).encode()), bytes(32))
    claims = [
        Stored(
            key=idempotency.part_of(name),
            body="b",
            id=f"{number:032x}",
            partition=0,
            version=1,
            pool="p",
            gateway=f"g{number}",
            life=(1 << 64) - 1 - number,
            since=0,
            claimed_ms=1,
        )
        for number in range(50)
    ]
    said = await asyncio.gather(*(keys.claim(name, one) for one in claims))
    (winner,) = [one for one, other in zip(claims, said, strict=True) if other is None]
    assert {one for one in said if one is not None} == {winner}
    loser = next(one for one in claims if one is not winner)
    assert not await keys.swap(name, loser, loser)
    assert not await keys.drop(name, loser)
    assert await keys.get(name) == winner
    assert await keys.swap(name, winner, loser)
    assert await keys.drop(name, loser)
    assert await keys.get(name) is None
    await keys.stop()


def test_the_topic_of_answers_outlives_every_key() -> None:
    kept_ms = int(topics.topic(topics.PREDICTIONS).config["retention.ms"])
    assert kept_ms > 2 * idempotency.LIFE_S * 1000
