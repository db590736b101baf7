"""The model `breast-cancer`: gradient-boosted trees that tell malignant from benign tumours.

In: scikit-learn's copy of the Wisconsin diagnostic data (569 rows, 30 measurements). Out: a model
folder with an ONNX tree ensemble converted from XGBoost, and the original booster beside it.

Public input `features` FP32 [rows, 30]; outputs `label` INT64 [rows] (0 malignant, 1 benign) and
`probabilities` FP32 [rows, 2]. The graph has the same inputs and outputs, so the task
`tabular-classification` has nothing to prepare: `task_settings` only says what the columns and
labels mean (`features`, `classes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxmltools
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from inferbus_models import folder as folders
from inferbus_models import samples as sample_rows
from inferbus_models import tensors
from inferbus_schemas.manifest import Batching, Golden, Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from inferbus_models.samples import Sample

NAME = "breast-cancer"
CLASSES = ("malignant", "benign")

_BOOSTER_NAME = "booster.json"
_GOLDEN_ROWS = 6
_TOLERANCE = 1e-5
_SPLIT_SEED = 7
_OPSET = 15

# The second version learns more slowly, so its answers differ from the first's by far more than
# any tolerance: whoever swaps one for the other can tell from an answer which one gave it.
_TREES = {1: 100, 2: 101}
_SEED = {1: 11, 2: 12}
_LEARNING_RATE = {1: 0.1, 2: 0.04}


@dataclass(frozen=True, slots=True)
class Split:
    """The data, split the same way every time; rows are float32, 1 is benign."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    feature_names: tuple[str, ...]


def split() -> Split:
    """Return three quarters of the rows for training and one quarter for testing."""
    data = load_breast_cancer()
    train, test, train_labels, test_labels = train_test_split(
        data.data.astype(np.float32),
        data.target.astype(np.int64),
        test_size=0.25,
        random_state=_SPLIT_SEED,
        stratify=data.target,
    )
    return Split(
        train=train,
        train_labels=train_labels,
        test=test,
        test_labels=test_labels,
        feature_names=tuple(str(name) for name in data.feature_names),
    )


def build(folder: Path, *, variant: int = 1) -> None:
    """Train, convert and write the model folder."""
    data = split()
    print(f"{NAME}: training {_TREES[variant]} trees on {len(data.train)} rows", flush=True)
    model = xgboost.XGBClassifier(
        n_estimators=_TREES[variant],
        max_depth=4,
        learning_rate=_LEARNING_RATE[variant],
        subsample=0.9,
        colsample_bytree=0.8,
        tree_method="hist",
        random_state=_SEED[variant],
        n_jobs=1,
    ).fit(data.train, data.train_labels)
    accuracy = float(model.score(data.test, data.test_labels))
    print(f"{NAME}: {accuracy:.1%} of {len(data.test)} test rows right; converting", flush=True)
    # Written here and not by the library, whose failure on a full disk says nothing of the disk.
    booster = model.get_booster().save_raw("json")
    (folders.originals(folder) / _BOOSTER_NAME).write_bytes(booster)
    path = folder / "model.onnx"
    path.write_bytes(_convert(model, data.train.shape[1]))
    folders.write_manifest(folder, _manifest(path, model, data, accuracy))


def _convert(model: Any, columns: int) -> bytes:
    graph = onnxmltools.convert_xgboost(
        model,
        # Without a name the converter draws a random one, and each build were another version.
        name=NAME,
        initial_types=[("features", FloatTensorType([None, columns]))],
        target_opset=_OPSET,
    )
    return bytes(graph.SerializeToString())


def _manifest(path: Path, model: Any, data: Split, accuracy: float) -> Manifest:
    return Manifest(
        model=NAME,
        task="tabular-classification",
        engine="onnx",
        signature=Signature(
            inputs=(TensorSpec("features", "FP32", (-1, data.test.shape[1])),),
            outputs=(
                TensorSpec("label", "INT64", (-1,)),
                TensorSpec("probabilities", "FP32", (-1, len(CLASSES))),
            ),
        ),
        files=(folders.entry(path),),
        task_settings={"classes": list(CLASSES), "features": list(data.feature_names)},
        engine_settings={"intra_op_threads": 1},
        batching=Batching(max_rows=64, max_wait_ms=5.0),
        golden=_goldens(model, data),
        license="Apache-2.0",
        description=(
            f"XGBoost, {model.n_estimators} trees, on the Wisconsin diagnostic breast cancer data "
            f"(UCI, CC BY 4.0) that scikit-learn ships; {accuracy:.1%} of the test rows right."
        ),
    )


def _goldens(model: Any, data: Split) -> tuple[Golden, ...]:
    rows = data.test[:_GOLDEN_ROWS]
    probabilities = model.predict_proba(rows)
    return tuple(
        Golden(
            inputs=(tensors.numbers("features", rows[index : index + 1]),),
            outputs=(
                tensors.numbers("label", probabilities[index : index + 1].argmax(axis=1)),
                tensors.numbers("probabilities", probabilities[index : index + 1]),
            ),
            tolerance=_TOLERANCE,
        )
        for index in range(len(rows))
    )


def original(folder: Path) -> Any:
    """Return the XGBoost classifier that the folder's graph was converted from."""
    model = xgboost.XGBClassifier(n_jobs=1)
    model.load_model(folders.originals(folder) / _BOOSTER_NAME)
    return model


def samples(folder: Path) -> list[Sample]:
    """Return the first rows of the test split with what XGBoost says about them."""
    library = f"xgboost {metadata.version('xgboost-cpu')}"
    return [
        sample_rows.of(
            NAME,
            golden,
            library=library,
            about=f"breast cancer, row {index} of the test split",
            classes=CLASSES,
        )
        for index, golden in enumerate(_goldens(original(folder), split()))
    ]
