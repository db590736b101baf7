"""Whether a GGUF file is what its head says: counts within bounds, every tensor inside the file.

In: a way to read ranges of a stored file. Out: nothing, or a refusal. The head is walked by hand,
page by page, since the library that will load it has been fooled by such heads before; the weights
are never read. Layout: docs/gguf.md of ggml, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct

from inferbus_registry import errors
from inferbus_registry.versions.onnx_files import Read

_PAGE_BYTES = 1 << 20
_MAX_HEAD_BYTES = 256 << 20
_MAX_PAIRS = 4096
_MAX_TENSORS = 65_536
_MAX_ELEMENTS = 4_000_000
_MAX_STRING_BYTES = 1 << 20
_MAX_DIMENSIONS = 4
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_FIXED_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _MalformedError(ValueError):
    """The bytes are not a GGUF head within our bounds."""


class _Head:
    """The head of a stored file as a stream, of which one page is in memory."""

    def __init__(self, read: Read, sha256: str, size_bytes: int) -> None:
        self._read = read
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._page = b""
        self._start = 0
        self.at = 0

    async def take(self, n_bytes: int) -> bytes:
        """Return the next bytes."""
        end = self.at + n_bytes
        if end > min(self._size_bytes, _MAX_HEAD_BYTES):
            raise _MalformedError
        if not (self._start <= self.at and end <= self._start + len(self._page)):
            length = min(max(_PAGE_BYTES, n_bytes), self._size_bytes - self.at)
            self._page = await self._read(self._sha256, self.at, length)
            self._start = self.at
            if len(self._page) < n_bytes:
                raise _MalformedError
        data = self._page[self.at - self._start : end - self._start]
        self.at = end
        return data

    async def skip(self, n_bytes: int) -> None:
        """Go past bytes that say nothing here."""
        self.at += n_bytes
        if self.at > min(self._size_bytes, _MAX_HEAD_BYTES):
            raise _MalformedError

    async def number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, await self.take(struct.calcsize(layout)))
        return int(value)

    async def skip_string(self) -> None:
        length = await self.number("<Q")
        if length > _MAX_STRING_BYTES:
            raise _MalformedError
        await self.skip(length)


async def check_head(read: Read, sha256: str, size_bytes: int, path: str) -> None:
    """Walk the head of a stored GGUF file.

    Raises:
        FormatRefusedError: it is no GGUF file, or its head promises what the file does not hold.
    """
    try:
        await _walk(_Head(read, sha256, size_bytes), size_bytes)
    except _MalformedError as error:
        raise errors.FormatRefusedError(f"{path} is not a GGUF model.") from error


async def _walk(head: _Head, size_bytes: int) -> None:
    if await head.take(4) != b"GGUF" or await head.number("<I") not in _VERSIONS:
        raise _MalformedError
    n_tensors, n_pairs = await head.number("<Q"), await head.number("<Q")
    if not 0 < n_tensors <= _MAX_TENSORS or n_pairs > _MAX_PAIRS:
        raise _MalformedError
    for _ in range(n_pairs):
        await head.skip_string()
        await _skip_value(head, await head.number("<I"))
    furthest = 0
    for _ in range(n_tensors):
        await head.skip_string()
        n_dimensions = await head.number("<I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise _MalformedError
        for _ in range(n_dimensions):
            if await head.number("<Q") >= 1 << 40:
                raise _MalformedError
        await head.number("<I")
        furthest = max(furthest, await head.number("<Q"))
    # Offsets count from the end of the head; where the last tensor ends depends on its type.
    if head.at + furthest >= size_bytes:
        raise _MalformedError


async def _skip_value(head: _Head, kind: int) -> None:
    if kind == _STRING:
        await head.skip_string()
    elif kind == _ARRAY:
        of, length = await head.number("<I"), await head.number("<Q")
        if length > _MAX_ELEMENTS:
            raise _MalformedError
        if of == _STRING:
            for _ in range(length):
                await head.skip_string()
        elif of in _FIXED_BYTES:
            await head.skip(length * _FIXED_BYTES[of])
        else:
            raise _MalformedError
    elif kind in _FIXED_BYTES:
        await head.skip(_FIXED_BYTES[kind])
    else:
        raise _MalformedError
