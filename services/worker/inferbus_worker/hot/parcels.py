"""What waits for a partition, cut into what one batch takes.

In: what waits, in order. Out: the first of it.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeVar

from inferbus_kit.produce import MAX_BATCH_BYTES, Message


class Outgoing(Protocol):
    """Something on its way."""

    message: Message


Out = TypeVar("Out", bound=Outgoing)


def take(waiting: deque[Out]) -> list[Out]:
    """Take from the left what fits one batch; at least one."""
    parcel = [waiting.popleft()]
    n_bytes = parcel[0].message.size_bytes
    while waiting:
        n_bytes += waiting[0].message.size_bytes
        if n_bytes > MAX_BATCH_BYTES:
            break
        parcel.append(waiting.popleft())
    return parcel
