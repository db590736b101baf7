"""Where the input of a job may come from, when it is named and not sent; pure.

In: a URI, which may be hostile; what the operator allows; addresses that a name stands for. Out: a
place that is allowed, or a refusal. Only https and s3 are known, and of those only origins that
are listed: nothing about a URI that is not on the list is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote, urlsplit

from inferbus_gateway.errors import UriRefusedError

MAX_CHARACTERS = 2048
_SAFE = re.compile(r"[!#-\[\]_a-z~%A-Z]+")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HTTPS_PORT = 443

Network = IPv4Network | IPv6Network
_TUNNELS: tuple[Network, ...] = tuple(
    ip_network(one)
    for one in (
        *("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),
        *("::/96", "::ffff:0:0:0/96"),
    )
)
"""Addresses that stand for other addresses."""


@dataclass(frozen=True, slots=True)
class Web:
    """A place behind https. `target` is path and query as they go on the wire."""

    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host, and port unless it is the usual one, as in a Host header."""
        return self.host if self.port == _HTTPS_PORT else f"{self.host}:{self.port}"

    @property
    def uri(self) -> str:
        """The URI."""
        return f"https://{self.authority}{self.target}"

    @property
    def path(self) -> str:
        """The path alone."""
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of a bucket."""

    bucket: str
    path: str


class Origins:
    """What an operator allows.

    Invariants: a place is given only where its origin is on the list, letter by letter; an address
    that is not public is connected to only inside a network that is on the other list.
    """

    def __init__(self, sources: Iterable[str], networks: Iterable[str]) -> None:
        """Read the lists.

        Args:
            sources: as `https://host`, `https://host:port`, `s3://bucket`.
            networks: as `10.1.0.0/16`.

        Raises:
            ValueError: an entry is none of these.
        """
        self._allowed: frozenset[str] = frozenset()
        for source in sources:
            try:
                place = _parsed(source.rstrip("/") + "/")
            except UriRefusedError as error:
                raise ValueError(f"{source}: {error}") from None
            if place != _parsed(_origin(place) + "/"):
                raise ValueError(f"{source}: only the origin is named, without a path")
            self._allowed |= {_origin(place)}
        self._networks = tuple(ip_network(one) for one in networks)

    def place(self, uri: str) -> Web | Stored:
        """Return the place that a URI names.

        Raises:
            UriRefusedError: nothing may be read there.
        """
        if not self._allowed:
            raise UriRefusedError(
                "this gateway reads no URIs; its INFERBUS_JOB_URI_SOURCES allows none"
            )
        place = _parsed(uri)
        if _origin(place) not in self._allowed:
            raise UriRefusedError(
                "this gateway does not read from there; INFERBUS_JOB_URI_SOURCES says from where"
            )
        return place

    def addresses(self, found: Iterable[str]) -> list[str]:
        """Return the addresses that may be connected to, of all that a name stands for now.

        Raises:
            UriRefusedError: there is none, or one of them is not public and not allowed.
        """
        addresses = [ip_address(one.partition("%")[0]) for one in found]
        if not addresses or not all(self._may(one) for one in addresses):
            raise UriRefusedError(
                "the host's address is not public; INFERBUS_JOB_URI_NETWORKS allows others"
            )
        return [str(one) for one in addresses]

    def _may(self, address: IPv4Address | IPv6Address) -> bool:
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._networks):
            return True
        tunnel = any(address in network for network in _TUNNELS)
        site = isinstance(address, IPv6Address) and address.is_site_local
        return address.is_global and not (address.is_multicast or tunnel or site)


def _origin(place: Web | Stored) -> str:
    return f"https://{place.authority}" if isinstance(place, Web) else f"s3://{place.bucket}"


def _parsed(uri: str) -> Web | Stored:
    """Return the place that a URI names, whether or not it is allowed.

    Raises:
        UriRefusedError: it is no https or s3 URI, or is one that two programs may read differently.
    """
    if len(uri) > MAX_CHARACTERS or not _SAFE.fullmatch(uri) or "#" in uri:
        raise UriRefusedError("the URI is too long, or has characters that a URI has not")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise UriRefusedError("this is no URI") from None
    if "@" in parts.netloc:
        raise UriRefusedError("the URI names a user; credentials are the gateway's own")
    if parts.scheme == "https":
        host = parts.netloc.lower().rpartition(":")[0] if port is not None else parts.netloc.lower()
        if not _HOST.fullmatch(host) or port == 0:
            raise UriRefusedError("the URI's host is none")
        target = parts.path or "/"
        return Web(host, port or _HTTPS_PORT, f"{target}?{parts.query}" if parts.query else target)
    if parts.scheme == "s3":
        path = unquote(parts.path).removeprefix("/")
        steps = path.split("/")
        if not _BUCKET.fullmatch(parts.netloc) or parts.query or {".", ".."} & set(steps):
            raise UriRefusedError("the URI is no s3://bucket/key")
        if not path.isprintable():
            raise UriRefusedError("the key has characters that are not printable")
        return Stored(parts.netloc, path)
    raise UriRefusedError("only https:// and s3:// are read")
