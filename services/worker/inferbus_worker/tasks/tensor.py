"""The task `tensor`: the graph takes and gives what the signature says."""

from __future__ import annotations

import numpy as np

from inferbus_worker.tasks.base import Array, RowsError, Values


class TensorTask:
    """Hands arrays through; BYTES become strings, since that is what a graph takes."""

    def prepare(self, inputs: dict[str, Values]) -> dict[str, Array]:
        return {
            name: texts(values) if isinstance(values, list) else values
            for name, values in inputs.items()
        }


def texts(elements: list[bytes]) -> Array:
    """Return BYTES elements as an array of strings, one to a row."""
    bad: dict[int, str] = {}
    out = np.empty(len(elements), dtype=object)
    for row, element in enumerate(elements):
        try:
            out[row] = element.decode()
        except UnicodeDecodeError:
            bad[row] = "the text is not valid UTF-8"
    if bad:
        raise RowsError(bad)
    return out
