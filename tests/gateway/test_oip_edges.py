"""Open Inference Protocol bodies: hostile ones, binary and raw ones, and what is written."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
import rapidjson
from hypothesis import given, settings
from hypothesis import strategies as st

from inferbus_gateway.errors import FailedError, InvalidRequestError
from inferbus_gateway.hot import oip
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m
from tests.gateway.oip_bodies import (
    CALM,
    CANCER,
    PAIR,
    binary,
    feature,
    packed,
    read,
    refusal,
    request,
    signature,
    spec,
)

DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"inputs":',
        request() + b"x",
        b"\xef\xbb\xbf" + request(),
        request().decode().encode("utf-16"),
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'{"inputs":' + b"[" * DEEP + b"]" * DEEP + b"}",
        request()[:-1] + b',"more":' + b"[" * DEEP + b"]" * DEEP + b"}",
        request()[:-1] + b',"more":"\xff"}',
        request()[:-1] + b',"more":01}',
        request(feature(data="DATA")).replace(b'"DATA"', b"[" * DEEP + b"]" * DEEP),
        request(feature(data="DATA")).replace(b'"DATA"', b"[1,2," + b"9" * 5000 + b"]"),
        request(feature(data="DATA")).replace(b'"DATA"', b"[1,2,-" + b"9" * 300 + b"]"),
        request(feature(shape="SHAPE")).replace(b'"SHAPE"', b"[" + b"9" * 5000 + b",3]"),
        request(feature(shape=[1] * 50_000)),
        request(id="\ud800"),
        request(unknown="\ud800"),
        request(feature(name="\udfff")),
        request(id="x").replace(b'"x"', b'"\xed\xa0\x80"'),
        request(feature(name="n")).replace(b'"n"', b'"\xff"'),
    ],
)
def test_hostile_bodies_are_refused_as_invalid(body: bytes) -> None:
    refusal(body)


@pytest.mark.parametrize("text", [b'"\xff"', b'"\xed\xa0\x80"', b"1", b"null"])
def test_bytes_elements_must_be_strings_in_utf_8(text: bytes) -> None:
    item = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["X"]}
    body = request(item).replace(b'"X"', text)
    assert "BYTES" in refusal(body, signature(spec("x", "BYTES", -1)))
    refusal(request(item | {"data": ["\ud800"]}), signature(spec("x", "BYTES", -1)))


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[],"inputs":' + json.dumps([feature()]).encode() + b"}",
        request(id="x")[:-1] + b',"id":"y"}',
        request(id=None)[:-1] + b',"id":null}',
        request(parameters={"timeout": 1}).replace(b'"timeout": 1', b'"timeout":1,"timeout":2'),
        request(feature(data="D")).replace(b'"D"', b'[9,9,9],"data":[1,2,3]'),
        request(feature(data="D")).replace(b'"D"', b'[9,9,9],"d\\u0061ta":[1,2,3]'),
        request(more={"k": 0}).replace(b'"k": 0', b'"k":0,"k":1'),
    ],
)
def test_a_key_given_twice_is_refused(body: bytes) -> None:
    assert "given twice in one object" in refusal(body)


def test_words_that_look_like_keys_are_no_doubles() -> None:
    of = signature(spec("data", "BYTES", -1))
    item = {"name": "data", "shape": [2], "datatype": "BYTES", "data": ['"data":', 'a"\\,inputs']}
    parsed = oip.parse(request(item, id='i"d'), None, of)
    assert parsed.client_request_id == 'i"d'
    assert tensors.split_bytes(read(parsed)[0][3]) == [b'"data":', b'a"\\,inputs']


@CALM
@given(st.binary(max_size=200), st.none() | st.integers(-1, 210))
def test_noise_is_parsed_or_refused(body: bytes, json_length: int | None) -> None:
    try:
        oip.parse(body, json_length, PAIR)
    except InvalidRequestError:
        return
    pytest.fail("noise was taken for a request")


@settings(CALM, max_examples=300)
@given(st.data())
def test_a_damaged_request_raises_nothing_but_invalid_request(data: st.DataObject) -> None:
    item = {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["é\n"]}
    a = {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    good, json_length = binary(
        {"inputs": [a, item], "id": "x", "outputs": [{"name": "y"}]}, bytes(8)
    )
    body = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        parsed = oip.parse(bytes(body), json_length, PAIR)
    except InvalidRequestError:
        return
    assert [tensor[0] for tensor in read(parsed)] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "tail", "says"),
    [
        ({}, bytes(11), "ends before its binary data"),
        ({}, bytes(13), "do not add up"),
        ({"parameters": {"binary_data_size": 8}}, bytes(8), "say 12 bytes, the binary data has 8"),
        ({"parameters": {"binary_data_size": 2**62}}, bytes(12), "ends before its binary data"),
        ({"data": [1, 2, 3]}, bytes(12), "both data and binary_data_size"),
        ({"data": [1, 2, 3], "parameters": {}}, bytes(12), "do not add up"),
    ],
)
def test_binary_lengths_must_agree(changes: dict[str, Any], tail: bytes, says: str) -> None:
    item = feature(parameters={"binary_data_size": 12})
    del item["data"]
    body, json_length = binary({"inputs": [item | changes]}, tail)
    assert says in refusal(body, CANCER, json_length)


@pytest.mark.parametrize("json_length", [-1, 10_000])
def test_the_json_length_must_lie_in_the_body(json_length: int) -> None:
    assert "Inference-Header-Content-Length" in refusal(request(), CANCER, json_length)


def test_a_json_length_without_binary_inputs_is_taken() -> None:
    body = request()
    assert oip.parse(body, len(body), CANCER) == oip.parse(body, None, CANCER)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\2\0\0\0a", "cut off"),
        (b"\1\0\0\0a\1\0\0\0b", "does not match its shape"),
        (b"", "has 0"),
        (b"\xff\xff\xff\xff", "cut off"),
    ],
)
def test_binary_bytes_elements_are_counted(data: bytes, says: str) -> None:
    item = {
        "name": "x",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    body, json_length = binary({"inputs": [item]}, data)
    assert says in refusal(body, signature(spec("x", "BYTES", -1)), json_length)


def test_binary_bools_must_be_zero_or_one() -> None:
    item = {"name": "x", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    of = signature(spec("x", "BOOL", -1))
    body, json_length = binary({"inputs": [item]}, b"\1\0")
    assert read(oip.parse(body, json_length, of))[0][3] == b"\1\0"
    assert "0 or 1" in refusal(body[:-1] + b"\2", of, json_length)


@pytest.mark.parametrize(
    ("of", "body", "shape", "data"),
    [
        (spec("x", "FP32", -1, 3), bytes(24), (2, 3), bytes(24)),
        (spec("x", "FP32", -1, -1), bytes(12), (1, 3), bytes(12)),
        (spec("x", "FP32", -1, 2, -1), bytes(24), (1, 2, 3), bytes(24)),
        (spec("x", "UINT8", 2, 2), b"abcd", (2, 2), b"abcd"),
        (spec("x", "BYTES", -1), b"\xffjpeg", (1,), b"\5\0\0\0\xffjpeg"),
        (spec("x", "BYTES", -1, 1), b"", (1, 1), b"\0\0\0\0"),
    ],
)
def test_raw_requests(
    of: manifest.TensorSpec, body: bytes, shape: tuple[int, ...], data: bytes
) -> None:
    parsed = oip.parse(body, 0, signature(of))
    assert read(parsed) == [("x", of.datatype, shape, data)]
    assert parsed.n_rows == shape[0]
    assert parsed.outputs == ()
    assert parsed.binary is None


@pytest.mark.parametrize(
    ("of", "body", "says"),
    [
        (PAIR, b"x", "a model with one input"),
        (CANCER, b"", "a multiple of 12 bytes, and not empty"),
        (CANCER, bytes(13), "a multiple of 12 bytes"),
        (signature(spec("x", "UINT8", 2, 2)), b"abc", "say 4 bytes"),
        (signature(spec("x", "UINT8", -1, -1, -1)), b"abc", "cannot be told from a raw body"),
        (signature(spec("x", "UINT8", 2, -1, -1)), b"abcd", "cannot be told from a raw body"),
        (signature(spec("x", "BYTES", -1, 2)), b"abc", "the shape says 2 elements"),
        (signature(spec("x", "UINT8", -1)), bytes((1 << 28) + 1), "more than the 4096"),
    ],
)
def test_raw_requests_that_do_not_fit(of: manifest.Signature, body: bytes, says: str) -> None:
    assert says in refusal(body, of, 0)


def test_render_mixes_binary_and_json_in_order() -> None:
    outputs = [
        m.Tensor(name="a", datatype="INT64", shape=[1], data=struct.pack("<q", -5)),
        m.Tensor(name="b", datatype="BYTES", shape=[1], data=b"\2\0\0\0\xff\0"),
        m.Tensor(name="c", datatype="FP16", shape=[0, 2], data=b""),
    ]
    rendered = oip.render(
        outputs, model="m", version=1, client_request_id='i"', binary=frozenset({"b", "c"})
    )
    assert rendered.json_length is not None
    answer = json.loads(rendered.body[: rendered.json_length])
    assert rendered.body[rendered.json_length :] == b"\2\0\0\0\xff\0"
    assert answer["id"] == 'i"'
    assert answer["outputs"] == [
        {"name": "a", "datatype": "INT64", "shape": [1], "data": [-5]},
        {
            "name": "b",
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"binary_data_size": 6},
        },
        {
            "name": "c",
            "datatype": "FP16",
            "shape": [0, 2],
            "parameters": {"binary_data_size": 0},
        },
    ]
    with pytest.raises(InvalidRequestError, match="'b': an element is not UTF-8"):
        oip.render(outputs[1:2], model="m", version=1, client_request_id="", binary=frozenset())


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_what_is_not_finite_survives_in_the_json_that_clients_read(datatype: str) -> None:
    values = [math.inf, -math.inf, math.nan, 0.5, -0.0]
    tensor = m.Tensor(name="x", datatype=datatype, shape=[5], data=packed(datatype, values))
    body = oip.render([tensor], model="m", version=1, client_request_id="", binary=frozenset()).body
    assert b"NaN" in body
    for loads in (json.loads, rapidjson.loads):
        assert repr(loads(body)["outputs"][0]["data"]) == repr(values)


def test_finite_values_whose_sum_overflows_stay_what_they_are() -> None:
    values = [1.7e308, 1.7e308, 1e-5]
    tensor = m.Tensor(name="x", datatype="FP64", shape=[3], data=packed("FP64", values))
    body = oip.render([tensor], model="m", version=1, client_request_id="", binary=frozenset()).body
    assert json.loads(body)["outputs"][0]["data"] == values


@pytest.mark.parametrize(
    "tensor",
    [
        m.Tensor(name="x", datatype="FP32", shape=[2], data=bytes(4)),
        m.Tensor(name="x", datatype="FP32", shape=[-1], data=bytes(4)),
        m.Tensor(name="x", datatype="WHAT", shape=[1], data=bytes(4)),
        m.Tensor(name="x", datatype="BYTES", shape=[1], data=b"\2\0\0\0a"),
    ],
)
@pytest.mark.parametrize("wanted_binary", [None, frozenset[str]()])
def test_an_answer_that_does_not_fit_itself_fails(
    tensor: m.Tensor, wanted_binary: frozenset[str] | None
) -> None:
    with pytest.raises(FailedError, match="does not fit its own shape"):
        oip.render([tensor], model="m", version=1, client_request_id="", binary=wanted_binary)
