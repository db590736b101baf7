"""A stack of its own for a benchmark: real servers, all services, sample models deployed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from inferbus_dev.stack import Stack
from inferbus_models import build

_PUSH_TIMEOUT_S = 120


async def push(stack: Stack, folder: Path) -> None:
    """Push a model folder, move `champion` to it, and wait until it serves."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "inferbus_cli",
        "models",
        "push",
        str(folder),
        "--alias",
        "champion",
        "--wait",
        "--registry",
        stack.registry,
        env={**os.environ, "INFERBUS_API_KEY": stack.api_key},
    )
    async with asyncio.timeout(_PUSH_TIMEOUT_S):
        if await process.wait():
            raise RuntimeError("the model could not be pushed; see above")


@contextlib.asynccontextmanager
async def deployed(
    models: Sequence[str],
    *,
    n_workers: int = 1,
    n_gateways: int = 1,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Stack, Path]]:
    """Yield a running stack that serves `models`, and the folder that holds their files."""
    folder = Path(tempfile.mkdtemp(prefix="inferbus-bench-"))
    stack = Stack(
        folder / ".inferbus", free_ports=True, n_workers=n_workers, n_gateways=n_gateways, env=env
    )
    try:
        await stack.start()
        for name in models:
            made = await asyncio.to_thread(build.ensure, name, folder / "models")
            await push(stack, made.folder)
        yield stack, folder
    finally:
        await stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def load(  # noqa: PLR0917 -- the parameters of a load
    url: str, body: Path, connections: int, seconds: float, warm_s: float = 1.0, key: str = ""
) -> dict[str, object]:
    """Run the load generator as a process of its own and return its figures."""
    import json  # noqa: PLC0415 -- only here

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load",
        url,
        "--body",
        str(body),
        "--connections",
        str(connections),
        "--seconds",
        str(seconds),
        "--warm-s",
        str(warm_s),
        env={**os.environ, "INFERBUS_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    figures: dict[str, object] = json.loads(out)
    return figures


def oip_body(rows: list[list[float]]) -> dict[str, object]:
    """Return an Open Inference Protocol request for breast-cancer."""
    flat = [value for row in rows for value in row]
    return {
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [len(rows), 30], "data": flat}]
    }
