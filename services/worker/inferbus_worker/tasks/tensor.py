"""The task `tensor`: the graph takes and gives what the signature says."""

from __future__ import annotations

import numpy as np

from inferbus_worker.tasks.base import Array, RowsError


class TensorTask:
    """Hands arrays through; BYTES become strings, since that is what a graph takes."""

    row_tokens: tuple[int, ...] = ()

    def prepare(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {
            name: _texts(values) if values.dtype == object else values
            for name, values in inputs.items()
        }


def _texts(elements: Array) -> Array:
    bad: dict[int, str] = {}
    out = np.empty(elements.shape, dtype=object)
    for at, element in np.ndenumerate(elements):
        try:
            out[at] = element.decode()
        except UnicodeDecodeError:
            bad[at[0]] = "the text is not valid UTF-8"
    if bad:
        raise RowsError(bad)
    return out
