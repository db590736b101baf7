"""The classification of outputs: greatest values, as Triton writes them."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from inferbus_gateway.errors import FailedError, InvalidRequestError
from inferbus_gateway.hot import classify, oip
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from tests.gateway.oip_bodies import CANCER, refusal, request

NAMES = {"classes": ["malignant", "benign", "unclear"]}


def tensor(code: str, datatype: str, shape: list[int], *values: float) -> m.Tensor:
    data = struct.pack(f"<{len(values)}{code}", *values)
    return m.Tensor(name="y", datatype=datatype, shape=shape, data=data)


def classified(given: m.Tensor, n: int, settings: dict[str, Any] | None = None) -> list[str]:
    (said,) = classify.replace([given], {"y": n}, settings or {})
    assert (said.name, said.datatype) == ("y", "BYTES")
    found = [one.decode() for one in tensors.split_bytes(said.data)]
    assert tensors.n_elements(said.shape) == len(found)
    assert said.shape[0] == (given.shape[0] if given.shape else 1)
    return found


def test_the_greatest_of_each_row_come_first_with_their_labels() -> None:
    given = tensor("f", "FP32", [2, 3], 0.25, 0.5, 0.25, 3, 1, 2)
    assert classified(given, 2, NAMES) == [
        "0.500000:1:benign",
        "0.250000:0:malignant",
        "3.000000:0:malignant",
        "2.000000:2:unclear",
    ]
    assert classified(given, 9)[:3] == ["0.500000:1", "0.250000:0", "0.250000:2"]


def test_whole_numbers_stay_whole_and_further_dimensions_are_one_row() -> None:
    given = tensor("q", "INT64", [1, 2, 2], 5, -1, 9, 7)
    assert classified(given, 3) == ["9:2", "7:3", "5:0"]
    assert classified(tensor("B", "UINT8", [3], 4, 9, 1), 5) == ["4:0", "9:0", "1:0"]
    assert classified(tensor("e", "FP16", [1, 2], 0.5, 1.5), 1) == ["1.500000:1"]


def test_not_a_number_is_the_last_class() -> None:
    given = tensor("f", "FP32", [1, 3], float("nan"), 1, float("-inf"))
    assert classified(given, 2) == ["1.000000:1", "nan:0"]
    assert classified(tensor("f", "FP32", [0, 3]), 2) == []


def test_labels_that_are_none_are_left_out() -> None:
    given = tensor("f", "FP32", [1, 2], 1, 2)
    assert classified(given, 1, {"classes": "ab"}) == ["2.000000:1"]
    assert classified(given, 1, {"classes": ["only"]}) == ["2.000000:1"]


def test_other_outputs_stay() -> None:
    given = tensor("f", "FP32", [1], 1)
    assert classify.replace([given], {"z": 1}, {}) == [given]


def test_too_many_elements_are_refused_and_broken_ones_are_a_failure() -> None:
    with pytest.raises(InvalidRequestError, match="20000 rows of 1 classes"):
        classify.replace([tensor("B", "UINT8", [20_000], *([0] * 20_000))], {"y": 1}, {})
    with pytest.raises(FailedError):
        classify.replace([tensor("f", "FP32", [2], 1)], {"y": 1}, {})


def test_an_http_request_asks_for_it() -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}}]
    parsed = oip.parse(request(outputs=wanted), None, CANCER)
    assert (parsed.outputs, parsed.classes) == (("probabilities",), {"probabilities": 2})
    given = m.Tensor(
        name="probabilities", datatype="FP32", shape=[1, 2], data=struct.pack("<2f", 0.25, 0.75)
    )
    rendered = oip.render(
        classify.replace([given], parsed.classes, NAMES),
        model="m",
        version=1,
        client_request_id="",
        binary=parsed.binary,
    )
    assert json.loads(rendered.body)["outputs"] == [
        {
            "name": "probabilities",
            "datatype": "BYTES",
            "shape": [1, 2],
            "data": ["0.750000:1:benign", "0.250000:0:malignant"],
        }
    ]


def test_what_has_no_greatest_values_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="BYTES has no greatest values"):
        classify.check("text", "BYTES")
    for value in (0, 1001, "3", 1.5):
        asked = [{"name": "label", "parameters": {"classification": value}}]
        assert "classification" in refusal(request(outputs=asked))
