"""Who may do what: keys, scopes, principals; pure.

In: records of `access.keys`, and what a caller presents. Out: a principal or nothing, and a
verdict on what it asks for. A key is `mlk_<id>_<secret>`: 16 hex digits, then 32 random bytes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

from inferbus_schemas import messages as m
from inferbus_schemas import names

KEY_ENTROPY_BYTES = 40
_ID_BYTES = 8
_MAX_SUBJECT = 128
_KEY = re.compile(r"mlk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")

INFER = "infer"
MODELS_READ = "models:read"
MODELS_WRITE = "models:write"
DEPLOY = "deploy"
ADMIN = "admin"
AUDIT_READ = "audit:read"

PUBLIC = "public"
"""Policy of a route that anyone may call."""
AUTHENTICATED = "authenticated"
"""Policy of a route that any known caller may call, whatever its scopes."""
INFER_SOME = "infer:some"
"""Policy of a route that takes callers who may infer with some model, and names none itself."""

_OF_BROWSERS: Final = frozenset({b"sec-fetch-site", b"origin"})
OF_PROXIES: Final = frozenset({b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via"})
"""Headers, in lower case, by which a proxy says that it passed a request on."""
LEAST_RATE_PER_S: Final = 1 / 3600
"""A request an hour: what is slower has times that counts and headers do not hold."""
_INFER_PREFIX = f"{INFER}:"
INFER_ALL = f"{_INFER_PREFIX}*"
ALL_SCOPES = (INFER_ALL, MODELS_READ, MODELS_WRITE, DEPLOY, ADMIN, AUDIT_READ)
"""What the first key of an installation holds."""
POLICIES = frozenset(
    {PUBLIC, AUTHENTICATED, INFER, INFER_SOME, MODELS_READ, MODELS_WRITE, DEPLOY, ADMIN, AUDIT_READ}
)
"""What a route may demand; `infer` means the scope of the model that the route names."""


class InvalidScopeError(ValueError):
    """A scope that there is not; the message says which there are."""


def check_scope(scope: str) -> str:
    """Return `scope` if there is such a one, else raise `InvalidScopeError`."""
    if scope in ALL_SCOPES:
        return scope
    if scope.startswith(_INFER_PREFIX):
        try:
            names.check_model(scope.removeprefix(_INFER_PREFIX))
        except names.InvalidNameError as error:
            raise InvalidScopeError(f"not a scope: {error}") from error
        return scope
    raise InvalidScopeError(
        "not a scope: there are infer:<model>, infer:*, models:read, models:write, deploy, admin "
        "and audit:read"
    )


def make_key(entropy: bytes) -> str:
    """Return the key that 40 random bytes stand for.

    Raises:
        ValueError: there are more or fewer.
    """
    if len(entropy) != KEY_ENTROPY_BYTES:
        raise ValueError(f"a key takes {KEY_ENTROPY_BYTES} random bytes")
    secret = base64.urlsafe_b64encode(entropy[_ID_BYTES:]).decode().rstrip("=")
    return f"mlk_{entropy[:_ID_BYTES].hex()}_{secret}"


def key_id(key: str) -> str | None:
    """Return a key's id; None where the text is no key."""
    match = _KEY.fullmatch(key)
    return None if match is None else match[1]


def key_sha256(key: str) -> bytes:
    """Return the digest by which a key is known; its 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).digest()


_LOOPBACK_HOST = re.compile(
    rb"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE
)


def is_loopback_host(host: bytes) -> bool:
    """Tell whether a Host header names this machine itself.

    A page of another site whose name was made to mean this machine (DNS rebinding) sends its own.
    """
    return _LOOPBACK_HOST.fullmatch(host.strip()) is not None


def is_loopback_address(address: str) -> bool:
    """Tell whether a peer's address is of this machine."""
    return address == "::1" or address.startswith(("127.", "::ffff:127."))


