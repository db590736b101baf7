"""Open-loop traffic that writes a ledger.

In: gateways and a sample model. Out: one `S` line per request and one `A` or `U` line for what came
back, and a count of what came back. Arrivals are Poisson, so a stall of the server shows.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import httpx

from inferbus_models import samples
from tests.support.ledger import OUTCOME_UNKNOWN, Ledger
from tests.support.sample_models import model_folder


@dataclass(slots=True)
class Seen:
    """What came back.

    `failures` holds the answers that are neither 200 nor an unknown, `wrong` those with 200 that
    are not what the original library says of the version that they name.
    """

    n_sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)


def note(ledger: Ledger, key: str, answer: httpx.Response) -> bool:
    """Write down an answer; False where it says that the outcome is unknown."""
    said = answer.headers
    if said.get("x-inferbus-error-code") == OUTCOME_UNKNOWN:
        ledger.unknown(key, OUTCOME_UNKNOWN)
        return False
    accepted = "x-inferbus-receipt" in said
    ledger.answered(
        key,
        answer.status_code,
        request_id=said["x-request-id"] if accepted else "-",
        receipt=said.get("x-inferbus-receipt", "-"),
        output_sha=said.get("x-inferbus-output-sha256", "-"),
        version=said.get("x-inferbus-model-version", "-"),
        served_by=said.get("x-inferbus-served-by", "-"),
    )
    return True


class Traffic:
    """Sends a model's samples to gateways in turn until told to stop.

    Invariants: every key is sent once; a request is in the ledger before its first byte leaves;
    `stop` waits for all answers, and fails where one is wrong.
    """

    def __init__(
        self,
        gateways: Callable[[], Sequence[str]],
        ledger: Ledger,
        model: str,
        *,
        rate_per_s: float,
        timeout_ms: int = 20_000,
        seed: int = 0,
        variants: Sequence[int] = (1,),
    ) -> None:
        """Take a version's number for its variant of the model."""
        self._gateways = gateways
        self._ledger = ledger
        self._model = model
        self._samples = {
            str(variant): samples.load(model_folder(model, variant=variant)) for variant in variants
        }
        self._inputs, *others = ([one.inputs for one in each] for each in self._samples.values())
        assert all(one == self._inputs for one in others)
        self._rate_per_s = rate_per_s
        self._timeout_ms = timeout_ms
        self._random = random.Random(seed)
        self._prefix = f"{model}-{seed}"
        self._numbers = itertools.count()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self.seen = Seen()
        self._client = httpx.AsyncClient(
            timeout=timeout_ms / 1000 + 10,
            trust_env=False,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._send_for_ever())
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Send nothing more, wait for what is under way."""
        self._stopping.set()
        if self._loop is not None:
            await self._loop
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._client.aclose()
        self._ledger.sync()
        assert not self.seen.wrong, self.seen.wrong[:3]

    async def _send_for_ever(self) -> None:
        due_s = time.monotonic()
        while not self._stopping.is_set():
            due_s += self._random.expovariate(self._rate_per_s)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            number = next(self._numbers)
            task = asyncio.create_task(self._send(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, number: int) -> None:
        key = f"{self._prefix}-{number}"
        which = number % len(self._inputs)
        body = json.dumps({"id": key, "inputs": list(self._inputs[which])}).encode()
        gateways = self._gateways()
        url = f"{gateways[number % len(gateways)]}/v2/models/{self._model}/infer"
        self._ledger.sent(key, hashlib.sha256(body).hexdigest())
        self.seen.n_sent += 1
        started_s = time.monotonic()
        try:
            answer = await self._client.post(
                url, content=body, headers={"x-inferbus-timeout-ms": str(self._timeout_ms)}
            )
        except httpx.HTTPError as error:
            self.seen.unknown[type(error).__name__] += 1
            self._ledger.unknown(key, type(error).__name__)
            return
        self.seen.latencies_s.append(time.monotonic() - started_s)
        self._note(key, which, answer)

    def _note(self, key: str, which: int, answer: httpx.Response) -> None:
        self.seen.statuses[answer.status_code] += 1
        if not note(self._ledger, key, answer):
            self.seen.unknown[OUTCOME_UNKNOWN] += 1
            return
        version = answer.headers.get("x-inferbus-model-version", "-")
        if answer.status_code != 200:
            self.seen.failures.append(f"{answer.status_code} {answer.text[:200]}")
            return
        self.seen.versions[version] += 1
        sample = self._samples[version][which]
        gap = samples.difference(sample, answer.json()["outputs"])
        if not gap <= sample.tolerance:
            self.seen.wrong.append(f"{key} of version {version} differs by {gap}")
