"""No reader of JSON makes more of a hostile text than it may, whatever it says and wherever."""

from __future__ import annotations

import contextlib
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from inferbus_gateway.control.batches.lines import LineReader, model_of
from inferbus_gateway.control.jobs.rows import RowReader
from inferbus_gateway.errors import InvalidRequestError
from inferbus_gateway.hot import kinds, oip, prompts, submitted
from inferbus_schemas import json_bounds
from inferbus_schemas.manifest import Signature, TensorSpec
from tests.support.hostile_shapes import many
from tests.support.memory import peak_bytes

N_BYTES = 4 << 20
MOST = json_bounds.MAX_DECODED_BYTES + 4 * N_BYTES
"""What it becomes, and copies of the text on the way."""
PARTS = (b"[]", b'{"":{}}', b"999", b'"ab"')
FP32 = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1,)),))
TEXTS = Signature((TensorSpec("x", "BYTES", (-1, -1)),), FP32.outputs)
DEEP = Signature((TensorSpec("x", "BYTES", (-1, -1, -1)),), FP32.outputs)
INPUT = b'{"name":"x","datatype":"%s","shape":%s,"data":%s}'
GOOD = INPUT % (b"FP32", b"[1,2]", b"[1,2]")


def infer(text: bytes, signature: Signature = FP32) -> oip.Parsed | None:
    with contextlib.suppress(InvalidRequestError):
        return oip.parse(text, None, signature)
    return None


@pytest.mark.parametrize("part", PARTS)
def test_what_an_infer_request_says_beside_its_tensors_becomes_little(part: bytes) -> None:
    filler = many(part, N_BYTES)
    for text in (
        b'{"x":%s,"inputs":[%s]}' % (filler, GOOD),
        b'{"inputs":%s}' % filler,
        b'{"inputs":[%s],"outputs":%s}' % (GOOD, filler),
        b'{"inputs":[%s]}' % (INPUT % (b"FP32", filler, b"[1]")),
        b'{"inputs":[%s],"parameters":{"x":%s}}' % (GOOD, filler),
    ):
        assert peak_bytes(partial(infer, text)) < 4 * N_BYTES


@pytest.mark.parametrize("part", PARTS)
def test_more_elements_than_the_shape_says_are_never_made(part: bytes) -> None:
    filler = many(part, N_BYTES)
    for signature, kind in (FP32, b"FP32"), (TEXTS, b"BYTES"):
        for shape in b"[4096,16]", b"[1,0]":
            text = b'{"inputs":[%s]}' % (INPUT % (kind, shape, b"[%s]" % filler))
            assert peak_bytes(partial(infer, text, signature)) < 4 * N_BYTES


def test_a_large_request_with_a_key_of_its_own_is_not_made_twice() -> None:
    data = many(b"0.25", 1 << 20)
    n = data.count(b",") + 1
    plain = INPUT % (b"FP32", b"[1,%d]" % n, data)
    own = b'{"a":"b","inputs":[%s],"id":"c"}' % plain
    alone = b'{"inputs":[%s]}' % plain
    assert peak_bytes(partial(infer, own)) < peak_bytes(partial(infer, alone)) + 4 * len(own)
    found, same = infer(own), infer(alone)
    assert found is not None
    assert same is not None
    assert found.tensors == same.tensors
    for twice in b'"data":[1],', b'"data":%s,' % many(b"0.25", 1 << 18), b'"shape":[1],':
        said = own.replace(b'"data":', twice + b'"data":', 1)
        with pytest.raises(InvalidRequestError, match="is given twice"):
            oip.parse(said, None, FP32)


def test_a_large_request_may_name_its_outputs() -> None:
    data = many(b"0.25", 1 << 16)
    plain = INPUT % (b"FP32", b"[1,%d]" % (data.count(b",") + 1), data)
    for outputs, names in (b'[{"name":"y"}]', ("y",)), (b"null", ()), (b"[]", ()):
        found = infer(b'{"inputs":[%s],"outputs":%s}' % (plain, outputs))
        assert found is not None
        assert found.outputs == names
    with pytest.raises(InvalidRequestError, match="array"):
        oip.parse(b'{"inputs":[%s],"outputs":{}}' % plain, None, FP32)
    many_inputs = b",".join([INPUT % (b"FP32", b"[1]", b"[1]")] * 2000)
    with pytest.raises(InvalidRequestError, match="inputs"):
        oip.parse(b'{"inputs":[%s]}' % many_inputs, None, FP32)


def test_texts_full_of_quotes_and_commas_are_taken() -> None:
    inside = rb"{\"a\": [\"b, c\", 1], \\\": 2}, " * 100_000
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % inside
    assert prompts.decode(body)["model"] == "m"
    tensor = INPUT % (b"BYTES", b"[1,2]", b'["%s","a"]' % inside)
    assert infer(b'{"inputs":[%s]}' % tensor, TEXTS) is not None


@pytest.mark.parametrize("part", PARTS)
def test_bodies_and_lines_become_no_more_than_they_may(part: bytes) -> None:
    filler = many(part, N_BYTES)
    body = b'{"model":"m","input":%s}' % filler

    def read() -> Any:
        with contextlib.suppress(InvalidRequestError):
            return prompts.decode(body)

    assert peak_bytes(read) < MOST
    assert peak_bytes(partial(model_of, b'{"body":%s}' % body)) < MOST
    assert peak_bytes(partial(LineReader(kinds.CHAT, "m", None, N_BYTES).read, body)) < MOST
    for line in b'{"x":%s}' % filler, b'{"inputs":%s}' % filler:
        assert peak_bytes(partial(RowReader(DEEP, N_BYTES).read, 0, line)) < MOST


def test_a_row_of_many_keys_is_refused_before_they_are_made() -> None:
    line = b"{" + b",".join(b'"%x":0' % key for key in range(300_000)) + b"}"
    assert peak_bytes(partial(RowReader(FP32, N_BYTES).read, 0, line)) < 4 * len(line)


def test_a_long_row_of_an_open_shape_is_taken() -> None:
    numbers = many(b"5", 1 << 20)
    row = RowReader(FP32, N_BYTES).read(0, b'{"x":%s}' % numbers)
    assert not row.refused
    assert len(row.tensors) > 4 * numbers.count(b",")


@pytest.mark.parametrize("part", PARTS)
def test_a_submission_in_json_becomes_no_more_than_it_may(part: bytes) -> None:
    value = b'{"requests":%s}' % many(part, submitted.MAX_JSON_BYTES - 100)
    record: Any = SimpleNamespace(
        headers=[("content-type", b"application/json")], value=value, timestamp=0
    )

    def read() -> Any:
        with contextlib.suppress(submitted.UnreadableSubmissionError):
            return submitted.read(record, 0.0)

    assert peak_bytes(read) < MOST
