"""The engine process: `python -m inferbus_worker.engines.child <fd> <parent pid>`.

In: frames on an inherited socket (see `wire`). Out: an answer to each, in order but where the
engine generates (see `generating`). A plain blocking loop: native code may crash, leak or hang
here, and costs one process. It ends when its socket does and, on Linux, when its parent does,
however that ended.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import msgspec

from inferbus_schemas import manifest as manifests
from inferbus_worker.engines import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inferbus_worker.engines.runner import Runner

    Serve = Callable[[socket.socket, Iterator[tuple[wire.Command, bytes]]], None]

_PR_SET_PDEATHSIG = 1
_MAX_FILES = 256
_MEASURE_EVERY_NS = 200_000_000
_SOCKET_BUFFER_BYTES = 1 << 20


def main() -> None:
    """Serve until the socket ends."""
    _bind_to_parent(int(sys.argv[2]))
    # Native code that crashes leaves the stack that called it among the last words.
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_FILES, _MAX_FILES))
    # Before numpy and the tokenizer are imported: they read these once.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setblocking(True)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
    with sock, sock.makefile("rb", buffering=_SOCKET_BUFFER_BYTES) as stream:
        _serve(sock, cast("BinaryIO", stream))


def _bind_to_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _serve(sock: socket.socket, stream: BinaryIO) -> None:
    commands = _commands(stream)
    runner: Runner | None = None
    memory = measured_ns = 0
    for command, body in commands:
        if isinstance(command, wire.Load):
            loaded, error = _load(command)
            sock.sendall(wire.frame(wire.Loaded(error, memory_bytes()), 0))
            if callable(loaded):
                loaded(sock, commands)
                return
            runner = loaded
        elif runner is not None and isinstance(command, wire.Run):
            started_ns = time.perf_counter_ns()
            done, buffers = runner.run(command, body)
            engine_us = (time.perf_counter_ns() - started_ns) // 1000
            if started_ns - measured_ns > _MEASURE_EVERY_NS:
                measured_ns, memory = started_ns, memory_bytes()
            said = msgspec.structs.replace(done, engine_us=engine_us, memory_bytes=memory)
            head = wire.frame(said, sum(map(len, buffers)))
            sock.sendall(b"".join((head, *buffers)))


def _commands(stream: BinaryIO) -> Iterator[tuple[wire.Command, bytes]]:
    """Yield what the worker says, until it says no more."""
    while len(lengths := stream.read(wire.LENGTHS.size)) == wire.LENGTHS.size:
        n_header, n_body = wire.LENGTHS.unpack(lengths)
        header, body = stream.read(n_header), stream.read(n_body)
        if len(header) < n_header or len(body) < n_body:
            return
        yield wire.command(header), body


def _load(command: wire.Load) -> tuple[Runner | Serve | None, str]:
    """Load the version; one that answers many at once comes as what serves all that follows."""
    if command.max_address_space_bytes and sys.platform == "linux":
        limit = command.max_address_space_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Each import is a library that the other engines must not pay for.
    try:
        if manifests.parse(command.manifest).engine == "llamacpp":
            from inferbus_worker.engines import generating  # noqa: PLC0415

            engine = generating.load(command.manifest, Path(command.folder), command.threads)

            def serve(sock: socket.socket, rest: Iterator[tuple[wire.Command, bytes]]) -> None:
                generating.Generations(sock, engine, memory_bytes).serve(rest)

            return serve, ""
        from inferbus_worker.engines import runner  # noqa: PLC0415

        return runner.load(command.manifest, Path(command.folder), command.threads), ""
    except (ValueError, OSError, MemoryError) as error:
        return None, str(error) or type(error).__name__


def memory_bytes() -> int:
    """Return the resident memory of this process; its peak where the system tells no more."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 -- once per batch, so cheap
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
