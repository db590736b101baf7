"""`python -m bench NAME`: run one benchmark and store its result in bench/results."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "roundtrip": "HTTP to HTTP latency by hop at 1, 16, 64, 256 connections",
    "access": "a caller with a key and limits beside one without, on one stack",
    "jobs": "rows of a job beside a raw loop, through kills; requests beside a job",
    "first_token": "smollm2's first tokens: the engine alone, the platform, beside a batch",
    "fuzz": "11,400 hostile requests: no 500, no silence, no leak, no growth",
    "startup": "make up in a fresh clone until it serves, four times, and Ctrl-C until it ended",
    "before": "this commit, with key and limits, beside an earlier one; both stacks take turns",
    "log_sink": "rows a second that the logger stores, into Postgres alone and from Kafka",
    "peers": "the same model behind the usual and a tuned FastAPI server, side by side",
}


def main() -> int:
    """Run the named benchmark, or say which there are."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        for name, what in NAMES.items():
            sys.stderr.write(f"python -m bench {name:<12} {what}\n")
        return 2
    importlib.import_module(f"bench.{sys.argv[1]}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
