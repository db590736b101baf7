"""No ONNX file that keeps data elsewhere gets in, wherever in the graph it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto, helper

from inferbus_registry import errors
from inferbus_registry.versions import onnx_files
from tests.support.registry import onnx_bytes

if TYPE_CHECKING:
    from collections.abc import Callable


async def check(data: bytes, page_bytes: int | None = None) -> None:
    async def read(_sha256: str, start: int, length: int) -> bytes:
        return data[start : start + min(length, page_bytes or length)]

    await onnx_files.check_self_contained(read, "0" * 64, len(data), "model.onnx")


def external() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def model() -> ModelProto:
    return ModelProto.FromString(onnx_bytes())


def in_initializer(made: ModelProto) -> None:
    made.graph.initializer.append(external())


def only_entries_without_the_flag(made: ModelProto) -> None:
    tensor = external()
    tensor.ClearField("data_location")
    made.graph.initializer.append(tensor)


def only_the_flag(made: ModelProto) -> None:
    tensor = external()
    tensor.ClearField("external_data")
    made.graph.initializer.append(tensor)


def in_sparse_values(made: ModelProto) -> None:
    made.graph.sparse_initializer.add().values.CopyFrom(external())


def in_sparse_indices(made: ModelProto) -> None:
    made.graph.sparse_initializer.add().indices.CopyFrom(external())


def in_an_attribute(made: ModelProto) -> None:
    made.graph.node[0].attribute.append(helper.make_attribute("value", external()))


def in_a_list_attribute(made: ModelProto) -> None:
    attribute = AttributeProto(name="v", type=AttributeProto.TENSORS)
    attribute.tensors.append(external())
    made.graph.node[0].attribute.append(attribute)


def in_a_branch_of_a_branch(made: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [external()])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner)
    outer = helper.make_graph([node], "outer", [], [])
    made.graph.node.append(helper.make_node("Loop", ["n"], ["z"], body=outer))


def in_a_function(made: ModelProto) -> None:
    node = made.functions.add(name="f").node.add(op_type="Constant")
    node.attribute.append(helper.make_attribute("value", external()))


def in_training_info(made: ModelProto) -> None:
    made.training_info.add().initialization.initializer.append(external())


HIDING_PLACES = [
    in_initializer,
    only_entries_without_the_flag,
    only_the_flag,
    in_sparse_values,
    in_sparse_indices,
    in_an_attribute,
    in_a_list_attribute,
    in_a_branch_of_a_branch,
    in_a_function,
    in_training_info,
]


async def test_a_whole_file_passes() -> None:
    await check(onnx_bytes())
    await check(onnx_bytes(), page_bytes=1)


@pytest.mark.parametrize("hide", HIDING_PLACES, ids=lambda hide: hide.__name__)
async def test_external_data_is_refused(hide: Callable[[ModelProto], None]) -> None:
    made = model()
    hide(made)
    with pytest.raises(errors.FormatRefusedError, match="in other files"):
        await check(made.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95\x0b\x00\x00\x00.",
        b"PK\x03\x04",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3a" + b"\xff" * 11,
        b"hello, world",
        onnx_bytes()[:-3],
    ],
    ids=["empty", "pickle", "zip", "past the end", "endless number", "text", "cut"],
)
async def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(errors.FormatRefusedError, match="not an ONNX model"):
        await check(data)


async def test_a_tag_that_other_readers_cut_is_refused() -> None:
    # Field 13 of a tensor, with bit 32 of its tag set: C++ readers see external_data there.
    tag = (1 << 35) | (13 << 3) | 2
    varint = bytearray()
    while tag > 127:
        varint.append(tag & 127 | 128)
        tag >>= 7
    varint.append(tag)
    tensor = bytes(varint) + b"\x00"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(errors.FormatRefusedError):
        await check(b"\x3a" + bytes([len(graph)]) + graph)


async def test_nesting_is_bounded() -> None:
    graph = b""
    for _ in range(12):
        for tag in (0x32, 0x2A, 0x0A):  # attribute.g, node.attribute, graph.node
            graph = bytes([tag]) + _length(len(graph)) + graph
    await check(b"\x3a" + _length(len(graph)) + graph)
    for _ in range(12):
        for tag in (0x32, 0x2A, 0x0A):
            graph = bytes([tag]) + _length(len(graph)) + graph
    with pytest.raises(errors.FormatRefusedError):
        await check(b"\x3a" + _length(len(graph)) + graph)


def _length(number: int) -> bytes:
    return bytes([number & 127 | 128, number >> 7]) if number > 127 else bytes([number])


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8))
async def test_damaged_bytes_end_in_a_verdict(flips: list[tuple[int, int]]) -> None:
    made = model()
    in_a_branch_of_a_branch(made)
    data = bytearray(made.SerializeToString())
    for place, value in flips:
        data[place % len(data)] = value
    try:
        await check(bytes(data))
    except errors.FormatRefusedError:
        return
