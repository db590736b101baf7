"""From what stands in the URL to one version, and who is told what."""

from __future__ import annotations

import pytest

from inferbus_gateway.errors import NotDeployedError, NoWorkerError, UnknownModelError
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.route import Routes
from tests.gateway.fleet_records import Fleet, deployment, version


class Gateway:
    """The routing state of a gateway over a fleet."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.routes = Routes(Pins(), self.fleet.seen, Placement(self.fleet.seen, 1))

    def worker(self, inbox: int, *ready: tuple[str, int]) -> None:
        self.fleet.worker(inbox, *ready)
        self.routes.fleet_changed()

    def number(self, model: str, text: str = "") -> int:
        return self.routes.resolve(model, text).version


@pytest.fixture
def gateway() -> Gateway:
    made = Gateway()
    for number in (1, 2, 3):
        made.routes.apply_version(version("m", number))
    made.routes.apply_deployment(
        deployment("m", 1, {"champion": (2, 2), "previous": (1, 1), "next": (3, 0)}, (1, 2, 3))
    )
    return made


def test_a_bare_name_a_number_an_alias_and_a_digest_prefix(gateway: Gateway) -> None:
    digest = version("m", 1).version_sha256.hex()
    assert gateway.number("m") == 2
    assert gateway.number("m", "1") == 1
    assert gateway.number("m", "previous") == 1
    assert gateway.number("m", digest[:8]) == 1
    assert gateway.number("m", digest) == 1
    target = gateway.routes.resolve("m", "champion")
    assert (target.pool, target.version_header) == ("default", b"2")
    assert target.manifest.signature.inputs[0].name == "x"


def test_a_prefix_of_decimal_digits_is_a_digest_not_a_number() -> None:
    gateway = Gateway()
    said = version("m", 1)
    said.version_sha256 = bytes.fromhex("1234567890" + "ab" * 27)
    gateway.routes.apply_version(said)
    gateway.routes.apply_deployment(deployment("m", 1, {"champion": (1, 1)}, (1,)))
    assert gateway.number("m", "12345678") == 1


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("absent", ""),
        ("m", "9"),
        ("m", "0"),
        ("m", "99999999999999999999"),
        ("m", "nobody"),
        ("m", "abcdef0"),
        ("m", "\u0661"),
        ("m", ""),
    ],
)
def test_what_is_not_there_is_an_unknown_model(gateway: Gateway, model: str, text: str) -> None:
    if (model, text) == ("m", ""):
        gateway.routes.end_deployment("m")
    with pytest.raises(UnknownModelError, match=r"^Request for unknown model: ") as caught:
        gateway.routes.resolve(model, text)
    assert caught.value.http_status == 404


def test_a_prefix_of_two_versions_is_refused() -> None:
    gateway = Gateway()
    for number in (1, 2):
        said = version("m", number)
        said.version_sha256 = b"\xab" * 31 + bytes([number])
        gateway.routes.apply_version(said)
    gateway.routes.apply_deployment(deployment("m", 1, {"champion": (1, 1)}, (1, 2)))
    with pytest.raises(UnknownModelError):
        gateway.routes.resolve("m", "abababab")
    assert gateway.number("m", "ab" * 31 + "02") == 2


def test_odd_names_do_not_come_back_in_messages(gateway: Gateway) -> None:
    for odd in ("x" * 500, "a\nb", "\u202e", "\x00"):
        with pytest.raises(UnknownModelError) as caught:
            gateway.routes.resolve(odd)
        assert odd not in str(caught.value)
        with pytest.raises(UnknownModelError) as caught:
            gateway.routes.resolve("m", odd)
        assert odd not in str(caught.value)


def test_an_alias_that_was_never_served_is_not_ready_rather_than_unknown(gateway: Gateway) -> None:
    with pytest.raises(NoWorkerError, match="no worker has loaded it yet"):
        gateway.routes.resolve("m", "next")
    gateway.worker(0, ("m", 3))
    assert gateway.number("m", "next") == 3


def test_what_was_remembered_ends_with_the_deployment_that_said_it(gateway: Gateway) -> None:
    assert gateway.number("m", "1") == 1
    # The pins do not move, yet version 1 is in no pool any more.
    gateway.routes.apply_deployment(
        deployment("m", 2, {"champion": (2, 2), "previous": (2, 2)}, (2,))
    )
    digest = version("m", 1).version_sha256.hex()
    for text in ("1", digest[:8]):
        with pytest.raises(NotDeployedError) as caught:
            gateway.routes.resolve("m", text)
        assert str(caught.value) == "version 1 of m is not deployed; deployed: 2"
        assert caught.value.http_status == 404
    with pytest.raises(UnknownModelError, match=r"m has no version 9; deployed: 2$"):
        gateway.routes.resolve("m", "9")
    gateway.routes.apply_deployment(deployment("m", 3, {"champion": (2, 2)}, (2,), pool="gpu"))
    assert gateway.routes.resolve("m").pool == "gpu"


def test_a_swap_shows_at_once_and_nothing_unknown_is_remembered(gateway: Gateway) -> None:
    assert gateway.number("m") == 2
    with pytest.raises(UnknownModelError):
        gateway.routes.resolve("late")
    gateway.routes.apply_version(version("late", 1))
    gateway.routes.apply_deployment(deployment("late", 2, {"champion": (1, 1)}, (1,)))
    assert gateway.number("late") == 1
    gateway.routes.apply_deployment(deployment("m", 3, {"champion": (3, 2)}, (2, 3)))
    assert gateway.number("m") == 2
    gateway.worker(0, ("m", 3))
    assert gateway.number("m") == 3


def test_ready_and_held_follow_the_fleet(gateway: Gateway) -> None:
    target = gateway.routes.resolve("m")
    assert not gateway.routes.ready(target)
    gateway.worker(0, ("m", 2), ("m", 1))
    assert gateway.routes.ready(target)
    assert gateway.routes.held("m") == [1, 2]
    gateway.fleet.silence(8)
    gateway.routes.fleet_changed()
    assert not gateway.routes.ready(target)
    assert gateway.routes.held("m") == []


def test_a_version_never_changes_once_read(gateway: Gateway) -> None:
    other = version("m", 1)
    other.version_sha256 = b"\x00" * 32
    gateway.routes.apply_version(other)
    assert gateway.routes.resolve("m", "1").sha256 == version("m", 1).version_sha256
