"""Files and batches by the openai SDK, unchanged, in a process of its own."""

from __future__ import annotations

import sys

import pytest

from inferbus_dev.stack import Stack
from tests.support import clients, stacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]


async def test_batches_by_the_openai_sdk(stack: Stack) -> None:
    other = await stacks.make_key(stack, "other", "--scope", "infer:*", "--tenant", "other")
    program = clients.PROGRAMS / "openai_batches.py"
    argv = (stack.http, stack.api_key, other)
    done = await clients.call(sys.executable, program, *argv, timeout_s=400)
    assert (done.code, done.out) == (0, "fine\n"), done.err[-3000:]
    await stacks.at_rest(stack)
    await stacks.verify(stack)
