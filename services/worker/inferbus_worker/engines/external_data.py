"""Finds out whether an ONNX file points at other files, without loading it; pure.

In: the bytes of a model. Out: whether any tensor of it keeps its data elsewhere. Such a file could
read any file of the machine, and its digest would not cover what it computes. The walk knows only
Protobuf's wire format and the few fields of onnx.proto that can lead to a tensor
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64

# Kind of message -> field number -> kind of the message in that field.
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1


class NotOnnxError(ValueError):
    """Bytes that are no ONNX model, or one that nests too deep."""


def has_external_data(model: bytes) -> bool:
    """Tell whether a tensor of the model keeps its data outside the file.

    Raises:
        NotOnnxError: the bytes are not a Protobuf message of bounded depth.
    """
    return _walk(memoryview(model), "model", 0)


def _walk(data: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise NotOnnxError("the ONNX file nests too deep")
    paths = _PATHS.get(kind)
    for number, value in _fields(data):
        if paths is None:
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == _EXTERNAL):
                return True
        elif (
            number in paths
            and isinstance(value, memoryview)
            and _walk(value, paths[number], depth + 1)
        ):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in {_FIXED64, _FIXED32}:
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise NotOnnxError("the file is not an ONNX model")
        if at + size > end:
            raise NotOnnxError("the ONNX file is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:  # noqa: PLR2004 -- a varint has at most 64 bits
            raise NotOnnxError("the ONNX file is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 -- the last byte of a varint
            return value, at
        shift += 7
