"""Places for what stays open for long, of which nobody gets more than a share.

In: who wants one. Out: a place, until it is left, or a refusal at once. Pure.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from inferbus_gateway.errors import OverloadedError, TenantBusyError


class Shares:
    """Places of one kind; there is always one, and always one for each holder.

    Invariants: at most `n` are held, and at most `n_each` by one holder; who holds none is not
    remembered.
    """

    def __init__(self, what: str, n: int, n_each: int) -> None:
        self._what = what
        self._n = max(1, n)
        self._n_each = max(1, n_each)
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def held(self, holder: str) -> Iterator[None]:
        """Hold a place.

        Args:
            holder: a tenant, or an address; the text of a refusal does not say it.

        Raises:
            TenantBusyError: the holder has its share.
            OverloadedError: all are held.
        """
        if self._held[holder] >= self._n_each:
            raise TenantBusyError(
                f"{self._n_each} {self._what} of yours are open, more may not be; end one first"
            )
        if self._held.total() >= self._n:
            raise OverloadedError(f"too many {self._what} are open here; try again shortly")
        self._held[holder] += 1
        try:
            yield
        finally:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
