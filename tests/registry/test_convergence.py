"""Desired state follows what gateways report, and comes to rest."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from inferbus_registry.placement.convergence import converge
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership, gateway_key, inbox_key


def deployment(
    *aliases: tuple[str, int, int], holds: Iterable[int], generation: int = 7
) -> m.Deployment:
    return m.Deployment(
        model="a",
        generation=generation,
        aliases=[m.Alias(name=name, wanted=to, serving=at) for name, to, at in aliases],
        pools=[m.PoolVersions(pool="default", versions=holds, min_ready=2)],
    )


def says(
    pinned: Iterable[int] = (), in_flight: Iterable[int] = (), generation: int = 7
) -> m.GatewayModel:
    return m.GatewayModel(model="a", generation=generation, pinned=pinned, in_flight=in_flight)


def fleet(*gateways: m.GatewayModel | None) -> Membership:
    members = Membership()
    for number, said in enumerate(gateways):
        part = m.GatewayBeat(models=[] if said is None else [said])
        beat = m.Heartbeat(instance=f"g{number}", state=m.STATE_ACTIVE, gateway=part)
        members.apply(gateway_key(f"g{number}"), beat, offset=number, append_ms=0)
    return members


def test_serving_follows_once_every_gateway_pins_what_is_wanted() -> None:
    rolling = deployment(("champion", 2, 1), holds=[1, 2])
    following = converge(rolling, fleet(says([2]), says([2], in_flight=[1])))
    assert following == m.Deployment(
        model="a",
        aliases=[m.Alias(name="champion", wanted=2, serving=2)],
        pools=[m.PoolVersions(pool="default", versions=[1, 2], min_ready=2)],
    )


@pytest.mark.parametrize(
    "gateways",
    [
        (),
        (says([1]),),
        (says([2]), says([1])),
        (says([2]), None),
        (says([2]), says([2], generation=6)),
    ],
    ids=["no gateway", "not pinned", "not by all", "one says nothing", "one is behind"],
)
def test_serving_waits(gateways: tuple[m.GatewayModel | None, ...]) -> None:
    assert converge(deployment(("champion", 2, 1), holds=[1, 2]), fleet(*gateways)) is None


def test_a_first_version_comes_to_serve() -> None:
    following = converge(deployment(("champion", 1, 0), holds=[1]), fleet(says([1])))
    assert following is not None
    assert following.aliases[0].serving == 1
    assert list(following.pools[0].versions) == [1]


def test_a_pin_of_another_alias_does_not_count() -> None:
    rolling = deployment(("canary", 2, 2), ("champion", 2, 1), holds=[1, 2])
    assert converge(rolling, fleet(says([1, 2]))) is None
    following = converge(rolling, fleet(says([2])))
    assert following is not None
    assert [alias.serving for alias in following.aliases] == [2, 2]


def test_aliases_that_cannot_be_told_apart_do_not_block_each_other() -> None:
    rolling = deployment(("a", 2, 1), ("b", 1, 1), ("c", 2, 2), holds=[1, 2])
    following = converge(rolling, fleet(says([1, 2])))
    assert following is not None
    assert [alias.serving for alias in following.aliases] == [2, 1, 2]


@pytest.mark.parametrize(
    ("gateways", "holds"),
    [
        ((says([2]),), [2]),
        ((says([2]), says([2], in_flight=[1])), [1, 2]),
        ((says([1, 2]),), [1, 2]),
        ((says([2], generation=6),), [1, 2]),
        ((says([2]), None), [1, 2]),
        ((), [1, 2]),
    ],
)
def test_a_pool_gives_a_version_up_when_nobody_uses_it(
    gateways: tuple[m.GatewayModel | None, ...], holds: list[int]
) -> None:
    settled = deployment(("champion", 2, 2), holds=[1, 2])
    following = converge(settled, fleet(*gateways))
    assert list((following or settled).pools[0].versions) == holds
    assert (following is None) == (holds == [1, 2])


def test_a_pool_gets_what_an_alias_names_also_without_gateways() -> None:
    following = converge(deployment(("champion", 3, 1), holds=[1, 2]), fleet())
    assert following is not None
    assert list(following.pools[0].versions) == [1, 2, 3]


def test_a_rollout_comes_to_rest() -> None:
    state = deployment(("champion", 2, 1), ("old", 1, 1), holds=[1, 2])
    for _ in range(10):
        pinned = {alias.wanted for alias in state.aliases}
        following = converge(state, fleet(says(pinned, generation=state.generation)))
        if following is None:
            break
        following.generation = state.generation + 1
        state = following
    else:
        pytest.fail("it never rests")
    assert [(one.wanted, one.serving) for one in state.aliases] == [(2, 2), (1, 1)]
    assert list(state.pools[0].versions) == [1, 2]


def _worker(members: Membership, inbox: int, readiness: m.Readiness | None) -> None:
    residents = [] if readiness is None else [m.Resident(model="a", version=2, readiness=readiness)]
    part = m.WorkerBeat(pool="default", inbox=inbox, epoch=1, residents=residents)
    beat = m.Heartbeat(instance=f"w{inbox}", life=inbox, state=m.STATE_ACTIVE, worker=part)
    members.apply(inbox_key("default", inbox), beat, offset=10 + inbox, append_ms=0)


@pytest.mark.parametrize(
    ("readiness", "serving"),
    [
        (None, 1),
        (m.READINESS_LOADING, 1),
        (m.READINESS_READY, 2),
        (m.READINESS_FAILED, 2),
    ],
    ids=["unheard of", "loading", "ready", "given up"],
)
def test_serving_waits_for_workers_that_still_load(
    readiness: m.Readiness | None, serving: int
) -> None:
    members = fleet(says([2]))
    _worker(members, 0, m.READINESS_READY)
    _worker(members, 1, readiness)
    rolling = deployment(("champion", 2, 1), holds=[1, 2])
    following = converge(rolling, members)
    found = rolling if following is None else following
    assert found.aliases[0].serving == serving
