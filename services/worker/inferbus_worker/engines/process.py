"""One life of one engine process, seen from the worker: spawn, frames, the end.

In: frames to send. Out: a call per answer, and one call when the process is gone, which its closing
socket tells within milliseconds of its death.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from inferbus_kit.lifecycle import watched
from inferbus_worker.engines import wire

Answer = wire.Said
_SOCKET_BUFFER_BYTES = 1 << 20
_LOG_LINES = 50
_LOG_LINE_BYTES = 2000
_LAST_WORDS_S = 1.0


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended, and the last lines that it wrote to its standard error."""

    how: str
    said: tuple[str, ...]


class EngineProcess(asyncio.Protocol):
    """A child and its socket.

    Invariants: `on_answer` is called once per whole frame, in order; `on_gone` is called exactly
    once, after the last answer; nothing is called after it.
    """

    def __init__(
        self,
        on_answer: Callable[[Answer, memoryview], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._on_answer = on_answer
        self._on_gone = on_gone
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._rest = bytearray()
        self._wanted = wire.LENGTHS.size
        self.log: deque[str] = deque(maxlen=_LOG_LINES)

    @property
    def pid(self) -> int:
        """The process id; 0 before it started."""
        return 0 if self._process is None else self._process.pid

    async def start(self, scratch: Path) -> None:
        """Spawn the child with `scratch` as its working directory."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                ours.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",
                    "-m",
                    "inferbus_worker.engines.child",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    start_new_session=True,
                    cwd=scratch,
                )
            except BaseException:
                ours.close()
                raise
        # With nobody who reads them, its own words would soon block it.
        self._log_task = watched(
            asyncio.create_task(self._read_log(), name="engine-log"), lambda _reason: self.kill()
        )
        await loop.create_unix_connection(lambda: self, sock=ours)

    def send(self, header: wire.Command, buffers: Sequence[bytes]) -> None:
        """Send one frame; what the child does not take yet is kept in memory."""
        if self._transport is not None and not self._transport.is_closing():
            head = wire.frame(header, sum(map(len, buffers)))
            self._transport.writelines([head, *buffers])

    def kill(self) -> None:
        """End the child and what it may have started, at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Kill, reap, and read its last words."""
        self.kill()
        if self._transport is not None:
            self._transport.abort()
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self._process.wait()
        if self._log_task is not None:
            await asyncio.wait({self._log_task}, timeout=_LAST_WORDS_S)
            self._log_task.cancel()

    def death(self) -> Death:
        """Say how the process ended, for operators."""
        code = None if self._process is None else self._process.returncode
        if code is None:
            how = "closing its socket"
        else:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Death(how, tuple(self.log))

    async def _read_log(self) -> None:
        stream = None if self._process is None else self._process.stderr
        while stream is not None:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the stream's limit
                continue
            if not line:
                return
            self.log.append(line[:_LOG_LINE_BYTES].decode("utf-8", "replace").rstrip())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest.clear()
        try:
            used = self._parse(memoryview(data))
        except msgspec.MsgspecError:
            # Native code that writes into our socket has lost its mind: as good as dead.
            self.kill()
            return
        self._rest += data[used:]

    def _parse(self, data: memoryview) -> int:
        """Hand over all whole frames; return how many bytes they took."""
        at = 0
        while True:
            self._wanted = wire.LENGTHS.size
            if len(data) - at < self._wanted:
                return at
            n_header, n_body = wire.LENGTHS.unpack_from(data, at)
            self._wanted += n_header + n_body
            if len(data) - at < self._wanted:
                return at
            body_at = at + wire.LENGTHS.size + n_header
            header = wire.answer(data[at + wire.LENGTHS.size : body_at])
            at += self._wanted
            self._on_answer(header, data[body_at:at])

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.kill()
        self._on_gone()
