"""Open Inference Protocol bodies: what is read, what is refused with 400, what is written."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
import rapidjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferbus_gateway.errors import FailedError, InvalidRequestError
from inferbus_gateway.hot import oip
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m

CODES = {
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
RANGES = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FP32_MAX = 3.4028234663852886e38


def spec(name: str, datatype: Any, *shape: int) -> manifest.TensorSpec:
    return manifest.TensorSpec(name, datatype, shape)


def signature(
    *inputs: manifest.TensorSpec, outputs: tuple[manifest.TensorSpec, ...] = ()
) -> manifest.Signature:
    return manifest.Signature(inputs, outputs or (spec("y", "FP32", -1),))


CANCER = signature(
    spec("features", "FP32", -1, 3),
    outputs=(spec("label", "INT64", -1), spec("probabilities", "FP32", -1, 2)),
)
PAIR = signature(spec("a", "FP32", -1, 2), spec("b", "BYTES", -1))


def feature(**changes: Any) -> dict[str, Any]:
    return {
        "name": "features",
        "shape": [1, 3],
        "datatype": "FP32",
        "data": [1, 2.5, -3],
    } | changes


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs or (feature(),), **more}).encode()


def binary(head: dict[str, Any], *tails: bytes) -> tuple[bytes, int]:
    text = json.dumps(head).encode()
    return b"".join((text, *tails)), len(text)


def read(parsed: oip.Parsed) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    found = m.TensorSet.FromString(parsed.tensors)
    return [(t.name, t.datatype, tuple(t.shape), t.data) for t in found.tensors]


def refusal(body: bytes, of: manifest.Signature = CANCER, json_length: int | None = None) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        oip.parse(body, json_length, of)
    message = str(caught.value)
    assert message
    assert len(message) < 400
    return message


def element(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(max_size=8)
    if datatype in RANGES:
        return st.integers(*RANGES[datatype])
    if datatype == "FP32":
        return st.floats(allow_nan=False, allow_infinity=False, width=32)
    return st.floats(allow_nan=False, allow_infinity=False)


def packed(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return tensors.join_bytes(value.encode() for value in values)
    return struct.pack(f"<{len(values)}{CODES[datatype]}", *values)


def nest(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) == 1:
        return values
    size = math.prod(shape[1:])
    return [nest(values[at * size : (at + 1) * size], shape[1:]) for at in range(shape[0])]


@st.composite
def filled(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[Any]]:
    datatype = draw(st.sampled_from([*CODES, "BYTES"]))
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(0, 3), max_size=3)))
    n = math.prod(shape)
    return datatype, shape, draw(st.lists(element(datatype), min_size=n, max_size=n))


@CALM
@given(filled(), st.booleans(), st.sampled_from([None, 1]), st.booleans())
def test_json_data_becomes_the_bytes_that_the_protocol_defines(
    case: tuple[str, tuple[int, ...], list[Any]],
    nested: bool,  # noqa: FBT001
    indent: int | None,
    ascii_only: bool,  # noqa: FBT001
) -> None:
    datatype, shape, values = case
    data = nest(values, shape) if nested else values
    item = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    body = json.dumps({"inputs": [item]}, indent=indent, ensure_ascii=ascii_only).encode()
    of = signature(spec("x", datatype, -1, *(-1 for _ in shape[1:])))
    parsed = oip.parse(body, None, of)
    assert read(parsed) == [("x", datatype, shape, packed(datatype, values))]
    assert parsed.n_rows == shape[0]


@CALM
@given(filled())
def test_what_render_writes_as_json_parse_reads_back(
    case: tuple[str, tuple[int, ...], list[Any]],
) -> None:
    datatype, shape, values = case
    tensor = m.Tensor(name="x", datatype=datatype, shape=shape, data=packed(datatype, values))
    rendered = oip.render(
        [tensor], model="model", version=2, client_request_id="", binary=frozenset()
    )
    assert rendered.json_length is None
    answer = json.loads(rendered.body)
    assert answer["model_name"] == "model"
    assert answer["model_version"] == "2"
    assert "id" not in answer
    assert answer["outputs"][0]["data"] == values
    of = signature(spec("x", datatype, *(-1 for _ in shape)))
    again = oip.parse(json.dumps({"inputs": answer["outputs"]}).encode(), None, of)
    assert read(again) == [("x", datatype, shape, tensor.data)]


@CALM
@given(filled(), filled())
def test_binary_and_json_inputs_mix_and_come_out_in_the_signatures_order(
    first: tuple[str, tuple[int, ...], list[Any]], second: tuple[str, tuple[int, ...], list[Any]]
) -> None:
    items: list[dict[str, Any]] = []
    specs = []
    for name, (datatype, shape, _) in (("a", first), ("b", second)):
        items.append({"name": name, "shape": shape, "datatype": datatype})
        specs.append(spec(name, datatype, *shape))
    data = packed(first[0], first[2])
    items[0]["parameters"] = {"binary_data_size": len(data)}
    items[1]["data"] = second[2]
    body, json_length = binary({"inputs": items[::-1]}, data)
    parsed = oip.parse(body, json_length, signature(*specs))
    assert read(parsed) == [
        ("a", first[0], first[1], data),
        ("b", second[0], second[1], packed(second[0], second[2])),
    ]
    assert parsed.n_rows == first[1][0]


def test_binary_bytes_follow_in_the_requests_order() -> None:
    a, b = struct.pack("<4f", 1, 2, 3, 4), tensors.join_bytes((b"\xff", b""))
    head = {
        "inputs": [
            {
                "name": "b",
                "shape": [2],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(b)},
            },
            {
                "name": "a",
                "shape": [2, 2],
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(a)},
            },
        ]
    }
    body, json_length = binary(head, b, a)
    parsed = oip.parse(body, json_length, PAIR)
    assert read(parsed) == [("a", "FP32", (2, 2), a), ("b", "BYTES", (2,), b)]
    assert parsed.n_rows == 2


def test_a_scalar_input_counts_as_one_row() -> None:
    item = {"name": "x", "shape": [], "datatype": "INT8", "data": [7]}
    parsed = oip.parse(request(item), None, signature(spec("x", "INT8")))
    assert read(parsed) == [("x", "INT8", (), b"\x07")]
    assert parsed.n_rows == 1


def test_an_empty_tensor_may_be_nested_and_indented() -> None:
    item = {"name": "x", "shape": [4, 9, 0], "datatype": "INT8", "data": [[[]] * 9] * 4}
    body = json.dumps({"inputs": [item]}, indent=4).encode()
    parsed = oip.parse(body, None, signature(spec("x", "INT8", -1, 9, -1)))
    assert read(parsed) == [("x", "INT8", (4, 9, 0), b"")]


def test_bool_takes_numbers_and_floats_take_integers() -> None:
    item = {"name": "x", "shape": [4], "datatype": "BOOL", "data": [1, 0, True, False]}
    parsed = oip.parse(request(item), None, signature(spec("x", "BOOL", -1)))
    assert read(parsed)[0][3] == b"\1\0\1\0"
    assert read(oip.parse(request(), None, CANCER))[0][3] == struct.pack("<3f", 1, 2.5, -3)


@pytest.mark.parametrize(
    ("more", "client_request_id", "timeout_us", "outputs", "wanted_binary"),
    [
        ({}, "", None, (), frozenset()),
        ({"id": "é" * 256}, "é" * 256, None, (), frozenset()),
        ({"id": None, "parameters": None, "outputs": None}, "", None, (), frozenset()),
        ({"parameters": {"timeout": 5}}, "", 5, (), frozenset()),
        ({"parameters": {"timeout": 0}}, "", None, (), frozenset()),
        ({"parameters": {"binary_data_output": True}}, "", None, (), None),
        ({"parameters": {"priority": 1, "sequence_id": "s"}}, "", None, (), frozenset()),
        ({"unknown": {"deep": [10**400, {"a": None}]}}, "", None, (), frozenset()),
        ({"outputs": []}, "", None, (), frozenset()),
        ({"outputs": [{"name": "probabilities"}]}, "", None, ("probabilities",), frozenset()),
        (
            {
                "outputs": [
                    {"name": "probabilities", "parameters": {"binary_data": True, "other": 1}},
                    {"name": "label", "parameters": {"binary_data": False}},
                ]
            },
            "",
            None,
            ("probabilities", "label"),
            frozenset({"probabilities"}),
        ),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "label", "parameters": {"binary_data": False}},
                    {"name": "probabilities"},
                ],
            },
            "",
            None,
            ("label", "probabilities"),
            frozenset({"probabilities"}),
        ),
        (
            {"outputs": [{"name": "label", "parameters": {"binary_data": True}}]},
            "",
            None,
            ("label",),
            None,
        ),
    ],
)
def test_options(
    more: dict[str, Any],
    client_request_id: str,
    timeout_us: int | None,
    outputs: tuple[str, ...],
    wanted_binary: frozenset[str] | None,
) -> None:
    body = request(**more)
    parsed = oip.parse(body, None, CANCER)
    assert parsed.client_request_id == client_request_id
    assert parsed.timeout_us == timeout_us
    assert parsed.outputs == outputs
    assert parsed.binary == wanted_binary


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "other"}, "no input 'other'; it takes 'features'"),
        ({"name": "x" * 10_000}, "no input"),
        ({"datatype": "FP64"}, "the datatype must be FP32, not 'FP64'"),
        ({"shape": [3]}, "the shape must be [-1, 3], where -1 stands for any size"),
        ({"shape": [1, 4]}, "the shape must be [-1, 3]"),
        ({"shape": [1, 1, 3]}, "the shape must be [-1, 3]"),
        ({"shape": [0, 3], "data": []}, "one row at least"),
        ({"shape": [-1, 3]}, "$.inputs[0].shape[0]"),
        ({"shape": [2**62, 3]}, "2^28 elements at most"),
        ({"shape": [10**40, 3]}, "$.inputs[0].shape[0]"),
        ({"shape": [1.0, 3]}, "$.inputs[0].shape[0]"),
        ({"shape": "1,3"}, "$.inputs[0].shape"),
        ({"data": [1, 2]}, "the shape says 3 elements, data has 2"),
        ({"data": [1, 2, 3, 4]}, "the shape says 3 elements, data has 4"),
        ({"data": []}, "the shape says 3 elements, data has 0"),
        ({"data": list(range(100_000))}, "the shape says 3 elements, data has about 100000"),
        ({"data": [[1, 2, 3], [1, 2, 3]]}, "the shape says 1 rows, data has 2"),
        ({"data": [[1, 2]]}, "lists of 3 elements, data has one of 2"),
        ({"data": [[[1, 2, 3]]]}, "data must be a list of FP32 elements"),
        ({"data": [1, [2], 3]}, "data must be a list of FP32 elements"),
        ({"data": [1, 2, "3"]}, "Expected `float`, got `str`"),
        ({"data": [1, 2, None]}, "Expected `float`, got `null`"),
        ({"data": [1, 2, True]}, "Expected `float`, got `bool`"),
        ({"data": 1}, "data must be a list"),
        ({"data": {"a": 1}}, "data must be a list"),
        ({"data": [1, 2, 1e39]}, "out of the range of FP32"),
        ({"data": [1, 2, -1e308]}, "out of the range of FP32"),
        ({"data": [1, 2, math.nan]}, "invalid character"),
        ({"data": [1, 2, -math.inf]}, "not an inference request"),
        ({"data": None}, "data must be a list"),
        ({"parameters": {"binary_data_size": 12}}, "Inference-Header-Content-Length"),
        ({"parameters": {"binary_data_size": -1}}, "binary_data_size"),
        ({"parameters": {"binary_data_size": True}}, "binary_data_size"),
        ({"parameters": 1}, "$.inputs[0].parameters"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    assert says in refusal(request(feature(**changes)))


def test_missing_data_name_and_inputs_are_named() -> None:
    item = feature()
    del item["data"]
    assert "neither data nor binary_data_size" in refusal(request(item))
    assert "`name`" in refusal(request({"shape": [1, 3], "datatype": "FP32", "data": []}))
    assert "`inputs`" in refusal(b"{}")
    assert "add 'features'" in refusal(b'{"inputs":[]}')
    assert "given twice" in refusal(request(feature(), feature()))
    a = {"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    assert "add 'b'" in refusal(request(a), PAIR)
    b = {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    assert "another input has 2" in refusal(request(a, b), PAIR)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"id": "x" * 257}, "256 characters"),
        ({"id": 5}, "$.id"),
        ({"parameters": {"timeout": -1}}, "$.parameters.timeout"),
        ({"parameters": {"timeout": 2**63}}, "$.parameters.timeout"),
        ({"parameters": {"timeout": "5"}}, "$.parameters.timeout"),
        ({"parameters": {"timeout": 1.5}}, "$.parameters.timeout"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output"),
        ({"parameters": []}, "$.parameters"),
        ({"outputs": {}}, "$.outputs"),
        ({"outputs": [{}]}, "`name`"),
        ({"outputs": [{"name": "no"}]}, "no output 'no'; it gives 'label', 'probabilities'"),
        ({"outputs": [{"name": "label"}, {"name": "label"}]}, "asked for twice"),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]}, "binary_data"),
        (
            {"outputs": [{"name": "label", "parameters": {"classification": 3}}]},
            "classification and shared memory are not offered",
        ),
        (
            {"outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]},
            "classification and shared memory are not offered",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(more: dict[str, Any], says: str) -> None:
    assert says in refusal(request(**more))


@pytest.mark.parametrize("datatype", sorted(RANGES))
def test_integers_past_the_range_are_refused_never_wrapped(datatype: str) -> None:
    low, high = RANGES[datatype]
    of = signature(spec("x", datatype, -1))
    item = {"name": "x", "shape": [2], "datatype": datatype}
    parsed = oip.parse(request(item | {"data": [low, high]}), None, of)
    assert read(parsed)[0][3] == packed(datatype, [low, high])
    for value in (low - 1, high + 1, 10**30, -(10**30)):
        assert f"range of {datatype}" in refusal(request(item | {"data": [0, value]}), of)
    for other in (1.0, 1.5, True, "1", None):
        assert "Expected `int`" in refusal(request(item | {"data": [0, other]}), of)


def test_the_largest_fp32_is_taken_and_what_rounds_to_infinity_is_refused() -> None:
    assert oip.parse(request(feature(data=[FP32_MAX, -FP32_MAX, 5e-324])), None, CANCER)
    assert "range of FP32" in refusal(request(feature(data=[0, 0, 3.4028235677973366e38])))
    of = signature(spec("x", "FP64", -1))
    item = {"name": "x", "shape": [1], "datatype": "FP64", "data": [1e308]}
    assert read(oip.parse(request(item), None, of))[0][3] == struct.pack("<d", 1e308)
    assert "Number out of range" in refusal(request(item).replace(b"1e+308", b"1e400"), of)


@pytest.mark.parametrize("other", [2, -1, 1.0, "true"])
def test_bool_refuses_all_else(other: object) -> None:
    item = {"name": "x", "shape": [1], "datatype": "BOOL", "data": [other]}
    assert "BOOL" in refusal(request(item), signature(spec("x", "BOOL", -1)))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_as_binary_only(datatype: str) -> None:
    of = signature(spec("x", datatype, -1), outputs=(spec("y", datatype, -1), spec("z", "FP32")))
    item: dict[str, Any] = {"name": "x", "shape": [1], "datatype": datatype}
    all_binary = {"parameters": {"binary_data_output": True}}
    says = refusal(request(item | {"data": [1]}, **all_binary), of)
    assert f"{datatype} has no JSON form; send it as binary data" in says
    item["parameters"] = {"binary_data_size": 2}
    body, json_length = binary({"inputs": [item], **all_binary}, b"\1\2")
    assert read(oip.parse(body, json_length, of))[0][3] == b"\1\2"
    body, json_length = binary({"inputs": [item]}, b"\1\2")
    assert "binary_data true" in refusal(body, of, json_length)
    body, json_length = binary({"inputs": [item], "outputs": [{"name": "y"}]}, b"\1\2")
    assert "binary_data true" in refusal(body, of, json_length)
    body, json_length = binary({"inputs": [item], "outputs": [{"name": "z"}]}, b"\1\2")
    assert oip.parse(body, json_length, of).binary == frozenset()
    tensor = m.Tensor(name="y", datatype=datatype, shape=[1], data=b"\1\2")
    with pytest.raises(InvalidRequestError, match="as binary data"):
        oip.render([tensor], model="m", version=1, client_request_id="", binary=frozenset())


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
        (signature(spec("x", "UINT8", -1)), bytes((1 << 28) + 1), "2^28 elements"),
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
