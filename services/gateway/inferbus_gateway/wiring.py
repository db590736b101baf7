"""Builds the gateway's parts, once, from its settings."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from inferbus_gateway.api import refusals
from inferbus_gateway.api.openai import OpenAI, before
from inferbus_gateway.api.rpc import RpcServer
from inferbus_gateway.api.v2 import make_app
from inferbus_gateway.api.views import Views
from inferbus_gateway.app import Process, add_stages, front_door, side_door
from inferbus_gateway.control.fleet import Beats, StateFeed
from inferbus_gateway.control.idempotency import Keys
from inferbus_gateway.control.key_uses import KeyUses
from inferbus_gateway.control.leases import Leases
from inferbus_gateway.control.once import Once
from inferbus_gateway.control.owed import Owed
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.control.resume import Resumer
from inferbus_gateway.control.upkeep import Upkeep
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.generations import Generations
from inferbus_gateway.hot.incoming import Bodies
from inferbus_gateway.hot.infer import Infer
from inferbus_gateway.hot.limits import Limits
from inferbus_gateway.hot.pending import Pending
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.publish import Publisher
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.requests import Requests
from inferbus_gateway.hot.route import Routes
from inferbus_gateway.hot.rpc_infer import RpcInfer
from inferbus_gateway.hot.rpc_unread import Unread
from inferbus_gateway.hot.shares import Shares
from inferbus_gateway.hot.streams import Streams
from inferbus_gateway.hot.submissions import Submissions
from inferbus_gateway.job_wiring import STREAMED, jobs_of
from inferbus_gateway.settings import GatewaySettings
from inferbus_guard import protocol
from inferbus_kit.consume import Record, StateReader
from inferbus_kit.health import Health, health_app
from inferbus_kit.heartbeat import Beater
from inferbus_kit.http import HttpServer
from inferbus_kit.lifecycle import Fail, Lifecycle
from inferbus_kit.metrics import gateway_metrics
from inferbus_kit.produce import Producer
from inferbus_kit.settings import load
from inferbus_schemas import membership, topics
from inferbus_schemas.access import Keyring
from inferbus_schemas.membership import Membership
from inferbus_telemetry.spans import Tracing, configure_logs

if TYPE_CHECKING:
    from inferbus_kit.tokens import Tokens


async def build(lifecycle: Lifecycle) -> None:
    """Read the settings, build the process and add its stages."""
    settings = load(GatewaySettings)
    configure_logs(settings.log_level, role="gateway", instance=settings.instance)
    add_stages(wire(settings, lifecycle.fail), lifecycle)


def wire(settings: GatewaySettings, fail: Fail) -> Process:
    """Build the parts; nothing runs yet, only the ports are bound.

    Raises:
        StartupError: a port cannot be bound.
    """
    instance, bootstrap = settings.instance, settings.kafka_bootstrap
    registry = CollectorRegistry()
    metrics = gateway_metrics(registry)
    health = Health()
    tracing = Tracing("gateway", instance, settings.otlp_endpoint, settings.trace_ratio)
    producer = Producer(bootstrap, client_id=f"{instance}-requests")
    control = Producer(bootstrap, client_id=f"{instance}-control")
    fleet = Membership()
    pins = Pins()
    placement = Placement(fleet, secrets.randbits(32))
    routes = Routes(pins, fleet, placement)
    pending = Pending(max_requests=settings.max_pending, max_bytes=settings.max_pending_bytes)
    replies = Replies(bootstrap, instance, pending, producer, lambda: health.beat("replies"))
    publisher = Publisher(instance, producer, pending, placement)
    rate, burst = settings.tenant_requests_per_s, settings.tenant_burst
    limits = Limits(rate, burst or max(1, round(rate)), settings.tenant_tokens_per_min)
    leases = Leases(settings.valkey_url.get_secret_value(), limits, fleet, metrics.limits_shared)
    requests = Requests(
        limits=limits,
        max_tenant_pending=settings.tenant_max_pending,
        pending=pending,
        publisher=publisher,
        replies=replies,
        metrics=metrics,
        tracing=tracing,
        max_tensor_bytes=settings.max_body_bytes,
        max_rows=settings.max_rows,
    )
    life = secrets.randbits(64)
    once = Once(
        bootstrap,
        instance,
        life,
        keys=Keys(settings.valkey_url.get_secret_value()),
        fleet=fleet,
        replies=replies,
        pending=pending,
    )
    keys = Keyring()
    access = Access(keys, local=settings.auth == "local")
    tokens: Tokens | None = None
    if settings.takes_tokens:
        from inferbus_kit import tokens as provider  # noqa: PLC0415 -- cryptography, not for all

        tokens = provider.Tokens(settings, access.changed)
        access.verify = tokens.principal
    bodies = Bodies(settings.max_body_bytes, settings.max_pending_bytes)
    jobs = jobs_of(
        settings,
        control,
        health,
        routes,
        new_id=requests.new_id,
        charge=lambda caller: limits.take(caller, time.monotonic()),
        busy=lambda: len(pending) > 0,
        tracing=tracing,
    )
    infer = Infer(
        access=access,
        routes=routes,
        requests=requests,
        metrics=metrics,
        bodies=bodies,
        later=jobs.later,
        once=once,
    )
    streams = Streams(bootstrap, instance, lambda: health.beat("streams"))
    openai = OpenAI(
        access=access,
        routes=routes,
        requests=requests,
        generations=Generations(
            membership.reader(instance, life), requests=requests, streams=streams, metrics=metrics
        ),
        resumer=Resumer(
            bootstrap,
            instance,
            producer=producer,
            fleet=fleet,
            replies=replies,
            streams=streams,
            cancel=publisher.cancel,
        ),
        metrics=metrics,
        bodies=bodies,
        once=once,
    )
    owed = Owed(settings.tenant_tokens_per_min)
    # Built only where it is used: a consumer that is never started is never closed.
    submissions = (
        Submissions(
            bootstrap,
            instance,
            settings.submission_tenants,
            producer=producer,
            placement=placement,
            routes=routes,
            health=health,
            fail=fail,
            max_tensor_bytes=settings.max_body_bytes,
            max_rows=settings.max_rows,
            enter=requests.enter,
            owes=owed.waits,
            tracing=tracing,
        )
        if settings.submission_tenants
        else None
    )
    if submissions is not None:
        metrics.submission_bytes.set_function(lambda: submissions.open_bytes)
    views = Views(routes, requests.statistics)
    repository = ModelRepository(routes, settings.registry_url)
    upkeep = Upkeep(pending, publisher, replies, fleet, metrics)
    feed = StateFeed(routes, fleet, upkeep, keys, access)
    key_uses = KeyUses(access.used)
    beats = Beats(
        instance,
        life=life,
        pins=pins,
        pending=pending,
        replies=replies,
        job_versions=jobs.fold.versions,
        key_uses=lambda: key_uses.due(time.time()),
    )

    def count(code: str) -> None:
        metrics.rejected.labels(code).inc()

    def reader(topic: str, apply: Callable[[Record], None]) -> StateReader:
        return StateReader(
            bootstrap,
            topics.topic(topic).name,
            apply,
            client_id=f"{instance}-state",
            on_failure=fail,
        )

    keys_reader = reader(topics.KEYS, feed.key)
    return Process(
        settings=settings,
        health=health,
        metrics_server=HttpServer(
            health_app(health, registry), settings.http_host, settings.metrics_port
        ),
        http_server=HttpServer(
            front_door(
                infer,
                before(
                    openai,
                    make_app(
                        views,
                        repository,
                        health,
                        access,
                        requests.new_id,
                        *jobs.routers,
                        count=count,
                    ),
                ),
            ),
            settings.http_host,
            settings.http_port,
            drain_s=settings.drain_timeout_s,
            max_connections=settings.max_connections,
            max_body_bytes=settings.max_body_bytes,
            limits=protocol.Limits(streamed=STREAMED),
            direct=side_door(infer),
            refuse=refusals.of_listener(requests.new_id, count),
        ),
        rpc_server=RpcServer(
            settings.http_host,
            settings.grpc_port,
            infer=RpcInfer(
                access=access,
                routes=routes,
                requests=requests,
                metrics=metrics,
                streams=Shares(
                    "streams", settings.max_connections // 8, settings.max_connections // 32
                ),
                unread=Unread(settings.max_pending_bytes),
                once=once,
            ),
            access=access,
            views=views,
            repository=repository,
            health=health,
            new_id=requests.new_id,
            max_body_bytes=settings.max_body_bytes,
            max_reading_bytes=settings.max_pending_bytes,
            max_connections=settings.max_connections,
            drain_s=settings.drain_timeout_s,
            fail=fail,
            count=count,
        ),
        tracing=tracing,
        producer=producer,
        control=control,
        keys=keys_reader,
        access=access,
        readers=(
            reader(topics.HEARTBEATS, feed.heartbeat),
            reader(topics.VERSIONS, feed.version),
            reader(topics.DEPLOYMENTS, feed.deployment),
            keys_reader,
            reader(topics.JOB_STATUS, jobs.feed),
            reader(topics.SPENT, owed.apply),
        ),
        fleet=fleet,
        replies=replies,
        publisher=publisher,
        requests=requests,
        infer=infer,
        once=once,
        submissions=submissions,
        streams=streams,
        upkeep=upkeep,
        leases=leases,
        tokens=tokens,
        jobs=jobs,
        beats=beats,
        beater=Beater(control, instance, "gateway", beats.make, on_failure=fail),
    )
