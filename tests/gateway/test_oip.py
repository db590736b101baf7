"""Open Inference Protocol bodies: what is read, what is written."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway.errors import InvalidRequestError, TooManyRowsError
from inferbus_gateway.hot import oip
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from tests.gateway.oip_bodies import (
    CALM,
    CANCER,
    FP32_MAX,
    PAIR,
    RANGES,
    binary,
    feature,
    filled,
    nest,
    packed,
    read,
    refusal,
    request,
    signature,
    spec,
)


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
        ({"parameters": {"priority": 1, "mine": "s"}}, "", None, (), frozenset()),
        ({"parameters": {"sequence_id": 0, "sequence_end": False}}, "", None, (), frozenset()),
        ({"parameters": {"sequence_id": "", "sequence_start": False}}, "", None, (), frozenset()),
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
        ({"shape": [2**62, 3]}, "more than the 4096 that a request may have"),
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
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not offered"),
        ({"parameters": {"shared_memory_region": None}}, "shared memory is not offered"),
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
        ({"parameters": {"sequence_id": 7}}, "sequences are not offered"),
        ({"parameters": {"sequence_id": 2**64}}, "sequences are not offered"),
        ({"parameters": {"sequence_id": "s"}}, "sequences are not offered"),
        ({"parameters": {"sequence_id": 1.5}}, "$.parameters.sequence_id"),
        ({"parameters": {"sequence_start": True}}, "sequences are not offered"),
        ({"parameters": {"sequence_end": True}}, "sequences are not offered"),
        ({"outputs": {}}, "$.outputs"),
        ({"outputs": [{}]}, "`name`"),
        ({"outputs": [{"name": "no"}]}, "no output 'no'; it gives 'label', 'probabilities'"),
        ({"outputs": [{"name": "label"}, {"name": "label"}]}, "asked for twice"),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]}, "binary_data"),
        (
            {"outputs": [{"name": "label", "parameters": {"classification": 0}}]},
            "classification",
        ),
        (
            {"outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]},
            "shared memory is not offered",
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


def test_rows_are_counted_before_anything_is_made_of_them() -> None:
    of = signature(spec("x", "FP32", -1, 3))
    # Were the data looked at, another error would come first.
    nothing = {"name": "x", "shape": [5, 3], "datatype": "FP32", "data": "none"}
    with pytest.raises(TooManyRowsError, match="5 rows are more than the 4"):
        oip.parse(request(nothing), None, of, 4)
    with pytest.raises(TooManyRowsError, match="job"):
        oip.parse(bytes(5 * 12), 0, of, 4)
    assert oip.parse(bytes(4 * 12), 0, of, 4).n_rows == 4
    # A version whose own shape is fixed takes that.
    assert oip.parse(bytes(5 * 12), 0, signature(spec("x", "FP32", 5, 3)), 4).n_rows == 5
