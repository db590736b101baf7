"""The network of MiniLM as an ONNX graph, built from its weights without torch.

In: the weights of a BERT encoder by their names in the safetensors file. Out: a graph from token
ids and mask, both INT64 [rows, tokens], to unit vectors FP32 [rows, 384]. Formulas: Devlin et al.,
"BERT" (2018); mean over the tokens that are not padding, then L2 norm: Reimers and Gurevych,
"Sentence-BERT" (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

IDS = "input_ids"
MASK = "attention_mask"
EMBEDDING = "embedding"

_OPSET = 20
_IR_VERSION = 10
_EPSILON = 1e-12
_HIDDEN_SIZE = 384
_HEADS = 12
_HEAD_SIZE = _HIDDEN_SIZE // _HEADS
_LAYERS = 6
# What the original adds to the scores of padding: after softmax it is exactly 0 beside any token,
# and unlike minus infinity it leaves no NaN in a row that is all padding.
_MASKED = float(np.finfo(np.float32).min)


@dataclass(slots=True)
class _Graph:
    """The nodes and constants so far; every name is used once."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def add(self, op: str, *inputs: str, out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def build(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the serialised graph; the same weights give the same bytes.

    Raises:
        KeyError: a weight is missing.
    """
    graph = _Graph()
    _shared_constants(graph)
    hidden = _embed(graph, weights)
    bias = _mask_bias(graph)
    for layer in range(_LAYERS):
        hidden = _layer(graph, weights, layer, hidden, bias)
    _pool(graph, hidden)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "minilm",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"])
                for name in (IDS, MASK)
            ],
            [helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["rows", _HIDDEN_SIZE])],
            graph.constants,
        ),
        producer_name="inferbus-models",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _shared_constants(graph: _Graph) -> None:
    graph.constant("split_heads", np.array([0, 0, _HEADS, _HEAD_SIZE], np.int64))
    graph.constant("join_heads", np.array([0, 0, _HIDDEN_SIZE], np.int64))
    graph.constant("attention_scale", np.array(1 / math.sqrt(_HEAD_SIZE), np.float32))
    graph.constant("first", np.array([0], np.int64))
    graph.constant("axis_0", np.array([0], np.int64))
    graph.constant("axis_1", np.array([1], np.int64))
    graph.constant("axes_1_2", np.array([1, 2], np.int64))
    graph.constant("axis_2", np.array([2], np.int64))


def _linear(
    graph: _Graph, weights: Mapping[str, NDArray[np.float32]], source: str, name: str, value: str
) -> str:
    """Add `value @ W.T + b`."""
    weight = graph.constant(f"{name}.weight", weights[f"{source}.weight"].T)
    bias = graph.constant(f"{name}.bias", weights[f"{source}.bias"])
    return graph.add("Add", graph.add("MatMul", value, weight, out=f"{name}.mul"), bias, out=name)


def _norm(
    graph: _Graph, weights: Mapping[str, NDArray[np.float32]], source: str, name: str, value: str
) -> str:
    scale = graph.constant(f"{name}.scale", weights[f"{source}.LayerNorm.weight"])
    bias = graph.constant(f"{name}.bias", weights[f"{source}.LayerNorm.bias"])
    return graph.add("LayerNormalization", value, scale, bias, out=name, axis=-1, epsilon=_EPSILON)


def _embed(graph: _Graph, weights: Mapping[str, NDArray[np.float32]]) -> str:
    """Add word, segment and position embeddings; a sentence on its own is all segment 0."""
    words = graph.constant("words", weights["embeddings.word_embeddings.weight"])
    segment = graph.constant("segment", weights["embeddings.token_type_embeddings.weight"][0])
    positions = graph.constant("positions", weights["embeddings.position_embeddings.weight"])
    tokens = graph.add("Shape", IDS, out="tokens", start=1, end=2)
    place = graph.add("Slice", positions, "first", tokens, "axis_0", out="place")
    total = graph.add("Gather", words, IDS, out="embed.words")
    total = graph.add("Add", total, segment, out="embed.segment")
    total = graph.add("Add", total, place, out="embed.place")
    return _norm(graph, weights, "embeddings", "embed", total)


def _mask_bias(graph: _Graph) -> str:
    """Add 0 for a token and the lowest float for padding, as [rows, 1, 1, tokens]."""
    graph.constant("masked", np.array(_MASKED, np.float32))
    graph.constant("not_masked", np.array(0, np.float32))
    present = graph.add("Cast", MASK, out="mask.present", to=TensorProto.BOOL)
    wide = graph.add("Unsqueeze", present, "axes_1_2", out="mask.wide")
    return graph.add("Where", wide, "not_masked", "masked", out="mask.bias")


def _layer(
    graph: _Graph,
    weights: Mapping[str, NDArray[np.float32]],
    index: int,
    hidden: str,
    bias: str,
) -> str:
    """Add one encoder layer: attention and feed-forward, each with residual and norm."""
    source = f"encoder.layer.{index}"
    name = f"layer{index}"
    attended = _attention(graph, weights, index, hidden, bias)
    joined = _linear(graph, weights, f"{source}.attention.output.dense", f"{name}.joined", attended)
    summed = graph.add("Add", joined, hidden, out=f"{name}.attended")
    hidden = _norm(graph, weights, f"{source}.attention.output", f"{name}.middle", summed)
    wide = _linear(graph, weights, f"{source}.intermediate.dense", f"{name}.wide", hidden)
    wide = graph.add("Gelu", wide, out=f"{name}.gelu")
    narrow = _linear(graph, weights, f"{source}.output.dense", f"{name}.narrow", wide)
    summed = graph.add("Add", narrow, hidden, out=f"{name}.fed")
    return _norm(graph, weights, f"{source}.output", f"{name}.out", summed)


def _attention(
    graph: _Graph,
    weights: Mapping[str, NDArray[np.float32]],
    index: int,
    hidden: str,
    bias: str,
) -> str:
    """Add softmax(Q K^T / sqrt(head size) + bias) V over all heads, joined to [.., hidden]."""
    source = f"encoder.layer.{index}.attention.self"
    name = f"layer{index}"
    heads = {}
    for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
        flat = _linear(graph, weights, f"{source}.{part}", f"{name}.{part}", hidden)
        cut = graph.add("Reshape", flat, "split_heads", out=f"{name}.{part}.cut")
        heads[part] = graph.add("Transpose", cut, out=f"{name}.{part}.heads", perm=list(order))
    scores = graph.add("MatMul", heads["query"], heads["key"], out=f"{name}.scores.raw")
    scores = graph.add("Mul", scores, "attention_scale", out=f"{name}.scores")
    scores = graph.add("Add", scores, bias, out=f"{name}.scores.masked")
    shares = graph.add("Softmax", scores, out=f"{name}.shares", axis=-1)
    mixed = graph.add("MatMul", shares, heads["value"], out=f"{name}.mixed")
    turned = graph.add("Transpose", mixed, out=f"{name}.turned", perm=[0, 2, 1, 3])
    return graph.add("Reshape", turned, "join_heads", out=f"{name}.heads")


def _pool(graph: _Graph, hidden: str) -> None:
    """Add the mean over the tokens that are there, then divide by its length."""
    graph.constant("least_count", np.array(1e-9, np.float32))
    present = graph.add("Cast", MASK, out="pool.present", to=TensorProto.FLOAT)
    wide = graph.add("Unsqueeze", present, "axis_2", out="pool.wide")
    kept = graph.add("Mul", hidden, wide, out="pool.kept")
    total = graph.add("ReduceSum", kept, "axis_1", out="pool.total", keepdims=0)
    count = graph.add("ReduceSum", present, "axis_1", out="pool.count", keepdims=1)
    count = graph.add("Max", count, "least_count", out="pool.divisor")
    mean = graph.add("Div", total, count, out="pool.mean")
    graph.add("LpNormalization", mean, out=EMBEDDING, axis=1, p=2)
