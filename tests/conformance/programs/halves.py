"""Rows of BF16 for the model `bf16`, and 1.5 times each, rounded to the nearest, ties to even."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

LARGE = 2.0**127
HALVES = np.array([[0.1, -0.0], [1.0078125, 1.0234375], [LARGE, np.inf]], ml_dtypes.bfloat16)
MORE = np.array([[0.150390625, -0.0], [1.515625, 1.53125], [1.5 * LARGE, np.inf]], HALVES.dtype)


def right(got: Any) -> bool:
    """Tell whether an answer is right to the last bit."""
    same, more = got.as_numpy("same"), got.as_numpy("y")
    return (same.tobytes(), more.tobytes()) == (HALVES.tobytes(), MORE.tobytes())
