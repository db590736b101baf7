"""`inferbus topics`: what there is, made for a tenant, grown."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tests.support.command import failed, inferbus

if TYPE_CHECKING:
    from tests.support.registry import RegistryProcess


def test_topics(running: RegistryProcess, kafka_bootstrap: str, model: str) -> None:
    running.push(model, 1.0, "champion")
    at = {"INFERBUS_KAFKA_BOOTSTRAP": kafka_bootstrap}
    listed = inferbus("topics", "list", env=at).stdout
    assert "inferbus.models.deployments.v1" in listed
    assert "missing" not in listed
    deadline = time.monotonic() + 20
    while True:
        tail = inferbus(
            "topics",
            "tail",
            "models.deployments",
            "--json",
            "--from-beginning",
            "--count",
            "1",
            env=at,
        )
        assert tail.returncode == 0, tail.stderr
        if tail.stdout or time.monotonic() > deadline:
            break
    record = json.loads(tail.stdout)
    assert record["headers"]["ce_type"] == "inferbus.models.deployment-changed.v1"
    assert record["value"]["model"] == record["key"]
    assert failed(inferbus("topics", "tail", "none", env=at), "There is no topic 'none'")
    for _ in range(2):
        made = inferbus("topics", "add-tenant", "acme", env=at).stdout
        odd = inferbus("topics", "add-tenant", "inference", env=at).stdout
        assert odd == made.replace(".acme.", ".inference.")
        assert "inferbus.inference.submissions.acme.v1: 4 partitions" in made
        assert "inferbus.inference.submissions.acme.v1.dlq: 1 partitions" in made
        assert "inferbus.inference.answers.acme.v1: 4 partitions" in made
    theirs = inferbus("topics", "list", "--tenant", "acme", env=at).stdout
    assert "inferbus.inference.submissions.acme.v1     4 partitions" in theirs
    assert failed(inferbus("topics", "add-tenant", "../x", env=at), "not a valid tenant name")
    keep = inferbus("topics", "add-partitions", "inference.predictions", "--total", "99", env=at)
    assert failed(keep, "must keep its partitions")
    fewer = inferbus("topics", "add-partitions", "inference.requests", "--total", "1", env=at)
    assert failed(fewer, "they only grow")
    assert failed(inferbus("topics", "list", "--kafka", "127.0.0.1:1"), "Kafka does not answer")
