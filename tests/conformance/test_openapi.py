"""Requests that schemathesis makes from OpenAPI documents: every answer is one that they name."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from inferbus_dev.stack import Stack
from tests.support import clients, forkserver, oip_document, stacks

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
PATIENT = '"header.x-inferbus-timeout-ms" = "30000"'
"""What is told to wait for a moment only ends with 504, which is no failure of ours."""


async def run(
    location: str | Path,
    url: str,
    folder: Path,
    config: str | Path,
    *more: str,
    checks: Sequence[str] = CHECKS,
    phases: str = "coverage,fuzzing",
    n_examples: int = 20,
) -> None:
    home = await asyncio.to_thread(clients.environment, "schemathesis")
    argv = (
        *("--config-file", str(config), "run", str(location), "--url", url),
        *("--phases", phases, "--checks", ",".join(checks), "--max-examples", str(n_examples)),
        *("--generation-deterministic", "--request-timeout", "40", "--no-color"),
        *("--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure"),
        *more,
    )
    # Its imports take longer than most of its runs.
    done = await asyncio.to_thread(
        forkserver.done,
        "schemathesis.cli",
        os.environ,
        argv,
        cwd=folder,
        python=home / "bin" / "python",
        timeout_s=240,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "No issues found" in done.stdout


async def made_up(stack: Stack, folder: Path) -> Path:
    """Write the document without its examples, whose answers take a model's time each."""
    async with httpx.AsyncClient(trust_env=False) as http:
        document = (await http.get(f"{stack.http}/openapi.json")).json()
    for operations in document["paths"].values():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                content.pop("example", None)
    place = folder / "document.json"
    place.write_text(json.dumps(document))
    return place


async def test_any_names_with_every_scope(stack: Stack, tmp_path: Path) -> None:
    """Load and unload too, also of models whose names were seen in answers."""
    key, config = f"Bearer {stack.api_key}", tmp_path / "patient.toml"
    config.write_text(f"[parameters]\n{PATIENT}\n")
    named = ("--header", f"Authorization: {key}")
    async with httpx.AsyncClient(
        base_url=stack.http, timeout=120, trust_env=False, headers={"authorization": key}
    ) as http:
        served = (await http.post("/v2/repository/index", json={"ready": True})).json()
        try:
            # Under their other prefix the same routes are asked below.
            more = (*named, "--exclude-path-regex", "^/openai")
            await run(await made_up(stack, tmp_path), stack.http, tmp_path, config, *more)
        finally:
            # The other tests of this stack ask the same models.
            for model in served:
                loaded = await http.post(f"/v2/repository/models/{model['name']}/load", json={})
                assert loaded.status_code == 200, loaded.text


async def test_the_examples_are_answered_as_described(stack: Stack, tmp_path: Path) -> None:
    """Whole answers of each route of text; what is made up above is mostly refused."""
    named = r"^/v1/(chat/completions|completions|responses|embeddings|rerank|score)$"
    config = tmp_path / "answered.toml"
    config.write_text('[checks.positive_data_acceptance]\nexpected-statuses = ["200"]\n')
    await run(
        f"{stack.http}/openapi.json",
        stack.http,
        tmp_path,
        config,
        *("--include-path-regex", named),
        checks=(*CHECKS, "positive_data_acceptance"),
        phases="examples",
    )


async def test_a_model_that_exists_without_a_key(stack: Stack, tmp_path: Path) -> None:
    """Routes that name a model, past its look-up, and those that were left out above."""
    config = clients.LOCKS / "schemathesis.toml"
    more = ("--include-path-regex", r"^/openai|\{model\}")
    await run(await made_up(stack, tmp_path), stack.http, tmp_path, config, *more)


async def test_a_key_whose_rate_is_spent(stack: Stack, tmp_path: Path) -> None:
    """What it is told stands in the document too, in the words of each route."""
    said = ("--scope", "infer:*", "--tenant", "limited", "--rate", "0.1", "--burst", "1")
    key = await stacks.make_key(stack, "limited", *said)
    config = clients.LOCKS / "schemathesis.toml"
    head = ("--header", f"Authorization: Bearer {key}", "--include-method", "POST")
    before = await _n_over_the_rate(stack)
    await run(
        await made_up(stack, tmp_path),
        stack.http,
        tmp_path,
        config,
        *head,
        phases="fuzzing",
        n_examples=3,
    )
    # Bodies that nobody can read and routes that spend nothing are among them.
    assert await _n_over_the_rate(stack) - before > 20


async def _n_over_the_rate(stack: Stack) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{stack.metrics['gateway-0']}/metrics")).text
    found = re.search(r'^inferbus_rejected_total{code="rate_limited"} (\S+)', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.skipif(bool(clients.NO_MLSERVER), reason=clients.NO_MLSERVER)
async def test_the_protocols_own_document(stack: Stack, tmp_path: Path) -> None:
    """What a model takes is answered, and whatever else is sent is answered as it says."""
    accepted = (*CHECKS, "positive_data_acceptance")
    for model in ("digits", "minilm", "breast-cancer"):
        document, config = _of_the_protocol(tmp_path, model)
        await run(document, stack.http, tmp_path, config, checks=accepted, phases="examples")
    await run(document, stack.http, tmp_path, config, n_examples=10)


async def test_the_control_plane(stack: Stack, tmp_path: Path) -> None:
    """By a key that may do all but change what is served, in a tenant of its own."""
    scopes = ("admin", "audit:read", "models:read", "models:write", "infer:*")
    said = [word for scope in scopes for word in ("--scope", scope)]
    key = await stacks.make_key(stack, "surveys", *said, "--tenant", "surveys")
    config = clients.LOCKS / "schemathesis.toml"
    head = ("--header", f"Authorization: Bearer {key}")
    at = stack.registry
    await run(f"{at}/openapi.json", at, tmp_path, config, *head, n_examples=10)
    async with httpx.AsyncClient(base_url=at, trust_env=False) as http:
        asked = await http.get("/v1/registry/keys", headers={"authorization": f"Bearer {key}"})
    # It has not ended itself on the way.
    assert asked.status_code == 200, asked.text
    assert "surveys" in {one["name"] for one in asked.json()["keys"]}


def _of_the_protocol(folder: Path, model: str) -> tuple[Path, Path]:
    """Write the document with bodies for a model, and the names that stand in its paths."""
    infer = {"id": "mine", "inputs": stacks.sample_inputs(model)[0]}
    generate = {"text_input": "Hi", "parameters": {"max_tokens": 2}}
    shipped = oip_document.shipped(clients.environment("schemathesis"))
    document = folder / f"{model}.json"
    document.write_text(json.dumps(oip_document.ready(shipped, infer, generate)))
    config = folder / f"{model}.toml"
    config.write_text(_models(model))
    return document, config


def _models(model: str) -> str:
    """Return the names that stand in the paths: text is generated by another model."""
    generating = "\n".join(
        f'[[operations]]\ninclude-path = "/v2/models/{{model_name}}{version}/generate"\n'
        f'[operations.parameters]\n"path.model_name" = "smollm2"\n'
        for version in ("", "/versions/{model_version}")
    )
    return f'[parameters]\n"path.model_name" = "{model}"\n"path.model_version" = "1"\n{generating}'
