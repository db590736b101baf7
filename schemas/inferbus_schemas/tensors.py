"""Tensors on the wire: sizes, checks against shapes, and the digest of an answer.

In: `messages.Tensor`. Out: element counts and digests that any other program can recompute.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from inferbus_schemas import messages as m

ITEM_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes per element of each fixed-size datatype; BYTES has its own lengths inside."""

DATATYPES = frozenset(ITEM_BYTES) | {"BYTES"}
MAX_RANK = 8
MAX_ELEMENTS = 1 << 28
_LENGTH = struct.Struct("<I")


class TensorError(ValueError):
    """A tensor whose shape, datatype and bytes do not agree; the message is for its sender."""


class TensorLike(Protocol):
    """What has a name, a datatype, a shape and little-endian bytes."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def data(self) -> bytes: ...


def n_elements(shape: Iterable[int]) -> int:
    """Return the number of elements of a shape; checked before anything is allocated.

    Raises:
        TensorError: a dimension is negative, or there are too many dimensions or elements.
    """
    count = 1
    for rank, dim in enumerate(shape, start=1):
        if dim < 0:
            raise TensorError("a dimension of the shape is negative")
        count *= dim
        if rank > MAX_RANK or count > MAX_ELEMENTS:
            raise TensorError(f"a shape may have {MAX_RANK} dimensions and 2^28 elements at most")
    return count


def check(tensor: TensorLike) -> int:
    """Check that bytes, datatype and shape agree; return the number of elements.

    Raises:
        TensorError: they do not.
    """
    count = n_elements(tensor.shape)
    if tensor.datatype == "BYTES":
        found = len(split_bytes(tensor.data, limit=count))
        if found != count:
            raise TensorError(
                f"input {tensor.name!r}: shape says {count} elements, data has {found}"
            )
        return count
    size = ITEM_BYTES.get(tensor.datatype)
    if size is None:
        raise TensorError(f"input {tensor.name!r}: unknown datatype")
    if len(tensor.data) != count * size:
        raise TensorError(
            f"input {tensor.name!r}: shape and datatype say {count * size} bytes, "
            f"data has {len(tensor.data)}"
        )
    return count


def split_bytes(data: bytes, *, limit: int = MAX_ELEMENTS) -> list[bytes]:
    """Return the elements of a BYTES tensor.

    Args:
        data: per element a little-endian uint32 length, then the bytes.
        limit: the number of elements past which the data is refused.

    Raises:
        TensorError: a length points past the end, or there are more elements than `limit`.
    """
    out: list[bytes] = []
    at = 0
    end = len(data)
    while at < end:
        if at + 4 > end or len(out) >= limit:
            raise TensorError("BYTES data does not match its shape or is cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if at + length > end:
            raise TensorError("BYTES data is cut off inside an element")
        out.append(bytes(data[at : at + length]))
        at += length
    return out


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """Return elements as the data of a BYTES tensor; the inverse of `split_bytes`."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def floats_of_bf16(data: bytes) -> tuple[float, ...]:
    """Return the numbers of a BF16 tensor's data; each is the upper half of an FP32."""
    count = len(data) // 2
    wide = bytearray(4 * count)
    wide[2::4], wide[3::4] = data[::2], data[1::2]
    return struct.unpack(f"<{count}f", wide)


def output_sha256(outputs: Iterable[TensorLike]) -> bytes:
    """Return the digest of an answer, 32 bytes.

    sha256 over the outputs in order, each as: uint32-length-prefixed name and datatype, uint8
    rank, int64 dims, uint64 length, Open Inference Protocol raw bytes; all little-endian. Also
    the header `x-inferbus-output-sha256`, so that a client can check it.
    """
    parts: list[bytes] = []
    for tensor in outputs:
        data = tensor.data
        parts += (_digest_head(tensor.name, tensor.datatype, tuple(tensor.shape), len(data)), data)
    return hashlib.sha256(b"".join(parts)).digest()


def _digest_head(name: str, datatype: str, shape: tuple[int, ...], n_bytes: int) -> bytes:
    """Return what stands before a tensor's bytes in the digest."""
    raw_name, raw_datatype, rank = name.encode(), datatype.encode(), len(shape)
    return b"".join(
        (
            _LENGTH.pack(len(raw_name)),
            raw_name,
            _LENGTH.pack(len(raw_datatype)),
            raw_datatype,
            struct.pack(f"<B{rank}qQ", rank, *shape, n_bytes),
        )
    )


class Heads(NamedTuple):
    """What stands before the bytes of a tensor: in a serialised TensorSet, and in the digest.

    Most tensors of a version differ in their bytes alone, and both forms end with these: head and
    bytes of each tensor, one after another, are the TensorSet, since Protobuf appends what repeats.
    """

    message: bytes
    digest: bytes


@functools.lru_cache(maxsize=4096)
def heads(name: str, datatype: str, shape: tuple[int, ...], n_bytes: int) -> Heads:
    """Return the heads of all tensors of `n_bytes` bytes with this name, datatype and shape."""
    # Fields are written in the order of their numbers, and `data` has the last one.
    like = m.TensorSet(
        tensors=[m.Tensor(name=name, datatype=datatype, shape=shape, data=bytes(n_bytes))]
    ).SerializeToString()
    return Heads(like[: len(like) - n_bytes], _digest_head(name, datatype, shape, n_bytes))
