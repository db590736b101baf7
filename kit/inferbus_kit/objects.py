"""The object store: whole objects, written once.

In: a URL such as file:///folder or s3://bucket/prefix. Out: bytes, and who was first to write them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from inferbus_kit.errors import ObjectStoreError, StartupError

_log = structlog.get_logger("objects")


def open_store(url: str) -> ObjectStore:
    """Return the store at `url`.

    Raises:
        StartupError: the URL names no store that can be used.
    """
    if not url:
        raise StartupError("INFERBUS_OBJECT_STORE_URL is not set; say where files are kept")
    try:
        parts = urlsplit(url)
        if parts.scheme == "file":
            return LocalStore(unquote(parts.path), mkdir=True)
        return from_url(url)
    except Exception as error:
        raise StartupError("INFERBUS_OBJECT_STORE_URL names no store that can be used") from error


class Objects:
    """Objects by path.

    Invariants: an object is there whole or not at all; of all that `create` the same path exactly
    one is told that it was first.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def create(self, path: str, body: bytes) -> bool:
        """Write an object that is not there; tell whether this call wrote it.

        Raises:
            ObjectStoreError: it may have been written or not.
        """
        try:
            with _translated(path):
                await obstore.put_async(self._store, path, body, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    async def put(self, path: str, body: bytes | AsyncIterator[bytes]) -> None:
        """Write an object, over the one that is there.

        Raises:
            ObjectStoreError: it may have been written or not.
        """
        with _translated(path):
            await obstore.put_async(self._store, path, body)

    async def get(self, path: str) -> bytes | None:
        """Return an object; None where there is none.

        Raises:
            ObjectStoreError: it cannot be read.
        """
        try:
            with _translated(path):
                found = await obstore.get_async(self._store, path)
                return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None

    async def exists(self, path: str) -> bool:
        """Tell whether there is such an object.

        Raises:
            ObjectStoreError: nobody can say.
        """
        try:
            with _translated(path):
                await obstore.head_async(self._store, path)
        except FileNotFoundError:
            return False
        return True

    async def delete(self, path: str) -> None:
        """Delete an object, if there is one.

        Raises:
            ObjectStoreError: it may be left.
        """
        with contextlib.suppress(FileNotFoundError), _translated(path):
            await obstore.delete_async(self._store, path)

    async def delete_folder(self, folder: str) -> None:
        """Delete every object below `folder`.

        Raises:
            ObjectStoreError: some may be left.
        """
        with _translated(folder):
            async for batch in obstore.list(self._store, prefix=f"{folder}/"):
                with contextlib.suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, [meta["path"] for meta in batch])


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn the store's troubles into ours; absence and presence stay what they are."""
    try:
        yield
    except (FileNotFoundError, AlreadyExistsError):
        raise
    except (BaseError, OSError) as error:
        _log.warning("object_store_failed", path=path, error=repr(error)[:500])
        raise ObjectStoreError("the object store does not answer; try again shortly") from error
