"""Real inputs for the sample models, and what the original library says about them.

In: a built model folder. Out: `Sample`s in the JSON form of the Open Inference Protocol, ready to
be sent to a server and compared with its answer, and words for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from inferbus_models import folder as folders
from inferbus_models import recipes, tensors
from inferbus_schemas.manifest import JsonTensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inferbus_schemas.manifest import Golden

JsonObject = dict[str, Any]

_SAVED_NAME = "samples.json"
_SHOWN_NUMBERS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One real input with the original library's answer.

    `inputs` and `expected` are tensors as objects with name, datatype, shape and flat data.
    Every number of an answer should lie within `tolerance` (absolute) of `expected`. `library`
    names who gave `expected`, with its version; `describe` is one line for people.
    """

    model: str
    inputs: tuple[JsonObject, ...]
    expected: tuple[JsonObject, ...]
    library: str
    tolerance: float
    describe: str


def ask(model: str, folder: Path) -> list[Sample]:
    """Return the samples of the model in `folder`; the original library answers now.

    It takes seconds of imports. MiniLM's library is not here: its vectors are recorded ones, and
    `library` says so.

    Raises:
        KeyError: no recipe builds such a model.
    """
    return recipes.module(model).samples(folder)


def save(samples: Sequence[Sample], folder: Path) -> None:
    """Keep the samples in the model folder, outside the version."""
    (folders.originals(folder) / _SAVED_NAME).write_bytes(msgspec.json.encode(samples))


def load(folder: Path) -> list[Sample]:
    """Return what `ask` said when the folder was built, without importing the original library.

    The folder is built again when the version of that library changes, so the answers are those
    that `ask` would give.

    Raises:
        OSError: the folder is not one that `inferbus_models.build.ensure` made.
    """
    raw = (folder / folders.ORIGINALS_NAME / _SAVED_NAME).read_bytes()
    return msgspec.json.decode(raw, type=list[Sample])


def of(
    model: str, golden: Golden, *, library: str, about: str, classes: Sequence[str] = ()
) -> Sample:
    """Return a known answer as a sample, described as `about` followed by the answer in words."""
    expected = _plain(golden.outputs)
    return Sample(
        model=model,
        inputs=_plain(golden.inputs),
        expected=expected,
        library=library,
        tolerance=golden.tolerance,
        describe=f"{about}: {words(expected, classes)}",
    )


def _plain(several: tuple[JsonTensor, ...]) -> tuple[JsonObject, ...]:
    """Return tensors as what JSON has: objects, lists, numbers, texts."""
    return msgspec.json.decode(msgspec.json.encode(several), type=tuple[JsonObject, ...])


def words(outputs: Sequence[JsonObject], classes: Sequence[str] = ()) -> str:
    """Return one row's outputs in a few words, for example "malignant (99.8 %)".

    `outputs` may be a server's answer to a sample; `classes` are the names of the labels, as
    `task_settings["classes"]` of the manifest lists them.
    """
    data = {output["name"]: output["data"] for output in outputs}
    if all(isinstance(value, str) for values in data.values() for value in values):
        return "; ".join(repr(text) for texts in data.values() for text in texts)
    if "label" not in data:
        return "; ".join(f"{name} {_few(values)}" for name, values in data.items())
    label = int(data["label"][0])
    name = classes[label] if label < len(classes) else str(label)
    return f"{name} ({100 * data['probabilities'][label]:.1f} %)"


def _few(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:+.4f}" for value in values[:_SHOWN_NUMBERS])
    return f"[{shown}, ...] ({len(values)} numbers)"


def difference(sample: Sample, outputs: Sequence[JsonObject]) -> float:
    """Return the largest absolute difference between a server's outputs and the expected ones.

    It is infinite if an output is missing, has another shape or another text, and NaN where an
    answer is.
    """
    answers = {output["name"]: output for output in outputs}
    largest = 0.0
    for expected in sample.expected:
        answer = answers.get(expected["name"])
        if answer is None or list(answer["shape"]) != list(expected["shape"]):
            return float("inf")
        if expected["datatype"] == "BYTES":
            if answer["data"] != expected["data"]:
                return float("inf")
            continue
        gap = tensors.array(msgspec.convert(expected, JsonTensor)).ravel() - answer["data"]
        largest = float(np.maximum(largest, np.abs(gap).max()))
    return largest
