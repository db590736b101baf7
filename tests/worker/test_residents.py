"""Loads and unloads that end by a fault of ours: seen, named, never lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from inferbus_kit.health import Health
from inferbus_kit.metrics import worker_metrics
from inferbus_schemas import messages as m
from inferbus_telemetry.spans import Tracing
from inferbus_worker.control.desired import Version
from inferbus_worker.control.residents import EngineLimits, Residents
from inferbus_worker.errors import ArtifactError
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.tokens import TokenSender
from tests.worker.test_execute import MANIFEST, TOPIC, Bench

if TYPE_CHECKING:
    from pathlib import Path

    from inferbus_schemas.manifest import Manifest

KEY = ("m", 1)


class Faulty:
    """A cache whose files cannot be had and whose folders cannot be removed."""

    async def folder(self, _manifest: Manifest) -> Path:
        raise ArtifactError("its files are gone")

    async def forget(self, _manifest: Manifest) -> None:
        raise RuntimeError("a fault of ours")


async def test_a_load_that_fails_is_told_and_an_unload_that_fails_ends_the_process(
    tmp_path: Path,
) -> None:
    bench = Bench()
    failures: list[str] = []
    loops = Loops(Health(), failures.append)
    residents = Residents(
        bench.desk,
        Faulty(),  # type: ignore[arg-type]
        bench.letters,  # type: ignore[arg-type]
        loops,
        TokenSender(bench, "w1", loops),  # type: ignore[arg-type]
        instance="w1",
        scratch=tmp_path,
        limits=EngineLimits(1, 0),
        metrics=worker_metrics(CollectorRegistry()),
        spans=Spans(Tracing("worker", "w1", ""), TOPIC.name),
        changed=lambda: None,
    )
    residents.hold({KEY: (Version("m", 1, b"v" * 32, b"{}", MANIFEST), 1)})
    await residents.settled()
    (said,) = residents.beat()
    assert said.readiness == m.READINESS_FAILED
    assert "its files are gone" in said.reason
    assert failures == []
    residents.hold({})
    await residents.settled()
    await asyncio.sleep(0)
    assert failures == ["task unload:m/1 failed"]
