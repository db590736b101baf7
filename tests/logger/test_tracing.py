"""The logger's span is part of the trace that came with a sampled request."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support import predictions
from tests.support.forkserver import ForkServer
from tests.support.logs import forked, fresh_log, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_sampled_predictions_get_a_span_and_no_other_does(
    kafka_bootstrap: str, postgres_url: str, loggers: ForkServer, tmp_path: Path
) -> None:
    received: list[ExportTraceServiceRequest] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        body = await reader.readexactly(length)
        received.append(ExportTraceServiceRequest.FromString(_unzipped(head, body)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    rng = random.Random(1)
    now_ms = int(time.time() * 1000)
    made = [
        *(predictions.prediction(rng, now_ms, traceparent=f"00-{TRACE}-{SPAN}-01") for _ in "ab"),
        predictions.prediction(rng, now_ms, traceparent=f"00-{TRACE}-{SPAN}-00"),
        predictions.prediction(rng, now_ms),
    ]
    collector = await asyncio.start_server(collect, "127.0.0.1", 0)
    port = collector.sockets[0].getsockname()[1]
    async with collector, fresh_log(kafka_bootstrap, postgres_url, 1) as log:
        await predictions.produce(log.bootstrap, log.topic, [(0, each) for each in made])
        told = {"otlp_endpoint": f"http://127.0.0.1:{port}", "log_partitions": "0"}
        async with forked(loggers, log, tmp_path / "log", **told):

            async def exported() -> bool:
                return bool(received)

            await until(exported)
        topic = log.topic
    spans = [
        span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [(span.name, span.trace_id.hex(), span.parent_span_id.hex()) for span in spans] == [
        (f"process {topic}", TRACE, SPAN)
    ]
    counted = {one.key: one.value.int_value for one in spans[0].attributes}
    assert counted["messaging.batch.message_count"] == 2
    assert spans[0].end_time_unix_nano > spans[0].start_time_unix_nano


def _unzipped(head: bytes, body: bytes) -> bytes:
    import gzip  # noqa: PLC0415 -- only where the exporter compresses

    return gzip.decompress(body) if b"content-encoding: gzip" in head.lower() else body
