"""Who calls: from a presented header to a principal that may do what it asks; a dict lookup.

In: the Authorization and Host headers, the peer, a route's policy. Out: a principal, or the error
that refuses it. Keys come by `access.keys`, so a revoked one is gone when its record is read; what
is no key is asked for as a provider's token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol
from urllib.parse import unquote

from inferbus_gateway import errors
from inferbus_gateway.hot.guesses import Guesses
from inferbus_gateway.hot.route import unknown_model
from inferbus_guard.refusals import Headers
from inferbus_schemas import access
from inferbus_schemas.access import Keyring, Principal, Verdict

_NEEDED = "a key is needed: send Authorization: Bearer <key>"
_ELSEWHERE = "a page of another site may not ask without a key; send one"
_PASSED_ON = "a proxy passed this on, so it may be from anywhere: send Authorization: Bearer <key>"
MAX_KNOWN = 4096
"""Presented headers that are remembered; past it the oldest is forgotten."""

Verify = Callable[[str], Principal | None]
"""Says whom a token that is no key of ours stands for now, if anyone."""


class Call(Protocol):
    """What a gRPC call says of its caller."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def peer(self) -> str: ...


def _nobody(_token: str) -> Principal | None:
    return None


class Access:
    """Knows callers.

    Invariants: nothing is remembered of a header that opened nothing; what is remembered is
    forgotten at any change of keys and is not believed past its expiry; a caller without a key
    is taken for `ANONYMOUS` only where `local`, from this machine, under a name of this machine,
    through no proxy that says so, and not for a page of another site; a good key is taken however
    many bad ones its address has presented, and none while `stale`.
    """

    def __init__(self, keys: Keyring, *, local: bool) -> None:
        self._keys = keys
        self._local = local
        self.verify: Verify = _nobody
        self._known: dict[bytes, Principal] = {}
        self._hosts: set[bytes] = set()
        self._guesses = Guesses()
        self.stale = ""
        """Why keys are not known any more as they are; while it says so, nobody has a good one."""
        self.used: set[str] = set()
        """Names of principals that presented something good; whoever takes them empties it."""

    def changed(self) -> None:
        """Forget what was remembered: keys are no longer what they were."""
        self._known.clear()

    def check(
        self,
        authorization: bytes | None,
        host: bytes,
        peer: str,
        policy: str,
        model: str = "",
        *,
        headers: Headers = (),
    ) -> Principal:
        """Return the caller, who may use a route of this policy, on this model where it names one.

        Args:
            authorization: the header's value, None where there is none.
            host: the Host header's value.
            peer: address of the connection's other end.
            policy: of `access.POLICIES`.
            model: the model that the request names.
            headers: those of the request; looked at for a caller without a key only.

        Raises:
            UnauthorizedError: nobody known.
            BusUnavailableError: what is known of keys is old: they may have been revoked.
            TooManyBadKeysError: nor was anybody before, again and again, from this peer.
            ForbiddenError: known, and may not; or nobody, sent by a page of another site.
            UnknownModelError: known, and may not know whether there is such a model.
        """
        if authorization is None:
            caller = self._anonymous(host, peer, headers)
        else:
            if self.stale:
                raise errors.BusUnavailableError(f"{self.stale}; try again shortly")
            found = self._known.get(authorization)
            if found is None or found.expires_s <= time.time():
                found = self._identify(authorization, peer)
            self.used.add(found.name)
            caller = found
        if policy == access.INFER and caller.infers(model):
            return caller
        verdict = access.judge(caller, policy, model)
        if verdict is Verdict.HIDDEN:
            raise unknown_model(model)
        if verdict is Verdict.FORBIDDEN and caller is access.ANONYMOUS:
            raise errors.UnauthorizedError(_NEEDED)
        if verdict is Verdict.FORBIDDEN:
            raise errors.ForbiddenError(f"your key lacks the scope {_words(policy, model)}")
        return caller

    def admits(self, authorization: bytes | None, policy: str) -> bool:
        """Tell whether a call may go on by what it presents, its peer and its model not yet known.

        Nothing is counted; `check_call` refuses who is not admitted.
        """
        if authorization is None:
            return self._local
        found = self._known.get(authorization)
        if found is None or found.expires_s <= time.time():
            found = self._find(authorization)
        return found is not None and access.judge(found, policy) is Verdict.ALLOWED

    def check_call(self, call: Call, policy: str, model: str = "") -> Principal:
        """Return the caller of a gRPC call; see `check`.

        There is no Host to look at: pages in a browser cannot speak HTTP/2 without TLS, and what
        they can speak is refused by the listener.
        """
        metadata = call.invocation_metadata() or ()
        authorization = presented(metadata)
        headers: Headers = ()
        if authorization is None:
            names = (key.encode() for key, _ in metadata)
            headers = [(name, b"") for name in names if name in access.OF_PROXIES]
        peer = address_of(call.peer())
        return self.check(authorization, b"localhost", peer, policy, model, headers=headers)

    def _anonymous(self, host: bytes, peer: str, headers: Headers) -> Principal:
        if self._local and access.is_loopback_address(peer):
            known = host in self._hosts
            if known or access.is_loopback_host(host):
                if not known and len(self._hosts) < MAX_KNOWN:
                    self._hosts.add(host)
                by = access.came_from_afar(headers, host)
                if by == "proxy":
                    raise errors.UnauthorizedError(_PASSED_ON)
                if by == "page":
                    raise errors.ForbiddenError(_ELSEWHERE)
                return access.ANONYMOUS
        raise errors.UnauthorizedError(_NEEDED)

    def _identify(self, authorization: bytes, peer: str) -> Principal:
        found = self._find(authorization)
        if found is not None:
            return found
        wait_s = self._guesses.wait_s(peer, time.monotonic())
        if wait_s > 0:
            raise errors.TooManyBadKeysError(wait_s)
        raise errors.UnauthorizedError("the key or token is unknown, expired or revoked")

    def _find(self, authorization: bytes) -> Principal | None:
        """Return whom a header stands for, and remember it; None where it is nobody."""
        self._known.pop(authorization, None)
        text = access.bearer(authorization)
        if text is not None:
            is_key = access.key_id(text) is not None
            found = self._keys.find(text, time.time()) if is_key else self.verify(text)
            if found is not None:
                if len(self._known) >= MAX_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[authorization] = found
                return found
        return None


def presented(metadata: Iterable[tuple[str, str | bytes]] | None) -> bytes | None:
    """Return what the metadata of a call present; None where that is nothing."""
    found = None
    for key, value in metadata or ():
        if key == "authorization":
            found = value.encode() if isinstance(value, str) else value
    return found


def address_of(peer: str) -> str:
    """Return the address in gRPC's words for a peer: `ipv4:127.0.0.1:5`, `ipv6:[::1]:5`, quoted."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _words(policy: str, model: str) -> str:
    if policy == access.INFER_SOME:
        return "infer:<model>"
    return f"infer:{model}" if policy == access.INFER and model.isascii() else policy
