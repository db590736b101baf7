"""`inferbus topics tail` as a process: what people are shown of records and dead letters."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import uuid
from typing import Any

import confluent_kafka
import pytest

from inferbus_cli.errors import CommandError
from inferbus_cli.topics import _entry, _line, _show_ids
from inferbus_dev.topics import create_topics
from inferbus_kit.produce import Producer
from inferbus_schemas import ids, topics
from inferbus_schemas import messages as m
from tests.support import worker_side
from tests.support.command import failed, inferbus


def test_tail_shows_ids_and_digests_as_people_know_them(kafka_bootstrap: str) -> None:
    pool = f"c{secrets.token_hex(4)}"
    wanted = topics.topic(topics.REQUESTS, pool)
    one = worker_side.request("m", 1, b"\x00")
    odd = m.Request(id=b"short")

    async def send() -> None:
        await create_topics(kafka_bootstrap, [(wanted.name, 1, 1, {})])
        producer = Producer(kafka_bootstrap, client_id="cli-test")
        await producer.start()
        frame = m.RequestFrame(gateway="g", requests=[one, odd])
        await (await producer.send(wanted.name, 0, frame.SerializeToString()))
        await producer.stop()

    asyncio.run(send())
    run = inferbus(
        "topics", "tail", wanted.name, "--pool", pool, "--json", "--from-beginning",
        "--count", "1", "--kafka", kafka_bootstrap,
    )  # fmt: skip
    requests = json.loads(run.stdout)["value"]["requests"]
    assert requests[0]["id"] == ids.text(one.id)
    assert requests[0]["tensors"] == "AA=="
    assert requests[1]["id"] == "c2hvcnQ="
    shown: dict[str, Any] = {"output_sha256": ""}
    _show_ids(m.Prediction(output_sha256=b"\xab" * 32), shown)
    assert shown == {"output_sha256": "ab" * 32}


def test_tail_shows_dead_letters_with_their_reason(kafka_bootstrap: str) -> None:
    pool = f"c{secrets.token_hex(4)}"
    letters = topics.dead_letters(topics.topic(topics.REQUESTS, pool).name)

    async def send() -> None:
        await create_topics(kafka_bootstrap, [(letters, 1, 1, {})])
        producer = Producer(kafka_bootstrap, client_id="cli-test")
        await producer.start()
        head = [("dlq_error", b"UnreadableFrameError: no frame")]
        await (await producer.send(letters, 0, b"\xff\xff", headers=head))
        await producer.stop()

    asyncio.run(send())
    run = inferbus(
        "topics", "tail", "inference.requests.dlq", "--pool", pool, "--from-beginning",
        "--count", "1", "--kafka", kafka_bootstrap,
    )  # fmt: skip
    assert run.stdout == '0:0 - UnreadableFrameError: no frame {"undecodable_bytes": 2}\n'
    none = inferbus("topics", "tail", "models.versions.dlq", "--kafka", kafka_bootstrap)
    assert failed(none, "There is no topic 'models.versions.dlq'")
    keep = inferbus(
        "topics", "add-partitions", "inference.requests.dlq", "--total", "9",
        "--kafka", kafka_bootstrap,
    )  # fmt: skip
    assert failed(keep, "must keep its partitions")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("inference.submissions", "inferbus.inference.submissions.local.v1"),
        ("inference.submissions.dlq", "inferbus.inference.submissions.local.v1.dlq"),
        ("inferbus.inference.submissions.acme.v1", "inferbus.inference.submissions.acme.v1"),
        ("inferbus.inference.requests.gpu.v1.dlq", "inferbus.inference.requests.gpu.v1.dlq"),
        ("inferbus.inference.predictions.v1", "inferbus.inference.predictions.v1"),
    ],
)
def test_a_topic_is_named_as_in_the_catalogue_or_as_on_the_broker(said: str, name: str) -> None:
    assert _entry(said, "default").name == name


@pytest.mark.parametrize(
    "said", ["inferbus.inference.predictions.v1.dlq", "inferbus.inference.submissions.A B.v1", "x"]
)
def test_other_topics_there_are_not(said: str) -> None:
    with pytest.raises(CommandError):
        _entry(said, "default")


def test_tail_shows_what_any_program_may_write(kafka_bootstrap: str) -> None:
    tenant = f"c{secrets.token_hex(4)}"
    topic = topics.topic(topics.SUBMISSIONS).for_tenant(tenant).name
    asyncio.run(create_topics(kafka_bootstrap, [(topic, 1, 1, {})]))
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka_bootstrap})
    for _ in range(3):
        producer.produce(topic, None, key=b"\xff", headers=[("traceparent", None), ("x", b"\xff")])
    written = {"requests": [{"model": "m", "inputs": {"tensors": [{"shape": [1]}]}}]}
    head: list[tuple[str, Any]] = [("content-type", "Application/JSON; charset=utf-8")]
    ce_id = uuid.uuid4()
    producer.produce(topic, json.dumps(written), key=ce_id.bytes, headers=head)
    producer.produce(topic, b"{", key=b"text", headers=head)
    assert producer.flush(10) == 0
    at = ("--tenant", tenant, "--from-beginning", "--kafka", kafka_bootstrap)
    run = inferbus("topics", "tail", "inference.submissions", "--json", "--count", "5", *at)
    shown = [json.loads(line) for line in run.stdout.splitlines()]
    assert [one["headers"] for one in shown[:3]] == [{"traceparent": None, "x": "\ufffd"}] * 3
    assert [(one["key"], one["value"]) for one in shown[2:]] == [
        ("\ufffd", None),
        (str(ce_id), written),
        ("text", {"undecodable_bytes": 1}),
    ]
    packed = confluent_kafka.Producer(
        {"bootstrap.servers": kafka_bootstrap, "compression.type": "zstd", "linger.ms": 300,
         "batch.size": 20 << 20, "message.max.bytes": 20 << 20}
    )  # fmt: skip
    for _ in range(10):
        packed.produce(topic, bytes(900_000))
    packed.produce(topic, b"x", headers=[("", None)] * 101)
    assert packed.flush(10) == 0
    run = inferbus(
        "topics", "tail", topic, "--json", "--count", "6", "--from-beginning",
        "--kafka", kafka_bootstrap,
    )  # fmt: skip
    shown = [json.loads(line) for line in run.stdout.splitlines()]
    assert shown[5]["value"] == {"unreadable": "its batch has over 8 MiB when it is decompressed"}
    assert (shown[5]["offset"], shown[5]["headers"]) == (15, {})
    none = inferbus("topics", "tail", "inference.submissions", "--count", "0", *at)
    assert failed(none, "--count must be at least 1")


def test_a_line_for_people_steers_no_terminal() -> None:
    hostile = "\x1b[2J\n0:9 \x9b31m\u202e"
    shown = {"partition": 0, "offset": 1, "key": hostile, "value": {"é": hostile}}
    line = _line(shown | {"headers": {"dlq_error": hostile}})
    assert line.isprintable()
    assert line.startswith("0:1 \\x1b[2J\\n0:9")
    assert "é" in line


def test_tail_ends_where_its_reader_does(kafka_bootstrap: str) -> None:
    tenant = f"c{secrets.token_hex(4)}"
    topic = topics.topic(topics.SUBMISSIONS).for_tenant(tenant).name
    asyncio.run(create_topics(kafka_bootstrap, [(topic, 1, 1, {})]))
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka_bootstrap})
    for _ in range(2000):
        producer.produce(topic, b"x" * 100)
    assert producer.flush(10) == 0
    argv = ["topics", "tail", "inference.submissions", "--tenant", tenant, "--from-beginning"]
    argv += ["--kafka", kafka_bootstrap, "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "inferbus_cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert tail.stdout.readline()
        tail.stdout.close()
        assert tail.wait(30) == 0
        assert tail.stderr.read() == b""
