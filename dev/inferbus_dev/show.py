"""What `make up` shows once everything serves.

In: a running stack. Out: the sample models registered and at work on real inputs, each answer
beside what the original library says, and the addresses to go on with.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from inferbus_dev.errors import DISK_FULL, LauncherError
from inferbus_schemas import names

if TYPE_CHECKING:
    from pathlib import Path

    import httpx
    from rich.console import Console

    from inferbus_dev.progress import Report
    from inferbus_dev.stack import Stack

MODELS = ("breast-cancer", "digits", "minilm", "smollm2")
INPUTS_PER_MODEL = 2
_SERVES_WITHIN_S = 90.0
_LOOKS_PER_REASON = 20
_BUILT_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Shown:
    """One real input, what Inferbus answered, and what stands beside it."""

    model: str
    asked: str
    answered: str
    library: str
    said: str
    difference: float
    within: bool
    version: str
    receipt: str
    latency_ms: float


async def ask_models(stack: Stack, report: Report) -> list[Shown]:
    """Register the sample models and send each real inputs; nothing where a part is left out."""
    if not {"registry", "gateway", "worker"} <= stack.roles:
        return []
    import httpx  # noqa: PLC0415 -- a quarter of a second, which the first line need not wait for

    folder = stack.models_dir
    with report.step("sample models: build") as step:
        build = ["inferbus_models", "build", "all", "--out", str(folder)]
        await _run(build, step.update, _BUILT_WITHIN_S)
    head = {"authorization": f"Bearer {stack.api_key}"}
    async with httpx.AsyncClient(timeout=35.0, trust_env=False, headers=head) as client:
        ours = []
        for model in MODELS:
            with report.step(f"sample models: {model}") as step:
                found = await _found(client, stack, model)
                if theirs := other_version(found, _sample_sha256(folder / model)):
                    report.note(
                        f"{model}: {names.DEFAULT_ALIAS} is version {theirs}, which is not the "
                        "sample: there is nothing to compare it with"
                    )
                    continue
                ours.append(model)
                if found is None:
                    argv = ["inferbus_cli", "models", "push", str(folder / model)]
                    argv += ["--alias", names.DEFAULT_ALIAS, "--registry", stack.registry]
                    await _run(argv, step.update, _SERVES_WITHIN_S, api_key=stack.api_key)
                step.update("loading")
                await _serves(client, stack, model)
        return [one for model in ours for one in await _ask(client, stack, model, folder)]


def show_answers(shown: list[Shown], console: Console) -> None:
    """Print each answer above the library's; raises LauncherError where they differ."""
    if shown:
        _print(shown, console)
    if wrong := [one for one in shown if not one.within]:
        raise LauncherError(
            f"{wrong[0].model} answers other than {wrong[0].library} said: {wrong[0].asked}."
        )


def show_addresses(stack: Stack, console: Console) -> None:
    """Print where everything is."""
    table = Table.grid(padding=(0, 2))
    for what, where in stack.addresses().items():
        table.add_row(what, where)
    table.add_row("logs", str(stack.logs))
    console.print(table)
    if "gateway" in stack.roles:
        console.print(f"\nTry it: [bold]curl -s {stack.http}/v2/models/breast-cancer[/bold]")


