"""Tensors between numpy and the JSON of the Open Inference Protocol.

In: arrays, texts, encoded images. Out: `JsonTensor`s for golden answers and samples, and back.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from inferbus_schemas.manifest import JsonTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inferbus_schemas.manifest import Datatype

_DATATYPES: dict[str, Datatype] = {"float32": "FP32", "int64": "INT64"}
_DTYPES = {datatype: dtype for dtype, datatype in _DATATYPES.items()}


def numbers(name: str, values: NDArray[Any]) -> JsonTensor:
    """Return a FP32 or INT64 array as a tensor.

    A float32 is written with the fewest digits that give back the same float32.

    Raises:
        KeyError: another dtype.
    """
    flat = values.ravel()
    data: list[Any] = (
        [float(str(value)) for value in flat] if flat.dtype == np.float32 else flat.tolist()
    )
    return JsonTensor(
        name=name, datatype=_DATATYPES[values.dtype.name], shape=values.shape, data=data
    )


def texts(name: str, values: Sequence[str]) -> JsonTensor:
    """Return texts as a BYTES tensor: one element, one text."""
    return JsonTensor(name=name, datatype="BYTES", shape=(len(values),), data=list(values))


def images(name: str, values: Sequence[bytes]) -> JsonTensor:
    """Return encoded images as a BYTES tensor: one element, one image in base64.

    JSON has no bytes, so binary elements travel as base64 text (RFC 4648, padded). A model of
    the task `image-classification` is the only one whose elements are written so.
    """
    return texts(name, [base64.b64encode(value).decode("ascii") for value in values])


def array(tensor: JsonTensor) -> NDArray[Any]:
    """Return the numbers of a FP32 or INT64 tensor.

    Raises:
        KeyError: another datatype.
    """
    return np.array(tensor.data, dtype=_DTYPES[tensor.datatype]).reshape(tensor.shape)
