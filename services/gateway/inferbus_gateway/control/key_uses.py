"""When keys were last used, as this gateway's beats tell it: coarse, and never waited for; pure.

In: the names of principals that were let in. Out: ids of keys and a time, for the next beat.
"""

from __future__ import annotations

from typing import Final

from inferbus_schemas import messages as m

EVERY_S: Final = 60.0
MAX_PER_BEAT: Final = 256
"""What is more waits for the next beat."""
_KEY = "key:"


class KeyUses:
    """Tells of each key once a minute at most.

    Invariants: `used` is emptied by what is told or was told within the minute; what stands there
    of others than keys is dropped.
    """

    def __init__(self, used: set[str]) -> None:
        self._used = used
        self._told_s: dict[str, float] = {}

    def due(self, now_s: float) -> list[m.KeyUse]:
        """Return what to tell at a time in UTC, seconds since 1970."""
        if not self._used:
            return []
        self._told_s = {name: at for name, at in self._told_s.items() if now_s - at < EVERY_S}
        fresh = sorted(
            name for name in self._used if name.startswith(_KEY) and name not in self._told_s
        )
        now, later = fresh[:MAX_PER_BEAT], fresh[MAX_PER_BEAT:]
        self._used.clear()
        self._used.update(later)
        self._told_s.update(dict.fromkeys(now, now_s))
        return [m.KeyUse(id=name.removeprefix(_KEY), used_us=int(now_s * 1e6)) for name in now]
