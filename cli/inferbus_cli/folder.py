"""A model folder on disk: its manifest and its files, checked before anything is sent.

In: a folder. Out: a manifest whose digests and sizes are those of the files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from inferbus_cli.errors import CommandError
from inferbus_schemas import manifest as manifests

_CHUNK_BYTES = 1 << 20


def read_manifest(folder: Path) -> manifests.Manifest:
    """Read `manifest.json`; digests and sizes that it leaves out are filled in.

    Raises:
        CommandError: the folder holds no model, or its files are not what the manifest says.
    """
    path = folder / manifests.MANIFEST_NAME
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CommandError(
            f"There is no {manifests.MANIFEST_NAME} in {folder}: name a model folder."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(raw, dict) and isinstance(raw.get("files"), list):
        raw["files"] = [_measured(folder, entry) for entry in raw["files"]]
    try:
        return manifests.parse(json.dumps(raw).encode())
    except manifests.ManifestError as error:
        raise CommandError(str(error)) from error


def _measured(folder: Path, entry: Any) -> Any:
    """Return a manifest's file entry with the file's own digest and size."""
    if not isinstance(entry, dict) or not isinstance(name := entry.get("path"), str):
        return entry
    if Path(name).name != name:
        raise CommandError("manifest.json: a file's path must be a plain name without folders")
    digest = hashlib.sha256()
    size_bytes = 0
    try:
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
    except OSError as error:
        raise CommandError(
            f"The manifest names {name}, which cannot be read ({error.strerror})."
        ) from error
    for field, found in (("sha256", digest.hexdigest()), ("size_bytes", size_bytes)):
        if entry.get(field, found) != found:
            raise CommandError(
                f"{name} is not the file that manifest.json describes (its {field} differs): "
                "build the folder anew, or take the field out of the manifest."
            )
    return {**entry, "sha256": digest.hexdigest(), "size_bytes": size_bytes}
