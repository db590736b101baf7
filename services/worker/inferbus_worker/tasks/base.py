"""What every task offers, and how it says which rows it cannot take."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import msgspec
from numpy.typing import NDArray

Array = NDArray[Any]
"""A tensor; one of datatype BYTES is an array of `bytes` objects."""


class TaskError(ValueError):
    """A version whose task settings cannot be used; the message says what to mend."""


class RowsError(ValueError):
    """Rows that cannot be prepared; `rows` maps each to a sentence for its sender.

    Invariants: it names every bad row of the batch, so that one second run is enough.
    """

    def __init__(self, rows: dict[int, str]) -> None:
        super().__init__(f"{len(rows)} rows cannot be read")
        self.rows = rows


class Task(Protocol):
    """Prepares a batch for the graph.

    Invariants: row i of every feed comes from row i of the inputs and from nothing else.
    """

    row_tokens: tuple[int, ...]
    """Tokens of each row of the last batch; empty where the task counts none."""

    def prepare(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Return the graph's feeds.

        Raises:
            RowsError: some rows cannot be read.
        """
        ...


S = TypeVar("S", bound=msgspec.Struct)


def read_settings(settings: dict[str, Any], section: str, kind: type[S]) -> S:
    """Return one section of a manifest's `task_settings` as a struct.

    Raises:
        TaskError: it is missing, or a field is.
    """
    try:
        return msgspec.convert(settings.get(section), kind)
    except msgspec.ValidationError as error:
        raise TaskError(f"task_settings.{section} of the manifest: {error}") from error
