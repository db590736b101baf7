"""How long an engine may be silent while it has work; alive is not progress.

In: what its batches took. Out: seconds, past which it is stuck. Reads no clock.
"""

from __future__ import annotations

from collections import deque

STUCK_S = 10.0
"""The least patience, and the time that one proof may take."""
_STUCK_P99S = 5.0
_STUCK_GENERATING_S = 30.0
_REMEMBERED = 256


class Patience:
    """The patience with one version's engine.

    Invariants: at least `STUCK_S`, and five times what a slow batch of late took; a generation, of
    which one says nothing about the next, has its own.
    """

    def __init__(self, engine: str) -> None:
        self._generates = engine == "llamacpp"
        self._engine_us: deque[int] = deque(maxlen=_REMEMBERED)

    def took(self, engine_us: int) -> None:
        """Note how long a batch took."""
        self._engine_us.append(engine_us)

    @property
    def silence_s(self) -> float:
        """How long it may say nothing."""
        if self._generates:
            # It tells of progress many times in one answer, whose length says nothing.
            return _STUCK_GENERATING_S
        times = sorted(self._engine_us)
        p99_s = times[int(len(times) * 0.99)] / 1e6 if times else 0.0
        return max(STUCK_S, _STUCK_P99S * p99_s)
