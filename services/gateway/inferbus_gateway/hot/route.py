"""From a model's name to a pinned version; in memory, microseconds.

In: registered versions, deployments, the fleet. Out: the version that a request is pinned to, its
signature and pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inferbus_gateway.errors import NotDeployedError, NoWorkerError, UnknownModelError
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_schemas import generation, names
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership

State = Literal["READY", "LOADING", "UNAVAILABLE"]
"""How far a version is, in Triton's words."""

_MIN_DIGEST_PREFIX = 8
_MAX_NAMED = 10
_COUNTING_TASKS = frozenset({generation.TASK, "text-embedding"})


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version."""

    model: str
    version: int
    sha256: bytes
    manifest: manifests.Manifest
    created_s: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is pinned to."""

    model: str
    version: int
    pool: str
    sha256: bytes
    manifest: manifests.Manifest
    version_header: bytes

    @property
    def generates(self) -> bool:
        """Whether its answers take so long that one who leaves should end them."""
        return self.manifest.task == generation.TASK

    @property
    def counts_tokens(self) -> bool:
        """Whether what it is asked is counted in tokens, which have limits of their own."""
        return self.manifest.task in _COUNTING_TASKS


class Routes:
    """The routing state of one gateway.

    Invariants: a version never changes once read; an answer of `resolve` is remembered only until
    anything changes; a bare name means the default alias.
    """

    def __init__(self, pins: Pins, fleet: Membership, placement: Placement) -> None:
        self._pins = pins
        self._fleet = fleet
        self._placement = placement
        self._versions: dict[tuple[str, int], Version] = {}
        self._targets: dict[tuple[str, str], Target] = {}

    def apply_version(self, said: m.ModelVersion) -> None:
        """Take a record of `models.versions`.

        Raises:
            ManifestError: its manifest cannot be read.
        """
        key = (said.model, said.version)
        if key not in self._versions:
            parsed = manifests.parse(said.manifest)
            self._versions[key] = Version(
                said.model,
                said.version,
                said.version_sha256,
                parsed,
                said.created_us // 1_000_000,
            )
            self._targets.clear()

    def apply_deployment(self, said: m.Deployment) -> None:
        """Take a record of `models.deployments`."""
        if self._pins.apply(said):
            self.fleet_changed()
            self._targets.clear()

    def end_deployment(self, model: str) -> None:
        """Take a tombstone of `models.deployments`."""
        self._pins.forget(model)
        self._targets.clear()

    def fleet_changed(self) -> None:
        """Look at the fleet anew; call it after each record of the heartbeats."""
        self._placement.fleet_changed()
        if self._pins.refresh(self._fleet):
            self._targets.clear()

    @property
    def models(self) -> list[str]:
        """The deployed models, by name."""
        return self._pins.models

    def resolve(self, model: str, version: str = "") -> Target:
        """Return what a request for `model` is pinned to now.

        Args:
            model: the name in the URL.
            version: a number, an alias, or at least 8 hex digits of the digest; empty means the
                default alias.

        Raises:
            UnknownModelError: there is no such model, version or alias.
            NotDeployedError: the version exists, but no pool shall hold it.
            NoWorkerError: the alias has never been served yet.
        """
        target = self._targets.get((model, version))
        if target is None:
            target = self._targets[model, version] = self._look_up(model, version)
        return target

    def pinned_to(self, model: str, version: int, pool: str) -> Target:
        """Return a version as a target in a pool, whether or not it is still deployed there.

        Raises:
            UnknownModelError: there is no such version.
        """
        found = self._versions.get((model, version))
        if found is None:
            raise unknown_model(model)
        return Target(
            model, version, pool, found.sha256, found.manifest, str(version).encode("ascii")
        )

    def _look_up(self, model: str, text: str) -> Target:
        if self._pins.deployment(model) is None:
            raise unknown_model(model)
        number = self._number(model, text or names.DEFAULT_ALIAS)
        found = self._versions.get((model, number))
        pool = self._pins.pool_of(model, number)
        if found is None:
            raise UnknownModelError(
                f"Request for unknown model: {model} has no version {number}{self._others(model)}"
            )
        if pool is None:
            raise NotDeployedError(
                f"version {number} of {model} is not deployed{self._others(model)}"
            )
        return Target(
            model, number, pool, found.sha256, found.manifest, str(number).encode("ascii")
        )

    def _others(self, model: str) -> str:
        versions = self._pins.versions(model)[-_MAX_NAMED:]
        return f"; deployed: {', '.join(map(str, versions))}" if versions else ""

    def _number(self, model: str, text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < _MIN_DIGEST_PREFIX:
            return int(text)
        pinned = self._pins.pinned(model, text)
        if pinned is not None:
            return pinned
        deployment = self._pins.deployment(model)
        if deployment is not None and text in {alias.name for alias in deployment.aliases}:
            raise NoWorkerError(f"model {model} is not ready: no worker has loaded it yet")
        if len(text) >= _MIN_DIGEST_PREFIX:
            found = [
                one.version
                for one in self._versions.values()
                if one.model == model and one.sha256.hex().startswith(text)
            ]
            if len(found) == 1:
                return found[0]
        raise UnknownModelError(
            f"Request for unknown model: {model} has no version or alias {_shown(text)}"
        )

    def created_s(self, target: Target) -> int:
        """Return when a version was registered, in seconds since 1970."""
        return self._versions[target.model, target.version].created_s

    def held(self, model: str) -> list[int]:
        """Return the versions of a model that live workers hold READY."""
        deployment = self._pins.deployment(model)
        found: set[int] = set()
        for pool in deployment.pools if deployment is not None else ():
            for version in pool.versions:
                if self._placement.holders(pool.pool, model, version):
                    found.add(version)
        return sorted(found)

    @property
    def registered(self) -> list[tuple[str, int]]:
        """All registered versions, in order."""
        return sorted(self._versions)

    def state(self, model: str, version: int) -> tuple[State, str]:
        """Tell how far a version is, and why it is no further."""
        deployment = self._pins.deployment(model)
        wanted, failed = False, ""
        for pool in deployment.pools if deployment is not None else ():
            if version not in pool.versions:
                continue
            if self._placement.holders(pool.pool, model, version):
                return "READY", ""
            wanted = True
            for worker in self._fleet.workers(pool.pool):
                for one in worker.beat.worker.residents:
                    if (one.model, one.version, one.readiness) == (
                        model,
                        version,
                        m.READINESS_FAILED,
                    ):
                        failed = one.reason or "it does not load"
        if not wanted:
            return "UNAVAILABLE", "unloaded"
        return ("UNAVAILABLE", failed) if failed else ("LOADING", "")

    def generation(self, model: str) -> int:
        """Return the generation of a model's newest deployment; 0 where there is none."""
        deployment = self._pins.deployment(model)
        return 0 if deployment is None else deployment.generation

    def wanted(self, model: str) -> set[int]:
        """Return the versions that the model's aliases want."""
        deployment = self._pins.deployment(model)
        return set() if deployment is None else {alias.wanted for alias in deployment.aliases}

    def ready(self, target: Target) -> bool:
        """Tell whether a live worker holds the version READY."""
        return bool(self._placement.holders(target.pool, target.model, target.version))


def unknown_model(model: str) -> UnknownModelError:
    """Return the error of a model that is not there, or not for this caller."""
    return UnknownModelError(f"Request for unknown model: {_shown(model)} is not deployed")


def _shown(text: str) -> str:
    """Return a name that arrived, as it may stand in a message."""
    return text if text.isascii() and text.isprintable() and len(text) < 64 else "that name"  # noqa: PLR2004 -- the longest name
