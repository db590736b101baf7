"""A `Submission` in Protobuf's JSON form; pure.

In: UTF-8 JSON, names as in the .proto or in lowerCamelCase, 64-bit numbers as numbers or texts,
bytes in base64 of either alphabet. Out: the message. Protobuf's own reader of JSON is written in
Python and takes three times as long; who else runs waits for it.
https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import binascii
import re

import msgspec

from inferbus_schemas import messages as m

_Number = int | float | str
_WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_ALPHABET = str.maketrans("-_", "+/")


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None
    datatype: str | None = None
    shape: list[_Number] | None = None
    data: str | None = None


class _Tensors(msgspec.Struct, forbid_unknown_fields=True):
    tensors: list[_Tensor] | None = None


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    version: str | None = None
    client_request_id: str | None = None
    own_id: str | None = msgspec.field(name="clientRequestId", default=None)
    inputs: _Tensors | None = None
    outputs: list[str] | None = None
    timeout_ms: _Number | None = None
    own_timeout_ms: _Number | None = msgspec.field(name="timeoutMs", default=None)


class _Submission(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[_Request] | None = None


_decoder = msgspec.json.Decoder(_Submission)


def parse(raw: bytes) -> m.Submission:
    """Return what JSON says.

    Raises:
        ValueError: it is no Submission; the message says why, and where.
    """
    said = _decoder.decode(raw)
    out = m.Submission()
    for one in said.requests or ():
        _fill(out.requests.add(), one)
    return out


def _fill(request: m.SubmittedRequest, said: _Request) -> None:
    timeout_ms = said.own_timeout_ms if said.timeout_ms is None else said.timeout_ms
    request.model = said.model or ""
    request.version = said.version or ""
    request.client_request_id = said.client_request_id or said.own_id or ""
    request.outputs.extend(said.outputs or ())
    if timeout_ms is not None:
        request.timeout_ms = _whole(timeout_ms, "timeout_ms")
    if said.inputs is not None:
        request.inputs.SetInParent()
        for one in said.inputs.tensors or ():
            _fill_tensor(request.inputs.tensors.add(), one)


def _fill_tensor(tensor: m.Tensor, said: _Tensor) -> None:
    tensor.name = said.name or ""
    tensor.datatype = said.datatype or ""
    tensor.shape.extend([_whole(one, "shape") for one in said.shape or ()])
    if said.data:
        try:
            text = said.data.translate(_ALPHABET).rstrip("=")  # Padding may be left out.
            tensor.data = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
        except ValueError as error:
            raise ValueError(f"data of tensor {tensor.name[:64]!r} is no base64") from error


def _whole(said: _Number, name: str) -> int:
    if isinstance(said, int):
        return said
    if not (_WHOLE.fullmatch(said) if isinstance(said, str) else said.is_integer()):
        raise ValueError(f"{name} must be of whole numbers")
    return int(said)
