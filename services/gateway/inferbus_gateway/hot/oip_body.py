"""The JSON of an inference request, before it meets a signature.

In: JSON text. Out: a `Request` whose known keys have their types, each given once per object;
`data` stays text, since only the signature says what its elements are.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from inferbus_schemas import json_bounds

MAX_CLASSES: Final = 1_000
"""The most classes of an output that a request may ask for."""
_SHOWN_CHARACTERS: Final = 64
_MAX_SHAPE_BYTES: Final = 1024
_MAX_INPUTS: Final = 1024
_MAX_REST_BYTES: Final = 8 << 20
"""What a request without the elements of its tensors may become when it is read once more."""

Natural = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An int64 that counts something."""


class BodyError(ValueError):
    """Text that is no inference request; the message is for its sender."""


class InputParameters(msgspec.Struct, frozen=True):
    """Of one input: how many bytes of binary data follow the JSON for it.

    A region of shared memory is known so that it can be refused.
    """

    binary_data_size: Natural | None = None
    shared_memory_region: msgspec.Raw | UnsetType = UNSET


class Input(msgspec.Struct, frozen=True):
    """One input; its elements are in `data` or follow the JSON."""

    name: str
    shape: tuple[Natural, ...]
    datatype: str
    data: msgspec.Raw | UnsetType = UNSET
    parameters: InputParameters | None = None


class OutputParameters(msgspec.Struct, frozen=True):
    """Of one wanted output."""

    binary_data: bool | None = None
    classification: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLASSES)] | None = None
    shared_memory_region: msgspec.Raw | UnsetType = UNSET


class Output(msgspec.Struct, frozen=True):
    """One wanted output."""

    name: str
    parameters: OutputParameters | None = None


class Parameters(msgspec.Struct, frozen=True):
    """Of the request; `timeout` is in microseconds."""

    binary_data_output: bool | None = None
    timeout: Natural | None = None
    sequence_id: int | str | None = None
    sequence_start: bool | None = None
    sequence_end: bool | None = None


class Request(msgspec.Struct, frozen=True):
    """A request; `null` stands for a key left out."""

    inputs: list[Input]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[Output] | None = None


class _RoughInput(msgspec.Struct, frozen=True):
    """An `Input` whose shape may be of any length."""

    name: str
    shape: msgspec.Raw
    datatype: str
    data: msgspec.Raw | UnsetType = UNSET
    parameters: InputParameters | None = None


class _Rough(msgspec.Struct, frozen=True):
    """A `Request` of which nothing was made that could be many times its text."""

    inputs: Annotated[list[_RoughInput], msgspec.Meta(max_length=_MAX_INPUTS)]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: msgspec.Raw | UnsetType = UNSET


_decode_small = msgspec.json.Decoder(Request).decode
_decode_rough = msgspec.json.Decoder(_Rough).decode
_shape = msgspec.json.Decoder(tuple[Natural, ...]).decode
_outputs = msgspec.json.Decoder(list[Output] | None).decode


def decode(text: bytes) -> Request:
    """Return the request in `text`.

    Raises:
        BodyError: it is not JSON in UTF-8, a known key is missing or has another type, or a key
            is given twice in one object.
    """
    small = len(text) <= json_bounds.SMALL_BYTES
    try:
        request = _decode_small(text) if small else _decode_large(text)
    except json_bounds.TooManyPartsError as error:
        raise BodyError(str(error)) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BodyError(f"the body is not an inference request: {error}") from None
    # msgspec takes the last of equal keys in silence. Each string that the request shows explains
    # two quotes; if those are all there are, no key came twice. Otherwise there are unknown keys,
    # escapes or doubles, and only then is the text read once more.
    if text.count(b'"') != _n_quotes(request):
        try:
            rest = _without_elements(text, request)
            json_bounds.check(rest, _MAX_REST_BYTES)
            json.loads(
                rest.decode(), object_pairs_hook=_refuse_doubles, parse_int=str, parse_float=str
            )
        except BodyError:
            raise
        except json_bounds.TooManyPartsError as error:
            raise BodyError(str(error)) from None
        except (ValueError, RecursionError):
            raise BodyError("the body is not JSON in UTF-8") from None
    return request


def show(name: str) -> str:
    """Return a client's word for a message, cut to a length that people read."""
    return repr(name[:_SHOWN_CHARACTERS])


def _decode_large(text: bytes) -> Request:
    """Return the request in a text that could become many times as much."""
    rough = _decode_rough(text)
    inputs = []
    for item in rough.inputs:
        if memoryview(item.shape).nbytes > _MAX_SHAPE_BYTES:
            raise BodyError(f"input {show(item.name)}: its shape is too long")
        shape = _shape(item.shape)
        inputs.append(Input(item.name, shape, item.datatype, item.data, item.parameters))
    outputs = None
    if rough.outputs is not UNSET:
        json_bounds.check(bytes(rough.outputs))
        outputs = _outputs(rough.outputs)
    return Request(inputs, rough.id, rough.parameters, outputs)


def _without_elements(text: bytes, request: Request) -> bytes:
    """Return the text with a number in the place of each long `data`."""
    parts, at = [], 0
    for item in request.inputs:
        if item.data is UNSET or memoryview(item.data).nbytes <= _MAX_SHAPE_BYTES:
            continue
        data = bytes(item.data)
        # Inputs stand in the order of the text, so none is behind where this is found.
        found = text.index(data, at)
        parts.append(text[at:found])
        at = found + len(data)
    return b"0".join((*parts, text[at:]))


def _n_quotes(request: Request) -> int:
    """Return the least number of quotes that the request's text can have."""
    strings = 1
    in_data = 0
    for item in request.inputs:
        strings += 5
        if item.data is not UNSET:
            strings += 1
            if item.datatype == "BYTES":
                in_data += bytes(item.data).count(b'"')
        strings += _n_keys(item.parameters)
    if request.id is not None:
        strings += 2
    strings += _n_keys(request.parameters)
    if request.outputs is not None:
        strings += 1
        for output in request.outputs:
            strings += 2 + _n_keys(output.parameters)
    return 2 * strings + in_data


def _n_keys(parameters: InputParameters | OutputParameters | Parameters | None) -> int:
    """Return the number of known keys of a `parameters` object, its own among them."""
    if parameters is None:
        return 0
    values = msgspec.structs.astuple(parameters)
    return 1 + sum(value is not None and value is not UNSET for value in values)


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> None:
    """Take the pairs of one object; nothing is kept of them."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise BodyError(f"the key {show(key)} is given twice in one object; leave one out")
        seen.add(key)
