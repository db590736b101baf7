"""Whether the key that the launcher keeps still opens the registry: its user may have ended it.

In: the registry's address and the key. Out: whether another one is to be made.
"""

from __future__ import annotations

import asyncio
import http.client
from http import HTTPStatus
from urllib.parse import urlsplit

MADE = "The admin key that was kept had been rotated, revoked or had expired; made another one"


async def is_dead(registry: str, key: str) -> bool:
    """Tell whether the registry knows a key as none; what else it says is for others to see."""
    return await asyncio.to_thread(_is_refused, urlsplit(registry).netloc, key)


def _is_refused(address: str, key: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        head = {"authorization": f"Bearer {key}"}
        connection.request("GET", "/v1/registry/keys?limit=1", headers=head)
        return connection.getresponse().status == HTTPStatus.UNAUTHORIZED
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
