"""Names, ids, digests, first terminal records, manifests."""

from __future__ import annotations

import hashlib
import struct
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_schemas import envelope, ids, manifest, names, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.terminal import WINDOW_MS, FirstTerminal


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1))
def test_uuid7_is_what_rfc_9562_says(unix_ms: int, entropy: int) -> None:
    made = ids.uuid7(unix_ms, entropy)
    parsed = uuid.UUID(bytes=made)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert ids.unix_ms(made) == unix_ms
    assert ids.is_uuid7(made)
    assert ids.text(made) == str(parsed)


def test_uuid7_keeps_all_its_entropy() -> None:
    made = {ids.uuid7(0, 1 << bit) for bit in range(74)}
    assert len(made) == 74


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "../x", "a/b", "A", "-a", "a\r\nb", "a..b", "stats", "\u202ea", "a;b"]
)
def test_hostile_model_names_are_refused(name: str) -> None:
    with pytest.raises(names.InvalidNameError):
        names.check_model(name)


def test_aliases_are_never_numbers() -> None:
    assert names.check_alias("champion") == "champion"
    with pytest.raises(names.InvalidNameError):
        names.check_alias("2")


def test_no_tenant_is_named_as_our_own_consumer_groups_are() -> None:
    """Kafka's ACLs give a tenant the groups that begin with its name and a dot."""
    for role in ("gateway", "worker", "logger"):
        with pytest.raises(names.InvalidNameError, match="consumer groups"):
            names.check_tenant(role)
    assert names.check_tenant("gateway-acme") == "gateway-acme"


def test_output_digest_is_the_documented_bytes() -> None:
    tensor = m.Tensor(name="y", datatype="INT64", shape=[2], data=struct.pack("<2q", 1, -1))
    by_hand = b"\x01\x00\x00\x00y\x05\x00\x00\x00INT64\x01" + struct.pack("<q", 2)
    by_hand += struct.pack("<Q", 16) + struct.pack("<2q", 1, -1)
    assert tensors.output_sha256([tensor]) == hashlib.sha256(by_hand).digest()


@given(
    st.lists(
        st.tuples(
            st.text(max_size=9),
            st.sampled_from(sorted(tensors.DATATYPES)),
            st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
            st.binary(max_size=300),
        ),
        max_size=4,
    )
)
def test_heads_and_bytes_are_the_message_and_the_digest(
    given_tensors: list[tuple[str, str, tuple[int, ...], bytes]],
) -> None:
    message, digest = b"", b""
    for name, datatype, shape, data in given_tensors:
        heads = tensors.heads(name, datatype, shape, len(data))
        message += heads.message + data
        digest += heads.digest + data
    whole = m.TensorSet(
        tensors=[
            m.Tensor(name=name, datatype=datatype, shape=shape, data=data)
            for name, datatype, shape, data in given_tensors
        ]
    )
    assert message == whole.SerializeToString()
    assert hashlib.sha256(digest).digest() == tensors.output_sha256(whole.tensors)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_bytes_elements_round_trip(elements: list[bytes]) -> None:
    assert tensors.split_bytes(tensors.join_bytes(elements)) == elements


@pytest.mark.parametrize(
    "tensor",
    [
        m.Tensor(name="x", datatype="FP32", shape=[-1], data=b""),
        m.Tensor(name="x", datatype="FP32", shape=[2], data=b"1234"),
        m.Tensor(name="x", datatype="FP32", shape=[2**40, 2**40], data=b""),
        m.Tensor(name="x", datatype="FP32", shape=[1] * 9, data=b"1234"),
        m.Tensor(name="x", datatype="FP99", shape=[1], data=b"1234"),
        m.Tensor(name="x", datatype="BYTES", shape=[1], data=b"\xff\xff\xff\xff"),
        m.Tensor(name="x", datatype="BYTES", shape=[1], data=b"\x00\x00\x00\x00" * 2),
        m.Tensor(name="x", datatype="BYTES", shape=[2], data=b"\x00\x00\x00\x00"),
    ],
)
def test_tensors_that_lie_are_refused(tensor: m.Tensor) -> None:
    with pytest.raises(tensors.TensorError):
        tensors.check(tensor)


def test_first_terminal_wins_and_attempts_do_not_count() -> None:
    seen = FirstTerminal()
    assert not seen.first(b"a", m.OUTCOME_ATTEMPT_FAILED, 0)
    assert seen.first(b"a", m.OUTCOME_OK, 1)
    assert not seen.first(b"a", m.OUTCOME_DEADLINE_EXCEEDED, 2)
    assert seen.first(b"b", 77, 3), "an outcome that we do not know is terminal"


def test_first_terminal_forgets_after_an_hour() -> None:
    seen = FirstTerminal()
    assert seen.first(b"a", m.OUTCOME_OK, 1000)
    assert seen.first(b"b", m.OUTCOME_OK, 1000 + WINDOW_MS)
    assert len(seen) == 2
    assert seen.first(b"c", m.OUTCOME_OK, 1001 + WINDOW_MS)
    assert len(seen) == 2


def test_envelope_has_five_headers() -> None:
    made = envelope.headers("t", "/inferbus/gateway/g", "1")
    assert len(made) == 5
    envelope.check(made, "t")
    with pytest.raises(envelope.EnvelopeError):
        envelope.check(made, "other")
    traced = envelope.headers("t", "/s", "1", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    assert envelope.traceparent(traced).startswith("00-aaaa")


def _manifest(**changes: object) -> bytes:
    base: dict[str, object] = {
        "model": "m",
        "task": "tensor",
        "engine": "onnx",
        "signature": {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
        },
        "files": [{"path": "model.onnx", "sha256": "0" * 64, "size_bytes": 1}],
    }
    return msgspec.json.encode(base | changes)


def test_identity_is_what_answers_depend_on() -> None:
    base = manifest.parse(_manifest())
    assert manifest.parse(manifest.encode(base)) == base
    same = manifest.parse(_manifest(description="other words", batching={"max_rows": 8}))
    other = manifest.parse(_manifest(engine_settings={"intra_op_threads": 2}))
    assert manifest.version_sha256(base) == manifest.version_sha256(same)
    assert manifest.version_sha256(base) != manifest.version_sha256(other)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[" * 100_000,
        _manifest(model="../x"),
        _manifest(extra=1),
        _manifest(files=[{"path": "../model.onnx", "sha256": "0" * 64, "size_bytes": 1}]),
        _manifest(files=[{"path": "model.pkl", "sha256": "0" * 64, "size_bytes": 1}]),
        _manifest(files=[{"path": "model.onnx", "sha256": "0" * 63, "size_bytes": 1}]),
        _manifest(files=[{"path": "m.onnx", "sha256": "0" * 64, "size_bytes": 1}] * 2),
        _manifest(files=[]),
    ],
)
def test_bad_manifests_are_refused(raw: bytes) -> None:
    with pytest.raises(manifest.ManifestError):
        manifest.parse(raw)
