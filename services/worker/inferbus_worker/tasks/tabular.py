"""The task `tabular-classification`: rows of measurements in, labels and probabilities out.

`task_settings` says what columns and labels mean (`features`, `classes`); the graph has the
signature's own inputs and outputs, so there is nothing to prepare, only something to check.
"""

from __future__ import annotations

from inferbus_schemas.manifest import Manifest
from inferbus_worker.tasks.base import Array, TaskError

_RANK = 2


class TabularTask:
    """Hands the table through.

    Invariants: each input is a table of numbers, as wide as `features` says.
    """

    row_tokens: tuple[int, ...] = ()

    def __init__(self, manifest: Manifest) -> None:
        features = manifest.task_settings.get("features")
        for spec in manifest.signature.inputs:
            if spec.datatype == "BYTES" or len(spec.shape) != _RANK:
                raise TaskError(f"input {spec.name!r}: a table has numbers in two dimensions")
        if features is not None and manifest.signature.inputs[0].shape[1] not in {
            -1,
            len(features),
        }:
            raise TaskError("task_settings.features must name each column of the first input")

    def prepare(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return inputs
