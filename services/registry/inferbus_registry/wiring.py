"""Builds a registry once and gives its parts to the lifecycle in the order of their start."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from inferbus_kit.health import Health, health_app
from inferbus_kit.http import HttpServer
from inferbus_kit.lifecycle import Lifecycle
from inferbus_kit.metrics import registry_metrics
from inferbus_kit.settings import load
from inferbus_registry import problems
from inferbus_registry.app import Services, make_app
from inferbus_registry.artifacts.repository import BlobRepository, open_store
from inferbus_registry.artifacts.service import BlobService
from inferbus_registry.database import Database
from inferbus_registry.door import Verify, nobody
from inferbus_registry.keys.service import KeyService
from inferbus_registry.keys.uses import KeyUses
from inferbus_registry.leading import Leading
from inferbus_registry.models.service import ModelService, Placement
from inferbus_registry.outbox.leader import Leader
from inferbus_registry.outbox.relay import Bus
from inferbus_registry.placement.fleet import Fleet
from inferbus_registry.placement.service import RolloutService
from inferbus_registry.readiness import Readiness
from inferbus_registry.settings import RegistrySettings
from inferbus_registry.versions.service import VersionService
from inferbus_schemas import topics
from inferbus_telemetry.spans import configure_logs


async def build(lifecycle: Lifecycle) -> None:
    """Read the settings and add every stage.

    Raises:
        StartupError: a setting cannot be used, or a port is taken.
    """
    settings = load(RegistrySettings)
    configure_logs(settings.log_level, role="registry", instance=settings.instance)
    collector = CollectorRegistry()
    metrics = registry_metrics(collector)
    health = Health()

    database = Database(settings.postgres_url, settings.instance)
    blobs = BlobRepository(*open_store(settings.object_store_url))
    keys = KeyService(database, settings.operator_tenant, settings.max_tenant_keys)
    uses = KeyUses(keys, lifecycle.fail)
    fleet = Fleet(
        settings.kafka_bootstrap,
        topics.topic(topics.HEARTBEATS).name,
        f"{settings.instance}-fleet",
        lifecycle.fail,
        uses.heard,
    )
    leading = Leading(
        Bus.of_catalogue(settings.kafka_bootstrap),
        database,
        fleet,
        keys,
        instance=settings.instance,
        health=health,
        metrics=metrics,
        check_s=settings.outbox_check_s,
    )
    leader = Leader(
        settings.postgres_url,
        settings.instance,
        leading.lead,
        spawn=lifecycle.spawn,
        health=health,
        leading=metrics.leader,
    )
    services = Services(
        blobs=BlobService(blobs, max_bytes=settings.max_blob_bytes, stall_s=settings.blob_stall_s),
        versions=VersionService(database, blobs),
        models=ModelService(database, Placement(settings.pool, settings.min_ready)),
        rollouts=RolloutService(database, fleet),
        keys=keys,
    )
    readiness = Readiness(database, health, metrics.versions)
    probes = HttpServer(health_app(health, collector), settings.http_host, settings.metrics_port)
    verify: Verify = nobody
    if settings.takes_tokens:
        from inferbus_kit.tokens import Tokens  # noqa: PLC0415 -- cryptography, not for all

        tokens = Tokens(settings)
        verify = tokens.principal

        async def fetch_keys() -> None:
            lifecycle.spawn("tokens", tokens.run())

        lifecycle.add("tokens", start=fetch_keys)
    app = make_app(services, uses.find, verify, local=settings.auth == "local")
    http = HttpServer(app, settings.http_host, settings.http_port, refuse=problems.of_listener)

    lifecycle.add("metrics", start=probes.start, stop=probes.stop)
    lifecycle.add("database", stop=database.stop)
    lifecycle.add("artifacts", start=blobs.sweep)
    lifecycle.add("key-uses", start=uses.start, stop=uses.stop)
    lifecycle.add("fleet", start=fleet.start, stop=fleet.stop)
    lifecycle.add("leader", start=leader.start, stop=leader.stop)
    lifecycle.add("readiness", start=readiness.start, stop=readiness.stop)
    lifecycle.add("http", start=http.start, stop=http.stop)

    async def ready() -> None:
        health.ready("start")

    lifecycle.add("ready", start=ready)
