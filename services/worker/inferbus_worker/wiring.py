"""Builds the worker's parts, once, from its settings."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from inferbus_kit.consume import Record, StateReader
from inferbus_kit.dlq import DeadLetters
from inferbus_kit.health import Health, health_app
from inferbus_kit.heartbeat import Beater
from inferbus_kit.http import HttpServer
from inferbus_kit.lifecycle import Fail, Lifecycle
from inferbus_kit.metrics import worker_metrics
from inferbus_kit.objects import Objects, open_store
from inferbus_kit.produce import Producer
from inferbus_kit.settings import load
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from inferbus_schemas.membership import InboxLease, Member, Membership
from inferbus_telemetry.spans import Tracing, configure_logs
from inferbus_worker import VERSION
from inferbus_worker.app import LoadReport, Process, add_stages
from inferbus_worker.artifacts import Artifacts
from inferbus_worker.control.desired import Desired
from inferbus_worker.control.lease import Lease, WriteBeat
from inferbus_worker.control.residents import EngineLimits, Residents
from inferbus_worker.control.survey import Survey
from inferbus_worker.control.tenure import Surroundings, Tenure
from inferbus_worker.hot.cancellations import Cancellations
from inferbus_worker.hot.consume import Desk, Inbox, group
from inferbus_worker.hot.emit import Emitter
from inferbus_worker.hot.letters import Letters
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.spent import Spent
from inferbus_worker.hot.tokens import TokenSender
from inferbus_worker.jobs.chunk import ChunkRunner, Outlets
from inferbus_worker.jobs.consume import JobLoop
from inferbus_worker.jobs.rows import RowRunner
from inferbus_worker.settings import WorkerSettings


async def build(lifecycle: Lifecycle) -> None:
    """Read the settings, build the process and add its stages."""
    settings = load(WorkerSettings)
    configure_logs(settings.log_level, role="worker", instance=settings.instance)
    add_stages(wire(settings, lifecycle.fail), lifecycle)


def wire(settings: WorkerSettings, fail: Fail) -> Process:
    """Build the parts; nothing runs yet, only the metrics port is bound.

    Args:
        settings: what the environment says.
        fail: ends the process, with a reason, when a loop of a part has died.

    Raises:
        StartupError: the object store's URL or the metrics port cannot be used.
    """
    instance, bootstrap = settings.instance, settings.kafka_bootstrap
    store = open_store(settings.object_store_url)
    registry = CollectorRegistry()
    metrics = worker_metrics(registry)
    health = Health()
    loops = Loops(health, fail)
    server = HttpServer(health_app(health, registry), settings.http_host, settings.metrics_port)
    tracing = Tracing("worker", instance, settings.otlp_endpoint, settings.trace_ratio)
    records = Producer(bootstrap, client_id=f"{instance}-records")
    control = Producer(bootstrap, client_id=f"{instance}-control")
    changed = asyncio.Event()
    desired = Desired(changed.set)
    fleet = Membership()
    beater = Beater(control, instance, "worker", _no_beat)
    emitter = Emitter(records, instance, fail)
    life = secrets.randbits(64)
    spent = Spent(control, instance, life, loops)
    emitter.on_spent = spent.note
    requests = topics.topic(topics.REQUESTS, settings.pool)
    desk = Desk(emitter, metrics, lambda: beater.skew_ms, requests.ce_type)
    letters = Letters(DeadLetters(control, instance), loops, requests.name, metrics.dead_letters)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    scratch = settings.state_dir / "scratch"
    scratch.mkdir(exist_ok=True)
    # A producer of their own: a token never stands in a queue behind large answers.
    token_records = Producer(bootstrap, client_id=f"{instance}-tokens")
    tokens = TokenSender(token_records, instance, loops)
    residents = Residents(
        desk,
        Artifacts(store, settings.state_dir),
        letters,
        loops,
        tokens,
        instance=instance,
        scratch=scratch.resolve(),
        limits=EngineLimits(settings.engine_threads, settings.engine_address_space_bytes),
        metrics=metrics,
        spans=Spans(tracing, requests.name),
        changed=changed.set,
    )
    report = LoadReport(desk, residents)

    def compose(said: WriteBeat) -> m.Heartbeat:
        part = m.WorkerBeat(
            pool=settings.pool,
            inbox=said.inbox,
            epoch=said.epoch,
            end_offset=said.end_offset,
            generation_applied=desired.generation,
        )
        report.fill(part)
        return m.Heartbeat(
            instance=instance,
            state=said.state,
            worker=part,
            life=life,
            inferbus_version=VERSION,
        )

    def open_inbox(number: int) -> Inbox:
        lease = fleet.lease(settings.pool, number)
        return Inbox(
            bootstrap,
            settings.pool,
            number,
            desk,
            letters,
            loops=loops,
            client_id=f"{instance}-{number}",
            claimed_ms=0 if lease is None else lease.claimed_ms,
        )

    tenure = Tenure(
        Lease(settings.pool, instance, life, fleet),
        Surroundings(
            beater=beater,
            survey=Survey(bootstrap, requests.name, group(settings.pool), f"{instance}-survey"),
            health=health,
            metrics=metrics,
            open_inbox=open_inbox,
            compose=compose,
            request_topic=requests.name,
            loops=loops,
        ),
    )

    def apply_beat(record: Record) -> None:
        beat = None if record.value is None else m.Heartbeat.FromString(record.value)
        key = (record.key or b"").decode()
        fleet.apply(key, beat, offset=record.offset, append_ms=record.timestamp)
        tenure.heard.set()

    def reader(topic: str, apply: Callable[[Record], None]) -> StateReader:
        return StateReader(
            bootstrap,
            topics.topic(topic).name,
            apply,
            client_id=f"{instance}-state",
            on_failure=fail,
        )

    def lives(other: bytes) -> bool:
        seen: list[InboxLease | Member] = [*fleet.leases(settings.pool), *fleet.joining()]
        return any(one.life == int(other, 16) and not fleet.expired(one) for one in seen)

    job_records = Producer(bootstrap, client_id=f"{instance}-jobs")
    job_letters = Letters(
        DeadLetters(control, instance),
        loops,
        topics.topic(topics.JOB_CHUNKS, settings.pool).name,
        metrics.dead_letters,
    )
    job_loop = JobLoop(
        bootstrap,
        settings.pool,
        ChunkRunner(
            RowRunner(desk, instance),
            Outlets(Objects(store), job_records, job_letters, metrics, tracing, lives),
            instance,
            life,
        ),
        desk=desk,
        letters=job_letters,
        loops=loops,
        client_id=f"{instance}-jobs",
    )

    return Process(
        settings=settings,
        health=health,
        metrics=metrics,
        server=server,
        tracing=tracing,
        records=records,
        control=control,
        readers=(
            reader(topics.HEARTBEATS, apply_beat),
            reader(topics.VERSIONS, desired.apply_version),
            reader(topics.DEPLOYMENTS, desired.apply_deployment),
        ),
        beater=beater,
        emitter=emitter,
        spent=spent,
        letters=letters,
        token_records=token_records,
        job_records=job_records,
        jobs=job_loop,
        tokens=tokens,
        cancellations=Cancellations(
            bootstrap,
            settings.pool,
            desk.cancel,
            loops=loops,
            client_id=f"{instance}-cancellations",
        ),
        desk=desk,
        desired=desired,
        fleet=fleet,
        residents=residents,
        tenure=tenure,
        load=report,
        changed=changed,
    )


def _no_beat() -> tuple[str, m.Heartbeat]:
    raise AssertionError("the tenure writes this worker's beats")
