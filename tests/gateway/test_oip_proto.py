"""Messages of the gRPC service, infer only: what is read, what is written."""

from __future__ import annotations

import contextlib
import filecmp
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway.errors import FailedError, InvalidRequestError, TooManyRowsError
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot import oip_proto
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m
from tests.gateway.oip_bodies import (
    CALM,
    CANCER,
    PAIR,
    RANGES,
    filled,
    packed,
    read,
    signature,
    spec,
)

GATEWAY = Path(__file__).resolve().parents[2] / "services" / "gateway"
FIELDS = {
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}
SIX = struct.pack("<6f", 1, 2, 3, 4, 5, 6)


def field_of(datatype: str) -> str:
    return FIELDS.get(datatype) or ("uint_contents" if datatype.startswith("U") else "int_contents")


def contents(datatype: str, values: list[Any]) -> pb.InferTensorContents:
    if datatype == "BYTES":
        values = [value.encode() for value in values]
    return pb.InferTensorContents(**{field_of(datatype): values})


def item(
    name: str = "features",
    datatype: str = "FP32",
    shape: tuple[int, ...] = (2, 3),
    values: list[Any] | None = None,
    **more: Any,
) -> pb.ModelInferRequest.InferInputTensor:
    if values is not None:
        more["contents"] = contents(datatype, values)
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **more)


def request(*inputs: pb.ModelInferRequest.InferInputTensor, **more: Any) -> pb.ModelInferRequest:
    if not inputs:
        inputs = (item(values=[1, 2, 3, 4, 5, 6]),)
    return pb.ModelInferRequest(model_name="m", inputs=inputs, **more)


def output(name: str, **parameters: Any) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    return pb.ModelInferRequest.InferRequestedOutputTensor(
        name=name,
        parameters={key: pb.InferParameter(**value) for key, value in parameters.items()},
    )


def refusal(asked: pb.ModelInferRequest, of: manifest.Signature = CANCER) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        oip_proto.parse(asked, of)
    message = str(caught.value)
    assert 0 < len(message) < 400
    return message


@CALM
@given(filled())
def test_typed_contents_become_the_bytes_that_the_protocol_defines(
    case: tuple[str, tuple[int, ...], list[Any]],
) -> None:
    datatype, shape, values = case
    of = signature(spec("x", datatype, -1, *(-1 for _ in shape[1:])))
    asked = request(item("x", datatype, shape, values))
    parsed = oip_proto.parse(pb.ModelInferRequest.FromString(asked.SerializeToString()), of)
    assert read(parsed) == [("x", datatype, shape, packed(datatype, values))]
    assert parsed.n_rows == shape[0]
    assert parsed.binary == frozenset()


@CALM
@given(filled())
def test_raw_contents_are_taken_as_they_are(
    case: tuple[str, tuple[int, ...], list[Any]],
) -> None:
    datatype, shape, values = case
    of = signature(spec("x", datatype, -1, *(-1 for _ in shape[1:])))
    raw = packed(datatype, values)
    parsed = oip_proto.parse(request(item("x", datatype, shape), raw_input_contents=[raw]), of)
    assert read(parsed) == [("x", datatype, shape, raw)]
    assert parsed.binary is None


@CALM
@given(filled(), st.booleans())
def test_what_render_writes_parse_reads_back(
    case: tuple[str, tuple[int, ...], list[Any]],
    raw: bool,  # noqa: FBT001
) -> None:
    datatype, shape, values = case
    tensor = m.Tensor(name="x", datatype=datatype, shape=shape, data=packed(datatype, values))
    answer = oip_proto.render([tensor], model="m", version=7, client_request_id="c", raw=raw)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "7", "c")
    assert len(answer.raw_output_contents) == raw
    (said,) = answer.outputs
    back = pb.ModelInferRequest.InferInputTensor.FromString(said.SerializeToString())
    of = signature(spec("x", datatype, -1, *(-1 for _ in shape[1:])))
    again = request(back, raw_input_contents=answer.raw_output_contents)
    assert read(oip_proto.parse(again, of)) == [("x", datatype, shape, tensor.data)]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_raw_only(datatype: Any) -> None:
    of = signature(spec("x", datatype, -1), outputs=(spec("y", "FP32", -1),))
    parsed = oip_proto.parse(
        request(item("x", datatype, (2,)), raw_input_contents=[b"\0\1\2\3"]), of
    )
    assert read(parsed) == [("x", datatype, (2,), b"\0\1\2\3")]
    typed = item("x", datatype, (2,), contents=pb.InferTensorContents(fp32_contents=[1, 2]))
    assert f"{datatype} has no typed form" in refusal(request(typed), of)


