"""Building model folders: once, whole, and again only when something changed.

In: a recipe's name and the folder that holds model folders. Out: the model folder, complete. A
build happens beside its place and is moved there when it is done, so that no reader sees half of
it; a lock file makes two builders of one folder take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from inferbus_models import folder as folders
from inferbus_models import recipes, samples
from inferbus_schemas import manifest as manifests

if TYPE_CHECKING:
    from collections.abc import Iterator

_RECIPE_NAME = "recipe.json"


class BuildError(RuntimeError):
    """A build that cannot be done; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Built:
    """A model folder that is complete and up to date; `seconds` is 0 if it already was."""

    folder: Path
    version_sha256: str
    size_bytes: int
    seconds: float


def folder_name(name: str, variant: int) -> str:
    """Return the model folder's name: the recipe's, with the number of any variant but the first.

    Raises:
        BuildError: the recipe has no such variant.
    """
    variants = recipes.RECIPES[name].variants
    if not 1 <= variant <= variants:
        raise BuildError(f"{name} has no variant {variant}: choose from 1 to {variants}")
    return name if variant == 1 else f"{name}-{variant}"


def ensure(name: str, out: Path, *, variant: int = 1, force: bool = False) -> Built:
    """Return the recipe's model folder under `out`, built now unless it is up to date.

    Raises:
        BuildError: no such variant, or a package that the recipe needs is missing.
    """
    folder = out / folder_name(name, variant)
    out.mkdir(parents=True, exist_ok=True)
    fingerprint = _fingerprint(recipes.RECIPES[name], variant)
    with _alone(folder):
        if not force and _recorded(folder) == fingerprint and folders.is_whole(folder):
            return _built(folder, seconds=0.0)
        started = time.monotonic()
        made = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        print(f"{folder.name}: loading the libraries that build it", flush=True)
        recipes.module(name).build(made, variant=variant)
        samples.save(samples.ask(name, made), made)
        record = {"fingerprint": fingerprint, "recipe": name, "variant": variant}
        (folders.originals(made) / _RECIPE_NAME).write_text(json.dumps(record) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
        return _built(folder, seconds=time.monotonic() - started)


def _built(folder: Path, *, seconds: float) -> Built:
    manifest = folders.read_manifest(folder)
    return Built(
        folder=folder,
        version_sha256=manifests.version_sha256(manifest),
        size_bytes=sum(file.size_bytes for file in manifest.files),
        seconds=seconds,
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel frees even if this process is killed."""
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recorded(folder: Path) -> str | None:
    try:
        record = json.loads((folder / folders.ORIGINALS_NAME / _RECIPE_NAME).read_bytes())
        return str(record["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fingerprint(recipe: recipes.Recipe, variant: int) -> str:
    """Return a digest of all that decides the folder's content: our sources and the packages.

    Every source of the package counts: a build is cheaper than a list of imports to keep right.
    """
    digest = hashlib.sha256(f"{recipe.name} {variant}\n".encode())
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), *here.glob("*.json"), Path(manifests.__file__)]):
        digest.update(f"{source.name} {folders.sha256_of(source)}\n".encode())
    for distribution in recipe.distributions:
        try:
            digest.update(f"{distribution} {metadata.version(distribution)}\n".encode())
        except metadata.PackageNotFoundError:
            raise BuildError(
                f"{recipe.name} needs the package {distribution}: run `make setup`"
            ) from None
    return digest.hexdigest()
