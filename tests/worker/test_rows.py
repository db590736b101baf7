"""Cutting a batch's answer by rows: exact, whole, and with the digest that clients check."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_worker.engines.wire import TensorHead
from inferbus_worker.hot.rows import Answer


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=10),
    width=st.integers(1, 4),
    seed=st.randoms(use_true_random=False),
)
def test_cuts_hold_every_byte_once(sizes: list[int], width: int, seed: object) -> None:
    n_rows = sum(sizes)
    numbers = seed.randbytes(n_rows * width * 4)  # type: ignore[attr-defined]
    words = [seed.randbytes(seed.randint(0, 5)) for _ in range(n_rows)]  # type: ignore[attr-defined]
    text = tensors.join_bytes(words)
    answer = Answer(
        (
            TensorHead("p", "FP32", (n_rows, width), len(numbers)),
            TensorHead("w", "BYTES", (n_rows,), len(text)),
        ),
        numbers + text,
        n_rows,
    )
    row, cut_numbers, cut_words = 0, b"", b""
    for rows in sizes:
        raw, digest = answer.cut(row, rows, ())
        out = m.TensorSet.FromString(raw)
        assert [list(one.shape) for one in out.tensors] == [[rows, width], [rows]]
        assert digest == tensors.output_sha256(out.tensors)
        cut_numbers += out.tensors[0].data
        cut_words += out.tensors[1].data
        row += rows
    assert cut_numbers == numbers
    assert cut_words == text


def test_only_the_outputs_that_were_asked_for_in_their_order() -> None:
    heads = (TensorHead("a", "INT64", (2,), 16), TensorHead("b", "UINT8", (2, 1), 2))
    answer = Answer(heads, bytes(range(18)), 2)
    raw, _ = answer.cut(1, 1, ["b", "a"])
    out = m.TensorSet.FromString(raw).tensors
    assert [(one.name, one.data) for one in out] == [("b", b"\x11"), ("a", bytes(range(8, 16)))]


def test_the_digest_is_the_documented_one() -> None:
    answer = Answer((TensorHead("ab", "FP32", (1, 2), 8),), b"12345678", 1)
    _, digest = answer.cut(0, 1, ())
    wire = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 4) + b"FP32" + b"\x02"
    wire += struct.pack("<qq", 1, 2) + struct.pack("<Q", 8) + b"12345678"
    assert digest == hashlib.sha256(wire).digest()
