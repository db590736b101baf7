"""Where the stack is: flags, then the environment, then `.inferbus/stack.json`, then defaults.

In: what the user gave. Out: addresses, and the key that opens them; a key is never a flag, since
every process of a machine can read command lines.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inferbus_cli.errors import CommandError

_DEFAULTS = {
    "http": "http://127.0.0.1:8080",
    "registry": "http://127.0.0.1:8083",
    "kafka": "127.0.0.1:9092",
}
_VARIABLES = {
    "http": "INFERBUS_GATEWAY_URL",
    "registry": "INFERBUS_REGISTRY_URL",
    "kafka": "INFERBUS_KAFKA_BOOTSTRAP",
    "postgres": "INFERBUS_POSTGRES_URL",
    "api_key": "INFERBUS_API_KEY",
}


def gateway(flag: str | None) -> str:
    """Return the gateway's URL."""
    return _url("http", flag, "--gateway")


def registry(flag: str | None) -> str:
    """Return the registry's URL."""
    return _url("registry", flag, "--registry")


def kafka(flag: str | None) -> str:
    """Return the brokers as host:port, comma-separated."""
    return flag or _found("kafka") or _DEFAULTS["kafka"]


def api_key(name: str, url: str) -> str:
    """Return the key to present; empty where nothing says one.

    The key of a stack that runs here is sent to that stack alone.

    Args:
        name: `http` or `registry`, the service that it is for.
        url: where that service is.
    """
    said = os.environ.get(_VARIABLES["api_key"], "")
    if said:
        return said
    stack = _stack()
    return str(stack.get("api_key", "") or "") if stack.get(name) == url else ""


def postgres() -> str:
    """Return the database's URL.

    Raises:
        CommandError: nothing says where it is.
    """
    found = _found("postgres")
    if not found:
        raise CommandError(
            "Nothing says where Postgres is: start the stack with `make up`, or set "
            "INFERBUS_POSTGRES_URL."
        )
    return found


def _url(name: str, flag: str | None, option: str) -> str:
    url = (flag or _found(name) or _DEFAULTS[name]).rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise CommandError(
            f"{url!r} is not a URL such as {_DEFAULTS[name]}: correct {option} or "
            f"{_VARIABLES[name]}."
        )
    return url


def _found(name: str) -> str:
    return os.environ.get(_VARIABLES[name], "") or str(_stack().get(name, "") or "")


def _stack() -> dict[str, Any]:
    """Return what the nearest running stack says of itself; empty when none runs here."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / ".inferbus" / "stack.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except OSError:
            continue
        except ValueError as error:
            raise CommandError(
                "The stack.json under .inferbus is damaged; start the stack again."
            ) from error
        return found if isinstance(found, dict) else {}
    return {}
