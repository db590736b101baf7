"""Finding tensors that keep their data elsewhere, wherever a graph can hide them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from inferbus_worker.engines.external_data import NotOnnxError, has_external_data


def _tensor(*, external: bool) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones((2,), np.float32), "w")
    if external:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="elsewhere")
    return tensor


def _model(graph: Any, **fields: Any) -> bytes:
    raw: bytes = helper.make_model(graph, **fields).SerializeToString()
    return raw


def _graph(nodes: list[Any], initializers: list[Any]) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    return helper.make_graph(nodes, "g", [value], [value], initializers)


def _in_initializer(*, external: bool) -> bytes:
    return _model(_graph([], [_tensor(external=external)]))


def _in_constant(*, external: bool) -> bytes:
    node = helper.make_node("Constant", [], ["c"], value=_tensor(external=external))
    return _model(_graph([node], []))


def _in_subgraph(*, external: bool) -> bytes:
    body = _graph([], [_tensor(external=external)])
    node = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=_graph([], []))
    return _model(_graph([node], []))


def _in_function(*, external: bool) -> bytes:
    node = helper.make_node("Constant", [], ["c"], value=_tensor(external=external))
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("d", "F", [], ["c"], [node], [opset])
    return _model(_graph([], []), functions=[function])


def _in_sparse(*, external: bool) -> bytes:
    sparse = onnx.SparseTensorProto(values=_tensor(external=external), dims=[4])
    graph = _graph([], [])
    graph.sparse_initializer.append(sparse)
    return _model(graph)


@pytest.mark.parametrize(
    "make", [_in_initializer, _in_constant, _in_subgraph, _in_function, _in_sparse]
)
def test_it_is_found_wherever_it_is(make: Any) -> None:
    assert has_external_data(make(external=True))
    assert not has_external_data(make(external=False))


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_or_refused(data: bytes) -> None:
    with contextlib.suppress(NotOnnxError):
        assert has_external_data(data) in {True, False}


def test_a_graph_that_nests_without_end_is_refused() -> None:
    body = _graph([], [])
    for _ in range(25):
        node = helper.make_node("If", ["x"], ["y"], then_branch=body)
        body = _graph([node], [])
    with pytest.raises(NotOnnxError, match="deep"):
        has_external_data(_model(body))
