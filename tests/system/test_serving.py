"""The whole stack, as a user meets it: real models, real answers, a log that agrees."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from inferbus_dev.stack import Stack
from inferbus_models import samples
from tests.support import stacks
from tests.support.balancer import Balancer
from tests.support.collector import Collector, collecting
from tests.support.https_origin import HttpsOrigin
from tests.support.ledger import Ledger
from tests.support.reconcile import Live, check_ledger
from tests.support.sample_models import model_folder
from tests.support.traffic import Traffic
from tests.system import job_and_deaths, traces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

RESTARTED = (
    ("gateway", 0),
    ("worker", 0),
    ("gateway", 1),
    ("worker", 1),
    ("logger", 0),
    ("registry", 0),
    ("postgres", 0),
)
"""All but Kafka, of which there is one only."""
MODELS = ("breast-cancer", "digits", "minilm")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[HttpsOrigin]:
    made = HttpsOrigin(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def stack(collector: Collector, origin: HttpsOrigin) -> AsyncIterator[Stack]:
    # A load balancer that looks ten times a second must see a gateway go, on a busy machine too.
    env = {
        "INFERBUS_OTLP_ENDPOINT": collector.url,
        "INFERBUS_GRACE_S": "2",
        **job_and_deaths.environment(origin),
    }
    async with stacks.running(n_workers=2, n_gateways=2, env=env) as running:
        yield running


async def test_models_swaps_jobs_and_the_log(
    stack: Stack, collector: Collector, origin: HttpsOrigin, tmp_path: Path
) -> None:
    """One stack for all of it, since starting it is what costs."""
    await stacks.push_all(stack, MODELS)
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        await _answers_equal_the_libraries(stack, ledger)
        await _each_gateway_counts_what_it_answered(stack, ledger)
        await traces.of_each_way_to_ask(stack, collector, ledger)
        live = await _a_swap_under_load_fails_nothing(stack, ledger)
        await _a_rolling_restart_fails_nothing(stack, ledger)
        await _the_log_verifies(stack, ledger)
    await stacks.at_rest(stack)
    assert not await check_ledger(path, stack.postgres, stack.kafka, live=live)
    await job_and_deaths.survives_the_death_of_everybody(stack, origin, tmp_path)


async def _answers_equal_the_libraries(stack: Stack, ledger: Ledger) -> None:
    for name in MODELS:
        for number, sample in enumerate(samples.load(model_folder(name))):
            inputs = [dict(tensor) for tensor in sample.inputs]
            answer = await stacks.infer(stack.http, name, inputs, ledger, f"{name}/{number}")
            assert answer.status_code == 200, answer.text
            found = samples.difference(sample, answer.json()["outputs"])
            assert found <= sample.tolerance, f"{name}: {sample.describe}"


async def _each_gateway_counts_what_it_answered(stack: Stack, ledger: Ledger) -> None:
    """What a gateway says of a version is its own part; the sum is what was answered and ran."""
    inputs = stacks.sample_inputs("digits")[0]
    n_rows = inputs[0]["shape"][0]

    async def counted() -> list[tuple[int, int, int, int]]:
        found = []
        async with httpx.AsyncClient(timeout=40, trust_env=False) as http:
            for url in stack.gateways:
                said = (await http.get(f"{url}/v2/models/digits/stats")).json()
                (one,) = said["model_stats"]
                success = one["inference_stats"]["success"]["count"]
                ran = [
                    (batch["batch_size"], batch["compute_infer"]["count"])
                    for batch in one["batch_stats"]
                ]
                assert sum(count for _, count in ran) == one["execution_count"]
                n_computed = sum(size * count for size, count in ran)
                found.append((success, one["inference_count"], one["execution_count"], n_computed))
        return found

    before = await counted()
    assert before[0][0] == len(stacks.sample_inputs("digits"))
    assert before[1] == (0, 0, 0, 0)
    for number, which in enumerate((0, 1, 1, 0, 1)):
        url = stack.gateways[which]
        answer = await stacks.infer(url, "digits", inputs, ledger, f"counted/{number}")
        assert answer.status_code == 200, answer.text
    # One after another, so that each ran alone.
    after = await counted()
    for which, n in enumerate((2, 3)):
        gained = [now - then for now, then in zip(after[which], before[which], strict=True)]
        assert gained == [n, n * n_rows, n, n * n_rows]

    n_copies = 150 // n_rows
    large = [
        {
            **tensor,
            "shape": [n_copies * n_rows, *tensor["shape"][1:]],
            "data": tensor["data"] * n_copies,
        }
        for tensor in inputs
    ]
    answer = await stacks.infer(stack.gateways[1], "digits", large, ledger, "counted/large")
    assert answer.status_code == 200, answer.text
    (first, second), (_, was) = await counted(), after
    assert first == after[0]
    n_ok, n_asked, n_executions, n_computed = (
        now - then for now, then in zip(second, was, strict=True)
    )
    assert (n_ok, n_asked, n_computed) == (1, n_copies * n_rows, n_copies * n_rows)
    assert n_executions > 1  # over the rows that may run at once, so in pieces


async def _a_swap_under_load_fails_nothing(stack: Stack, ledger: Ledger) -> list[Live]:
    """Each answer is the one of the version that it names; return when each could be pinned."""
    traffic = Traffic(
        lambda: stack.gateways, ledger, "breast-cancer", rate_per_s=60, variants=(1, 2)
    )
    async with traffic:
        await asyncio.sleep(1.0)
        wanted_2_s = time.time()
        await stacks.push(stack, "breast-cancer", variant=2)
        all_pin_2_s = time.time()
        await asyncio.sleep(1.5)
        wanted_1_s = time.time()
        await stacks.cli(
            "models",
            "alias",
            "breast-cancer",
            "champion",
            "1",
            "--registry",
            stack.registry,
            api_key=stack.api_key,
        )
        await asyncio.sleep(4.0)
    seen = traffic.seen
    assert not seen.failures, seen.failures[:3]
    assert not seen.unknown
    assert seen.statuses == {200: seen.n_sent}
    assert set(seen.versions) == {"1", "2"}
    end_s = time.time() + 3600
    return [Live(1, 0, all_pin_2_s), Live(2, wanted_2_s, end_s), Live(1, wanted_1_s, end_s)]


async def _a_rolling_restart_fails_nothing(stack: Stack, ledger: Ledger) -> None:
    """Each process in turn, under load; clients go where a load balancer sends them."""
    async with (
        Balancer(lambda: stack.gateways) as balancer,
        Traffic(balancer.ready, ledger, "breast-cancer", rate_per_s=40, seed=1) as traffic,
    ):
        for role, index in RESTARTED:
            pid = stack.process(role, index).pid
            await stack.restart(role, index)
            await stack.wait_ready(role, index)
            assert stack.process(role, index).pid != pid
        await asyncio.sleep(1.0)
    assert traffic.seen.statuses == {200: traffic.seen.n_sent}, traffic.seen.failures[:3]
    assert not traffic.seen.unknown


async def _the_log_verifies(stack: Stack, ledger: Ledger) -> None:
    inputs = stacks.sample_inputs("breast-cancer")[0]
    answer = await stacks.infer(stack.http, "breast-cancer", inputs, ledger, "last")
    await stacks.at_rest(stack)
    request_id = answer.headers["x-request-id"]
    for command in (["verify"], ["get", request_id]):
        result = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "inferbus_logger", *command, "--json"],
            env={"INFERBUS_POSTGRES_URL": stack.postgres},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        said = json.loads(result.stdout)
    assert said["request_id"] == request_id
    receipt = f"{said['k_partition']}:{said['k_offset']}"
    assert receipt == answer.headers["x-inferbus-receipt"]
