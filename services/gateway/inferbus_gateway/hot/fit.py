"""Where the tensors of a request fit into the signature of its version, whatever they came in.

In: names, datatypes and shapes as a client gave them. Out: their places, the number of rows, the
wanted outputs; or the sentence that says what does not fit. JSON, binary and gRPC stand on it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from inferbus_gateway.errors import FailedError, InvalidRequestError, TooManyRowsError
from inferbus_gateway.hot import numbers
from inferbus_gateway.hot.oip_body import show
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m

MAX_ID_CHARACTERS: Final = 256
MAX_ROWS: Final = 4096
"""The most rows of a request where no setting says otherwise."""
NO_SEQUENCES: Final = (
    "sequences are not offered: models here keep nothing between requests; "
    "leave sequence_id, sequence_start and sequence_end out"
)
NOT_CLASSIFIED: Final[Mapping[str, int]] = {}


class Given(Protocol):
    """An input as a client named it."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request that fits its version.

    Invariants: `tensors` is a serialised `TensorSet` with every input of the signature, in its
    order, checked; `outputs` are names of the signature, each once, () = all of them; `binary`
    names the outputs to return as binary, None = all, and holds every output that is not
    classified and has no other form; `classes` says how many classes to return of an output, in
    its place.
    """

    client_request_id: str
    tensors: bytes
    n_rows: int
    outputs: tuple[str, ...]
    binary: frozenset[str] | None
    timeout_us: int | None
    classes: Mapping[str, int] = field(default_factory=lambda: NOT_CLASSIFIED)


@dataclass(frozen=True, slots=True)
class Plan:
    """Look-ups of one signature: inputs by name with their place, outputs' datatypes by name."""

    inputs: dict[str, tuple[int, manifest.TensorSpec]]
    outputs: dict[str, str]
    binary_only: frozenset[str]


@functools.lru_cache(maxsize=1024)
def plan(signature: manifest.Signature) -> Plan:
    """Return the look-ups of a signature."""
    return Plan(
        inputs={spec.name: (at, spec) for at, spec in enumerate(signature.inputs)},
        outputs={spec.name: spec.datatype for spec in signature.outputs},
        binary_only=frozenset(
            spec.name for spec in signature.outputs if spec.datatype in numbers.BINARY_ONLY
        ),
    )


def place(item: Given, look_up: Plan, placed: Sequence[bytes]) -> tuple[int, manifest.TensorSpec]:
    """Return where an input stands in the signature.

    Raises:
        InvalidRequestError: the signature has no such input, or `placed` has it already.
    """
    found = look_up.inputs.get(item.name)
    if found is None:
        raise InvalidRequestError(
            f"the model has no input {show(item.name)}; it takes {listed(look_up.inputs)}"
        )
    if placed[found[0]]:
        raise InvalidRequestError(f"input {item.name!r} is given twice; leave one out")
    return found


def check_shape(
    item: Given, spec: manifest.TensorSpec, rows: int | None, max_rows: int
) -> int | None:
    """Check datatype and shape; return the number of rows that inputs seen so far share.

    It comes before anything is made of the elements.

    Raises:
        InvalidRequestError: they are not those of `spec`, or the rows differ.
        TooManyRowsError: there are more than `max_rows`.
    """
    if item.datatype != spec.datatype:
        raise InvalidRequestError(
            f"input {spec.name!r}: the datatype must be {spec.datatype}, not {show(item.datatype)}"
        )
    shape, wanted = item.shape, spec.shape
    if len(shape) == len(wanted):
        for found, dim in zip(shape, wanted, strict=True):
            if dim not in (found, -1):
                break
        else:
            if not wanted or wanted[0] != -1:
                return rows
            if shape[0] < 1:
                raise InvalidRequestError(f"input {spec.name!r}: send one row at least")
            if shape[0] > max_rows:
                raise TooManyRowsError(spec.name, shape[0], max_rows)
            if rows is not None and shape[0] != rows:
                raise InvalidRequestError(
                    f"input {spec.name!r}: has {shape[0]} rows, another input has {rows}; "
                    f"all must have the same"
                )
            return shape[0]
    raise InvalidRequestError(
        f"input {spec.name!r}: the shape must be {list(wanted)}"
        f"{', where -1 stands for any size' if -1 in wanted else ''}"
    )


def joined(look_up: Plan, placed: Sequence[bytes]) -> bytes:
    """Return all inputs, each serialised in its place, as one serialised `TensorSet`.

    Raises:
        InvalidRequestError: one is missing.
    """
    missing = [name for name, (index, _) in look_up.inputs.items() if not placed[index]]
    if missing:
        raise InvalidRequestError(f"inputs are missing; add {listed(missing)}")
    return b"".join(placed)


def check_output(name: str, look_up: Plan, chosen: Mapping[str, object]) -> None:
    """Check an output that is asked for.

    Raises:
        InvalidRequestError: the signature has no such output, or `chosen` has it already.
    """
    if name not in look_up.outputs:
        raise InvalidRequestError(
            f"the model has no output {show(name)}; it gives {listed(look_up.outputs)}"
        )
    if name in chosen:
        raise InvalidRequestError(f"output {name!r} is asked for twice; leave one out")


def check_kept(n_rows: int, asked: Collection[str], signature: manifest.Signature) -> None:
    """Check that the results of a job have a form for each output of a request.

    JSON has none for some datatypes; Parquet has one for a single row. `asked` empty = all outputs.

    Raises:
        InvalidRequestError: an output has none.
    """
    for spec in signature.outputs:
        if asked and spec.name not in asked:
            continue
        one_row = spec.shape[:1] == (1,) or (spec.shape[:1] == (-1,) and n_rows == 1)
        if spec.datatype in numbers.BINARY_ONLY and not one_row:
            raise InvalidRequestError(
                f"output {spec.name!r}: the results of a job have {spec.datatype} of one row only; "
                f"send its rows one by one"
            )


def check_given(tensor: m.Tensor) -> int:
    """Check an output that a model gave; return the number of its elements.

    Raises:
        FailedError: its bytes, datatype and shape do not agree.
    """
    try:
        count = tensors.n_elements(tensor.shape)
        numbers.check(tensor.data, tensor.datatype, count)
    except (KeyError, numbers.NumbersError, tensors.TensorError):
        raise FailedError(
            f"output {tensor.name!r}: what the model gave does not fit its own shape; "
            f"tell who deployed the model"
        ) from None
    return count


def check_id(client_request_id: str) -> str:
    """Return a client's own id.

    Raises:
        InvalidRequestError: it is too long.
    """
    if len(client_request_id) > MAX_ID_CHARACTERS:
        raise InvalidRequestError(f"id may have {MAX_ID_CHARACTERS} characters at most; shorten it")
    return client_request_id


def listed(names: Iterable[str]) -> str:
    """Return names for a message."""
    return ", ".join(map(repr, names))
