"""The ledger of a load generator: what a client sent and what came back, as it happened.

In: sends, answers, and what was never answered. Out: a file, and its entries for `reconcile`, which
holds the log against them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

SYNC_LINES: Final = 256
SYNC_S: Final = 0.05
NONE: Final = "-"
OUTCOME_UNKNOWN: Final = "outcome_unknown"


class Ledger:
    """An append-only file: `S` before a send, `A` after an answer, `U` where none is known.

    Invariants: lines are whole and in the order of events; what was written 50 ms or 256 lines
    ago is on the disk. A 504 `outcome_unknown` is written as `U` with that word, since it names no
    outcome; its request must have one all the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        self._pending = 0
        self._synced_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def sent(self, key: str, payload_sha: str) -> None:
        """Note a request, by its client_request_id, before it is sent."""
        self._write("S", key, payload_sha)

    def answered(
        self,
        key: str,
        status: int,
        *,
        request_id: str = NONE,
        receipt: str = NONE,
        output_sha: str = NONE,
        version: str = NONE,
        served_by: str = NONE,
    ) -> None:
        """Note an answer: the values of its `x-inferbus-*` headers, `-` where there was none."""
        self._write("A", key, request_id, str(status), receipt, output_sha, version, served_by)

    def unknown(self, key: str, error: str) -> None:
        """Note that no answer came: reset, timeout, or `outcome_unknown`."""
        self._write("U", key, error.replace(" ", "_") or "error")

    def _write(self, *words: str) -> None:
        line = " ".join([*words, f"{time.time():.6f}"])
        self._file.write(line.encode() + b"\n")
        self._pending += 1
        if self._pending >= SYNC_LINES or time.monotonic() - self._synced_s > SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Put all lines on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._pending = 0
        self._synced_s = time.monotonic()

    def close(self) -> None:
        self.sync()
        self._file.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """An `A` line."""

    key: str
    request_id: str
    status: int
    receipt: str
    output_sha: str
    version: str
    served_by: str
    at_s: float


@dataclass(slots=True)
class Entries:
    """What a ledger file says; a torn last line is left out. `unknown` has the word for each."""

    sent: dict[str, float] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Entries:
    """Return the entries of a ledger file."""
    entries = Entries()
    for line in path.read_bytes().split(b"\n")[:-1]:
        kind, key, *words = line.decode().split(" ")
        at_s = float(words[-1])
        if kind == "S":
            entries.sent[key] = at_s
        elif kind == "A":
            request_id, status, receipt, output_sha, version, served_by, _ = words
            entries.answers.append(
                Answer(key, request_id, int(status), receipt, output_sha, version, served_by, at_s)
            )
        else:
            entries.unknown[key] = words[0]
    return entries
