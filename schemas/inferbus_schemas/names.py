"""The names that users may choose, and the one rule for each.

A name ends up in topics, paths, labels and SQL, so it is validated once, where it arrives, and
never escaped later.
"""

from __future__ import annotations

import re

_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_POOL = re.compile(r"[a-z0-9](-?[a-z0-9]){0,30}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,30}")

RESERVED_MODELS = frozenset({"stats"})
"""Names that stand in our routes where a model's name could stand (`/v2/models/stats`)."""

RESERVED_TENANTS = frozenset({"drift", "gateway", "logger", "registry", "router", "worker"})
"""What our own consumer groups begin with: a tenant has the groups that begin with its name."""

DEFAULT_ALIAS = "champion"
"""The alias that a bare model name means."""


class InvalidNameError(ValueError):
    """A name that the rule for its kind refuses; the message says the rule."""


def _check(kind: str, rule: re.Pattern[str], name: str) -> str:
    if not rule.fullmatch(name):
        raise InvalidNameError(f"not a valid {kind} name: it must match ^{rule.pattern}$")
    return name


def check_model(name: str) -> str:
    """Return `name` if it may name a model, else raise `InvalidNameError`."""
    if name in RESERVED_MODELS or ".." in name:
        raise InvalidNameError("not a valid model name: it is reserved or holds two dots in a row")
    return _check("model", _MODEL, name)


def check_pool(name: str) -> str:
    """Return `name` if it may name a pool, else raise `InvalidNameError`."""
    return _check("pool", _POOL, name)


def check_tenant(name: str) -> str:
    """Return `name` if it may name a tenant, else raise `InvalidNameError`."""
    if name in RESERVED_TENANTS:
        raise InvalidNameError("not a valid tenant name: our own consumer groups begin with it")
    return _check("tenant", _POOL, name)


def check_alias(name: str) -> str:
    """Return `name` if it may name an alias, else raise `InvalidNameError`.

    An alias starts with a letter, so that it is never taken for a version number.
    """
    return _check("alias", _ALIAS, name)
