"""The process that reads or writes one Parquet file: `child read|write <what>`.

In: `what` as JSON (see `wire`); to read, a file on standard input; to write, rows there. Out: rows,
or a file, on standard output. It may crash or fill its memory on a hostile file: that costs this
process, which has bounds of its own, and the gateway says that the file cannot be read.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys

import msgspec

from inferbus_gateway.columns import wire

_ADDRESS_SPACE_BYTES = 1 << 30
_CPU_S = 300
_CPU_GRACE_S = 5
_NICENESS = 10


def main() -> None:
    """Do the one thing that the arguments say."""
    _bound()
    what = sys.argv[2].encode()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    if sys.argv[1] == "read":
        from inferbus_gateway.columns import read  # noqa: PLC0415 -- behind the bounds

        read.rows(source, sink, msgspec.json.decode(what, type=wire.Reading))
    else:
        from inferbus_gateway.columns import write  # noqa: PLC0415

        try:
            write.file(source, sink, msgspec.json.decode(what, type=wire.Writing))
        except MemoryError:
            sys.exit(wire.NO_MEMORY)


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, soft, hard in (
        (resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES),
        # Only the soft one ends a process by a signal of its own, which says why it ended.
        (resource.RLIMIT_CPU, _CPU_S, _CPU_S + _CPU_GRACE_S),
    ):
        with contextlib.suppress(ValueError, OSError):  # not every system has each of them
            resource.setrlimit(kind, (soft, hard))
    # Requests go first on the machine's cores as they do on the gateway's loop.
    os.nice(_NICENESS)


if __name__ == "__main__":
    main()
