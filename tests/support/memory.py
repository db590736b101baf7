"""How much memory of Python something takes at its most."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most that `run` and what it returns took beside what there was."""
    gc.disable()
    tracemalloc.start()
    try:
        _made = run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()
