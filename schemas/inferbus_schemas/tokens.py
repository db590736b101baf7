"""What makes a provider's token (JWT) good; pure.

In: the keys that the provider publishes, a token, the time. Out: its claims, or nothing. A key is
believed with the one algorithm that follows from its kind, never with one that a token names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt

LEEWAY_S = 60
"""How far the provider's clock and ours may differ."""
MAX_TOKEN_BYTES = 8 << 10
_MAX_KEYS = 64
_MIN_RSA_BITS = 2048
_ALGORITHMS = {("RSA", ""): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_REQUIRED = ("iss", "aud", "sub", "exp")

Keys = Mapping[str, jwt.PyJWK]
"""By their ids."""


class UnknownKeyError(LookupError):
    """The token names a key that was not published when we last looked."""


def usable_keys(document: Any) -> Keys:
    """Return the keys of a JWKS that we believe; the others are left out.

    Raises:
        ValueError: it is no JWKS.
    """
    found: dict[str, jwt.PyJWK] = {}
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no JWKS")  # noqa: TRY004 -- what arrived is not what it should be
    for one in listed[:_MAX_KEYS]:
        if not isinstance(one, dict) or not isinstance(one.get("kid"), str):
            continue
        algorithm = _ALGORITHMS.get((str(one.get("kty")), str(one.get("crv", ""))))
        if algorithm is None or one.get("use", "sig") != "sig":
            continue
        if one.get("alg", algorithm) != algorithm:
            continue
        try:
            key = jwt.PyJWK(one, algorithm)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if algorithm != "RS256" or key.key.key_size >= _MIN_RSA_BITS:
            found[one["kid"]] = key
    return found


def claims(
    token: str, keys: Keys, *, issuer: str, audience: str, now_s: float
) -> dict[str, Any] | None:
    """Return the claims of a token that is good at `now_s` (UTC, seconds since 1970), or None.

    Raises:
        UnknownKeyError: it may be good; its key, which is looked up and never followed, is unknown.
    """
    if len(token) > MAX_TOKEN_BYTES:
        return None
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        if not isinstance(kid, str):
            return None
        if kid not in keys:
            raise UnknownKeyError
        found: dict[str, Any] = jwt.decode(
            token,
            keys[kid],
            algorithms=[keys[kid].algorithm_name],
            audience=audience,
            issuer=issuer,
            options={
                "require": list(_REQUIRED),
                # They would read the clock.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        return None
    begins_s, ends_s = found.get("nbf", 0), found["exp"]
    if not isinstance(begins_s, int | float) or not isinstance(ends_s, int | float):
        return None
    return found if begins_s - LEEWAY_S <= now_s < ends_s + LEEWAY_S else None
