"""Keys of tests by their numbers: as they are presented, and as `access.keys` has them."""

from __future__ import annotations

from typing import Any

from inferbus_schemas import access
from inferbus_schemas import messages as m


def key(number: int) -> str:
    return access.make_key(number.to_bytes(8, "big") + bytes(32))


def bearer(number: int) -> bytes:
    return f"Bearer {key(number)}".encode()


def record(number: int, *scopes: str, **fields: Any) -> m.AccessKey:
    base: dict[str, Any] = {
        "id": access.key_id(key(number)),
        "sha256": access.key_sha256(key(number)),
        "tenant": "acme",
        "scopes": scopes,
        "generation": 1,
    }
    return m.AccessKey(**{**base, **fields})
