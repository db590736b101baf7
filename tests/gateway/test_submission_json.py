"""Submissions in JSON are what Protobuf's own reader of its JSON form says they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway.hot import submission_json
from inferbus_schemas import messages as m

TEXTS = st.text(max_size=8)
TENSORS = st.builds(
    m.Tensor,
    name=TEXTS,
    datatype=TEXTS,
    shape=st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=4),
    data=st.binary(max_size=20),
)
REQUESTS = st.builds(
    m.SubmittedRequest,
    model=TEXTS,
    version=TEXTS,
    client_request_id=TEXTS,
    inputs=st.none() | st.builds(m.TensorSet, tensors=st.lists(TENSORS, max_size=3)),
    outputs=st.lists(TEXTS, max_size=3),
    timeout_ms=st.integers(0, (1 << 32) - 1),
)


@given(st.builds(m.Submission, requests=st.lists(REQUESTS, max_size=3)), st.booleans())
def test_what_protobuf_writes_is_read_as_it_was(said: m.Submission, snake: bool) -> None:  # noqa: FBT001
    written = json_format.MessageToJson(said, preserving_proto_field_name=snake)
    assert submission_json.parse(written.encode()) == said


def one(**fields: Any) -> Any:
    return {"requests": [{"model": "m", **fields}]}


def tensor(**fields: Any) -> Any:
    return one(inputs={"tensors": [{"name": "x", **fields}]})


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"requests": None},
        one(timeout_ms=5.0),
        one(timeoutMs="7", clientRequestId="mine"),
        one(inputs=None, outputs=None, version=None),
        tensor(shape=[1, "2", 3.0, -1]),
        tensor(data="-_8"),
        tensor(data="+/8="),
        tensor(data="AA"),
    ],
)
def test_other_ways_to_write_it_are_read_as_protobuf_reads_them(said: Any) -> None:
    raw = json.dumps(said).encode()
    assert submission_json.parse(raw) == json_format.Parse(raw, m.Submission())


@pytest.mark.parametrize(
    "said",
    [
        [],
        None,
        {"request": []},
        {"requests": {}},
        {"requests": [None]},
        one(model=1),
        one(no_such_field=1),
        one(timeout_ms=1.5),
        one(timeout_ms=-1),
        one(timeout_ms=1 << 32),
        one(timeout_ms="a"),
        one(timeout_ms=True),
        one(outputs=[1]),
        tensor(shape=[1.5]),
        tensor(shape=["1e3x"]),
        tensor(shape=[1 << 63]),
        tensor(shape=["9" * 5000]),
        tensor(data=7),
        tensor(data="A"),
        tensor(data="!!!"),
        tensor(data="AA=A"),
        tensor(data="AAAA AAAA"),
    ],
)
def test_what_is_none_is_refused_in_words(said: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        submission_json.parse(json.dumps(said).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"requests": [{"model": "\\ud800"}]}', b"NaN"]
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        submission_json.parse(raw)
