"""The model `digits`: a forest that reads handwritten digits from small images.

In: scikit-learn's copy of the optical digits data (1797 images of 8 by 8, values 0 to 16). Out: a
model folder with an ONNX tree ensemble converted from a random forest.

Public input `image` BYTES [rows], each element an encoded PNG or JPEG; outputs `label` INT64 [rows]
and `probabilities` FP32 [rows, 10]. The graph takes `pixels` FP32 [rows, 64] and gives the outputs
under their public names. Between the two, the task `image-classification` does what
`task_settings["image"]` says, in this order: decode (no more than `max_pixels`, checked before
memory is taken), convert to the Pillow mode `mode`, resize to `width` by `height` with the Pillow
filter `resample`, multiply by `scale` in float64 and round to float32, lay out as `layout` ("NF":
one row of height times width values per image), feed as `graph_input`.

The images of the samples hold pixel value times 15, so multiplying by `scale` (1/15) gives back
exactly the floats that scikit-learn trained on. In golden answers and samples each element of
`image` is the file's bytes in base64, since JSON has no bytes. A box filter is what made the data:
a value counts the ink in a block of 4 by 4 of the 32 by 32 scan.

A forest, not a network: it is trained in a third of a second, its answers do not depend on the
batch, and its bytes do not depend on the machine's linear algebra.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from inferbus_models import folder as folders
from inferbus_models import samples as sample_rows
from inferbus_models import tensors
from inferbus_schemas.manifest import Batching, Golden, Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from inferbus_models.samples import Sample

NAME = "digits"
CLASSES = tuple(str(digit) for digit in range(10))

_SIDE = 8
_LEVEL = 15
_MAX_PIXELS = 4_194_304
_TREES = 100
_SEED = 7
_GOLDEN_ROWS = 6
_TOLERANCE = 1e-5
_OPSET = {"": 15, "ai.onnx.ml": 3}


@dataclass(frozen=True, slots=True)
class Split:
    """The data, split the same way every time; rows are float32 [64] with values 0 to 16."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def split() -> Split:
    """Return three quarters of the images for training and one quarter for testing."""
    data = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        data.data.astype(np.float32),
        data.target.astype(np.int64),
        test_size=0.25,
        random_state=_SEED,
        stratify=data.target,
    )
    return Split(train=train, train_labels=train_labels, test=test, test_labels=test_labels)


def original(data: Split) -> Any:
    """Return scikit-learn's forest, trained again: quicker than importing a format to keep it in.

    The same data and seed give the same trees; a pickle would be the one format that the rest of
    this project refuses.
    """
    forest = RandomForestClassifier(n_estimators=_TREES, random_state=_SEED, n_jobs=1)
    return forest.fit(data.train, data.train_labels)


def png(row: NDArray[np.float32]) -> bytes:
    """Return a row of 64 values from 0 to 16 as a greyscale PNG of 8 by 8."""
    out = io.BytesIO()
    pixels = (row * _LEVEL).astype(np.uint8).reshape(_SIDE, _SIDE)
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def build(folder: Path, *, variant: int = 1) -> None:
    """Train, convert and write the model folder; there is only variant 1."""
    del variant
    data = split()
    print(f"{NAME}: training {_TREES} trees on {len(data.train)} images", flush=True)
    forest = original(data)
    accuracy = float(forest.score(data.test, data.test_labels))
    print(f"{NAME}: {accuracy:.1%} of {len(data.test)} test images right; converting", flush=True)
    graph = to_onnx(
        forest,
        name=NAME,
        initial_types=[("pixels", FloatTensorType([None, data.train.shape[1]]))],
        options={"zipmap": False},
        target_opset=_OPSET,
    )
    path = folder / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    folders.write_manifest(folder, _manifest(path, forest, data, accuracy))


def _manifest(path: Path, forest: Any, data: Split, accuracy: float) -> Manifest:
    return Manifest(
        model=NAME,
        task="image-classification",
        engine="onnx",
        signature=Signature(
            inputs=(TensorSpec("image", "BYTES", (-1,)),),
            outputs=(
                TensorSpec("label", "INT64", (-1,)),
                TensorSpec("probabilities", "FP32", (-1, len(CLASSES))),
            ),
        ),
        files=(folders.entry(path),),
        task_settings={
            "classes": list(CLASSES),
            "image": {
                "graph_input": "pixels",
                "height": _SIDE,
                "layout": "NF",
                "max_pixels": _MAX_PIXELS,
                "mode": "L",
                "resample": "box",
                "scale": 1 / _LEVEL,
                "width": _SIDE,
            },
        },
        engine_settings={"intra_op_threads": 1},
        batching=Batching(max_rows=64, max_wait_ms=5.0),
        golden=_goldens(forest, data),
        license="Apache-2.0",
        description=(
            f"Random forest of {_TREES} trees on the handwritten digits (UCI, CC BY 4.0) that "
            f"scikit-learn ships; {accuracy:.1%} of the test images right."
        ),
    )


def _goldens(forest: Any, data: Split) -> tuple[Golden, ...]:
    rows = data.test[:_GOLDEN_ROWS]
    probabilities = forest.predict_proba(rows).astype(np.float32)
    return tuple(
        Golden(
            inputs=(tensors.images("image", [png(row)]),),
            outputs=(
                tensors.numbers("label", probabilities[index : index + 1].argmax(axis=1)),
                tensors.numbers("probabilities", probabilities[index : index + 1]),
            ),
            tolerance=_TOLERANCE,
        )
        for index, row in enumerate(rows)
    )


def samples(folder: Path) -> list[Sample]:
    """Return the first images of the test split with what scikit-learn says about them."""
    del folder
    data = split()
    library = f"scikit-learn {metadata.version('scikit-learn')}"
    return [
        sample_rows.of(
            NAME,
            golden,
            library=library,
            about=f"digits, image {index} of the test split (a {data.test_labels[index]})",
            classes=CLASSES,
        )
        for index, golden in enumerate(_goldens(original(data), data))
    ]
