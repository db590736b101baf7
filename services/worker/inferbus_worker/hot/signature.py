"""A request's tensors against a version's signature.

In: a serialised `TensorSet`. Out: bytes and shapes in the order of the signature, or one sentence
for the client.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_schemas.manifest import Signature, TensorSpec


class InvalidInputError(ValueError):
    """The tensors do not fit the model; the message is for the client."""


class _Input:
    """One input, with what can be known of it beforehand."""

    __slots__ = ("datatype", "inner", "name", "rank", "row_bytes", "rows", "text")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.datatype = spec.datatype
        self.rank = len(spec.shape)
        self.rows = spec.shape[0]
        self.inner = spec.shape[1:]
        self.text = f"{spec.datatype} {list(spec.shape)}"
        self.row_bytes: int | None = None
        if -1 not in self.inner and spec.datatype != "BYTES":
            self.row_bytes = tensors.n_elements(self.inner) * tensors.ITEM_BYTES[spec.datatype]


class RowSizes:
    """How many bytes a row of an answer has at least: those that the signature fixes."""

    def __init__(self, signature: Signature) -> None:
        self._bytes = {
            spec.name: tensors.n_elements(spec.shape[1:]) * tensors.ITEM_BYTES[spec.datatype]
            for spec in signature.outputs
            if spec.shape[:1] == (-1,) and -1 not in spec.shape[1:] and spec.datatype != "BYTES"
        }
        self._all_bytes = sum(self._bytes.values())

    def of(self, wanted_outputs: Sequence[str]) -> int:
        """Return those of the outputs that are wanted, empty for all."""
        if not wanted_outputs:
            return self._all_bytes
        return sum(self._bytes.get(name, 0) for name in wanted_outputs)


class SignatureCheck:
    """Checks and takes apart the tensors of requests for one version.

    Invariants: what passes has each input exactly once, with its datatype and shape, bytes that
    agree with both, and as many rows in each; requests of one bucket differ in rows alone.
    """

    def __init__(self, signature: Signature) -> None:
        for spec in signature.inputs:
            if not spec.shape:
                raise ValueError(f"input {spec.name!r} of the signature has no dimension for rows")
        self._inputs = [_Input(spec) for spec in signature.inputs]
        self._names = frozenset(one.name for one in self._inputs)
        self._outputs = frozenset(spec.name for spec in signature.outputs)
        # Where all inner dimensions are fixed, every request is of one bucket.
        self._one_bucket = all(-1 not in one.inner for one in self._inputs)

    def take(
        self, raw: bytes, wanted_outputs: Sequence[str]
    ) -> tuple[int, object, tuple[tuple[int, ...], ...], tuple[bytes, ...]]:
        """Return rows, bucket, shapes and data of a request's tensors.

        Raises:
            InvalidInputError: they do not fit.
        """
        if wanted_outputs:
            self._check_outputs(wanted_outputs)
        try:
            given = m.TensorSet.FromString(raw).tensors
        except DecodeError:
            raise InvalidInputError("the request's tensors cannot be decoded") from None
        if len(given) != len(self._inputs):
            raise self._count_error(given)
        shapes: list[tuple[int, ...]] = []
        data: list[bytes] = []
        rows = 0
        for one, tensor in zip(self._inputs, self._ordered(given), strict=True):
            shape = tuple(tensor.shape)
            payload = tensor.data
            self._check(one, tensor, shape, payload)
            if shapes and shape[0] != rows:
                raise InvalidInputError(
                    f"input {one.name!r} has {shape[0]} rows, {self._inputs[0].name!r} has {rows}"
                )
            rows = shape[0]
            shapes.append(shape)
            data.append(payload)
        bucket = None if self._one_bucket else tuple(shape[1:] for shape in shapes)
        return rows, bucket, tuple(shapes), tuple(data)

    def _ordered(self, given: Sequence[m.Tensor]) -> Sequence[m.Tensor]:
        if len(given) == 1 and given[0].name == self._inputs[0].name:
            return given
        by_name = {tensor.name: tensor for tensor in given}
        if len(by_name) != len(given) or by_name.keys() != self._names:
            raise self._count_error(given)
        return [by_name[one.name] for one in self._inputs]

    def _check(self, one: _Input, tensor: m.Tensor, shape: tuple[int, ...], payload: bytes) -> None:
        if tensor.datatype != one.datatype:
            raise InvalidInputError(
                f"input {one.name!r} must be {one.datatype}, not {tensor.datatype[:16]}"
            )
        fits = len(shape) == one.rank and one.rows in {-1, shape[0]}
        if fits and shape[1:] != one.inner:
            fits = all(want in {-1, dim} for want, dim in zip(one.inner, shape[1:], strict=True))
        if not fits:
            raise InvalidInputError(f"input {one.name!r} must be {one.text}, not {list(shape)[:9]}")
        if shape[0] < 1:
            raise InvalidInputError(f"input {one.name!r} has no rows; send at least one")
        if one.row_bytes is not None and len(payload) == shape[0] * one.row_bytes:
            return
        try:
            tensors.check(tensor)
        except tensors.TensorError as error:
            raise InvalidInputError(str(error)) from None

    def _count_error(self, given: Sequence[m.Tensor]) -> InvalidInputError:
        names = [tensor.name for tensor in given]
        for name in names:
            if name not in self._names:
                return InvalidInputError(f"the model has no input {name[:64]!r}; see its metadata")
            if names.count(name) > 1:
                return InvalidInputError(f"input {name!r} is given more than once")
        missing = next(one.name for one in self._inputs if one.name not in names)
        return InvalidInputError(f"input {missing!r} is missing")

    def _check_outputs(self, wanted: Sequence[str]) -> None:
        for name in wanted:
            if name not in self._outputs:
                raise InvalidInputError(f"the model has no output {name[:64]!r}; see its metadata")
        if len(set(wanted)) != len(wanted):
            raise InvalidInputError("an output is asked for more than once")
