"""A request's tensors against the signature: what passes, and the sentence for what does not."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from inferbus_schemas.manifest import Signature, TensorSpec
from inferbus_worker.hot.signature import InvalidInputError, SignatureCheck
from tests.support.worker_side import tensor_set

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "INT64", (-1,))),
    outputs=(TensorSpec("p", "FP32", (-1, 2)),),
)
X = ("x", "FP32", (2, 2), struct.pack("<4f", 1, 2, 3, 4))
Y = ("y", "INT64", (2,), struct.pack("<2q", 1, 2))


def test_inputs_come_in_the_order_of_the_signature() -> None:
    rows, bucket, shapes, data = SignatureCheck(TABLE).take(tensor_set(Y, X), ["p"])
    assert (rows, bucket, shapes) == (2, None, ((2, 2), (2,)))
    assert data == (X[3], Y[3])


def test_buckets_tell_open_dimensions_apart_and_not_rows() -> None:
    signature = Signature(
        inputs=(TensorSpec("ids", "INT64", (-1, -1)),), outputs=(TensorSpec("o", "FP32", (-1,)),)
    )
    check = SignatureCheck(signature)
    buckets = [
        check.take(tensor_set(("ids", "INT64", shape, bytes(8 * shape[0] * shape[1]))), ())[1]
        for shape in ((1, 3), (4, 3), (1, 5))
    ]
    assert buckets[0] == buckets[1] != buckets[2]


@pytest.mark.parametrize(
    ("given", "outputs", "says"),
    [
        ([X], (), "input 'y' is missing"),
        ([X, Y, ("z", "FP32", (2,), bytes(8))], (), "no input 'z'"),
        ([X, ("z", "FP32", (2,), bytes(8))], (), "no input 'z'"),
        ([X, X], (), "more than once"),
        ([("x", "FP64", (2, 2), bytes(32)), Y], (), "must be FP32, not FP64"),
        ([("x", "FP32", (2, 3), bytes(24)), Y], (), r"must be FP32 \[-1, 2\], not \[2, 3\]"),
        ([("x", "FP32", (2, 2, 1), bytes(16)), Y], (), "must be FP32"),
        ([("x", "FP32", (2, 2), bytes(15)), Y], (), "16 bytes, data has 15"),
        ([("x", "FP32", (0, 2), b""), ("y", "INT64", (0,), b"")], (), "no rows"),
        ([("x", "FP32", (-2, 2), b""), Y], (), "no rows"),
        ([X, ("y", "INT64", (3,), bytes(24))], (), "'y' has 3 rows, 'x' has 2"),
        ([X, Y], ("q",), "no output 'q'"),
        ([X, Y], ("p", "p"), "asked for more than once"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(
    given: Sequence[Any], outputs: Sequence[str], says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says):
        SignatureCheck(TABLE).take(tensor_set(*given), outputs)


def test_bytes_that_are_no_tensor_set() -> None:
    with pytest.raises(InvalidInputError, match="cannot be decoded"):
        SignatureCheck(TABLE).take(b"\xff\xff\xff", ())


@pytest.mark.parametrize("data", [b"\x05\0\0\0ab", b"", b"\x01\0\0\0a\x01\0\0\0b"])
def test_bytes_elements_must_match_their_shape(data: bytes) -> None:
    signature = Signature(
        inputs=(TensorSpec("t", "BYTES", (-1,)),), outputs=(TensorSpec("o", "FP32", (-1,)),)
    )
    with pytest.raises(InvalidInputError):
        SignatureCheck(signature).take(tensor_set(("t", "BYTES", (1,), data)), ())