def test_a_typed_request_for_an_output_without_typed_form_is_answered_raw() -> None:
    of = signature(spec("x", "FP32", -1), outputs=(spec("y", "FP16", -1), spec("z", "FP32", -1)))
    one = item("x", "FP32", (1,), [1])
    assert oip_proto.parse(request(one), of).binary is None
    assert oip_proto.parse(request(one, outputs=[output("z")]), of).binary == frozenset()
    two = output("y", classification={"int64_param": 1})
    assert oip_proto.parse(request(one, outputs=[two]), of).binary == frozenset()


def test_inputs_are_put_in_the_order_of_the_signature() -> None:
    text = item("b", "BYTES", (1,))
    numbers = item("a", "FP32", (1, 2))
    raw = [tensors.join_bytes([b"\xff"]), struct.pack("<2f", 1, 2)]
    parsed = oip_proto.parse(request(text, numbers, raw_input_contents=raw), PAIR)
    assert [(name, data) for name, _, _, data in read(parsed)] == [("a", raw[1]), ("b", raw[0])]


def test_options_are_read() -> None:
    parsed = oip_proto.parse(
        request(
            id="mine",
            parameters={
                "timeout": pb.InferParameter(uint64_param=5),
                "mine": pb.InferParameter(string_param="ignored"),
                "priority": pb.InferParameter(uint64_param=1),
                "sequence_id": pb.InferParameter(int64_param=0),
                "sequence_start": pb.InferParameter(bool_param=False),
                "sequence_end": pb.InferParameter(),
            },
            outputs=[output("probabilities", classification={"int64_param": 2}), output("label")],
        ),
        CANCER,
    )
    assert (parsed.client_request_id, parsed.timeout_us) == ("mine", 5)
    assert parsed.outputs == ("probabilities", "label")
    assert parsed.classes == {"probabilities": 2}
    nothing = oip_proto.parse(request(), CANCER)
    assert (nothing.client_request_id, nothing.timeout_us, nothing.outputs) == ("", None, ())
    assert not nothing.classes


