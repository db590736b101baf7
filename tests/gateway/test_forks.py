"""Processes that a gateway starts while it serves gRPC."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, collections
import inferbus_gateway.__main__
import grpc, uvloop

async def echo(request, context):
    return request

async def main():
    server = grpc.aio.server()
    handlers = {"C": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/a.B/C")

        async def ask():
            while True:
                await call(bytes(100))
                await asyncio.sleep(0.0005)

        asking = [asyncio.create_task(ask()) for _ in range(2)]
        codes = collections.Counter()
        for _ in range(200):
            child = await asyncio.create_subprocess_exec("true")
            codes[await child.wait()] += 1
        for task in asking:
            task.cancel()
    await server.stop(None)
    print(dict(codes))

uvloop.run(main())
"""


# With gRPC's handlers of forks 1 to 3 of a hundred crash.
@pytest.mark.slow
def test_a_process_that_is_started_beside_calls_runs() -> None:
    outside = {name: value for name, value in os.environ.items() if "GRPC" not in name}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=outside,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == "{0: 200}\n"
