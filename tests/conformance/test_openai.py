"""The openai SDK, unchanged, in a process of its own, against a running stack."""

from __future__ import annotations

import sys

import pytest

from inferbus_dev.stack import Stack
from tests.support import clients, stacks
from tests.support.sample_models import model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="session"),
]


async def test_the_openai_sdk(stack: Stack) -> None:
    program = clients.PROGRAMS / "openai_sdk.py"
    done = await clients.call(sys.executable, program, stack.http, stack.api_key)
    assert (done.code, done.out) == (0, "fine\n"), done.err[-3000:]
    await stacks.at_rest(stack)
    await stacks.verify(stack)


async def test_log_probabilities_are_those_of_the_model(stack: Stack) -> None:
    program = clients.PROGRAMS / "openai_logprobs.py"
    weights = model_folder("smollm2") / "model.gguf"
    done = await clients.call(sys.executable, program, stack.http, stack.api_key, weights)
    assert (done.code, done.out) == (0, "fine\n"), done.err[-3000:]
