"""Test only: places where the process kills itself, to prove that no place is a bad one.

In: INFERBUS_FAIL_POINT, such as `after_copy` or `after_commit:3` (the third time it is reached).
Out: a function that the sink calls at each place; without the variable it does nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

from inferbus_kit.errors import StartupError

AFTER_UPDATE: Final = "after_update"
AFTER_COPY: Final = "after_copy"
AFTER_ANSWERS: Final = "after_answers"
AFTER_COMMIT: Final = "after_commit"
NAMES: Final = frozenset({AFTER_UPDATE, AFTER_COPY, AFTER_ANSWERS, AFTER_COMMIT})

Reach = Callable[[str], None]


def nowhere(_name: str) -> None:
    """Reach a place and live on."""


def from_environment() -> Reach:
    """Return what the sink calls at each place.

    Raises:
        StartupError: the variable names no place.
    """
    chosen = os.environ.get("INFERBUS_FAIL_POINT", "")
    if not chosen:
        return nowhere
    name, _, times = chosen.partition(":")
    if name not in NAMES or not (times or "1").isdigit():
        raise StartupError(f"INFERBUS_FAIL_POINT: choose one of {', '.join(sorted(NAMES))}")
    left = int(times or "1")

    def reach(place: str) -> None:
        nonlocal left
        if place == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return reach
