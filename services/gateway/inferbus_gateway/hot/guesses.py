"""Who presents keys that open nothing, and how long it is told to wait; pure.

In: addresses of bad keys, and the time. Out: 0, or the seconds until the next one is looked at in
earnest. Nobody with a good key is asked here.
"""

from __future__ import annotations

import ipaddress
from typing import Final

FREE: Final = 30
"""Bad keys that an address may present before it has to wait: people paste, programs poll."""
MAX_WAIT_S: Final = 60.0
FORGET_S: Final = 300.0
MAX_KNOWN: Final = 4096
"""Addresses that are remembered; past it the one that was quiet for longest is forgotten."""
_IPV6_NET = 64


class _Guesser:
    """What is known of one address."""

    __slots__ = ("last_s", "n", "until_s")

    def __init__(self) -> None:
        self.n = 0
        self.last_s = 0.0
        self.until_s = 0.0


class Guesses:
    """Bad keys by address, an IPv6 one by its network.

    Invariants: at most `MAX_KNOWN` addresses; the wait doubles with each bad key past `FREE`, up to
    `MAX_WAIT_S`; one that comes during a wait makes it no longer.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Guesser] = {}

    def __len__(self) -> int:
        return len(self._known)

    def wait_s(self, address: str, now_s: float) -> float:
        """Note a bad key; return 0, or how long its address is still told to wait."""
        name = _network(address)
        one = self._known.pop(name, None)
        if one is None or now_s - one.last_s > FORGET_S:
            one = _Guesser()
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[name] = one
        one.last_s = now_s
        if now_s < one.until_s:
            return one.until_s - now_s
        one.n += 1
        if one.n > FREE:
            one.until_s = now_s + min(MAX_WAIT_S, 2.0 ** min(one.n - FREE - 1, 16))
        return 0.0


def _network(address: str) -> str:
    """Return what one person is likely to hold: an IPv4 address, or a network of IPv6."""
    address = address.removeprefix("::ffff:")
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address, _IPV6_NET), strict=False))
    except ValueError:
        return address
