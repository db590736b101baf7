"""No key and no password stands where it should not: logs, errors, metrics, topics, command lines.

The secrets of a running stack and of its callers are the canaries; whatever the stack says is
searched for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import httpx
import psutil
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from inferbus_schemas import access, topics
from tests.support import stacks
from tests.support.provider import provider

if TYPE_CHECKING:
    from pathlib import Path

    from inferbus_dev.stack import Stack
    from tests.support.provider import Provider

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "breast-cancer"
OVERLAP_S = 3


async def every_record(bootstrap: str) -> bytes:
    """Return the keys, values and headers of all that lies in any topic of ours."""
    parts = [
        TopicPartition(one.name, number)
        for one in topics.to_create(("default",))
        for number in range(one.partitions)
    ]
    found: list[bytes] = []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        consumer.assign(parts)
        await consumer.seek_to_beginning(*parts)
        ends = await consumer.end_offsets(parts)
        while any([await consumer.position(part) < end for part, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    found += [record.key or b"", record.value or b""]
                    found += [value for _, value in record.headers]
    finally:
        # Without a group its own task ends by a cancellation that `stop` hands on.
        with contextlib.suppress(asyncio.CancelledError):
            await consumer.stop()
    assert len(found) > 20, "the topics were read"
    return b"\n".join(found)


async def every_row(url: str) -> str:
    """Return what the registry's tables hold, as text."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        tables = await connection.fetch(
            "SELECT table_schema || '.' || table_name AS name FROM information_schema.tables "
            "WHERE table_schema IN ('registry', 'log') AND table_type = 'BASE TABLE'"
        )
        rows = [await connection.fetch(f"SELECT * FROM {one['name']}") for one in tables]  # noqa: S608 -- names of our own tables
    finally:
        await connection.close()
    assert len(tables) > 5
    return "\n".join(str(dict(row)) for each in rows for row in each)


def command_lines(stack: Stack) -> str:
    """Return the command line of every process of the stack, and of what they started."""
    found: list[str] = []
    for member in stack.supervisor.members.values():
        assert member.child is not None
        process = psutil.Process(member.child.pid)
        family = (process, *process.children(recursive=True))
        found += [" ".join(one.cmdline()) for one in family]
    return "\n".join(found)


async def provoke(stack: Stack, key: str, token: str) -> list[str]:
    """Use the secrets rightly and wrongly, everywhere; return all that was answered."""
    said: list[str] = []
    body = {"inputs": [dict(one) for one in stacks.sample_inputs(MODEL)[0]]}
    presented = [
        f"Bearer {key}", f"Bearer {token}", f"Bearer {key}x", f"Basic {key}", key, token,
        f"Bearer {stack.api_key}", f"bearer {token[:-3]}",
    ]  # fmt: skip
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        for header in presented:
            head = {"authorization": header}
            for method, url, sent in (
                ("POST", f"{stack.http}/v2/models/{MODEL}/infer", body),
                ("POST", f"{stack.http}/v2/models/{MODEL}/infer", {"inputs": [{"name": key}]}),
                ("POST", f"{stack.http}/v2/models/nope/infer", body),
                ("GET", f"{stack.http}/v2", None),
                ("GET", f"{stack.http}/nope", None),
                ("PUT", f"{stack.http}/v2", None),
                ("GET", f"{stack.registry}/v1/registry/keys", None),
                ("GET", f"{stack.registry}/v1/registry/models/nope", None),
                ("POST", f"{stack.registry}/v1/registry/keys", {"name": "x"}),
                ("DELETE", f"{stack.registry}/v1/registry/keys/{access.key_id(key)}0", None),
            ):
                got = await http.request(method, url, json=sent, headers=head)
                assert got.status_code != 500, got.text
                said += [got.text, str(got.headers)]
        for url in stack.metrics.values():
            for path in ("/metrics", "/readyz", "/livez", "/nope"):
                said.append((await http.get(f"{url}{path}")).text)
    return said


async def test_keys_and_secrets() -> None:
    """One stack for all of it, since starting it is what costs."""
    with provider() as idp:
        kid = idp.add()
        async with stacks.running(n_gateways=2, env=idp.environment) as stack:
            await stacks.push(stack, MODEL)
            await _a_rotated_or_revoked_key_is_refused_by_every_gateway_within_seconds(stack)
            await _a_token_deploys_at_registry_and_gateway(stack, idp, kid)
            await _no_secret_is_told(stack, idp.token(kid, sub=f"sub-{secrets.token_hex(8)}"))


