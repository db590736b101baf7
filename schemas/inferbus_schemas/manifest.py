"""The manifest of a model version: what it is made of, what it takes and gives, how to run it.

In: `manifest.json` as a user or a recipe wrote it. Out: a frozen `Manifest`, checked, and the
digest that is the version's identity.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Literal

import msgspec

from inferbus_schemas import generation, json_bounds, names

MANIFEST_NAME = "manifest.json"
"""The file in a model folder that holds the manifest."""

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]

Task = Literal[
    "tensor",
    "tabular-classification",
    "image-classification",
    "text-embedding",
    "text-generation",
]

ALLOWED_SUFFIXES = (".onnx", "tokenizer.json", ".gguf")
"""Formats that a version may carry: an allowlist, since scanners for bad pickles keep failing."""

_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """A manifest that cannot describe a version; the message says what to change."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: `shape` counts rows first, -1 stands for any size."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    datatype: Datatype
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=-1)], ...], msgspec.Meta(max_length=8)]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the version takes and gives, in order, as clients see it."""

    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=64)]

    @property
    def splits(self) -> bool:
        """Whether an answer is the same in pieces of its rows.

        Where an output has an open dimension beside its rows, a row may depend on those beside it:
        on the longest text that it is padded to.
        """
        return all(spec.shape[:1] == (-1,) for spec in self.inputs) and all(
            spec.shape[:1] == (-1,) and -1 not in spec.shape[1:] for spec in self.outputs
        )


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the version, flat in its folder; `sha256` is lower-case hex."""

    path: str
    sha256: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the dynamic batcher for this version; they are not part of its identity."""

    max_rows: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    max_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=50)] = 5.0


class JsonTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor as the Open Inference Protocol writes it in JSON; `data` is flat, row-major."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: list[Any]


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A known answer: outputs within `tolerance` (absolute) of what the original library says."""

    inputs: tuple[JsonTensor, ...]
    outputs: tuple[JsonTensor, ...]
    tolerance: float = 1e-4


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version's description.

    Identity (see `version_sha256`): `task`, `task_settings`, `engine`, `engine_settings`,
    `signature`, `files`. All else may differ between two pushes of one version: the first stands.
    """

    model: str
    task: Task
    engine: Literal["onnx", "llamacpp"]
    signature: Signature
    files: Annotated[tuple[FileEntry, ...], msgspec.Meta(min_length=1, max_length=64)]
    task_settings: dict[str, Any] = {}
    engine_settings: dict[str, Any] = {}
    batching: Batching = Batching()
    golden: Annotated[tuple[Golden, ...], msgspec.Meta(max_length=16)] = ()
    license: str = ""
    description: str = ""


def parse(raw: bytes) -> Manifest:
    """Decode and check a manifest.

    Raises:
        ManifestError: it is not JSON, lacks a field, or names a file or format that is refused.
    """
    try:
        json_bounds.check(raw)
        manifest = msgspec.json.decode(raw, type=Manifest)
        names.check_model(manifest.model)
    except (
        json_bounds.TooManyPartsError,
        msgspec.MsgspecError,
        names.InvalidNameError,
        RecursionError,
    ) as error:
        raise ManifestError(f"manifest.json: {error}") from error
    seen: set[str] = set()
    for entry in manifest.files:
        if not _PATH.fullmatch(entry.path):
            raise ManifestError("manifest.json: a file's path must be a plain name without folders")
        if not _SHA256.fullmatch(entry.sha256):
            raise ManifestError("manifest.json: a file's sha256 must be 64 lower-case hex digits")
        if not entry.path.endswith(ALLOWED_SUFFIXES):
            raise ManifestError(
                f"manifest.json: format refused; files must end in {' or '.join(ALLOWED_SUFFIXES)}"
            )
        if entry.path.lower() in seen:
            raise ManifestError("manifest.json: two files have the same name")
        seen.add(entry.path.lower())
    for kind in (manifest.signature.inputs, manifest.signature.outputs):
        if len({spec.name for spec in kind}) != len(kind):
            raise ManifestError("manifest.json: two tensors of the signature have the same name")
    if wrong := generation.problem(manifest):
        raise ManifestError(f"manifest.json: {wrong}")
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON that `parse` reads back."""
    return msgspec.json.encode(manifest)


def version_sha256(manifest: Manifest) -> str:
    """Return the version's identity: sha256 (hex) over what answers depend on, as canonical JSON.

    Canonical: UTF-8, no white space, keys sorted, files sorted by path.
    """
    identity = {
        "engine": manifest.engine,
        "engine_settings": manifest.engine_settings,
        "files": {entry.path: entry.sha256 for entry in manifest.files},
        "signature": msgspec.to_builtins(manifest.signature),
        "task": manifest.task,
        "task_settings": manifest.task_settings,
    }
    return hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()
