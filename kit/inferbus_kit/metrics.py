"""Every metric of Inferbus, once: name, kind, labels, meaning.

In: a registry of the process. Out: one object with the metrics of one role. Base units; counters
end in `_total`; model and version are labels wherever there is a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (
    0.001,
    0.002,
    0.004,
    0.006,
    0.008,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    7.5,
    10,
    30,
)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")


@dataclass(frozen=True, slots=True)
class GatewayMetrics:
    """What a gateway counts."""

    requests: Counter
    request_seconds: Histogram
    hop_seconds: Histogram
    in_flight: Gauge
    resends: Counter
    rejected: Counter
    limits_shared: Gauge
    submission_bytes: Gauge
    first_token_seconds: Histogram


def gateway_metrics(registry: CollectorRegistry) -> GatewayMetrics:
    """Register and return the gateway's metrics."""
    return GatewayMetrics(
        requests=Counter(
            "inferbus_requests",
            "Accepted requests by how they ended.",
            (*_MODEL, "outcome"),
            registry=registry,
        ),
        request_seconds=Histogram(
            "inferbus_request_seconds",
            "From the request's last byte to the answer's hand-over to the socket.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        ),
        hop_seconds=Histogram(
            "inferbus_hop_seconds",
            "Where a request spent its time: parse, produce, queue, engine, reply, respond.",
            ("hop",),
            buckets=_SECONDS,
            registry=registry,
        ),
        in_flight=Gauge(
            "inferbus_requests_in_flight", "Accepted and not answered.", registry=registry
        ),
        resends=Counter(
            "inferbus_resends",
            "Requests placed again, by reason: attempt_failed, released, expired.",
            ("reason",),
            registry=registry,
        ),
        rejected=Counter(
            "inferbus_rejected",
            "Refused before acceptance, or cut off by the listener, by code.",
            ("code",),
            registry=registry,
        ),
        limits_shared=Gauge(
            "inferbus_limits_shared",
            "1 where limits are counted with the other gateways, 0 where each counts its share.",
            registry=registry,
        ),
        submission_bytes=Gauge(
            "inferbus_submission_bytes",
            "Bytes of submissions over Kafka that were read and are not passed on yet.",
            registry=registry,
        ),
        first_token_seconds=Histogram(
            "inferbus_first_token_seconds",
            "From a streamed request's last byte to its first token.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        ),
    )


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """What a worker counts."""

    predictions: Counter
    batches: Counter
    batch_rows: Histogram
    engine_seconds: Histogram
    queue_seconds: Histogram
    backlog_rows: Gauge
    resident: Gauge
    engine_restarts: Counter
    adopted: Counter
    dead_letters: Counter
    tokens: Counter
    first_token_seconds: Histogram
    job_rows: Counter
    job_chunks: Counter


def worker_metrics(registry: CollectorRegistry) -> WorkerMetrics:
    """Register and return the worker's metrics."""
    return WorkerMetrics(
        predictions=Counter(
            "inferbus_predictions",
            "Records written to the prediction stream.",
            (*_MODEL, "outcome"),
            registry=registry,
        ),
        batches=Counter(
            "inferbus_batches",
            "Batches by what released them: rows, bytes, deadline, idle, again.",
            (*_MODEL, "released_by"),
            registry=registry,
        ),
        batch_rows=Histogram(
            "inferbus_batch_rows", "Rows in a batch.", _MODEL, buckets=_ROWS, registry=registry
        ),
        engine_seconds=Histogram(
            "inferbus_engine_seconds",
            "Time of a batch in its engine.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        ),
        queue_seconds=Histogram(
            "inferbus_queue_seconds",
            "From a frame's arrival in the worker to its engine's start.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        ),
        backlog_rows=Gauge(
            "inferbus_backlog_rows", "Rows that were read and not answered.", registry=registry
        ),
        resident=Gauge(
            "inferbus_resident", "1 for each version that is READY.", _MODEL, registry=registry
        ),
        engine_restarts=Counter(
            "inferbus_engine_restarts", "Engine processes that died.", _MODEL, registry=registry
        ),
        adopted=Counter(
            "inferbus_adopted_inboxes", "Inboxes of dead workers emptied.", registry=registry
        ),
        dead_letters=Counter(
            "inferbus_dead_letters",
            "Records that could not be read, and requests that kill their engine.",
            registry=registry,
        ),
        tokens=Counter(
            "inferbus_tokens",
            "Tokens by kind: prompt, completion.",
            (*_MODEL, "kind"),
            registry=registry,
        ),
        first_token_seconds=Histogram(
            "inferbus_engine_first_token_seconds",
            "From a generation's start in its engine to its first token.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        ),
        job_rows=Counter(
            "inferbus_job_rows",
            "Rows of jobs that have their results, by how they ended.",
            (*_MODEL, "outcome"),
            registry=registry,
        ),
        job_chunks=Counter(
            "inferbus_job_chunks",
            "Chunks of jobs that were brought to their end.",
            registry=registry,
        ),
    )


@dataclass(frozen=True, slots=True)
class LoggerMetrics:
    """What a logger counts."""

    rows: Counter
    stored_rows: Gauge
    duplicates: Counter
    non_terminal: Counter
    quarantined: Counter
    lag_records: Gauge
    commit_seconds: Histogram
    fenced: Counter
    answers: Counter
    stopped_partitions: Gauge
    default_partition_rows: Gauge


def logger_metrics(registry: CollectorRegistry) -> LoggerMetrics:
    """Register and return the logger's metrics."""
    return LoggerMetrics(
        rows=Counter("inferbus_log_rows", "Rows committed to the log.", registry=registry),
        stored_rows=Gauge(
            "inferbus_log_stored_rows",
            "Rows ever logged, by whichever process, of the partitions that this one writes.",
            ("partition",),
            registry=registry,
        ),
        duplicates=Counter(
            "inferbus_log_duplicates",
            "Terminal records whose id had a row already.",
            registry=registry,
        ),
        non_terminal=Counter(
            "inferbus_log_non_terminal", "Records that ended an attempt only.", registry=registry
        ),
        quarantined=Counter(
            "inferbus_log_quarantined", "Records that no row could hold.", registry=registry
        ),
        lag_records=Gauge(
            "inferbus_log_lag_records",
            "Records of the prediction stream that are not in the log yet.",
            ("partition",),
            registry=registry,
        ),
        commit_seconds=Histogram(
            "inferbus_log_commit_seconds",
            "Time of one transaction.",
            buckets=_SECONDS,
            registry=registry,
        ),
        fenced=Counter(
            "inferbus_log_fenced",
            "Transactions refused because another owner moved the offset.",
            registry=registry,
        ),
        answers=Counter(
            "inferbus_log_answers",
            "Records for topics that tenants read, by how they ended: copied, refused.",
            ("tenant", "ended"),
            registry=registry,
        ),
        stopped_partitions=Gauge(
            "inferbus_log_stopped_partitions",
            "Partitions that need an operator; their sentence is in the log and in /readyz.",
            registry=registry,
        ),
        default_partition_rows=Gauge(
            "inferbus_log_default_partition_rows",
            "Rows outside all daily partitions; must stay 0.",
            registry=registry,
        ),
    )


@dataclass(frozen=True, slots=True)
class RegistryMetrics:
    """What a registry counts."""

    published: Counter
    pending: Gauge
    versions: Gauge
    leader: Gauge


def registry_metrics(registry: CollectorRegistry) -> RegistryMetrics:
    """Register and return the registry's metrics."""
    return RegistryMetrics(
        published=Counter(
            "inferbus_outbox_published", "Events published.", ("topic",), registry=registry
        ),
        pending=Gauge(
            "inferbus_outbox_pending", "Events committed and not published.", registry=registry
        ),
        versions=Gauge("inferbus_versions", "Registered versions.", registry=registry),
        leader=Gauge(
            "inferbus_outbox_leader", "1 where this process publishes.", registry=registry
        ),
    )
