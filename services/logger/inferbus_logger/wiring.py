"""Builds the logger's parts once, from its settings."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from inferbus_kit.health import Health, health_app
from inferbus_kit.http import HttpServer
from inferbus_kit.metrics import logger_metrics
from inferbus_logger import fail_points
from inferbus_logger.answers import Answers
from inferbus_logger.consume import Reader
from inferbus_logger.lanes import Board
from inferbus_logger.open import Opener
from inferbus_logger.partitions import Partitions
from inferbus_logger.settings import LoggerSettings
from inferbus_logger.sink import Sink
from inferbus_logger.upkeep import Upkeep
from inferbus_logger.write import Writer
from inferbus_telemetry.spans import Tracing


@dataclass(frozen=True, slots=True)
class Process:
    """Everything that one logger holds."""

    health: Health
    http: HttpServer
    tracing: Tracing
    board: Board
    reader: Reader
    opener: Opener
    answers: Answers | None
    writers: tuple[Writer, ...]
    upkeep: Upkeep


def build(settings: LoggerSettings) -> Process:
    """Return the parts, connected to one another and to nothing else yet."""
    registry = CollectorRegistry()
    metrics = logger_metrics(registry)
    health = Health()
    tracing = Tracing("logger", settings.instance, settings.otlp_endpoint, settings.trace_ratio)
    board = Board(metrics, time.monotonic)
    answers = (
        Answers(
            settings.kafka_bootstrap,
            client_id=f"{settings.instance}-answers",
            tenants=settings.answer_tenants,
            metrics=metrics,
            health=health,
        )
        if settings.answer_tenants
        else None
    )
    sink = Sink(
        settings.log_topic,
        fail_points.from_environment(),
        answers.hand_over if answers is not None else None,
    )
    partitions = Partitions()
    url, topic = settings.postgres_url, settings.log_topic
    reader = Reader(
        bootstrap=settings.kafka_bootstrap,
        client_id=settings.instance,
        topic=topic,
        group=settings.log_group,
        partitions=settings.log_partitions,
        board=board,
        health=health,
        traced=tracing.on,
        answered=frozenset(settings.answer_tenants),
    )
    writers = tuple(
        Writer(
            f"write-{number}",
            postgres_url=url,
            topic=topic,
            board=board,
            sink=sink,
            partitions=partitions,
            metrics=metrics,
            health=health,
            tracing=tracing,
        )
        for number in range(settings.log_connections)
    )
    return Process(
        health=health,
        http=HttpServer(health_app(health, registry), settings.http_host, settings.metrics_port),
        tracing=tracing,
        board=board,
        reader=reader,
        opener=Opener(
            postgres_url=url, topic=topic, board=board, sink=sink, metrics=metrics, health=health
        ),
        answers=answers,
        writers=writers,
        upkeep=Upkeep(
            postgres_url=url,
            reader=reader,
            board=board,
            partitions=partitions,
            answers=answers,
            metrics=metrics,
            retention_days=settings.log_retention_days,
        ),
    )
