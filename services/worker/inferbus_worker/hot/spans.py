"""Spans of what an engine ran, where its requests are sampled.

In: a batch that has its answers. Out: a span for the batch that links to what asked for its rows, a
span for each request in the trace of its own, and the trace contexts that their records carry.
"""

from __future__ import annotations

import time

from inferbus_telemetry.spans import Tracing
from inferbus_worker.hot.work import Batch


class Spans:
    """The spans of a worker's versions.

    Invariants: a batch in which nothing is sampled has none; a row of a job has none of its own,
    since its chunk has one, and thousands of rows.
    """

    def __init__(self, tracing: Tracing, request_topic: str) -> None:
        self._tracing = tracing
        self._name = f"process {request_topic}"

    @property
    def on(self) -> bool:
        """Whether anything is traced at all."""
        return self._tracing.on

    def answered(self, batch: Batch) -> dict[int, str]:
        """Record the spans of a batch that ends now; return their contexts by `id(work)`.

        Those that are not in it carry on with the context of their request.
        """
        if not self._tracing.on:
            return {}
        asked = dict.fromkeys(
            work.request.traceparent for work in batch.works if work.request.traceparent
        )
        if not asked:
            return {}
        end_ns = time.time_ns()
        first = batch.works[0].request
        attributes: dict[str, str | int | float | bool] = {
            "inferbus.model": first.model,
            "inferbus.version": first.version,
        }
        self._tracing.span(
            "batch",
            links=asked,
            start_ns=batch.started_ns,
            end_ns=end_ns,
            attributes={
                **attributes,
                "inferbus.batch.rows": batch.rows,
                "inferbus.batch.requests": len(batch.works),
                "inferbus.engine_us": batch.engine_us,
            },
        )
        out: dict[int, str] = {}
        for work in batch.works:
            if not work.request.traceparent or work.keeper is not None:
                continue
            queue_ns = int((batch.started_s - work.arrived_s) * 1e9)
            out[id(work)] = self._tracing.span(
                self._name,
                parent=work.request.traceparent,
                kind="CONSUMER",
                start_ns=batch.started_ns - queue_ns,
                end_ns=end_ns,
                attributes={**attributes, "inferbus.request_id": work.request.id.hex()},
            )
        return out
