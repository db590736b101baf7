"""When to try again: what `retry-after` says with a refusal.

In: an error. Out: seconds with a jitter, so that clients do not come back all at once.
"""

from __future__ import annotations

import math
import random

from inferbus_kit.errors import InferbusError


def retry_after_s(error: InferbusError | type[InferbusError]) -> int | None:
    """Return the seconds that `retry-after` says, jittered; None where none is to be said."""
    if error.http_status == 503:  # noqa: PLR2004 -- ours: the whole fleet comes back
        return random.randint(1, 3)  # noqa: S311 -- jitter
    if error.http_status == 429:  # noqa: PLR2004 -- the caller's limit
        wait_s = getattr(error, "retry_after_s", 0.0)
        return max(1, math.ceil(wait_s + random.random() * (1.0 + wait_s / 4)))  # noqa: S311 -- jitter
    return None
