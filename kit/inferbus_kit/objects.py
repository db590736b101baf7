"""The object store: whole objects, written once.

In: a URL such as file:///folder or s3://bucket/prefix. Out: bytes, and who was first to write them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from inferbus_kit.errors import ObjectStoreError, StartupError


def open_store(url: str) -> ObjectStore:
    """Return the store at `url`.

    Raises:
        StartupError: the URL names no store that can be used.
    """
    try:
        parts = urlsplit(url)
        local = parts.scheme == "file"
        return LocalStore(unquote(parts.path), mkdir=True) if local else from_url(url)
    except Exception as error:
        raise StartupError(
            "INFERBUS_OBJECT_STORE_URL must say where files are kept, as file:///path or s3://bucket"
        ) from error


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
        with contextlib.suppress(AlreadyExistsError), _translated():
            await obstore.put_async(self._store, path, body, mode="create", use_multipart=False)
            return True
        return False

    async def put(self, path: str, body: bytes) -> None:
        """Write an object, over the one that is there.

        Raises:
            ObjectStoreError: it may have been written or not.
        """
        with _translated():
            await obstore.put_async(self._store, path, body)

    async def get(self, path: str) -> bytes | None:
        """Return an object; None where there is none.

        Raises:
            ObjectStoreError: it cannot be read.
        """
        with contextlib.suppress(FileNotFoundError), _translated():
            found = await obstore.get_async(self._store, path)
            return bytes(await found.bytes_async())
        return None

    async def exists(self, path: str) -> bool:
        """Tell whether there is such an object, which is small.

        Raises:
            ObjectStoreError: nobody can say.
        """
        return await self.get(path) is not None

    async def delete(self, path: str) -> None:
        """Delete an object, if there is one.

        Raises:
            ObjectStoreError: it may be left.
        """
        with contextlib.suppress(FileNotFoundError), _translated():
            await obstore.delete_async(self._store, path)

    async def delete_folder(self, folder: str) -> None:
        """Delete every object below `folder`.

        Raises:
            ObjectStoreError: some may be left.
        """
        with _translated():
            async for batch in obstore.list(self._store, prefix=f"{folder}/"):
                for meta in batch:
                    await self.delete(meta["path"])


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn the store's troubles into ours; absence and presence stay what they are."""
    try:
        yield
    except (FileNotFoundError, AlreadyExistsError):
        raise
    except (BaseError, OSError) as error:
        raise ObjectStoreError("the object store does not answer; try again shortly") from error
