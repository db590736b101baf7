"""A rollout as lines of text, and waiting for its end.

In: what the registry's `/rollout` says. Out: text, and `follow` until the alias serves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inferbus_cli.errors import CommandError

if TYPE_CHECKING:
    from inferbus_cli.http import Service

_POLL_S = 0.3


def lines(rollout: dict[str, Any]) -> Iterator[str]:
    """Yield what a person wants to know of a rollout."""
    yield f"{rollout['model']}, generation {rollout['generation']}"
    for alias in rollout["aliases"]:
        serving = alias["serving"] or "nothing yet"
        yield f"  {alias['name']}: wanted {alias['wanted']}, serving {serving} ({alias['state']})"
    for pool in rollout["pools"]:
        held = ", ".join(map(str, pool["versions"])) or "nothing"
        yield f"  pool {pool['pool']} holds {held}; {pool['min_ready']} must be ready"
    if not rollout["fleet_known"]:
        yield "  the fleet is not known: Kafka does not answer the registry"
    for worker in rollout["workers"]:
        held = ", ".join(_holding(one) for one in worker["versions"]) or "nothing of it"
        inbox = "joining" if worker["inbox"] is None else f"inbox {worker['inbox']}"
        yield f"  worker {worker['instance']} ({inbox}): {held}"
    for gateway in rollout["gateways"]:
        pinned = ", ".join(map(str, gateway["pinned"])) or "nothing"
        yield f"  gateway {gateway['instance']} (generation {gateway['generation']}): pins {pinned}"


def _holding(one: dict[str, Any]) -> str:
    reason = f" ({one['reason']})" if one["reason"] else ""
    return f"{one['version']} {one['readiness']}{reason}"


def follow(service: Service, model: str, alias: str, version: int, timeout_s: float) -> None:
    """Wait until an alias serves a version, saying what changes.

    Raises:
        CommandError: a worker cannot load it, someone moved the alias on, or time is up.
    """
    started = time.monotonic()
    said = ""
    while True:
        rollout = service.get(f"/v1/registry/models/{model}/rollout")
        state = next(one for one in rollout["aliases"] if one["name"] == alias)
        if state["wanted"] != version:
            raise CommandError(
                f"Someone moved {alias} to version {state['wanted']} in the meantime."
            )
        elapsed_s = time.monotonic() - started
        if state["serving"] == version:
            print(f"{model} {alias}: version {version} serves after {elapsed_s:.1f} s")
            return
        _raise_if_failed(rollout, version)
        stage = _stage(rollout, version)
        if stage != said:
            print(f"  {stage}", flush=True)
            said = stage
        if elapsed_s > timeout_s:
            raise CommandError(
                f"Version {version} does not serve after {timeout_s:.0f} s ({stage}); see "
                f"`inferbus models rollout {model}`."
            )
        time.sleep(_POLL_S)


def _raise_if_failed(rollout: dict[str, Any], version: int) -> None:
    """Give up once too few workers are left that could still load the version."""
    failed = [
        (worker["instance"], one["reason"] or "it gave no reason")
        for worker in rollout["workers"]
        for one in worker["versions"]
        if one["version"] == version and one["readiness"] == "failed"
    ]
    needed = max((pool["min_ready"] for pool in rollout["pools"]), default=1)
    if failed and len(rollout["workers"]) - len(failed) < needed:
        instance, why = failed[0]
        raise CommandError(f"Worker {instance} cannot load version {version}: {why}")


def _stage(rollout: dict[str, Any], version: int) -> str:
    if not rollout["fleet_known"]:
        return "the registry waits for Kafka"
    holders = [
        worker
        for worker in rollout["workers"]
        if any(o["version"] == version and o["readiness"] == "ready" for o in worker["versions"])
    ]
    pinning = [one for one in rollout["gateways"] if version in one["pinned"]]
    return (
        f"ready on {len(holders)} of {len(rollout['workers'])} workers, "
        f"pinned by {len(pinning)} of {len(rollout['gateways'])} gateways"
    )
