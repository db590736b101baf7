"""Messages of the protocol's gRPC service, infer only; the twin of `oip` for JSON.

In: a `ModelInferRequest` and the signature of its version. Out: the tensors to put on the bus. And
back: the tensors of an answer, out: a `ModelInferResponse`.

Choices where the protocol is silent: an answer has the form of its request, typed for typed and raw
for raw, and is raw as a whole where a wanted output has no typed form. Unknown parameters are
ignored; one that we know with a value of another type is refused, and so are sequences. FP32 and
FP64 may be infinite or not a number. `timeout` 0 means none, as in Triton.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from inferbus_gateway.errors import InvalidRequestError
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot import classify, fit, numbers
from inferbus_gateway.hot.fit import NOT_CLASSIFIED, Parsed, Plan
from inferbus_gateway.hot.oip_body import MAX_CLASSES
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m

_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the elements of each datatype stand; FP16 and BF16 have raw bytes only."""

_TYPED: Final[frozenset[str]] = frozenset()
_OF_SEQUENCES: Final = ("sequence_id", "sequence_start", "sequence_end")
_INT_PARAMETERS: Final = frozenset({"int64_param", "uint64_param"})

Parameters = Mapping[str, pb.InferParameter]


def parse(
    request: pb.ModelInferRequest, signature: manifest.Signature, max_rows: int = fit.MAX_ROWS
) -> Parsed:
    """Return the request, checked against `signature`; `binary` None stands for raw contents.

    Raises:
        InvalidRequestError: it is not well formed or does not fit; the message says what to change.
        TooManyRowsError: it has more than `max_rows`.
    """
    look_up = fit.plan(signature)
    if any(_given(request.parameters, name) for name in _OF_SEQUENCES):
        raise InvalidRequestError(fit.NO_SEQUENCES)
    raw = request.raw_input_contents
    tensor_set, n_rows = _read_inputs(request.inputs, raw, look_up, max_rows)
    outputs, classes = _read_outputs(request.outputs, look_up)
    wanted_raw = bool(raw) or any(
        name in look_up.binary_only and name not in classes for name in outputs or look_up.outputs
    )
    return Parsed(
        client_request_id=fit.check_id(request.id),
        tensors=tensor_set,
        n_rows=n_rows,
        outputs=outputs,
        binary=None if wanted_raw else _TYPED,
        timeout_us=_whole(request.parameters, "timeout") or None,
        classes=classes,
    )


def _read_inputs(
    inputs: Sequence[pb.ModelInferRequest.InferInputTensor],
    raw: Sequence[bytes],
    look_up: Plan,
    max_rows: int,
) -> tuple[bytes, int]:
    """Return the serialised tensors in the signature's order and the number of rows."""
    if raw and len(raw) != len(inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw)} entries for {len(inputs)} inputs; "
            f"give one for each, in their order"
        )
    placed: list[bytes] = [b""] * len(look_up.inputs)
    rows: int | None = None
    n_rows = 1
    for number, item in enumerate(inputs):
        index, spec = fit.place(item, look_up, placed)
        rows = fit.check_shape(item, spec, rows, max_rows)
        if "shared_memory_region" in item.parameters:
            raise InvalidRequestError(
                f"input {spec.name!r}: shared memory is not offered; send the data itself"
            )
        try:
            count = tensors.n_elements(item.shape)
            if raw:
                data = _raw_data(item, raw[number], count)
            else:
                data = _typed_data(item.contents, spec.datatype, count)
        except (numbers.NumbersError, tensors.TensorError) as error:
            raise InvalidRequestError(f"input {spec.name!r}: {error}") from None
        head = tensors.heads(spec.name, spec.datatype, tuple(item.shape), len(data))
        placed[index] = head.message + data
        if index == 0 and item.shape:
            n_rows = item.shape[0]
    return fit.joined(look_up, placed), n_rows


def _raw_data(item: pb.ModelInferRequest.InferInputTensor, data: bytes, count: int) -> bytes:
    if item.HasField("contents") and item.contents.ListFields():
        raise numbers.NumbersError("has both contents and raw_input_contents; leave one out")
    numbers.check(data, item.datatype, count)
    return data


def _typed_data(contents: pb.InferTensorContents, datatype: str, count: int) -> bytes:
    wanted = _FIELDS.get(datatype)
    if wanted is None:
        raise numbers.NumbersError(f"{datatype} has no typed form; use raw_input_contents")
    given = [field.name for field, _ in contents.ListFields()]
    if given not in ([], [wanted]):
        raise numbers.NumbersError(
            f"{datatype} elements stand in {wanted} and nowhere else, not in {', '.join(given)}"
        )
    values = getattr(contents, wanted)
    if len(values) != count:
        raise numbers.NumbersError(f"the shape says {count} elements, {wanted} has {len(values)}")
    if datatype == "BYTES":
        return tensors.join_bytes(values)
    return numbers.pack_values(values, datatype)


def _read_outputs(
    wanted: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor], look_up: Plan
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Return the wanted outputs and which of them are to be classified."""
    chosen: dict[str, None] = {}
    classes: dict[str, int] = {}
    for item in wanted:
        fit.check_output(item.name, look_up, chosen)
        chosen[item.name] = None
        if not item.parameters:
            continue
        if "shared_memory_region" in item.parameters:
            raise InvalidRequestError(
                f"output {item.name!r}: shared memory is not offered; leave that parameter out"
            )
        n_classes = _whole(item.parameters, "classification")
        if n_classes is None:
            continue
        if not 1 <= n_classes <= MAX_CLASSES:
            raise InvalidRequestError(
                f"output {item.name!r}: classification must be 1 to {MAX_CLASSES}"
            )
        classify.check(item.name, look_up.outputs[item.name])
        classes[item.name] = n_classes
    return tuple(chosen), classes or NOT_CLASSIFIED


def _given(parameters: Parameters, name: str) -> bool:
    """Tell whether a parameter has a value that says something: not 0, false or empty."""
    if name not in parameters:
        return False
    value = parameters[name]
    kind = value.WhichOneof("parameter_choice")
    return kind is not None and bool(getattr(value, kind))


def _whole(parameters: Parameters, name: str) -> int | None:
    """Return a parameter that counts something; None where it is not given."""
    if name not in parameters:
        return None
    value = parameters[name]
    kind = value.WhichOneof("parameter_choice")
    found: int = getattr(value, kind) if kind in _INT_PARAMETERS else -1
    if found < 0:
        raise InvalidRequestError(f"the parameter {name} must be a whole number, int64_param")
    return found


def render(
    outputs: Iterable[m.Tensor],
    *,
    model: str,
    version: int,
    client_request_id: str,
    raw: bool,
) -> pb.ModelInferResponse:
    """Return the message for an answer.

    Args:
        outputs: the tensors to return, in order.
        model: the model's name.
        version: the version that answered.
        client_request_id: echoed as `id`.
        raw: whether elements are returned as bytes; must be true for FP16 and BF16.

    Raises:
        FailedError: bytes and shape of an output do not agree.
    """
    answer = pb.ModelInferResponse(
        model_name=model, model_version=str(version), id=client_request_id
    )
    for tensor in outputs:
        count = fit.check_given(tensor)
        said = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            answer.raw_output_contents.append(tensor.data)
        else:
            values = numbers.unpack_values(tensor.data, tensor.datatype, count)
            getattr(said.contents, _FIELDS[tensor.datatype]).extend(values)
    return answer
