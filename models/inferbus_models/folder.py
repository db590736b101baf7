"""A model folder: `manifest.json`, the version's files beside it, and what stays at home.

In: files that a recipe wrote into a folder, and what it says about them. Out: a manifest that
`inferbus_schemas.manifest.parse` accepts. Whatever lies under `originals/` (the model as its own
library keeps it, how it was built) belongs to no version and is never pushed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from inferbus_schemas import manifest as manifests

if TYPE_CHECKING:
    from pathlib import Path

ORIGINALS_NAME = "originals"
"""The subfolder of a model folder whose content is not pushed."""

_CHUNK_BYTES = 1 << 20


def originals(folder: Path) -> Path:
    """Return the folder for what is not pushed, made if it was missing."""
    path = folder / ORIGINALS_NAME
    path.mkdir(exist_ok=True)
    return path


def sha256_of(path: Path) -> str:
    """Return the file's digest in lower-case hex, read a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def entry(path: Path) -> manifests.FileEntry:
    """Return the manifest's line for a file of the version."""
    return manifests.FileEntry(
        path=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size
    )


def write_manifest(folder: Path, manifest: manifests.Manifest) -> None:
    """Write `manifest.json`, indented for people, after reading it back once.

    Raises:
        ManifestError: the recipe described something that no registry would take.
    """
    raw = msgspec.json.format(manifests.encode(manifest), indent=1)
    manifests.parse(raw)
    (folder / manifests.MANIFEST_NAME).write_bytes(raw + b"\n")


def read_manifest(folder: Path) -> manifests.Manifest:
    """Return the folder's manifest.

    Raises:
        ManifestError: the manifest is broken.
        OSError: there is none.
    """
    return manifests.parse((folder / manifests.MANIFEST_NAME).read_bytes())


def is_whole(folder: Path) -> bool:
    """Return whether every file that the manifest names is there with the bytes it names."""
    try:
        files = read_manifest(folder).files
        return all(
            (folder / file.path).stat().st_size == file.size_bytes
            and sha256_of(folder / file.path) == file.sha256
            for file in files
        )
    except (OSError, manifests.ManifestError):
        return False
