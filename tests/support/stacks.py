"""A whole running stack for tests, and what they do with it.

In: how many of each service. Out: a `Stack` with sample models deployed through the registry, as a
user deploys them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from inferbus_dev.stack import Stack
from inferbus_models import samples
from inferbus_schemas import topics
from tests.support import forkserver, traffic
from tests.support.ledger import Ledger
from tests.support.reconcile import end_offsets
from tests.support.sample_models import model_folder


@contextlib.asynccontextmanager
async def running(
    *,
    n_workers: int = 1,
    n_gateways: int = 1,
    env: Mapping[str, str] | None = None,
    kafka_bootstrap: str | None = None,
) -> AsyncIterator[Stack]:
    """Run everything on free ports in a temporary folder; keep its logs if the test fails."""
    folder = Path(tempfile.mkdtemp(prefix="inferbus-system-"))
    stack = Stack(
        folder / ".inferbus",
        free_ports=True,
        n_workers=n_workers,
        n_gateways=n_gateways,
        env=env,
        kafka_bootstrap=kafka_bootstrap,
    )
    try:
        await stack.start()
        yield stack
    except BaseException:
        kept = Path(tempfile.gettempdir()) / "inferbus-failed-logs"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / ".inferbus" / "logs", kept, dirs_exist_ok=True)
        raise
    finally:
        await stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def cli(*argv: str, timeout_s: float = 120.0, api_key: str = "") -> str:
    """Run `inferbus ...` and return what it printed; a failure is an assertion."""
    environment = {**os.environ, "INFERBUS_API_KEY": api_key}
    done = await asyncio.to_thread(
        forkserver.done, "inferbus_cli", environment, argv, timeout_s=timeout_s
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def make_key(stack: Stack, name: str, *said: str) -> str:
    """Make a key as the stack's admin and return it."""
    argv = ("keys", "create", name, *said, "--registry", stack.registry)
    return (await cli(*argv, api_key=stack.api_key)).strip()


async def push(stack: Stack, name: str, *, variant: int = 1) -> None:
    """Push a sample model, move `champion` to it, wait until every gateway pins it."""
    await push_folder(stack, await asyncio.to_thread(model_folder, name, variant=variant))


async def push_all(stack: Stack, names: Iterable[str], *more: Path) -> None:
    """Push sample models and folders of others, one after another, as `push` does each."""
    folders = [await asyncio.to_thread(model_folder, name) for name in names]
    for folder in (*folders, *more):
        await push_folder(stack, folder)


async def push_folder(stack: Stack, folder: Path) -> None:
    """Push a model folder, as `push` does."""
    argv = ("models", "push", str(folder), "--alias", "champion", "--wait")
    await cli(*argv, "--registry", stack.registry, api_key=stack.api_key)


def sample_inputs(name: str, *, variant: int = 1) -> list[list[dict[str, Any]]]:
    """Return the inputs of a model's samples."""
    return [
        [dict(tensor) for tensor in sample.inputs]
        for sample in samples.load(model_folder(name, variant=variant))
    ]


async def verify(stack: Stack) -> None:
    """Recompute the chain of the whole log, digests of outputs included."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "inferbus_logger", "verify", "--json"),
        env={"INFERBUS_POSTGRES_URL": stack.postgres},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


async def at_rest(stack: Stack, timeout_s: float = 60.0) -> None:
    """Wait until every record of the prediction stream is behind the log's offsets."""
    until_s = time.monotonic() + timeout_s
    behind: dict[int, tuple[int | None, int]] = {}
    while time.monotonic() < until_s:
        ends = await end_offsets(stack.kafka, topics.topic(topics.PREDICTIONS).name)
        logged = await _logged(stack.postgres)
        behind = {p: (logged.get(p), end) for p, end in ends.items() if logged.get(p, -1) < end}
        if not behind:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"the log does not reach the end of the stream: {behind}")


async def _logged(url: str) -> dict[int, int]:
    connection = await asyncpg.connect(url, ssl=False)
    try:
        rows = await connection.fetch("SELECT part, next_offset FROM log.sink_offsets")
    finally:
        await connection.close()
    return {row["part"]: row["next_offset"] for row in rows}


async def infer(
    url: str,
    model: str,
    inputs: list[dict[str, Any]],
    ledger: Ledger,
    key: str,
    **headers: str,
) -> httpx.Response:
    """Send one request and write it down."""
    body = json.dumps({"id": key, "inputs": inputs}).encode()
    ledger.sent(key, hashlib.sha256(body).hexdigest())
    async with httpx.AsyncClient(timeout=40, trust_env=False) as client:
        answer = await client.post(f"{url}/v2/models/{model}/infer", content=body, headers=headers)
    traffic.note(ledger, key, answer)
    return answer
