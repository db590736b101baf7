"""The elements of one tensor, between JSON text and little-endian bytes.

In: the `data` of a JSON tensor as text, or the bytes of a `messages.Tensor`. Out: the other one.

Choices where the Open Inference Protocol is silent:

- An integer is taken for FP32 and FP64; a number with a point or an exponent is refused for an
  integer type even if it is whole, as is `true`. A value that the type cannot hold is refused,
  never clipped or turned into infinity.
- BOOL reads `true`, `false`, 1 and 0, and is written as `true` and `false`.
- BYTES elements are JSON strings in UTF-8. An output that is not UTF-8 has no JSON form and is
  refused; any replacement character would change the answer in silence.
- NaN and the infinities are written as `NaN`, `Infinity`, `-Infinity`: not strict JSON, but what
  Python's `json` and rapidjson (tritonclient) read back exactly, where `null` would lose the
  infinities. Whoever reads with a strict parser asks for binary. On input they are refused.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from inferbus_schemas import json_bounds, tensors

BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
"""Datatypes without a JSON form."""

_CODES: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
"""Struct codes; behind "<" their sizes are fixed and their bytes little-endian on any machine."""

_ELEMENTS: Final[dict[str, Any]] = {
    "BOOL": bool | Annotated[int, msgspec.Meta(ge=0, le=1)],
    "FP32": float,
    "FP64": float,
    "BYTES": str,
}
"""What one JSON element decodes to; integers for the datatypes not named."""

_FLOATS: Final = frozenset({"FP32", "FP64"})
_NESTED: Final = re.compile(rb"\[\s*\[")


class NumbersError(ValueError):
    """Elements that do not fit their datatype or shape; the message is for their sender."""


def pack(text: msgspec.Raw, datatype: str, shape: Sequence[int], count: int) -> bytes:
    """Return JSON `data`, flat or nested as `shape` says, as bytes.

    Args:
        text: the JSON of `data`.
        datatype: what the elements are.
        shape: checked already; rows first.
        count: the number of elements of `shape`.

    Raises:
        NumbersError: the elements are not `count`, not nested as `shape`, or not of `datatype`.
    """
    if datatype in BINARY_ONLY:
        raise NumbersError(f"{datatype} has no JSON form; send it as binary data")
    _check_amount(text, count)
    nested = len(shape) > 1 and _NESTED.match(text) is not None
    try:
        values = _decoder(datatype, len(shape) if nested else 1).decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise NumbersError(
            f"data must be a list of {datatype} elements, flat or nested as the shape says: {error}"
        ) from None
    if nested:
        values = _flatten(values, shape)
    if len(values) != count:
        raise NumbersError(f"the shape says {count} elements, data has {len(values)}")
    if datatype == "BYTES":
        return tensors.join_bytes(value.encode() for value in values)
    return pack_values(values, datatype)


def pack_values(values: Sequence[Any], datatype: str) -> bytes:
    """Return numbers, or booleans for BOOL, as bytes.

    Raises:
        NumbersError: one is out of the range of `datatype`.
    """
    try:
        return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)
    except (struct.error, OverflowError):
        raise NumbersError(f"an element is out of the range of {datatype}") from None


def unpack_values(data: bytes, datatype: str, count: int) -> Sequence[Any]:
    """Return the bytes of a checked tensor as numbers, booleans or, for BYTES, bytes."""
    if datatype == "BYTES":
        return tensors.split_bytes(data)
    return struct.unpack(f"<{count}{_CODES[datatype]}", data)


def check(data: bytes, datatype: str, count: int) -> None:
    """Check that binary `data` holds `count` elements of `datatype`.

    Raises:
        NumbersError: it does not.
    """
    if datatype == "BYTES":
        try:
            found = len(tensors.split_bytes(data, limit=count))
        except tensors.TensorError as error:
            raise NumbersError(str(error)) from None
        if found != count:
            raise NumbersError(f"the shape says {count} elements, the binary data has {found}")
        return
    expected = count * tensors.ITEM_BYTES[datatype]
    if len(data) != expected:
        raise NumbersError(
            f"shape and datatype say {expected} bytes, the binary data has {len(data)}"
        )
    if datatype == "BOOL" and data.translate(None, b"\0\1"):
        raise NumbersError("the bytes of a BOOL tensor must be 0 or 1")


def unpack(data: bytes, datatype: str, count: int) -> Sequence[Any] | msgspec.Raw:
    """Return the bytes of a checked tensor as its flat JSON `data`, for msgspec to encode.

    Raises:
        NumbersError: the datatype has no JSON form, or an element of BYTES is not UTF-8.
    """
    if datatype in BINARY_ONLY:
        raise NumbersError(f"{datatype} has no JSON form; ask for this output as binary data")
    if datatype == "BYTES":
        try:
            return [element.decode() for element in tensors.split_bytes(data)]
        except UnicodeDecodeError:
            raise NumbersError(
                "an element is not UTF-8, so it has no JSON form; ask for this output as "
                "binary data"
            ) from None
    values = struct.unpack(f"<{count}{_CODES[datatype]}", data)
    # msgspec would write null for what is not finite; a sum shows it at a tenth of a scan's cost.
    if datatype in _FLOATS and not math.isfinite(sum(values)):
        return msgspec.Raw(json.dumps(values, separators=(",", ":")).encode())
    return values


def _check_amount(text: msgspec.Raw, count: int) -> None:
    """Refuse text with more elements than `count` before each becomes an object."""
    if memoryview(text).nbytes <= json_bounds.SMALL_BYTES:
        return
    if count == 0:
        raise NumbersError("the shape says 0 elements; send data as []")
    if (found := json_bounds.n_elements(bytes(text), count)) > count:
        raise NumbersError(f"the shape says {count} elements, data has about {found}")


@functools.cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Return the decoder of lists `depth` deep; at most one per datatype and rank exists."""
    kind: Any = _ELEMENTS.get(datatype, int)
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _flatten(values: list[Any], shape: Sequence[int]) -> list[Any]:
    """Return nested lists as one, row-major; their lengths must be those of `shape`."""
    if len(values) != shape[0]:
        raise NumbersError(f"the shape says {shape[0]} rows, data has {len(values)}")
    for dim in shape[1:]:
        for row in values:
            if len(row) != dim:
                raise NumbersError(
                    f"the shape says lists of {dim} elements, data has one of {len(row)}"
                )
        values = list(itertools.chain.from_iterable(values))
    return values
