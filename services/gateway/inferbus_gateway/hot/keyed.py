"""Requests that name an `Idempotency-Key`: what of one is fixed for life, and who runs it once.

In: a key and what it was sent with. Out: digests that tell keys and requests apart. Requests
without a key have nothing to do with any of this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from inferbus_gateway.errors import InvalidRequestError
from inferbus_gateway.hot.pending import Entry
from inferbus_schemas import messages as m

MAX_KEY_CHARACTERS: Final = 255
MARK: Final = "x-inferbus-idempotency"
"""The header that says `replayed` or `degraded`."""
REPLAYED: Final = "replayed"
DEGRADED: Final = "degraded"
_FIRST, _LAST = 0x21, 0x7E


@dataclass(frozen=True, slots=True)
class Place:
    """What a request keeps for life, whoever sends it: id, reply partition, version and pool."""

    id: bytes
    partition: int
    version: int
    pool: str

    def pinned_as(self, other: Place) -> bool:
        """Tell whether a request that was read for one is read for the other too."""
        return (self.version, self.pool) == (other.version, other.pool)


@dataclass(frozen=True, slots=True)
class Name:
    """Which request is meant: a tenant's key, by its digest, and what it was sent with."""

    tenant: str
    key_sha256: bytes
    body_sha256: bytes


class Keyed(Protocol):
    """One request with a key, as its protocol sees it; it is answered once.

    `mark` is what its answer says in `MARK`; empty says nothing. `size_bytes` is what it holds.
    """

    name: Name
    mark: str
    size_bytes: int

    @property
    def gone(self) -> bool:
        """Whether its client has left, so that nobody waits for an answer of another's record."""
        ...

    @property
    def deadline_s(self) -> float:
        """When its client waits no longer, monotonic; known once it is prepared."""
        ...

    def prepare(self, place: Place | None) -> Place:
        """Read the request for the version of a place; without one make a place of its own.

        Raises:
            InferbusError: it is refused.
        """
        ...

    def open(self, then: Callable[[Entry], None]) -> None:
        """Put what was prepared on the bus; `then` is told how it ended.

        Raises:
            InferbusError: it is refused; nothing was handed over.
        """
        ...

    def ended(self, entry: Entry) -> None:
        """Answer what was opened."""
        ...

    def recalled(self, prediction: m.Prediction, offset: int) -> None:
        """Answer what was prepared from the record that stands at an offset of its partition."""
        ...

    def refuse(self, error: Exception, place: Place | None = None) -> None:
        """Answer with an error; `place` is that of the request whose end it is, if another's."""
        ...


Once = Callable[[Keyed], None]
"""Takes a request with a key and sees to its answer."""


def key_sha256(key: bytes) -> bytes:
    """Return the digest of a key.

    Raises:
        InvalidRequestError: it is none that is taken.
    """
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or min(key) < _FIRST or max(key) > _LAST:
        raise InvalidRequestError(
            f"an Idempotency-Key is 1 to {MAX_KEY_CHARACTERS} visible ASCII characters"
        )
    return hashlib.sha256(key).digest()


def body_sha256(*parts: bytes) -> bytes:
    """Return the digest of all that makes two requests the same one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
