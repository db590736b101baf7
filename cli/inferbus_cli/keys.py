"""`inferbus keys`: create, list, rotate, revoke.

In: what an admin wants. Out: a new key on stdout, alone on its line and this once; all else that is
said of it on stderr, so that `KEY=$(inferbus keys create ...)` holds a key.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from cyclopts import App, Parameter

from inferbus_cli import places
from inferbus_cli.errors import CommandError

if TYPE_CHECKING:
    from inferbus_cli.http import Service

app = App(name="keys", help="Make, list, rotate and revoke API keys.")

_SPAN = re.compile(r"([0-9]{1,9})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_KEYS = "/v1/registry/keys"

AsJson = Annotated[bool, Parameter(name="--json", negative="")]


def _registry(url: str | None) -> Service:
    from inferbus_cli import http  # noqa: PLC0415 -- a third of a second that help does not need

    return http.registry(places.registry(url))


@app.command
def create(
    name: str,
    *,
    scope: Annotated[list[str], Parameter(negative="")],
    tenant: str | None = None,
    rate: float | None = None,
    burst: int | None = None,
    tokens_per_min: int | None = None,
    expires: str | None = None,
    registry: str | None = None,
) -> None:
    """Make a key and print it; it is shown this once.

    Args:
        name: What it is for, for people.
        scope: infer:MODEL, infer:*, models:read, models:write, deploy, admin or audit:read;
            may be given more than once.
        tenant: Tenant of the key; your own unless given.
        rate: Requests a second that it may send on average; no limit unless given.
        burst: Requests that may come at once after a pause; a second's worth unless given.
        tokens_per_min: Tokens of generated text, prompts included, that it may use a minute; no
            limit unless given.
        expires: How long it lives, as 90d, 12h, 30m or 60s; for ever unless given.
        registry: URL of the registry.
    """
    if burst is not None and rate is None:
        raise CommandError("A burst belongs to a rate: give --rate together with --burst.")
    wish: dict[str, Any] = {"name": name, "scopes": scope}
    given = {
        "tenant": tenant,
        "requests_per_s": rate,
        "burst": burst,
        "tokens_per_min": tokens_per_min,
    }
    wish |= {field: value for field, value in given.items() if value is not None}
    if expires is not None:
        wish["expires_in_s"] = _span_s(expires)
    with _registry(registry) as service:
        _print_new(service.call("POST", _KEYS, json=wish).json())


@app.command(name="list")
def list_keys(
    *, tenant: str | None = None, registry: str | None = None, as_json: AsJson = False
) -> None:
    """List the keys that you manage.

    Args:
        tenant: Only keys of this tenant.
        registry: URL of the registry.
        as_json: Print JSON.
    """
    found: list[dict[str, Any]] = []
    only = "" if tenant is None else f"&tenant={quote(tenant, safe='')}"
    with _registry(registry) as service:
        while page := service.get(f"{_KEYS}?after={found[-1]['id'] if found else ''}{only}")[
            "keys"
        ]:
            found += page
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        print(
            f"{one['id']}  {one['tenant']:<16} {one['name']:<20} {_state(one)}  "
            f"{_used(one)}  {', '.join(one['scopes'])}{_limit(one)}"
        )


def _state(one: dict[str, Any]) -> str:
    if one["revoked_at"]:
        return f"revoked {one['revoked_at'][:19]}"
    return f"until {one['expires_at'][:19]}" if one["expires_at"] else "for ever"


def _used(one: dict[str, Any]) -> str:
    return f"used {one['last_used_at'][:16]}" if one.get("last_used_at") else "never used"


def _limit(one: dict[str, Any]) -> str:
    rate, tokens = one["requests_per_s"], one["tokens_per_min"]
    requests = f"  {rate:g}/s, {one['burst']} at once" if rate else ""
    return f"{requests}  {tokens:,} tokens/min" if tokens else requests


@app.command
def rotate(
    key_id: str,
    *,
    overlap: str = "1h",
    expires: str | None = None,
    registry: str | None = None,
) -> None:
    """Make a key's successor and print it; the old one ends after the overlap.

    Args:
        key_id: Id of the key: its middle part.
        overlap: How long both are good, as 1h; 0s ends the old one now.
        expires: How long the new one lives; as long as the old one was to, unless given.
        registry: URL of the registry.
    """
    wish: dict[str, Any] = {"overlap_s": _span_s(overlap)}
    if expires is not None:
        wish["expires_in_s"] = _span_s(expires)
    with _registry(registry) as service:
        _print_new(service.call("POST", f"{_KEYS}/{_id(key_id)}/rotate", json=wish).json())


@app.command
def revoke(key_id: str, *, registry: str | None = None) -> None:
    """End a key now, everywhere; gateways refuse it within seconds.

    Args:
        key_id: Id of the key: its middle part.
        registry: URL of the registry.
    """
    with _registry(registry) as service:
        one = service.call("DELETE", f"{_KEYS}/{_id(key_id)}").json()
    print(f"{one['id']} ({one['name']}) {_state(one)}")


def _print_new(made: dict[str, Any]) -> None:
    ends = f"until {made['expires_at'][:19]}" if made["expires_at"] else "for ever"
    print(
        f"{made['id']} for tenant {made['tenant']}, {ends}: {', '.join(made['scopes'])}. "
        "Keep the key; it is shown this once.",
        file=sys.stderr,
    )
    print(made["key"])


def _id(text: str) -> str:
    """Return a key's id as a part of an address; of a whole key it is the middle part."""
    parts = text.split("_")
    return quote(parts[1] if len(parts) > 2 and parts[0] == "mlk" else text, safe="")  # noqa: PLR2004 -- mlk, id, secret


def _span_s(text: str) -> int:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise CommandError(f"{text!r} is not a span of time such as 90d, 12h, 30m or 60s.")
    return int(found[1]) * _UNIT_S[found[2]]
