"""Requests that schemathesis makes from our OpenAPI document: every answer is one that it names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferbus_dev.stack import Stack
from tests.support import clients

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


async def run(stack: Stack, folder: Path, config: str | Path, *more: str) -> None:
    home = clients.environment("schemathesis")
    done = await clients.call(
        home / "bin" / "schemathesis",
        *("--config-file", config, "run", f"{stack.http}/openapi.json"),
        *("--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--max-examples", "20"),
        *("--generation-deterministic", "--request-timeout", "40", "--no-color"),
        *("--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure"),
        *more,
        folder=folder,
        timeout_s=240,
    )
    assert done.code == 0, done.out[-5000:] + done.err
    assert "No issues found" in done.out


async def test_any_names_with_every_scope(stack: Stack, tmp_path: Path) -> None:
    """Load and unload too: no such model exists."""
    key = f"Authorization: Bearer {stack.api_key}"
    await run(stack, tmp_path, os.devnull, "--header", key)


async def test_a_model_that_exists_without_a_key(stack: Stack, tmp_path: Path) -> None:
    await run(stack, tmp_path, clients.LOCKS / "schemathesis.toml")
