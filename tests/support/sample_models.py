"""The sample models for tests, built once per machine.

In: a recipe's name. Out: its model folder, under the checkout's `.inferbus/cache/models`, built
when the recipe or a package changed; parallel test sessions take turns.
"""

from __future__ import annotations

import functools
from pathlib import Path

from inferbus_models import build

CACHE = Path(__file__).parents[2] / ".inferbus" / "cache" / "models"


@functools.cache
def model_folder(name: str, *, variant: int = 1) -> Path:
    """Return the complete model folder of `breast-cancer` (variants 1 and 2), `digits`, `minilm`.

    Do not write into it: copy it first.
    """
    return build.ensure(name, CACHE, variant=variant).folder
