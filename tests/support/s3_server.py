"""A server of S3's API that others wrote, in a process and an environment of its own.

In: nothing. Out: its address, what clients of S3 are told of it, and empty buckets.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx

from inferbus_dev import ports
from tests.support import clients

READY_S = 30.0


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server."""

    url: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process that uses it is told."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def bucket(self) -> str:
        """Make a bucket; return its name."""
        name = f"bucket-{secrets.token_hex(4)}"
        httpx.put(f"{self.url}/{name}", trust_env=False).raise_for_status()
        return name


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server on a free port."""
    home, port = clients.environment("s3"), ports.free_port()
    argv = (home / "bin" / "python", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    running = S3Server(f"http://127.0.0.1:{port}")
    try:
        until_s = time.monotonic() + READY_S
        while not _answers(running.url):
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < until_s, "the server does not answer"
            time.sleep(0.05)
        yield running
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False).is_success
    return False
