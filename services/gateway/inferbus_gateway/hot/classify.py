"""The `classification` of an output: its greatest values instead of all of them, as Triton has it.

In: one numeric tensor and how many classes are wanted. Out: a BYTES tensor of
`value:index[:label]`, greatest first, rows first; equal values in the order of their index.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from inferbus_gateway.errors import InvalidRequestError
from inferbus_gateway.hot import fit
from inferbus_schemas import messages as m
from inferbus_schemas import tensors

_CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
MAX_ELEMENTS: Final = 1 << 14
_WHOLE: Final = frozenset(datatype for datatype in _CODES if "INT" in datatype)


def check(name: str, datatype: str) -> None:
    """Check that an output has classes.

    Raises:
        InvalidRequestError: it is not numeric.
    """
    if datatype not in _CODES and datatype != "BF16":
        raise InvalidRequestError(
            f"output {name!r}: {datatype} has no greatest values; leave classification out"
        )


def replace(
    outputs: Iterable[m.Tensor], classes: Mapping[str, int], settings: Mapping[str, Any]
) -> list[m.Tensor]:
    """Return the outputs of an answer with those named in `classes` classified.

    Args:
        outputs: as the model gave them.
        classes: how many classes are wanted of an output.
        settings: of the version's task; its `classes` are the labels.

    Raises:
        InvalidRequestError: an output would give more than `MAX_ELEMENTS`.
        FailedError: bytes and shape of an output do not agree.
    """
    labels = settings.get("classes")
    known = labels if isinstance(labels, list) else ()
    return [
        _classified(one, classes[one.name], known) if one.name in classes else one
        for one in outputs
    ]


def _classified(tensor: m.Tensor, n_classes: int, labels: Sequence[object]) -> m.Tensor:
    """Return the greatest values of each row; shape `[rows, ...]`, or `[rows]` for one a row."""
    count = fit.check_given(tensor)
    n_rows = tensor.shape[0] if tensor.shape else 1
    width = count // n_rows if n_rows else 0
    kept = min(n_classes, width)
    if n_rows * kept > MAX_ELEMENTS:
        raise InvalidRequestError(
            f"output {tensor.name!r}: {n_rows} rows of {kept} classes are too many to write; "
            f"ask for fewer, {MAX_ELEMENTS} together at most"
        )
    if tensor.datatype == "BF16":
        values = tensors.floats_of_bf16(tensor.data)
    else:
        values = struct.unpack(f"<{count}{_CODES[tensor.datatype]}", tensor.data)
    form = "%d" if tensor.datatype in _WHOLE else "%f"
    elements: list[bytes] = []
    for at in range(0, count, width or 1):
        # Without an order, not a number is no class.
        row = [-math.inf if value != value else value for value in values[at : at + width]]  # noqa: PLR0124
        elements += [
            _element(form % values[at + index], index, labels)
            for index in heapq.nlargest(kept, range(width), key=row.__getitem__)
        ]
    return m.Tensor(
        name=tensor.name,
        datatype="BYTES",
        shape=[n_rows, kept],
        data=tensors.join_bytes(elements),
    )


def _element(value: str, index: int, labels: Sequence[object]) -> bytes:
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{value}:{index}{label}".encode()
