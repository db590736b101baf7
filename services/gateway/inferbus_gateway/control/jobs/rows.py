"""One row of a job's input against the signature of its version; pure.

In: a line of JSON. Out: a row that can run, or one that says why it cannot. A row is the body of an
infer request, or `{"<input>": value, ...}` with one row of each input; an object that has the key
`inputs` is always taken for the former.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferbus_gateway.errors import InvalidRequestError
from inferbus_gateway.hot import fit, numbers, oip
from inferbus_gateway.hot.oip_body import show
from inferbus_schemas import json_bounds, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Signature, TensorSpec

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class RowReader:
    """Reads the rows of one job.

    Invariants: never raises for what a row holds; a row that is not refused has every input of the
    signature, checked, and at most `max_tensor_bytes` of them; a line that is the body of a
    request has `max_rows` at most.
    """

    def __init__(
        self, signature: Signature, max_tensor_bytes: int, max_rows: int = fit.MAX_ROWS
    ) -> None:
        self._signature = signature
        self._names = {spec.name for spec in signature.inputs}
        self._max_tensor_bytes = max_tensor_bytes
        self._max_rows = max_rows

    def read(self, number: int, line: bytes | None) -> m.Row:
        """Return row `number`; `line` is None where it was too long to be kept."""
        if line is None:
            return m.Row(number=number, refused="the row is too long")
        try:
            row = self._read(number, line)
        except InvalidRequestError as error:
            return m.Row(number=number, refused=str(error))
        if len(row.tensors) > self._max_tensor_bytes:
            return m.Row(number=number, refused="the row's tensors are too large")
        return row

    def _read(self, number: int, line: bytes) -> m.Row:
        try:
            json_bounds.check_keys(line)
            fields = _fields(line)
        except json_bounds.TooManyPartsError as error:
            raise InvalidRequestError(str(error)) from None
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise InvalidRequestError("the row is not a JSON object in UTF-8") from None
        if "inputs" in fields:
            parsed = oip.parse(line, None, self._signature, self._max_rows)
            if parsed.classes:
                raise InvalidRequestError("classification is not offered in jobs")
            fit.check_kept(parsed.n_rows, parsed.outputs, self._signature)
            return m.Row(
                number=number,
                tensors=parsed.tensors,
                outputs=parsed.outputs,
                client_request_id=parsed.client_request_id,
            )
        return m.Row(number=number, tensors=self._plain(line, fields))

    def _plain(self, line: bytes, fields: dict[str, msgspec.Raw]) -> bytes:
        # A key that came twice left quotes behind that no field accounts for.
        inside = sum(bytes(value).count(b'"') for value in fields.values())
        if line.count(b'"') != inside + 2 * len(fields):
            raise InvalidRequestError("a key is given twice")
        for name in fields:
            if name not in self._names:
                raise InvalidRequestError(f"the model has no input {show(name)}")
        parts: list[bytes] = []
        for spec in self._signature.inputs:
            value = fields.get(spec.name)
            if value is None:
                raise InvalidRequestError(f"input {spec.name!r} is missing")
            try:
                parts += _tensor(spec, bytes(value))
            except (numbers.NumbersError, tensors.TensorError) as error:
                raise InvalidRequestError(f"input {spec.name!r}: {error}") from None
        return b"".join(parts)


def _tensor(spec: TensorSpec, value: bytes) -> tuple[bytes, bytes]:
    """Return the head and the data of a tensor of one row."""
    if not spec.shape or spec.shape[0] not in {-1, 1}:
        raise numbers.NumbersError("has a shape without rows; write the row as infer takes it")
    inner = spec.shape[1:]
    if -1 in inner:
        inner = _measured(inner, value, spec.datatype)
    shape = (1, *inner)
    count = tensors.n_elements(shape)
    data = numbers.pack(msgspec.Raw(b"[" + value + b"]"), spec.datatype, shape, count)
    head = tensors.heads(spec.name, spec.datatype, shape, len(data))
    return head.message, data


def _measured(wanted: tuple[int, ...], value: bytes, datatype: str) -> tuple[int, ...]:
    """Return the lengths of a nested list, which must be as the signature says where it does."""
    if len(wanted) == 1 and datatype != "BYTES" and len(value) > json_bounds.SMALL_BYTES:
        # Numbers are as many as the commas say; that they are, whoever packs them sees.
        inner = value.strip()
        if inner[:1] != b"[":
            raise numbers.NumbersError(f"must be nested as {list(wanted)} says")
        return (inner.count(b",") + 1 if inner[1:-1].strip() else 0,)
    try:
        json_bounds.check(value)
        at: Any = msgspec.json.decode(value)
    except json_bounds.TooManyPartsError as error:
        raise numbers.NumbersError(str(error)) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise numbers.NumbersError("is not JSON") from None
    found: list[int] = []
    for dim in wanted:
        if not isinstance(at, list) or dim not in {-1, len(at)}:
            raise numbers.NumbersError(f"must be nested as {list(wanted)} says")
        found.append(len(at))
        at = at[0] if at else []
    return tuple(found)
