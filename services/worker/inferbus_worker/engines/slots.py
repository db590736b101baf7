"""Whose prompt each slot of an engine has read: what one tenant asked says nothing to another.

In: who asks, and the prompt. Out: a slot that is free, and whether what it keeps may be used again.
A prompt that the engine refuses, or leaves before it reads it, keeps what a slot had of another's.
The engine itself would take whichever slot fits the prompt best: how much of it was read before,
and how soon the answer begins, then tell, guess by guess, what somebody else asked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_ALIKE = 0.1
"""So much of a prompt must begin as in a slot for that slot to be taken before an older one."""


@dataclass(slots=True)
class _Slot:
    number: int
    tenant: str | None = None
    prompt: str = ""
    n_used: int = 0
    of_row: bool = False


@dataclass(slots=True)
class Held:
    """A slot as one answer has it; `theirs` is what it keeps; its holder says once it is read."""

    number: int
    theirs: bool
    read: bool = False


class Slots:
    """The slots of one engine.

    Invariants: a slot is held by one answer at a time; what it keeps is used again only for the
    tenant whose prompt it read last, and for nobody where that is not known. May be used from many
    threads.
    """

    def __init__(self, n: int) -> None:
        self._all = [_Slot(number) for number in range(n)]
        self._free = list(self._all)
        self._freed = threading.Condition()
        self._n_used = 0

    @contextlib.contextmanager
    def held(self, tenant: str, prompt: str, *, of_row: bool = False) -> Iterator[Held]:
        """Hold a slot, once there is one; that of a job's row stands behind those of requests."""
        with self._freed:
            while not self._free:
                self._freed.wait()
            slot = self._chosen(tenant, prompt, of_row=of_row)
            self._free.remove(slot)
            slot.of_row = of_row
            held = Held(slot.number, theirs=slot.tenant == tenant)
            self._n_used += 1
            slot.n_used = self._n_used
        try:
            yield held
        finally:
            with self._freed:
                slot.tenant, slot.prompt = (tenant, prompt) if held.read else (None, "")
                slot.of_row = False
                self._free.append(slot)
                self._freed.notify()

    def _chosen(self, tenant: str, prompt: str, *, of_row: bool) -> _Slot:
        # The engine reads the prompts of its slots in the order of their numbers.
        if of_row:
            return max(self._free, key=lambda slot: slot.number)
        first_row = min((slot.number for slot in self._all if slot.of_row), default=len(self._all))
        free = [slot for slot in self._free if slot.number < first_row] or self._free
        theirs = [slot for slot in free if slot.tenant == tenant]
        if theirs:
            alike = {slot.number: _n_alike(slot.prompt, prompt) for slot in theirs}
            best = max(theirs, key=lambda slot: (alike[slot.number], slot.n_used))
            if alike[best.number] > len(prompt) * _ALIKE:
                return best
        return min(free, key=lambda slot: slot.n_used)


def _n_alike(one: str, other: str) -> int:
    """Return how many characters two texts have in common from their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
