"""Whether an ONNX file is whole: no tensor of it may lie in another file.

In: a way to read ranges of a stored file. Out: nothing, or a refusal. The Protobuf fields are
walked by hand, page by page, skipping over weights, so neither the file nor a graph is ever in
memory and no library parses what a stranger wrote. What else can be wrong with a graph is for
the worker, which loads it in a process of its own. Field numbers: onnx/onnx.proto of ONNX 1.21.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from inferbus_registry import errors

Read = Callable[[str, int, int], Awaitable[bytes]]
"""Of a digest: up to n bytes from an offset."""

_PAGE_BYTES = 256 << 10
_MAX_FIELDS = 4_000_000
_MAX_DEPTH = 64
_VARINT, _BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_MAX_VARINT_SHIFT = 63
_MAX_TAG = (1 << 32) - 1

_EXTERNAL_DATA = 13
_DATA_LOCATION = 14

# Message -> field -> the message that stands there. Fields that are not named are skipped.
_NESTED: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}


class _MalformedError(ValueError):
    """The bytes are not a Protobuf message of ONNX."""


@dataclass(slots=True)
class _Pages:
    """A stored file as a sequence of bytes, of which one page is in memory."""

    read: Read
    sha256: str
    size_bytes: int
    start: int = 0
    page: bytes = b""

    async def byte(self, offset: int) -> int:
        if not self.start <= offset < self.start + len(self.page):
            length = min(_PAGE_BYTES, self.size_bytes - offset)
            if length <= 0:
                raise _MalformedError
            self.page = await self.read(self.sha256, offset, length)
            self.start = offset
        return self.page[offset - self.start]

    async def varint(self, offset: int) -> tuple[int, int]:
        """Return a number and the offset behind it."""
        value = shift = 0
        while True:
            byte = await self.byte(offset)
            offset += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 -- Protobuf's continuation bit
                return value, offset
            shift += 7
            if shift > _MAX_VARINT_SHIFT:
                raise _MalformedError


async def check_self_contained(read: Read, sha256: str, size_bytes: int, path: str) -> None:
    """Walk a stored ONNX file.

    Raises:
        FormatRefusedError: it is no ONNX file, or a tensor of it lies outside.
    """
    try:
        await _walk(_Pages(read, sha256, size_bytes))
    except _MalformedError as error:
        raise errors.FormatRefusedError(f"{path} is not an ONNX model.") from error
    except _ExternalError as error:
        raise errors.FormatRefusedError(
            f"{path} keeps tensors in other files; save it with all tensors inside."
        ) from error


class _ExternalError(ValueError):
    """A tensor says that its data lies elsewhere."""


async def _walk(pages: _Pages) -> None:
    # (message, end): what is open around the offset, the model itself first.
    opened: list[tuple[str, int]] = [("Model", pages.size_bytes)]
    offset = n_fields = n_graphs = 0
    while opened:
        message, end = opened[-1]
        if offset == end:
            opened.pop()
            continue
        n_fields += 1
        field = await _field(pages, offset, end)
        if n_fields > _MAX_FIELDS or len(opened) > _MAX_DEPTH:
            raise _MalformedError
        if message == "Tensor":
            await _check_tensor_field(pages, field)
        nested = _NESTED[message].get(field.number)
        if nested is None:
            offset = field.end
            continue
        if field.wire != _BYTES:
            raise _MalformedError
        n_graphs += message == "Model" and nested == "Graph"
        opened.append((nested, field.end))
        offset = field.first
    if n_graphs == 0:
        raise _MalformedError


@dataclass(frozen=True, slots=True)
class _Field:
    """A field's number and wire type, and where its value begins and ends."""

    number: int
    wire: int
    first: int
    end: int


async def _field(pages: _Pages, offset: int, limit: int) -> _Field:
    tag, offset = await pages.varint(offset)
    number, wire = tag >> 3, tag & 7
    if wire == _VARINT:
        _, end = await pages.varint(offset)
    elif wire == _BYTES:
        length, offset = await pages.varint(offset)
        end = offset + length
    elif wire in _FIXED_BYTES:
        end = offset + _FIXED_BYTES[wire]
    else:
        raise _MalformedError
    # Readers in C++ cut a longer tag to 32 bits, and would see another field than we do.
    if number == 0 or tag > _MAX_TAG or end > limit:
        raise _MalformedError
    return _Field(number, wire, offset, end)


async def _check_tensor_field(pages: _Pages, field: _Field) -> None:
    if field.number == _EXTERNAL_DATA:
        raise _ExternalError
    if field.number == _DATA_LOCATION:
        if field.wire != _VARINT:
            raise _MalformedError
        location, _ = await pages.varint(field.first)
        if location != 0:
            raise _ExternalError
