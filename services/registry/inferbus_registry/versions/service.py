"""Registering a version: the manifest is checked, its files are there, same bytes are the same.

In: a manifest. Out: a version, its event, and its message in the outbox, in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from inferbus_registry import errors, events
from inferbus_registry.artifacts.repository import BlobRepository
from inferbus_registry.database import Database
from inferbus_registry.outbox import repository as outbox
from inferbus_registry.versions import gguf_files, onnx_files, repository
from inferbus_registry.versions.repository import VersionRow
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_schemas import names, topics

MAX_MANIFEST_BYTES = 4 << 20
"""It travels on the bus, whose records end at 8 MiB."""
MAX_VERSION = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a push. `created` is false where the version was there before."""

    model: str
    version: int
    version_sha256: str
    created: bool


@dataclass(frozen=True, slots=True)
class Version:
    """One version as it was registered."""

    model: str
    version: int
    version_sha256: str
    created_at: datetime
    manifest: dict[str, Any]


class VersionService:
    """Registers and shows versions.

    Invariants: a version's files are stored, have the sizes and digests that its manifest says,
    and reach nowhere else; a model's versions are 1, 2, 3, ... without a hole; two pushes of the
    same identity, also at once, are one version.
    """

    def __init__(self, database: Database, blobs: BlobRepository) -> None:
        self._database = database
        self._blobs = blobs

    async def register(self, caller: events.Caller, model: str, raw: bytes) -> Registered:
        """Register what a manifest describes.

        Raises:
            InvalidManifestError, BlobsMissingError, FormatRefusedError: it is refused.
            DatabaseUnavailableError, ObjectStoreError: try again.
        """
        manifest, encoded = _parse(model, raw)
        identity = manifests.version_sha256(manifest)
        async with self._database.read() as tx:
            known = await repository.by_identity(tx, model, identity)
        if known is not None:
            return _registered(known, created=False)
        await self._check_files(manifest)
        async with self._database.write() as tx:
            known = await repository.by_identity(tx, model, identity)
            if known is not None:
                return _registered(known, created=False)
            row = await repository.add(tx, model, identity, encoded)
            await self._announce(tx, caller, row)
        return _registered(row, created=True)

    async def _announce(self, tx: Any, caller: events.Caller, row: VersionRow) -> None:
        generation = await outbox.append(
            tx,
            topics.VERSIONS,
            f"{row.model}/{row.version}",
            m.ModelVersion(
                model=row.model,
                version=row.version,
                version_sha256=bytes.fromhex(row.version_sha256),
                manifest=row.manifest,
                created_us=int(row.created_at.timestamp() * 1_000_000),
            ),
        )
        await events.append(
            tx,
            caller,
            "version_registered",
            row.model,
            before=None,
            after={"version": row.version, "version_sha256": row.version_sha256},
            generation=generation,
        )

    async def _check_files(self, manifest: manifests.Manifest) -> None:
        missing: list[str] = []
        for entry in manifest.files:
            size = await self._blobs.size_bytes(entry.sha256)
            if size is None:
                missing.append(entry.sha256)
            elif size != entry.size_bytes:
                raise errors.InvalidManifestError(
                    f"manifest.json: {entry.path} has {size} bytes, not {entry.size_bytes}"
                )
        if missing:
            raise errors.BlobsMissingError(sorted(set(missing)))
        for entry in manifest.files:
            if entry.path.endswith(".onnx"):
                await onnx_files.check_self_contained(
                    self._blobs.read, entry.sha256, entry.size_bytes, entry.path
                )
            elif entry.path.endswith(".gguf"):
                await gguf_files.check_head(
                    self._blobs.read, entry.sha256, entry.size_bytes, entry.path
                )

    async def get(self, model: str, version: int) -> Version:
        """Return one version.

        Raises:
            VersionNotFoundError: the model has no such version, or there is no such model.
        """
        row = None
        if 0 < version <= MAX_VERSION:
            async with self._database.read() as tx:
                row = await repository.by_number(tx, _checked(model), version)
        if row is None:
            raise errors.VersionNotFoundError
        return Version(
            row.model,
            row.version,
            row.version_sha256,
            row.created_at,
            msgspec.json.decode(row.manifest),
        )


def _parse(model: str, raw: bytes) -> tuple[manifests.Manifest, bytes]:
    _checked(model)
    try:
        manifest = manifests.parse(raw)
    except manifests.ManifestError as error:
        raise errors.InvalidManifestError(str(error)) from error
    if manifest.model != model:
        raise errors.InvalidManifestError(
            "manifest.json: its model is not the one in the address of the request"
        )
    encoded = manifests.encode(manifest)
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise errors.TooLargeError(MAX_MANIFEST_BYTES)
    return manifest, encoded


def _checked(model: str) -> str:
    try:
        return names.check_model(model)
    except names.InvalidNameError as error:
        raise errors.InvalidRequestError(str(error)) from error


def _registered(row: VersionRow, *, created: bool) -> Registered:
    return Registered(row.model, row.version, row.version_sha256, created)
