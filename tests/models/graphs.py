"""Running a sample model as a worker would: written from `task_settings`, not from the recipes.

In: a model folder and a sample's inputs. Out: the outputs that the version should answer with.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from inferbus_models import folder as folders
from inferbus_models import tensors
from inferbus_schemas.manifest import JsonTensor, Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Graph:
    """A version loaded into onnxruntime on one thread."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.folder = folder
        self.manifest: Manifest = folders.read_manifest(folder)
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feed), strict=True))

    def answer(self, inputs: tuple[JsonTensor, ...]) -> dict[str, NDArray[Any]]:
        return self.run(self.feed(inputs))

    def feed(self, inputs: tuple[JsonTensor, ...]) -> dict[str, NDArray[Any]]:
        (tensor,) = inputs
        settings = self.manifest.task_settings
        if self.manifest.task == "image-classification":
            return _pixels(settings["image"], [base64.b64decode(text) for text in tensor.data])
        if self.manifest.task == "text-embedding":
            return _tokens(settings["text"], self.folder, tensor.data)
        return {tensor.name: tensors.array(tensor)}


def _pixels(settings: dict[str, Any], files: list[bytes]) -> dict[str, NDArray[Any]]:
    rows = []
    for file in files:
        image = Image.open(io.BytesIO(file))
        assert image.width * image.height <= settings["max_pixels"]
        small = image.convert(settings["mode"]).resize(
            (settings["width"], settings["height"]), Image.Resampling[settings["resample"].upper()]
        )
        rows.append(np.asarray(small).ravel() * settings["scale"])
    assert settings["layout"] == "NF"
    return {settings["graph_input"]: np.stack(rows).astype(np.float32)}


def _tokens(settings: dict[str, Any], folder: Path, texts: list[str]) -> dict[str, NDArray[Any]]:
    tokenizer = Tokenizer.from_file(str(folder / settings["tokenizer"]))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(settings["max_tokens"])
    encodings = tokenizer.encode_batch(texts)
    names = settings["graph_inputs"]
    return {
        names["input_ids"]: np.array([one.ids for one in encodings], dtype=np.int64),
        names["attention_mask"]: np.array(
            [one.attention_mask for one in encodings], dtype=np.int64
        ),
    }
