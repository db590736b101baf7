"""Open Inference Protocol V2 bodies of the infer route, JSON and binary tensors.

In: the body of a request and the signature of its version. Out: the tensors to put on the bus in
the signature's order, and how the client wants its answer. And back: the tensors of an answer,
out: the body of the response.

What a JSON element may be stands in `numbers`. Further choices: unknown keys and parameters are
ignored, but a key given twice is refused, since two readers could take different values for it;
so are shared memory and sequences, which would change the answer. `null` stands for an optional key
left out.
`timeout` 0 means none, as in Triton. A raw request (`Inference-Header-Content-Length: 0`) for a
BYTES input is one element without its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from inferbus_gateway.errors import InvalidRequestError, TooManyRowsError
from inferbus_gateway.hot import classify, fit, numbers, oip_body
from inferbus_gateway.hot.fit import NOT_CLASSIFIED, Parsed, Plan
from inferbus_gateway.hot.oip_body import Input, Output
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m

__all__ = ["Parsed", "Rendered", "parse", "render"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A response body; `json_length` is set if and only if binary tensors follow the JSON."""

    body: bytes
    json_length: int | None


class _OutputBody(msgspec.Struct, frozen=True, gc=False):
    name: str
    datatype: str
    shape: list[int]
    data: Any = UNSET
    parameters: dict[str, int] | UnsetType = UNSET


class _Response(msgspec.Struct, frozen=True, gc=False):
    model_name: str
    model_version: str
    id: str | UnsetType
    outputs: list[_OutputBody]


_encode = msgspec.json.Encoder().encode


def parse(
    body: bytes,
    json_length: int | None,
    signature: manifest.Signature,
    max_rows: int = fit.MAX_ROWS,
) -> Parsed:
    """Return the request in `body`, checked against `signature`.

    Args:
        body: the whole body, decompressed.
        json_length: the value of `Inference-Header-Content-Length`, None without that header;
            0 = the body is the raw bytes of the only input, all outputs are binary.
        signature: of the version that the request is for.
        max_rows: that the request may have.

    Raises:
        InvalidRequestError: it is not well formed or does not fit; the message says what to change.
        TooManyRowsError: it has too many.
    """
    if json_length == 0:
        return _parse_raw(body, signature, max_rows)
    if json_length is None:
        head = body
    elif 0 < json_length <= len(body):
        head = body[:json_length]
    else:
        raise InvalidRequestError(
            "Inference-Header-Content-Length must be the length of the JSON at the body's start"
        )
    try:
        request = oip_body.decode(head)
    except oip_body.BodyError as error:
        raise InvalidRequestError(str(error)) from None
    plan = fit.plan(signature)
    tensor_set, n_rows = _read_inputs(request.inputs, body, json_length, plan, max_rows)
    client_request_id = fit.check_id(request.id or "")
    parameters = request.parameters
    timeout_us: int | None = None
    all_binary = False
    if parameters:
        if parameters.sequence_id or parameters.sequence_start or parameters.sequence_end:
            raise InvalidRequestError(fit.NO_SEQUENCES)
        timeout_us = parameters.timeout or None
        all_binary = bool(parameters.binary_data_output)
    outputs, binary, classes = _read_outputs(request.outputs or (), plan, all_binary=all_binary)
    return Parsed(client_request_id, tensor_set, n_rows, outputs, binary, timeout_us, classes)


def _read_inputs(
    inputs: Sequence[Input], body: bytes, json_length: int | None, plan: Plan, max_rows: int
) -> tuple[bytes, int]:
    """Return the serialised tensors in the signature's order and the number of rows."""
    placed: list[bytes] = [b""] * len(plan.inputs)
    rows: int | None = None
    n_rows = 1
    at = json_length
    for item in inputs:
        index, spec = fit.place(item, plan, placed)
        rows = fit.check_shape(item, spec, rows, max_rows)
        if item.parameters and item.parameters.shared_memory_region is not UNSET:
            raise InvalidRequestError(
                f"input {spec.name!r}: shared memory is not offered; leave that parameter out"
            )
        try:
            count = tensors.n_elements(item.shape)
            size = item.parameters.binary_data_size if item.parameters else None
            if size is None:
                data = _json_data(item, count)
            else:
                data = _binary_data(item, count, body, at, size)
                at = (at or 0) + size
        except (numbers.NumbersError, tensors.TensorError) as error:
            raise InvalidRequestError(f"input {spec.name!r}: {error}") from None
        head = tensors.heads(spec.name, spec.datatype, item.shape, len(data))
        placed[index] = head.message + data
        if index == 0 and item.shape:
            n_rows = item.shape[0]
    if at is not None and at != len(body):
        raise InvalidRequestError(
            "the lengths in binary_data_size do not add up to the bytes after the JSON"
        )
    return fit.joined(plan, placed), n_rows


def _json_data(item: Input, count: int) -> bytes:
    text = item.data
    if text is UNSET:
        raise numbers.NumbersError("has neither data nor binary_data_size; add one of them")
    return numbers.pack(text, item.datatype, item.shape, count)


