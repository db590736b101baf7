"""docker-compose.yml and the Dockerfiles say what the dev stack says; no engine runs here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferbus_dev import services
from inferbus_dev.stack import DEFAULT_PORT_BASE
from inferbus_kit.settings import Settings, TokenSettings

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {"kafka", "postgres", "valkey"}
ONE_SHOTS = {"topics", "migrate-registry", "migrate-logger"}
OFFSETS = {
    ("gateway", "HTTP"): 0,
    ("gateway", "GRPC"): 1,
    ("gateway", "METRICS"): 2,
    ("registry", "HTTP"): 3,
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def _told(role: str, tmp_path: Path) -> dict[str, str]:
    """Return what the dev stack tells a service, as environment."""
    place = services.Place(
        kafka="k",
        postgres_url="p",
        valkey_url="v",
        objects=tmp_path,
        registry_url="r",
        admin_key="",
        extra={},
    )
    seat = services.Seat(
        role=services.ROLES[role],
        index=0,
        metrics_port=1,
        http_port=2 if services.ROLES[role].serves_http else None,
        grpc_port=3 if services.ROLES[role].serves_grpc else None,
        private=tmp_path / "run",
        log=tmp_path / "log",
    )
    env = services.child(seat, place).env
    assert callable(env)
    return {key: value for key, value in env().items() if key.startswith("INFERBUS_")}


def test_it_fits_the_schema() -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    result = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_services_are_those_that_exist(compose: dict[str, Any]) -> None:
    folders = {path.name for path in (ROOT / "services").iterdir() if path.is_dir()}
    assert set(compose["services"]) == folders | SERVERS | ONE_SHOTS
    assert folders == set(services.ROLES)


@pytest.mark.parametrize("role", sorted(services.ROLES))
def test_environment_equals_the_dev_stack(
    compose: dict[str, Any], role: str, tmp_path: Path
) -> None:
    told = set(_told(role, tmp_path))
    written = {name for name in compose["services"][role]["environment"] if name in told}
    optional = {"INFERBUS_LOG_LEVEL", "INFERBUS_OTLP_ENDPOINT", "INFERBUS_TRACE_RATIO"}
    own = set(TokenSettings.model_fields) - set(Settings.model_fields)
    optional |= {f"INFERBUS_{name.upper()}" for name in own}
    assert written == told - optional
    assert set(compose["services"][role]["environment"]) <= told | optional


@pytest.mark.parametrize(("place", "offset"), sorted(OFFSETS.items()))
def test_ports_equal_the_dev_stack(
    compose: dict[str, Any], place: tuple[str, str], offset: int
) -> None:
    role, kind = place
    environment = compose["services"][role]["environment"]
    assert environment[f"INFERBUS_{kind}_PORT"] == DEFAULT_PORT_BASE + offset


def test_no_two_listeners_share_a_port(compose: dict[str, Any]) -> None:
    taken = [
        value
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if name.endswith("_PORT")
    ]
    assert len(set(taken)) == len(taken)
    assert not {5432, 6379, 9092, 9093} & set(taken)


def test_everything_has_a_health_check_or_ends(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert name in ONE_SHOTS or "healthcheck" in service
        assert service["network_mode"] == "host"
        assert "ports" not in service


def test_every_knob_stands_in_the_example() -> None:
    knobs = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    example = (ROOT / ".env.example").read_text()
    assert knobs == set(re.findall(r"(?m)^([A-Z_]+)=", example))


def test_kafka_is_the_version_of_the_lock() -> None:
    jars = (ROOT / "dev" / "kafka" / "jgo.toml").read_text()
    version = re.search(r"kafka_2\.13:([0-9.]+)", jars)
    assert version is not None
    assert f"apache/kafka:{version[1]}" in (ROOT / "docker-compose.yml").read_text()


def test_dockerfiles_come_from_one_template() -> None:
    bodies = {}
    for role in services.ROLES:
        text = (ROOT / "services" / role / "Dockerfile").read_text()
        assert f"ARG ROLE={role}\n" in text
        lock = re.search(r"ARG LOCK=([a-z-]+)", text)
        assert lock is not None
        assert (ROOT / "locks" / f"{lock[1]}.txt").is_file()
        body = re.sub(r"ARG (ROLE|LOCK)=[a-z-]+", r"ARG \1=", text)
        bodies[role] = body.replace(f"services/{role}/Dockerfile", "services/*/Dockerfile")
        assert "USER inferbus" in text
    assert len(set(bodies.values())) == 1