def came_from_afar(
    headers: Iterable[tuple[bytes, bytes]], host: bytes
) -> Literal["", "proxy", "page"]:
    """Return what says that a request with this Host came from elsewhere all the same.

    A proxy that passed it on, by the headers that proxies add (or by a second Host, of which each
    may believe another one); or a browser, for a page of another site. Empty: nothing does.
    """
    n_hosts = 0
    for name, value in headers:
        if name in OF_PROXIES:
            return "proxy"
        if name == b"host":
            n_hosts += 1
        elif name in _OF_BROWSERS and _foreign(name, value, host):
            return "page"
    return "proxy" if n_hosts > 1 else ""


def _foreign(name: bytes, value: bytes, host: bytes) -> bool:
    """Tell whether a browser says by this header that a page of another site sends the request."""
    if name == b"sec-fetch-site":
        return value not in {b"same-origin", b"none"}
    scheme, _, origin = value.partition(b"://")
    return scheme != b"http" or not is_loopback_host(origin) or _port(origin) != _port(host)


def _port(host: bytes) -> bytes:
    """Return the port of a loopback host; one that is not written is 80."""
    found = host.strip().rpartition(b":")[2]
    return found if found.isdigit() else b"80"


def bearer(authorization: bytes) -> str | None:
    """Return what a header `Authorization: Bearer <text>` presents, or None."""
    scheme, _, rest = authorization.partition(b" ")
    text = rest.strip()
    if scheme.lower() != b"bearer" or not text.isascii():
        return None
    return text.decode("ascii") or None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a tenant, and what it may do there.

    Invariants: `models` are the models of its `infer:` scopes, and `all_models` says whether one
    of them is `infer:*`; `name` tells it from every other principal of its tenant, `who`, which is
    `<tenant>/<name>`, from every other; neither is a secret.
    """

    tenant: str
    name: str
    who: str
    scopes: frozenset[str]
    models: frozenset[str]
    all_models: bool
    expires_s: float = math.inf
    requests_per_s: float = 0.0
    burst: int = 0
    tokens_per_min: int = 0

    def infers(self, model: str) -> bool:
        """Tell whether it may ask `model`."""
        return self.all_models or model in self.models

    def sees(self, model: str) -> bool:
        """Tell whether it may know that `model` exists."""
        return MODELS_READ in self.scopes or self.infers(model)


def limited_rate(requests_per_s: float) -> float:
    """Return a rate as it is counted: none, or one of at least `LEAST_RATE_PER_S`."""
    if requests_per_s <= 0:
        return 0.0
    return requests_per_s if LEAST_RATE_PER_S < requests_per_s < math.inf else LEAST_RATE_PER_S


def principal(
    tenant: str,
    name: str,
    scopes: Iterable[str],
    *,
    expires_s: float = math.inf,
    limits: m.Limits | None = None,
) -> Principal:
    """Return a principal; scopes that this version does not know are worth nothing."""
    held = frozenset(scopes)
    models = {
        scope.removeprefix(_INFER_PREFIX) for scope in held if scope.startswith(_INFER_PREFIX)
    }
    rate = 0.0 if limits is None else limited_rate(limits.requests_per_s)
    return Principal(
        tenant,
        name,
        f"{tenant}/{name}",
        held,
        frozenset(models - {"*"}),
        INFER_ALL in held,
        expires_s,
        rate,
        max(1, limits.burst) if limits is not None and rate > 0 else 0,
        0 if limits is None else limits.tokens_per_min,
    )


def of_claims(
    claims: Mapping[str, Any], tenant_claim: str, scope_claim: str, leeway_s: float
) -> Principal | None:
    """Return whom the claims of a good token stand for; None where they name no tenant.

    Args:
        claims: `sub` and `exp`, and those that the next two name.
        tenant_claim: names the tenant.
        scope_claim: lists scopes, as a list or separated by spaces; others' are left out.
        leeway_s: how long past `exp` a token is believed.
    """
    tenant, listed = claims.get(tenant_claim), claims.get(scope_claim, ())
    subject, expires_s = claims.get("sub"), claims.get("exp")
    words = listed.split() if isinstance(listed, str) else listed
    if not isinstance(tenant, str) or not isinstance(subject, str) or not subject.isprintable():
        return None
    if not isinstance(expires_s, int | float) or not isinstance(words, list | tuple):
        return None
    try:
        names.check_tenant(tenant)
    except names.InvalidNameError:
        return None
    scopes = [word for word in words if isinstance(word, str) and _is_scope(word)]
    name = f"token:{subject[:_MAX_SUBJECT]}"
    return principal(tenant, name, scopes, expires_s=expires_s + leeway_s)


def _is_scope(word: str) -> bool:
    try:
        check_scope(word)
    except InvalidScopeError:
        return False
    return True


LOCAL_TENANT = "local"
ANONYMOUS = principal(LOCAL_TENANT, "anonymous", (INFER_ALL, MODELS_READ))
"""A caller without a key on this machine, where `INFERBUS_AUTH` is `local`."""


class Verdict(Enum):
    """What is to be said to a known caller."""

    ALLOWED = "allowed"
    FORBIDDEN = "forbidden"
    HIDDEN = "hidden"
    """As if what it asks for did not exist."""


def judge(caller: Principal, policy: str, model: str = "") -> Verdict:
    """Say whether a caller may use a route of this policy, on this model where it names one.

    A key that is bound to some models cannot find out which others there are.
    """
    if policy in {PUBLIC, AUTHENTICATED}:
        return Verdict.ALLOWED
    if policy == INFER_SOME:
        return Verdict.ALLOWED if caller.all_models or caller.models else Verdict.FORBIDDEN
    if policy == INFER:
        allowed = caller.infers(model)
    elif policy == MODELS_READ and model:
        allowed = caller.sees(model)
    else:
        return Verdict.ALLOWED if policy in caller.scopes else Verdict.FORBIDDEN
    if allowed:
        return Verdict.ALLOWED
    hidden = bool(caller.models) and MODELS_READ not in caller.scopes
    return Verdict.HIDDEN if hidden else Verdict.FORBIDDEN


def covers(held: Iterable[str], wanted: str) -> bool:
    """Tell whether someone who holds these scopes holds `wanted`, and so may hand it on."""
    have = frozenset(held)
    return wanted in have or (wanted.startswith(_INFER_PREFIX) and INFER_ALL in have)


def holder(record: m.AccessKey) -> Principal:
    """Return whom a key stands for."""
    return principal(
        record.tenant,
        f"key:{record.id}",
        record.scopes,
        expires_s=record.expires_us / 1e6 if record.expires_us else math.inf,
        limits=record.limits,
    )


def opens(record: m.AccessKey, key: str, now_s: float) -> bool:
    """Tell whether `key` is the key of this record and still good; the digest in constant time."""
    good = hmac.compare_digest(key_sha256(key), record.sha256)
    over = bool(record.expires_us) and record.expires_us <= now_s * 1e6
    return good and not record.revoked and not over


class Keyring:
    """The keys of an installation, by id.

    Invariants: a record replaces another only where its generation is higher; an unknown id takes
    the work of a known one.
    """

    def __init__(self) -> None:
        self._records: dict[str, m.AccessKey] = {}
        self._nobody = m.AccessKey(sha256=bytes(32), revoked=True)

    def __len__(self) -> int:
        return len(self._records)

    def apply(self, record: m.AccessKey) -> bool:
        """Take a record of `access.keys`; tell whether it changed anything."""
        old = self._records.get(record.id)
        if old is not None and record.generation <= old.generation:
            return False
        self._records[record.id] = record
        return True

    def forget(self, key_id: str) -> None:
        """Drop a key whose record was deleted."""
        self._records.pop(key_id, None)

    def find(self, key: str, now_s: float) -> Principal | None:
        """Return whom a key stands for now (`now_s`: UTC, seconds since 1970), or None."""
        record = self._records.get(key_id(key) or "", self._nobody)
        return holder(record) if opens(record, key, now_s) else None
