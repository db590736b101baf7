"""Keys of requests while Valkey is slow or away: asked once a pause, and undone when it is back."""

from __future__ import annotations

from inferbus_gateway.control.idempotency import Breaker, Keys
from tests.gateway.test_once import ME, new_name, stands, stored
from tests.support.proxy import Proxy


def test_one_slow_answer_is_no_outage() -> None:
    breaker = Breaker()
    breaker.failed(100.0)
    assert breaker.lets(100.0)
    breaker.failed(100.1)
    assert breaker.lets(100.1)
    breaker.worked()
    breaker.failed(100.2)
    assert breaker.lets(100.2)


def test_while_valkey_is_away_one_call_goes_through_a_pause() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(100.0)
    assert not breaker.lets(100.1)
    for now_s in (102.0, 104.0):
        assert [breaker.lets(now_s + late_s) for late_s in (0.0, 0.01, 0.2)] == [True, False, False]
        breaker.failed(now_s + 0.25)
    assert breaker.lets(106.0)
    breaker.worked()
    assert all(breaker.lets(106.0) for _ in range(3))


async def test_what_is_to_be_undone_is_when_valkey_is_back(
    private_valkey: str,
) -> None:
    address = private_valkey.rpartition("@")[2].partition("/")[0]
    async with Proxy("127.0.0.1", int(address.rpartition(":")[2])) as proxy:
        keys, direct = (
            Keys(private_valkey.replace(address, f"127.0.0.1:{proxy.port}")),
            Keys(private_valkey),
        )
        gone, back, late = new_name(), new_name(), new_name()
        mine, theirs = stored(back, gateway=ME), stored(back)
        of_gone, of_late = stored(gone), stored(late)
        assert await keys.claim(gone, of_gone) is None
        assert await keys.claim(back, mine) is None
        await proxy.cut()
        await keys.undo(gone, of_gone, None)
        await keys.undo(back, mine, theirs)
        # This claim comes only after it is to be undone.
        await keys.undo(late, of_late, None)
        assert await direct.get(gone) == of_gone
        assert await direct.claim(late, of_late) is None
        await proxy.heal()
        await stands(direct, gone, None)
        await stands(direct, back, theirs)
        await stands(direct, late, None)
        await keys.stop()
        await direct.stop()
