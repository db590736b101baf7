"""The commands of an operator, as processes: their output is an interface."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferbus_schemas import ids, tensors
from inferbus_schemas import messages as m
from tests.support import forkserver, predictions
from tests.support.forkserver import ForkServer
from tests.support.logs import Log, forked, fresh_log


@pytest.fixture
async def log(kafka_bootstrap: str, postgres_url: str) -> AsyncIterator[Log]:
    async with fresh_log(kafka_bootstrap, postgres_url, 2) as one:
        yield one


async def _run(log: Log, *arguments: str, **settings: str) -> tuple[int, str, str]:
    environment = log.environment(**settings)
    said = await asyncio.to_thread(forkserver.done, "inferbus_logger", environment, arguments)
    return said.returncode, said.stdout, said.stderr


async def _json(log: Log, *arguments: str) -> tuple[int, Any]:
    code, out, _ = await _run(log, *arguments, "--json")
    return code, json.loads(out)


@pytest.mark.slow
async def test_verify_get_and_rewind(log: Log, loggers: ForkServer, tmp_path: Path) -> None:
    made = predictions.prediction(random.Random(3), int(time.time() * 1000))
    two = bytes.fromhex("0000803f0000003f")
    answer = m.Tensor(name="p", datatype="FP32", shape=[1, 2], data=two)
    word = m.Tensor(name="w", datatype="BYTES", shape=[1], data=tensors.join_bytes([b"yes"]))
    half = m.Tensor(name="h", datatype="BF16", shape=[2], data=bytes.fromhex("c0bf803f"))
    made.outputs = m.TensorSet(tensors=[answer, word, half]).SerializeToString()
    made.output_sha256 = tensors.output_sha256([answer, word, half])
    records, wanted = predictions.mixture(random.Random(1), int(time.time() * 1000), 500, range(2))
    ((partition, offset), *_) = await predictions.produce(
        log.bootstrap, log.topic, [(1, made), *records]
    )
    async with forked(loggers, log, tmp_path / "log", log_partitions="0,1"):
        await log.caught_up()

    code, report = await _json(log, "verify")
    assert (code, report["ok"]) == (0, True)
    assert sum(part["n_rows"] for part in report["partitions"]) == len(wanted) + 1
    code, out, _ = await _run(log, "verify", "--partition", "1", "--from-offset", "3")
    assert code == 0
    assert "the chain recomputes" in out
    assert "partition 0" not in out

    code, found = await _json(log, "get", ids.text(made.id))
    assert code == 0
    assert found["receipt"] == f"{partition}:{offset}"
    assert [each["data"] for each in found["output"]] == [
        [1.0, 0.5],
        ["yes"],
        [-1.5, 1.0],
    ]
    assert found["output_sha256"] == made.output_sha256.hex()
    assert found["batch"]["base_offset"] <= offset <= found["batch"]["last_offset"]
    code, out, _ = await _run(log, "get", ids.text(made.id))
    assert "breast-cancer" in out

    # A change of any row is found from any scope that touches it, and told in words.
    change = "UPDATE log.predictions SET attempt = $2 WHERE request_id = $1"
    await log.fetch(change, ids.text(made.id), 9)
    code, report = await _json(log, "verify", "--partition", "1", "--to-offset", "0")
    assert (code, len(report["findings"])) == (1, 1)
    code, out, _ = await _run(log, "verify")
    assert code == 1
    assert "NOT AS WRITTEN: partition 1, era 0" in out
    await log.fetch(change, ids.text(made.id), 1)

    code, _, err = await _run(log, "rewind", "--partition", "1", "--to", "earliest")
    assert code == 2
    assert "--i-know-that-this-begins-a-new-era" in err
    rewind = ("rewind", "--partition", "1", "--to", "3", "--i-know-that-this-begins-a-new-era")
    code, done = await _json(log, *rewind)
    assert (code, done["era"], done["now"]) == (0, 1, 3)
    async with forked(loggers, log, tmp_path / "log", log_partitions="0,1"):
        await log.caught_up()
    code, report = await _json(log, "verify")
    assert (code, sum(part["n_rows"] for part in report["partitions"])) == (0, len(wanted) + 1)
    code, found = await _json(log, "get", ids.text(made.id))
    assert (code, found["k_era"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("get", "00000000-0000-7000-8000-000000000000"), 1, "no request of this id has ended"),
        (("get", "nonsense"), 2, "that is no request id"),
        (
            ("rewind", "--partition", "0", "--to", "99", "--i-know-that-this-begins-a-new-era"),
            2,
            "holds offsets 0 to 0",
        ),
        (
            ("rewind", "--partition", "9", "--to", "0", "--i-know-that-this-begins-a-new-era"),
            2,
            "Kafka has no partition 9",
        ),
    ],
    ids=["unknown", "no id", "no offset", "no partition"],
)
async def test_what_cannot_be_done_is_one_sentence(
    log: Log, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, _, err = await _run(log, *arguments)
    assert (found, said in err, len(err.splitlines())) == (code, True, 1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("postgres_url", "postgresql://nobody:no@127.0.0.1:1/none", "Postgres does not answer"),
        ("log_topic", "test.other", "0 rows: the chain recomputes"),
    ],
)
async def test_verify_elsewhere(log: Log, name: str, value: str, said: str) -> None:
    _, out, err = await _run(log, "verify", **{name: value})
    assert said in out + err
