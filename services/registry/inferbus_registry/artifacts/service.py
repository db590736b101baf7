"""Uploads: digest while the bytes stream, limits on size and slowness, put-if-absent."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator

from inferbus_registry import errors
from inferbus_registry.artifacts.repository import BlobRepository

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GRACE_S = 10.0
_LEAST_BYTES_PER_S = 1024


class BlobService:
    """Takes files and tells which there are.

    Invariants: nothing is stored whose digest was not computed here from the bytes that were
    stored; a body is never held whole in memory.
    """

    def __init__(self, repository: BlobRepository, *, max_bytes: int, stall_s: float) -> None:
        self._repository = repository
        self._max_bytes = max_bytes
        self._stall_s = stall_s

    async def size_bytes(self, sha256: str) -> int:
        """Return a stored file's size.

        Raises:
            BlobNotFoundError, InvalidRequestError, ObjectStoreError: see there.
        """
        size = await self._repository.size_bytes(_checked(sha256))
        if size is None:
            raise errors.BlobNotFoundError
        return size

    async def put(
        self, sha256: str, declared_bytes: int | None, body: AsyncIterator[bytes]
    ) -> bool:
        """Store a file; tell whether it was new.

        Args:
            sha256: the digest that the body must have, 64 hex digits.
            declared_bytes: the size that the client announced, if it did.
            body: chunks; what it raises (a client that left) is raised here.

        Raises:
            TooLargeError, UploadTooSlowError, DigestMismatchError, InvalidRequestError,
            ObjectStoreError, StorageFullError: see there; nothing was stored.
        """
        _checked(sha256)
        if declared_bytes is not None and declared_bytes > self._max_bytes:
            raise errors.TooLargeError(self._max_bytes)
        metered = _Metered(body, self._max_bytes, self._stall_s)
        if await self._repository.size_bytes(sha256) is not None:
            # The answer must not depend on who came first, so these bytes are checked as well.
            async for _ in metered.chunks():
                pass
            metered.check(sha256)
            return False
        async with self._repository.stage(metered.chunks()) as staged:
            metered.check(sha256)
            return await self._repository.keep(staged, sha256)


class _Metered:
    """A body whose digest, size and pace are watched while it passes."""

    def __init__(self, body: AsyncIterator[bytes], max_bytes: int, stall_s: float) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._digest = hashlib.sha256()

    async def chunks(self) -> AsyncIterator[bytes]:
        total = 0
        started_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(self._stall_s):
                    chunk = await anext(self._body)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise errors.UploadTooSlowError from error
            total += len(chunk)
            if total > self._max_bytes:
                raise errors.TooLargeError(self._max_bytes)
            elapsed_s = time.monotonic() - started_s
            if elapsed_s > _GRACE_S and total < elapsed_s * _LEAST_BYTES_PER_S:
                raise errors.UploadTooSlowError
            if chunk:
                self._digest.update(chunk)
                yield chunk

    def check(self, sha256: str) -> None:
        """Compare the digest of everything that passed."""
        if self._digest.hexdigest() != sha256:
            raise errors.DigestMismatchError


def _checked(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise errors.InvalidRequestError("A digest is 64 lower-case hex digits.")
    return sha256
