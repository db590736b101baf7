"""Which versions a worker holds while a rollout moves."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership, gateway_key
from inferbus_worker.control.holding import versions_to_hold

A1, A2, A3 = ("a", 1), ("a", 2), ("a", 3)


def deployment(generation: int, *versions: int, pool: str = "default") -> m.Deployment:
    pools = [m.PoolVersions(pool=pool, versions=versions, min_ready=1)]
    return m.Deployment(model="a", generation=generation, pools=pools)


def fleet(*gateways: m.GatewayModel | None) -> Membership:
    members = Membership()
    for number, said in enumerate(gateways):
        part = m.GatewayBeat(models=[] if said is None else [said])
        beat = m.Heartbeat(instance=f"g{number}", state=m.STATE_ACTIVE, gateway=part)
        members.apply(gateway_key(f"g{number}"), beat, offset=number, append_ms=0)
    return members


def says(
    generation: int, pinned: Iterable[int] = (), in_flight: Iterable[int] = ()
) -> m.GatewayModel:
    return m.GatewayModel(model="a", generation=generation, pinned=pinned, in_flight=in_flight)


def test_what_the_newest_generation_names_for_this_pool_is_held() -> None:
    wanted = {"a": deployment(7, 1, 2)}
    assert versions_to_hold(wanted, fleet(), "default", ()) == {A1: 7, A2: 7}
    assert versions_to_hold(wanted, fleet(), "other", ()) == {}


@pytest.mark.parametrize(
    "gateways",
    [
        (says(6),),
        (says(7), says(6)),
        (says(7, pinned=[1]),),
        (says(7), says(7, pinned=[2], in_flight=[1])),
        (says(7), None),
        (),
    ],
    ids=["behind", "one behind", "pinned", "in flight", "says nothing", "no gateway"],
)
def test_a_version_stays_while_a_gateway_may_use_it(
    gateways: tuple[m.GatewayModel | None, ...],
) -> None:
    held = versions_to_hold({"a": deployment(7, 2)}, fleet(*gateways), "default", [A1, A2])
    assert held == {A1: 0, A2: 7}


def test_a_version_goes_when_all_gateways_have_left_it() -> None:
    members = fleet(says(7, pinned=[2]), says(8, in_flight=[3]))
    held = versions_to_hold({"a": deployment(7, 2)}, members, "default", [A1, A2, A3])
    assert held == {A2: 7, A3: 0}


def test_a_version_of_another_pool_is_kept_as_long_as_any_other() -> None:
    wanted = {"a": deployment(7, 1, pool="other")}
    assert versions_to_hold(wanted, fleet(says(6)), "default", [A1]) == {A1: 0}
    assert versions_to_hold(wanted, fleet(says(7)), "default", [A1]) == {}


def test_an_ended_deployment_keeps_only_what_is_used() -> None:
    assert versions_to_hold({}, fleet(None), "default", [A1]) == {}
    assert versions_to_hold({}, fleet(says(0, in_flight=[1])), "default", [A1, A2]) == {A1: 0}


def test_a_gateway_that_is_gone_keeps_nothing() -> None:
    members = fleet(says(1, pinned=[1]))
    for second in range(1, 8):
        part = m.GatewayBeat(models=[says(7, pinned=[2])])
        beat = m.Heartbeat(instance="new", state=m.STATE_ACTIVE, gateway=part)
        members.apply(gateway_key("new"), beat, offset=second, append_ms=second * 1000)
    assert versions_to_hold({"a": deployment(7, 2)}, members, "default", [A1]) == {A2: 7}
