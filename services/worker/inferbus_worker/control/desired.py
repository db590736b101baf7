"""Desired state as the registry publishes it: versions and deployments.

In: records of `models.versions` and `models.deployments`. Out: manifests by version, and the newest
deployment of each model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from inferbus_kit.consume import Record
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_worker.control.holding import Key

_log = structlog.get_logger("desired")


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version."""

    model: str
    version: int
    sha256: bytes
    raw_manifest: bytes
    manifest: manifests.Manifest


class Desired:
    """What the registry wants.

    Invariants: a model's generation never falls; a version never changes once it was read.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.versions: dict[Key, Version] = {}
        self.deployments: dict[str, m.Deployment] = {}

    @property
    def generation(self) -> int:
        """The highest generation that was read."""
        return max((one.generation for one in self.deployments.values()), default=0)

    def apply_version(self, record: Record) -> None:
        """Apply a record of `models.versions`; a tombstone changes nothing that is held."""
        if record.value is None:
            return
        said = m.ModelVersion.FromString(record.value)
        key = (said.model, said.version)
        if key in self.versions:
            return
        manifest = manifests.parse(said.manifest)
        self.versions[key] = Version(
            said.model, said.version, said.version_sha256, said.manifest, manifest
        )
        self._changed()

    def apply_deployment(self, record: Record) -> None:
        """Apply a record of `models.deployments`; a tombstone ends the deployment."""
        if record.value is None:
            self.deployments.pop((record.key or b"").decode(), None)
            self._changed()
            return
        said = m.Deployment.FromString(record.value)
        have = self.deployments.get(said.model)
        if have is None or said.generation > have.generation:
            self.deployments[said.model] = said
            self._changed()