def _binary_data(item: Input, count: int, body: bytes, at: int | None, size: int) -> bytes:
    """Return the `size` bytes of `body` that are the input's data; `at` = where they begin."""
    if at is None:
        raise numbers.NumbersError(
            "binary_data_size needs the header Inference-Header-Content-Length"
        )
    if item.data is not UNSET:
        raise numbers.NumbersError("has both data and binary_data_size; leave one out")
    if size > len(body) - at:
        raise numbers.NumbersError("the body ends before its binary data does")
    data = body[at : at + size]
    numbers.check(data, item.datatype, count)
    return data


def _read_outputs(
    wanted: Sequence[Output], plan: Plan, *, all_binary: bool
) -> tuple[tuple[str, ...], frozenset[str] | None, Mapping[str, int]]:
    """Return the wanted outputs, which of them are to be binary and which classified."""
    chosen: dict[str, bool] = {}
    classes: dict[str, int] = {}
    for item in wanted:
        fit.check_output(item.name, plan, chosen)
        chosen[item.name] = all_binary
        parameters = item.parameters
        if parameters is None:
            continue
        if parameters.shared_memory_region is not UNSET:
            raise InvalidRequestError(
                f"output {item.name!r}: shared memory is not offered; leave that parameter out"
            )
        if parameters.binary_data is not None:
            chosen[item.name] = parameters.binary_data
        if parameters.classification is not None:
            classify.check(item.name, plan.outputs[item.name])
            classes[item.name] = parameters.classification
    if all_binary if not chosen else all(chosen.values()):
        return tuple(chosen), None, classes or NOT_CLASSIFIED
    binary = frozenset(name for name, is_binary in chosen.items() if is_binary)
    for name in plan.binary_only:
        if name not in binary and name not in classes and (not chosen or name in chosen):
            raise InvalidRequestError(
                f"output {name!r}: {plan.outputs[name]} has no JSON form; "
                f"ask for this output with the parameter binary_data true"
            )
    return tuple(chosen), binary, classes or NOT_CLASSIFIED


def _parse_raw(body: bytes, signature: manifest.Signature, max_rows: int) -> Parsed:
    """Return the request whose body is the bytes of the only input and nothing else."""
    if len(signature.inputs) != 1:
        raise InvalidRequestError(
            "a raw request needs a model with one input; name the inputs in JSON "
            "and set Inference-Header-Content-Length to its length"
        )
    (spec,) = signature.inputs
    data = body
    if spec.datatype == "BYTES":
        shape = [1 if dim == -1 else dim for dim in spec.shape]
        data = tensors.join_bytes((body,))
    else:
        shape = _deduce(spec, len(body))
        if spec.shape[:1] == (-1,) and shape[0] > max_rows:
            raise TooManyRowsError(spec.name, shape[0], max_rows)
    try:
        numbers.check(data, spec.datatype, tensors.n_elements(shape))
    except (numbers.NumbersError, tensors.TensorError) as error:
        raise InvalidRequestError(f"input {spec.name!r}: {error}") from None
    tensor = m.Tensor(name=spec.name, datatype=spec.datatype, shape=shape, data=data)
    serialised = m.TensorSet(tensors=[tensor]).SerializeToString()
    return Parsed("", serialised, shape[0] if shape else 1, (), None, None)


def _deduce(spec: manifest.TensorSpec, n_bytes: int) -> list[int]:
    """Return the shape that `n_bytes` fill: one row if another size is open, else all the rows."""
    shape = list(spec.shape)
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise InvalidRequestError(
            f"input {spec.name!r}: its shape {list(spec.shape)} cannot be told from a raw body; "
            f"name the input and its shape in JSON"
        )
    if -1 in shape:
        row_bytes = tensors.ITEM_BYTES[spec.datatype]
        for dim in shape:
            row_bytes *= 1 if dim == -1 else dim
        if not row_bytes or not n_bytes or n_bytes % row_bytes:
            raise InvalidRequestError(
                f"input {spec.name!r}: the raw body must be a multiple of {row_bytes} bytes, "
                f"and not empty"
            )
        shape[shape.index(-1)] = n_bytes // row_bytes
    return shape


def render(
    outputs: Iterable[m.Tensor],
    *,
    model: str,
    version: int,
    client_request_id: str,
    binary: frozenset[str] | None,
) -> Rendered:
    """Return the response body for an answer.

    Args:
        outputs: the tensors to return, in order.
        model: the model's name.
        version: the version that answered.
        client_request_id: echoed as `id`; left out if empty.
        binary: names of the outputs to write as binary, None = all.

    Raises:
        InvalidRequestError: an output has no JSON form and must be asked for as binary.
        FailedError: bytes and shape of an output do not agree.
    """
    bodies: list[_OutputBody] = []
    tail: list[bytes] = []
    for tensor in outputs:
        name, datatype, data, shape = tensor.name, tensor.datatype, tensor.data, list(tensor.shape)
        count = fit.check_given(tensor)
        if binary is None or name in binary:
            sizes = {"binary_data_size": len(data)}
            bodies.append(_OutputBody(name, datatype, shape, parameters=sizes))
            tail.append(data)
            continue
        try:
            bodies.append(_OutputBody(name, datatype, shape, numbers.unpack(data, datatype, count)))
        except numbers.NumbersError as error:
            raise InvalidRequestError(f"output {name!r}: {error}") from None
    head = _encode(_Response(model, str(version), client_request_id or UNSET, bodies))
    if not tail:
        return Rendered(head, None)
    return Rendered(b"".join((head, *tail)), len(head))
