"""Logs as JSON lines and, where a collector is configured, OpenTelemetry spans.

In: events and W3C trace contexts that travel as strings in messages. Out: one JSON object a line
on stdout; spans over OTLP/HTTP. Without a collector no span object is ever made.
"""

from __future__ import annotations

import logging
import random
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span, SpanContext

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(level: str, **fields: str) -> None:
    """Write one JSON object per event to stdout, with `fields` in each."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**fields)
    # Libraries write through logging; what they say goes the same way.
    logging.basicConfig(
        level=max(_LEVELS[level], logging.WARNING),
        format='{"library": "%(name)s", "event": %(message)r}',
        stream=sys.stdout,
        force=True,
    )


class OpenSpan:
    """A span that has not ended; `traceparent` is "" where tracing is off."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, traceparent: str, span: Span | None) -> None:
        self.traceparent = traceparent
        self._span = span

    def end(self, end_ns: int | None = None, **attributes: str | float | bool) -> None:
        """End it, with more attributes; dots in their names are written as two underscores."""
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute(name.replace("__", "."), value)
            self._span.end(end_ns)


class Tracing:
    """Makes spans from and to traceparent strings.

    Invariants: with no endpoint `on` is False and every method is a cheap no-op; `start` never
    samples what its caller did not sample.
    """

    def __init__(self, service: str, instance: str, endpoint: str, ratio: float = 0.0) -> None:
        self.on = bool(endpoint)
        self._ratio = ratio
        self._provider: TracerProvider | None = None
        if not self.on:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 -- a second of CPU that only a traced process pays
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        resource = Resource.create(
            {"service.name": f"inferbus-{service}", "service.instance.id": instance}
        )
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))

    def sampled(self, traceparent: str) -> bool:
        """Tell whether a request with this context (or none) is to be traced."""
        if not self.on:
            return False
        if match := _TRACEPARENT.fullmatch(traceparent):
            return bool(int(match[3], 16) & 1)
        return random.random() < self._ratio  # noqa: S311 -- sampling is no secret

    def span(
        self,
        name: str,
        *,
        parent: str = "",
        links: Iterable[str] = (),
        kind: str = "INTERNAL",
        start_ns: int | None = None,
        end_ns: int | None = None,
        attributes: dict[str, str | int | float | bool] | None = None,
    ) -> str:
        """Record a span that has already ended; return its traceparent, or "" when off.

        Args:
            name: as OpenTelemetry's conventions write it, such as `process <topic>`.
            parent: traceparent of the span that caused it; empty starts a trace.
            links: traceparents of other causes, for work on a batch.
            kind: SERVER, CLIENT, PRODUCER, CONSUMER or INTERNAL.
            start_ns: wall clock, nanoseconds; None is now.
            end_ns: wall clock, nanoseconds; None is now.
            attributes: what the span says of itself.
        """
        made = self.open(
            name, parent=parent, links=links, kind=kind, start_ns=start_ns, attributes=attributes
        )
        made.end(end_ns)
        return made.traceparent

    def open(
        self,
        name: str,
        *,
        parent: str = "",
        links: Iterable[str] = (),
        kind: str = "INTERNAL",
        start_ns: int | None = None,
        attributes: dict[str, str | int | float | bool] | None = None,
    ) -> OpenSpan:
        """Start a span whose context is needed before it ends; arguments as for `span`."""
        if self._provider is None:
            return OpenSpan("", None)
        from opentelemetry import trace  # noqa: PLC0415 -- only where tracing is on

        above = _context(parent)
        base = (
            trace.set_span_in_context(trace.NonRecordingSpan(above)) if above is not None else None
        )
        span = self._provider.get_tracer("inferbus").start_span(
            name,
            context=base,
            kind=trace.SpanKind[kind],
            links=list(_links(links)),
            start_time=start_ns,
            attributes=attributes,
        )
        own = span.get_span_context()
        return OpenSpan(f"00-{own.trace_id:032x}-{own.span_id:016x}-01", span)

    @contextmanager
    def around(
        self, name: str, parent: str, kind: str, **attributes: str | float | bool
    ) -> Iterator[str]:
        """Record a span around a block that is sampled; yield its traceparent, else ""."""
        if not self.sampled(parent):
            yield ""
            return
        span = self.open(name, parent=parent, kind=kind)
        try:
            yield span.traceparent
        finally:
            span.end(None, **attributes)

    async def stop(self) -> None:
        """Export what is left, bounded."""
        if self._provider is not None:
            import asyncio  # noqa: PLC0415 -- only here

            await asyncio.to_thread(self._provider.shutdown)


def _context(traceparent: str) -> SpanContext | None:
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415 -- only where on

    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    return SpanContext(
        int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(1)
    )


def _links(traceparents: Iterable[str]) -> Iterable[Link]:
    from opentelemetry.trace import Link  # noqa: PLC0415 -- only where tracing is on

    for traceparent in traceparents:
        context = _context(traceparent)
        if context is not None:
            yield Link(context)