async def _a_token_deploys_at_registry_and_gateway(stack: Stack, idp: Provider, kid: str) -> None:
    token = idp.token(kid, sub="robot-7", scope="deploy models:read audit:read")
    shown = await stacks.cli("models", "show", MODEL, "--registry", stack.registry, api_key=token)
    assert "champion -> 1" in shown
    head = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(trust_env=False, timeout=60, headers=head) as http:
        for verb in ("unload", "load"):
            done = await http.post(f"{stack.http}/v2/repository/models/{MODEL}/{verb}")
            assert done.status_code == 200, done.text
        said = await http.get(f"{stack.registry}/v1/registry/models/{MODEL}/events")
    who = {one["who"] for one in said.json()["events"] if one["what"] == "alias_removed"}
    assert who == {"acme/token:robot-7"}


async def _no_secret_is_told(stack: Stack, token: str) -> None:
    made = await stacks.cli(
        "keys", "create", "canary", "--scope", "infer:*", "--rate", "5",
        "--registry", stack.registry, api_key=stack.api_key,
    )  # fmt: skip
    key = made.strip().splitlines()[-1]
    assert access.key_id(key), made
    await asyncio.sleep(1.0)  # the gateway has read the key
    said = await provoke(stack, key, token)
    stack.kill("gateway", 0, signal.SIGKILL)
    await stack.wait_ready("gateway", 0)
    said += await provoke(stack, key, token)
    await stacks.at_rest(stack)

    canaries = {
        "admin key": stack.api_key.split("_", 2)[2],
        "key": key.split("_", 2)[2],
        "signature of a token": token.rpartition(".")[2],
        "password of Postgres": str(urlsplit(stack.postgres).password),
        "password of Valkey": str(urlsplit(stack.valkey).password),
    }
    logs = "\n".join(p.read_text(errors="replace") for p in stack.logs.glob("*.log*"))
    places = {
        "logs": logs,
        "answers": "\n".join(said),
        "topics": (await every_record(stack.kafka)).decode("latin-1"),
        "tables": await every_row(stack.postgres),
        "command lines": command_lines(stack),
    }
    told = [
        f"{secret} in the {place}"
        for secret, canary in canaries.items()
        for place, text in places.items()
        if canary in text
    ]
    assert not told
    assert "started" in logs, "there were logs"
    files = [p for p in stack.logs.parent.rglob("*") if p.is_file() and _holds(p, canaries)]
    names = {p.name for p in files}
    assert names == {"stack.json", "admin-key", "password", "valkey.conf"}
    assert all(p.stat().st_mode & 0o077 == 0 for p in files)


async def _a_rotated_or_revoked_key_is_refused_by_every_gateway_within_seconds(
    stack: Stack,
) -> None:
    argv = ("--scope", "infer:*", "--registry", stack.registry)
    made = await stacks.cli("keys", "create", "short", *argv, api_key=stack.api_key)
    key = made.strip().splitlines()[-1]
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:

        async def opens(url: str, key: str) -> int:
            head = {"authorization": f"Bearer {key}"}
            return (await http.get(f"{url}/v2/models/{MODEL}", headers=head)).status_code

        async def becomes(status: int, key: str) -> float:
            started_s = time.monotonic()
            for url in stack.gateways:
                while await opens(url, key) != status:
                    assert time.monotonic() - started_s < 20
                    await asyncio.sleep(0.02)
            return time.monotonic() - started_s

        await becomes(200, key)
        where = ("--registry", stack.registry)
        async with asyncio.timeout(30):
            while "used 20" not in await _line_of(stack, "short"):  # noqa: ASYNC110 -- a poll
                await asyncio.sleep(0.2)
        rotated = await http.post(
            f"{stack.registry}/v1/registry/keys/{access.key_id(key)}/rotate",
            json={"overlap_s": OVERLAP_S},
            headers={"authorization": f"Bearer {stack.api_key}"},
        )
        old, key = key, rotated.json()["key"]
        # Who knows the new one has heard that the old one is to end.
        await becomes(200, key)
        assert [await opens(url, old) for url in stack.gateways] == [200, 200]
        await becomes(401, old)
        assert [await opens(url, key) for url in stack.gateways] == [200, 200]
        await stacks.cli("keys", "revoke", key, *where, api_key=stack.api_key)
        assert await becomes(401, key) < 5


async def _line_of(stack: Stack, name: str) -> str:
    """Return what `inferbus keys list` says of a key."""
    said = await stacks.cli("keys", "list", "--registry", stack.registry, api_key=stack.api_key)
    (line,) = [one for one in said.splitlines() if f" {name} " in one]
    return line


def _holds(path: Path, canaries: dict[str, str]) -> bool:
    if "kafka" in path.parts or path.stat().st_size > 64 << 20:
        return False
    data = path.read_bytes()
    return any(canary.encode() in data for canary in canaries.values())
