"""Which version an alias means: it moves when enough workers hold it, and then stays."""

from __future__ import annotations

from inferbus_gateway.control.fleet import choose_reply_partition
from inferbus_gateway.hot.pins import Pins
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import Fleet, deployment


def pinned(pins: Pins, fleet: Fleet, alias: str = "champion") -> int | None:
    pins.refresh(fleet.seen)
    return pins.pinned("m", alias)


def test_a_first_version_is_pinned_once_enough_workers_hold_it() -> None:
    fleet, pins = Fleet(), Pins()
    pins.apply(deployment("m", 1, {"champion": (1, 0)}, (1,), min_ready=2))
    assert pinned(pins, fleet) is None
    fleet.worker(0, ("m", 1))
    assert pinned(pins, fleet) is None
    fleet.worker(1, ("m", 1))
    assert pinned(pins, fleet) == 1


def test_a_swap_keeps_the_old_version_until_the_new_one_is_held() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1))
    pins.apply(deployment("m", 1, {"champion": (1, 1)}, (1,)))
    assert pinned(pins, fleet) == 1
    pins.apply(deployment("m", 2, {"champion": (2, 1)}, (1, 2)))
    assert pinned(pins, fleet) == 1
    fleet.worker(0, ("m", 1), ("m", 2))
    assert pinned(pins, fleet) == 2


def test_a_moved_pin_stays_when_nobody_holds_anything() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1), ("m", 2))
    pins.apply(deployment("m", 2, {"champion": (2, 1)}, (1, 2)))
    assert pinned(pins, fleet) == 2
    fleet.silence(8)
    assert pinned(pins, fleet) == 2


def test_a_moved_pin_goes_back_only_where_what_serves_alone_is_held() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1), ("m", 2))
    fleet.worker(1, ("m", 1), ("m", 2))
    pins.apply(deployment("m", 2, {"champion": (2, 1)}, (1, 2), min_ready=2))
    assert pinned(pins, fleet) == 2
    fleet.worker(0, ("m", 1))
    assert pinned(pins, fleet) == 2, "one worker still holds it, though fewer than a swap needs"
    fleet.worker(1, ("m", 1))
    assert pinned(pins, fleet) == 1
    fleet.worker(0, ("m", 1), ("m", 2))
    fleet.worker(1, ("m", 1), ("m", 2))
    assert pinned(pins, fleet) == 2
    # Once it serves everywhere there is nothing to go back to.
    pins.apply(deployment("m", 3, {"champion": (2, 2)}, (2,)))
    fleet.worker(0, ("m", 1))
    fleet.worker(1, ("m", 1))
    assert pinned(pins, fleet) == 2


def test_a_roll_back_returns_to_what_serves() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1), ("m", 2))
    pins.apply(deployment("m", 2, {"champion": (2, 1)}, (1, 2)))
    assert pinned(pins, fleet) == 2
    pins.apply(deployment("m", 3, {"champion": (3, 1)}, (1, 2, 3)))
    assert pinned(pins, fleet) == 1
    pins.apply(deployment("m", 4, {"champion": (1, 1)}, (1,)))
    assert pinned(pins, fleet) == 1


def test_an_older_deployment_changes_nothing() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1), ("m", 2))
    assert pins.apply(deployment("m", 5, {"champion": (2, 1)}, (1, 2)))
    assert not pins.apply(deployment("m", 5, {"champion": (1, 1)}, (1,)))
    assert not pins.apply(deployment("m", 4, {"champion": (1, 1)}, (1,)))
    assert pinned(pins, fleet) == 2
    assert pins.generation == 5


def test_ready_workers_of_a_pool_that_shall_not_hold_it_do_not_count() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1), pool="other")
    pins.apply(deployment("m", 1, {"champion": (1, 0)}, (1,)))
    assert pinned(pins, fleet) is None


def test_aliases_and_models_that_end_are_forgotten() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1))
    pins.apply(deployment("m", 1, {"champion": (1, 1), "shadow": (1, 1)}, (1,)))
    assert pinned(pins, fleet, "shadow") == 1
    pins.apply(deployment("m", 2, {"champion": (1, 1)}, (1,)))
    assert pinned(pins, fleet, "shadow") is None
    assert pins.pool_of("m", 1) == "default"
    pins.forget("m")
    assert pinned(pins, fleet) is None
    assert pins.pool_of("m", 1) is None
    assert pins.models == []


def test_the_beat_names_what_is_pinned_and_what_is_in_flight() -> None:
    fleet, pins = Fleet(), Pins()
    fleet.worker(0, ("m", 1), ("m", 2))
    pins.apply(deployment("m", 7, {"champion": (2, 1), "old": (1, 1)}, (1, 2)))
    pins.refresh(fleet.seen)
    said = {one.model: one for one in pins.beat([("m", 1), ("m", 1), ("gone", 4)])}
    assert (said["m"].generation, list(said["m"].pinned)) == (7, [1, 2])
    assert list(said["m"].in_flight) == [1]
    # A model whose deployment ended is held by the requests that are still under way.
    assert said["gone"] == m.GatewayModel(model="gone", in_flight=[4])


def test_a_gateway_takes_the_reply_partition_that_live_ones_name_least() -> None:
    fleet = Fleet()
    names = [f"gateway-{number}" for number in range(8)]
    for name in names:
        fleet.gateway(name, choose_reply_partition(fleet.seen, name, 8))
    taken = [one.beat.gateway.reply_partition for one in fleet.seen.gateways()]
    assert sorted(taken) == list(range(8))
    fleet.silence(7)
    fleet.gateway("clock", 5)
    assert choose_reply_partition(fleet.seen, "gateway-9", 8) != 5
    # One that names a partition that does not exist is of no account.
    fleet.gateway("odd", 99)
    assert 0 <= choose_reply_partition(fleet.seen, "gateway-9", 8) < 8