def test_not_a_number_and_infinity_pass() -> None:
    values = [float("inf"), float("-inf"), float("nan"), 0, 0, 0]
    parsed = oip_proto.parse(request(item(values=values)), CANCER)
    found = struct.unpack("<6f", read(parsed)[0][3])
    assert found[:2] == (float("inf"), float("-inf"))
    assert found[2] != found[2]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (pb.ModelInferRequest(), "inputs are missing; add 'features'"),
        (request(item(values=[1, 2])), "the shape says 6 elements, fp32_contents has 2"),
        (request(item()), "the shape says 6 elements, fp32_contents has 0"),
        (request(item("no", values=[1])), "no input 'no'; it takes 'features'"),
        (request(item(values=[1] * 6), item(values=[1] * 6)), "given twice"),
        (request(item(datatype="FP64", values=[1] * 6)), "must be FP32, not 'FP64'"),
        (request(item(shape=(0, 3))), "one row at least"),
        (request(item(shape=(-1, 3))), "one row at least"),
        (request(item(shape=(2, 4))), "the shape must be [-1, 3]"),
        (request(item(shape=(2**62, 3))), "more than the 4096 that a request may have"),
        (
            request(item(contents=pb.InferTensorContents(fp64_contents=[1] * 6))),
            "stand in fp32_contents and nowhere else, not in fp64_contents",
        ),
        (
            request(item(contents=pb.InferTensorContents(fp32_contents=[1] * 6, int_contents=[1]))),
            "nowhere else, not in int_contents, fp32_contents",
        ),
        (request(raw_input_contents=[SIX]), "both contents and raw_input_contents"),
        (request(item(), raw_input_contents=[SIX, SIX]), "2 entries for 1 inputs"),
        (request(item(), raw_input_contents=[SIX[:-1]]), "say 24 bytes, the binary data has 23"),
        (
            request(item(parameters={"shared_memory_region": pb.InferParameter(string_param="r")})),
            "shared memory is not offered",
        ),
        *(
            (request(parameters={name: value}), "sequences are not offered")
            for name, value in (
                ("sequence_id", pb.InferParameter(int64_param=7)),
                ("sequence_id", pb.InferParameter(uint64_param=7)),
                ("sequence_id", pb.InferParameter(string_param="s")),
                ("sequence_start", pb.InferParameter(bool_param=True)),
                ("sequence_end", pb.InferParameter(bool_param=True)),
            )
        ),
        (request(id="x" * 257), "256 characters"),
        (request(outputs=[output("no")]), "no output 'no'"),
        (request(outputs=[output("label"), output("label")]), "asked for twice"),
        (
            request(outputs=[output("label", classification={"int64_param": 0})]),
            "classification must be 1 to 1000",
        ),
        (
            request(outputs=[output("label", classification={"string_param": "3"})]),
            "classification must be a whole number",
        ),
        (
            request(outputs=[output("label", shared_memory_region={"string_param": "r"})]),
            "shared memory is not offered",
        ),
        (
            request(parameters={"timeout": pb.InferParameter(int64_param=-1)}),
            "timeout must be a whole number",
        ),
        (request(parameters={"timeout": pb.InferParameter()}), "timeout must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(asked: pb.ModelInferRequest, says: str) -> None:
    assert says in refusal(asked)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
def test_narrow_integers_past_the_range_are_refused_never_wrapped(datatype: Any) -> None:
    low, high = RANGES[datatype]
    of = signature(spec("x", datatype, -1))
    parsed = oip_proto.parse(request(item("x", datatype, (2,), [low, high])), of)
    assert read(parsed)[0][3] == packed(datatype, [low, high])
    assert f"range of {datatype}" in refusal(request(item("x", datatype, (1,), [high + 1])), of)


@CALM
@given(st.binary(max_size=64), st.booleans())
def test_any_message_is_read_or_refused(
    noise: bytes,
    merged: bool,  # noqa: FBT001
) -> None:
    head = request(item(), raw_input_contents=[SIX]).SerializeToString() if merged else b""
    try:
        asked = pb.ModelInferRequest.FromString(head + noise)
    except DecodeError:
        return
    with contextlib.suppress(InvalidRequestError):
        oip_proto.parse(asked, CANCER)


def test_an_answer_that_does_not_fit_its_shape_is_a_failure() -> None:
    broken = m.Tensor(name="y", datatype="FP32", shape=[2], data=b"\0")
    with pytest.raises(FailedError, match="does not fit its own shape"):
        oip_proto.render([broken], model="m", version=1, client_request_id="", raw=True)


def test_generated_code_is_current(tmp_path: Path) -> None:
    out = tmp_path / "gen"
    program = GATEWAY / "generate_grpc.py"
    subprocess.run([sys.executable, str(program), str(out)], check=True, timeout=60)
    stored = GATEWAY / "inferbus_gateway" / "gen"
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(p.name for p in stored.iterdir() if p.is_file())
    assert filecmp.cmpfiles(out, stored, names, shallow=False)[0] == names, "run `make proto`"


def test_rows_are_counted_before_anything_is_made_of_them() -> None:
    # Were the contents looked at, another error would come first.
    with pytest.raises(TooManyRowsError, match="5 rows are more than the 4"):
        oip_proto.parse(request(item(shape=(5, 3), values=[1])), CANCER, 4)
    with pytest.raises(TooManyRowsError, match="job"):
        oip_proto.parse(request(item(shape=(1 << 40, 3))), CANCER)
