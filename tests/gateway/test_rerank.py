"""Nearness of texts: order, pairs, what is refused."""

from __future__ import annotations

import math
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from inferbus_gateway import errors
from inferbus_gateway.hot import embeddings, rerank
from inferbus_schemas import ids

REQUEST_ID = ids.uuid7(1_700_000_000_123, 5)
TARGET: Any = SimpleNamespace(
    model="m",
    manifest=SimpleNamespace(
        task="text-embedding",
        signature=SimpleNamespace(outputs=(SimpleNamespace(shape=(-1, 2)),)),
    ),
)


def vector(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_nearest_first_and_equal_ones_in_their_order() -> None:
    body = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}, "c", "d"], "top_n": 3}
    ask = rerank.read_rerank(body, TARGET)
    assert ask.texts == [b"q", b"a", b"b", b"c", b"d"]
    said = ask.answer(
        REQUEST_ID, [vector(1, 0), vector(0, 1), vector(3, 0), vector(2, 0), vector(0, 0)], 5
    )
    assert [(one["index"], one["document"]["text"]) for one in said["results"]] == [
        (1, "b"),
        (2, "c"),
        (0, "a"),
    ]
    assert [one["relevance_score"] for one in said["results"]] == [1.0, 1.0, 0.0]
    assert said["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    bare = rerank.read_rerank(body | {"return_documents": False}, TARGET)
    assert "document" not in bare.answer(REQUEST_ID, [vector(1, 0)] * 5, 5)["results"][0]


def test_one_is_held_against_many_and_many_against_as_many() -> None:
    one = rerank.read_score({"model": "m", "text_1": "a", "text_2": ["b", "c"]}, TARGET)
    said = one.answer(REQUEST_ID, [vector(1, 0), vector(1, 1), vector(-1, 0)], 5)
    scores = [each["score"] for each in said["data"]]
    assert scores == [pytest.approx(math.sqrt(0.5)), -1.0]
    many = rerank.read_score({"model": "m", "text_1": ["a", "b"], "text_2": ["c", "d"]}, TARGET)
    said = many.answer(REQUEST_ID, [vector(1, 0), vector(0, 1), vector(1, 0), vector(0, -1)], 5)
    assert [each["score"] for each in said["data"]] == [1.0, -1.0]


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (rerank.read_rerank, {"query": "q", "documents": []}),
        (rerank.read_rerank, {"query": "q", "documents": ["a"] * 513}),
        (rerank.read_rerank, {"query": "", "documents": ["a"]}),
        (rerank.read_rerank, {"query": "q", "documents": ["a"], "top_n": True}),
        (rerank.read_rerank, {"query": "q", "documents": [{"txt": "a"}]}),
        (rerank.read_score, {"text_1": ["a", "b"], "text_2": ["c"]}),
        (rerank.read_score, {"text_1": "a", "text_2": "b", "x": 1}),
        (embeddings.read, {"input": [1, 2]}),
        (embeddings.read, {"input": [[1, 2], [3]]}),
        (embeddings.read, {"input": "a", "encoding_format": []}),
        (embeddings.read, {"input": "a", "dimensions": 3}),
    ],
)
def test_what_cannot_be_read_is_refused(read: Any, body: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError):
        read({"model": "m", **body}, TARGET)
