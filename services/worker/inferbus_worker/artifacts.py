"""Version files on this machine: fetched from the store, verified, kept over restarts.

In: a manifest. Out: a folder that holds its files under their own names. A blob is
`cas/sha256/<first 2 hex>/<64 hex>` in the store; here it lies under the same path in the worker's
state folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import obstore
import structlog
from obstore.store import ObjectStore

from inferbus_schemas.manifest import FileEntry, Manifest, version_sha256
from inferbus_worker.errors import ArtifactError

_log = structlog.get_logger("artifacts")

_CHUNK_BYTES = 4 << 20


def blob_path(sha256: str) -> str:
    """Return where the store keeps the blob with this digest."""
    return f"cas/sha256/{sha256[:2]}/{sha256}"


class Artifacts:
    """The cache of version files.

    Invariants: a file under `cas/` got its name only after its digest was verified; a folder that
    `folder` returns holds exactly the manifest's files, each verified in this call.
    """

    def __init__(self, store: ObjectStore, state_dir: Path) -> None:
        self._store = store
        self._cache = state_dir
        self._lock = asyncio.Lock()

    async def folder(self, manifest: Manifest) -> Path:
        """Return a folder with the version's files.

        Raises:
            ArtifactError: a file cannot be fetched, or its digest is another.
        """
        folder = self._cache / "versions" / version_sha256(manifest)
        async with self._lock:
            blobs = [(entry, await self._blob(entry)) for entry in manifest.files]
            await asyncio.to_thread(_lay_out, folder, blobs)
        return folder

    async def forget(self, manifest: Manifest) -> None:
        """Remove the version's folder; its blobs stay cached."""
        folder = self._cache / "versions" / version_sha256(manifest)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _blob(self, entry: FileEntry) -> Path:
        path = self._cache / blob_path(entry.sha256)
        if await asyncio.to_thread(_is_whole, path, entry):
            return path
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        try:
            await self._fetch(entry, part)
            await asyncio.to_thread(os.replace, part, path)
        except OSError as error:
            raise ArtifactError(
                f"{entry.path} cannot be kept on this worker's disk: {error.strerror}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(part.unlink, missing_ok=True)
        return path

    async def _fetch(self, entry: FileEntry, part: Path) -> None:
        digest = hashlib.sha256()
        size_bytes = 0
        with part.open("wb") as file:
            async for data in self._chunks(entry):
                size_bytes += len(data)
                if size_bytes > entry.size_bytes:
                    break
                digest.update(data)
                await asyncio.to_thread(file.write, data)
        if size_bytes != entry.size_bytes or digest.hexdigest() != entry.sha256:
            raise ArtifactError(f"{entry.path} in the object store is not what its digest says")

    async def _chunks(self, entry: FileEntry) -> AsyncIterator[memoryview]:
        try:
            got = await obstore.get_async(self._store, blob_path(entry.sha256))
            async for chunk in got.stream(min_chunk_size=_CHUNK_BYTES):
                yield memoryview(chunk)
        # Stores raise errors of their own, and a local one those of the system.
        except Exception as error:
            _log.warning("fetch_failed", sha256=entry.sha256, error=repr(error))
            raise ArtifactError(f"{entry.path} cannot be fetched from the object store") from error


def _is_whole(path: Path, entry: FileEntry) -> bool:
    """Verify a cached file again: disks rot, and it is about to be executed."""
    try:
        if path.stat().st_size != entry.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False


def _lay_out(folder: Path, blobs: list[tuple[FileEntry, Path]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for entry, blob in blobs:
        target = folder / entry.path
        try:
            target.hardlink_to(blob)
        except OSError:
            shutil.copyfile(blob, target)