async def _run(argv: list[str], said: Any, timeout_s: float, *, api_key: str = "") -> None:
    """Run one of our commands as a process of its own; its lines are progress."""
    told = {**os.environ, "INFERBUS_API_KEY": api_key} if api_key else None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *argv,
        env=told,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    last = ""
    try:
        async with asyncio.timeout(timeout_s):
            assert process.stdout is not None  # noqa: S101 -- it is a pipe
            async for raw in process.stdout:
                last = raw.decode("utf-8", "replace").strip() or last
                said(last)
            code = await process.wait()
    except TimeoutError:
        raise LauncherError(f"The sample models took over {timeout_s:.0f} s: {last}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise LauncherError(why_not_served(last))


def why_not_served(last: str) -> str:
    """Return one sentence on a command that failed, from the last line that it said."""
    if "No space left on device" in last or "The object store has no space left" in last:
        return DISK_FULL
    return f"The sample models could not be served: {last}"


async def _found(client: httpx.AsyncClient, stack: Stack, model: str) -> dict[str, Any] | None:
    """Return what the registry says of a model; None where it has no default alias yet."""
    answer = await client.get(f"{stack.registry}/v1/registry/models/{model}")
    if answer.status_code != HTTPStatus.OK:
        return None
    found: dict[str, Any] = answer.json()
    return found if _wanted(found) else None


def other_version(found: dict[str, Any] | None, sample_sha256: str) -> int:
    """Return which version a user has made the default in the place of the sample; 0: none."""
    wanted = _wanted(found) if found is not None else 0
    shas = {one["version"]: one["version_sha256"] for one in found["versions"]} if found else {}
    return 0 if shas.get(wanted, sample_sha256) == sample_sha256 else wanted


def _wanted(found: dict[str, Any]) -> int:
    wanted = (one["wanted"] for one in found["aliases"] if one["name"] == names.DEFAULT_ALIAS)
    return next(wanted, 0)


def _sample_sha256(folder: Path) -> str:
    from inferbus_schemas import manifest  # noqa: PLC0415 -- which a start need not wait for

    return manifest.version_sha256(manifest.parse((folder / "manifest.json").read_bytes()))


async def _serves(client: httpx.AsyncClient, stack: Stack, model: str) -> None:
    since_s = time.monotonic()
    reason = ""
    for look in itertools.count():
        found = await client.get(f"{stack.http}/v2/models/{model}/ready")
        if found.status_code == HTTPStatus.OK:
            return
        if look % _LOOKS_PER_REASON == 0:
            rollout = await client.get(f"{stack.registry}/v1/registry/models/{model}/rollout")
            if rollout.status_code == HTTPStatus.OK:
                reason = why_not_loaded(rollout.json()) or reason
        over = time.monotonic() - since_s >= _SERVES_WITHIN_S
        if over or why_not_served(reason) == DISK_FULL:
            told = reason or f"{model} is not ready, and no worker says why: see their logs"
            raise LauncherError(why_not_served(told))
        await asyncio.sleep(0.05)


def why_not_loaded(rollout: dict[str, Any]) -> str:
    """Return why a worker could not load the model, as the registry says; empty: none failed."""
    held = (one for worker in rollout.get("workers", ()) for one in worker["versions"])
    return next((str(one["reason"]) for one in held if one["readiness"] == "failed"), "")


async def _ask(client: httpx.AsyncClient, stack: Stack, model: str, folder: Path) -> list[Shown]:
    """Send a model's samples; the first request of all is not shown, it warms connections."""
    from inferbus_models import samples  # noqa: PLC0415 -- numpy, which a start need not wait for

    manifest = msgspec.json.decode((folder / model / "manifest.json").read_bytes())
    classes = manifest.get("task_settings", {}).get("classes", ())
    chosen = samples.load(folder / model)[:INPUTS_PER_MODEL]
    shown = []
    for sample in [chosen[0], *chosen]:
        started_s = time.perf_counter()
        answer = await client.post(
            f"{stack.http}/v2/models/{model}/infer", json={"inputs": list(sample.inputs)}
        )
        latency_ms = (time.perf_counter() - started_s) * 1e3
        if answer.status_code != HTTPStatus.OK:
            raise LauncherError(f"{model} answers {answer.status_code}: {answer.text[:200]}")
        outputs = answer.json()["outputs"]
        difference = samples.difference(sample, outputs)
        shown.append(
            Shown(
                model=model,
                asked=sample.describe.rpartition(": ")[0],
                answered=samples.words(outputs, classes),
                library=sample.library,
                said=samples.words(sample.expected, classes),
                difference=difference,
                within=difference <= sample.tolerance,
                version=answer.headers["x-inferbus-model-version"],
                receipt=answer.headers["x-inferbus-receipt"],
                latency_ms=latency_ms,
            )
        )
    return shown[1:]


def _print(shown: list[Shown], console: Console) -> None:
    """Print each input with our answer above the library's."""
    console.print("\n[bold]Real inputs, real answers[/bold] (receipt is partition:offset)")
    for one in shown:
        console.print(f"\n[bold]{one.model}[/bold] version {one.version}: {one.asked}")
        answers = Table.grid(padding=(0, 2), pad_edge=False)
        answers.add_column(min_width=22)
        answers.add_column()
        answers.add_column(no_wrap=True)
        answers.add_row(
            "  Inferbus",
            one.answered,
            f"receipt {one.receipt}, {one.latency_ms:.1f} ms",
        )
        agrees = f"differs by {one.difference:.1e} at most"
        answers.add_row(f"  {one.library}", one.said, agrees)
        console.print(answers)
    console.print()
