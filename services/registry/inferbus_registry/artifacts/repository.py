"""The content-addressed store: each file once, under its digest.

In: a stream of bytes and the digest that it claims. Out: `cas/sha256/<2 hex>/<64 hex>`, written
whole or not at all: bytes go to a staging object first, which moves there only when its digest
is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from inferbus_kit.errors import StartupError
from inferbus_registry import errors

_log = structlog.get_logger("artifacts")

_PART_BYTES = 8 << 20
_STAGING = "staging"
_LEFTOVER_S = 24 * 3600.0


def open_store(url: str) -> tuple[ObjectStore, Path | None]:
    """Return the store behind a URL and, for a local one, its folder.

    Raises:
        StartupError: the URL names no store that can be used.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            folder = Path(unquote(parts.path))
            folder.mkdir(parents=True, exist_ok=True)
            return LocalStore(folder), folder
        return from_url(url), None
    except (BaseError, ValueError, OSError) as error:
        _log.warning("object_store", error=repr(error))
        raise StartupError(
            "INFERBUS_OBJECT_STORE_URL cannot be used: it must be file:///folder (that may be "
            "written), s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
        ) from error


def blob_path(sha256: str) -> str:
    """Return where a file with this digest (64 hex digits) lies."""
    return f"cas/sha256/{sha256[:2]}/{sha256}"


class BlobRepository:
    """Files by digest.

    Invariants: an object under `cas/` is complete and never changes; a failed `stage` leaves
    nothing but what a killed process could not remove, which `sweep` finds a day later.
    """

    def __init__(self, store: ObjectStore, folder: Path | None) -> None:
        self._store = store
        self._folder = folder

    async def size_bytes(self, sha256: str) -> int | None:
        """Return the size of a stored file; None where it is not stored."""
        try:
            with _translated():
                meta = await obstore.head_async(self._store, blob_path(sha256))
        except FileNotFoundError:
            return None
        return int(meta["size"])

    async def read(self, sha256: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes of a stored file from `start`."""
        with _translated():
            found = await obstore.get_range_async(
                self._store, blob_path(sha256), start=start, length=length
            )
        return bytes(found)

    @contextlib.asynccontextmanager
    async def stage(self, body: AsyncIterator[bytes]) -> AsyncIterator[str]:
        """Stream `body` into a staging object; yield its name; remove what was not kept."""
        name = f"{_STAGING}/{uuid.uuid4().hex}"
        try:
            with _translated():
                # Two parts in flight bound the memory of an upload to three parts.
                await obstore.put_async(
                    self._store,
                    name,
                    body,
                    use_multipart=True,
                    chunk_size=_PART_BYTES,
                    max_concurrency=2,
                )
            yield name
        finally:
            await asyncio.shield(self._remove(name))

    async def keep(self, staged: str, sha256: str) -> bool:
        """Move a staging object to its digest's place; tell whether it was not there before.

        A store without put-if-absent does not know, and says that it was not.
        """
        target = blob_path(sha256)
        try:
            with _translated():
                try:
                    await obstore.rename_async(self._store, staged, target, overwrite=False)
                except (NotImplementedError, obstore.exceptions.NotSupportedError):
                    # The store has no put-if-absent; equal names hold equal bytes, so it may
                    # be written again.
                    await obstore.rename_async(self._store, staged, target)
        except AlreadyExistsError:
            return False
        return True

    async def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, BaseError):
            await obstore.delete_async(self._store, name)

    async def sweep(self) -> None:
        """Remove staging objects that killed processes left."""
        if self._folder is not None:
            await asyncio.to_thread(_sweep_folder, self._folder / _STAGING, time.time())
            return
        try:
            async for batch in obstore.list(self._store, prefix=_STAGING):
                for meta in batch:
                    if time.time() - meta["last_modified"].timestamp() > _LEFTOVER_S:
                        await self._remove(meta["path"])
        except BaseError as error:
            _log.warning("sweep_failed", error=repr(error))


def _sweep_folder(folder: Path, now_s: float) -> None:
    # Half-written parts have names that the store's own listing hides.
    for entry in folder.glob("*"):
        with contextlib.suppress(OSError):
            if now_s - entry.stat().st_mtime > _LEFTOVER_S:
                entry.unlink()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn the store's troubles into ours; absence and presence stay what they are."""
    try:
        yield
    except (FileNotFoundError, AlreadyExistsError, NotImplementedError):
        raise
    except obstore.exceptions.NotSupportedError:
        raise
    except (BaseError, OSError) as error:
        _log.warning("object_store_failed", error=repr(error)[:500])
        if "No space left" in str(error) or "os error 28" in str(error):
            raise errors.StorageFullError from error
        raise errors.ObjectStoreError from error
