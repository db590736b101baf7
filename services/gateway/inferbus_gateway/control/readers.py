"""Places of those who read again what stands in the log: each holds a consumer of its own.

In: tenants that want one. Out: a place, or the refusal that names whose limit it is.
"""

from __future__ import annotations

from collections import Counter

from inferbus_gateway.errors import TenantBusyError
from inferbus_kit.errors import OverloadedError

MAX_READERS = 64
MAX_OF_A_TENANT = 16


class Readers:
    """The places of one kind of reading.

    Invariants: at most `MAX_READERS` are held, and of one tenant at most `MAX_OF_A_TENANT`.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._held: Counter[str] = Counter()

    def take(self, tenant: str) -> None:
        """Hold a place until `free`.

        Raises:
            TenantBusyError: the tenant has its share.
            OverloadedError: none is free.
        """
        if self._held[tenant] >= MAX_OF_A_TENANT:
            raise TenantBusyError(
                f"as many {self._what} of your tenant as may be are read again; try again shortly"
            )
        if self._held.total() >= MAX_READERS:
            raise OverloadedError(f"too many {self._what} are read again here; try again shortly")
        self._held[tenant] += 1

    def free(self, tenant: str) -> None:
        """Hold it no longer."""
        self._held[tenant] -= 1
        self._held += Counter()  # forgets the zeros
