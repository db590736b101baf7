"""`inferbus models`: push, list, show, alias, rollout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from inferbus_cli import places
from inferbus_cli.errors import CommandError

if TYPE_CHECKING:
    from inferbus_cli.http import Service
    from inferbus_schemas.manifest import FileEntry

app = App(name="models", help="Push, list and roll out models.")

_CHUNK_BYTES = 1 << 20
_UPLOAD_TIMEOUT_S = 600.0

AsJson = Annotated[bool, Parameter(name="--json", negative="")]


def _registry(url: str | None) -> Service:
    from inferbus_cli import http  # noqa: PLC0415 -- a third of a second that help does not need

    return http.registry(places.registry(url))


@app.command
def push(
    folder: Path,
    *,
    alias: str | None = None,
    wait: Annotated[bool, Parameter(negative="")] = False,
    timeout_s: float = 120.0,
    registry: str | None = None,
) -> None:
    """Register the model in a folder; a folder that was pushed before is the same version.

    Args:
        folder: Folder with manifest.json and the files that it names.
        alias: Alias that shall mean this version; without it nothing is deployed.
        wait: Stay until the alias serves this version.
        timeout_s: How long to wait.
        registry: URL of the registry.
    """
    if wait and alias is None:
        raise CommandError("Only an alias is rolled out: give --alias together with --wait.")
    from inferbus_cli.folder import read_manifest  # noqa: PLC0415 -- only push needs it
    from inferbus_schemas import manifest as manifests  # noqa: PLC0415

    manifest = read_manifest(folder)
    with _registry(registry) as service:
        for entry in manifest.files:
            _upload(service, folder, entry)
        answer = service.call(
            "POST",
            f"/v1/registry/models/{manifest.model}/versions",
            content=manifests.encode(manifest),
            headers={"content-type": "application/json"},
        ).json()
        version, digest = answer["version"], answer["version_sha256"][:12]
        fate = "registered" if answer["created"] else "was registered before"
        print(f"{manifest.model} version {version} {fate} ({digest})")
        if alias is not None:
            _move(service, manifest.model, alias, {"version": version})
        if wait and alias is not None:
            from inferbus_cli.rollout import follow  # noqa: PLC0415 -- only where asked

            follow(service, manifest.model, alias, version, timeout_s)


def _upload(service: Service, folder: Path, entry: FileEntry) -> None:
    """Send one file unless the registry has it."""
    address = f"/v1/registry/blobs/{entry.sha256}"
    if service.call("HEAD", address, accept=frozenset({404})).is_success:
        print(f"{entry.path}: there already")
        return
    headers = {
        "content-length": str(entry.size_bytes),
        "content-type": "application/octet-stream",
    }
    service.call(
        "PUT",
        address,
        content=_chunks(folder / entry.path, entry.size_bytes),
        headers=headers,
        timeout_s=_UPLOAD_TIMEOUT_S,
    )
    print(f"{entry.path}: {entry.size_bytes:,} bytes uploaded")


def _chunks(path: Path, size_bytes: int) -> Iterator[bytes]:
    """Yield a file's bytes under a progress bar on stderr, where that is a terminal."""
    from rich.console import Console  # noqa: PLC0415 -- only uploads draw
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns,
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(path.name, total=size_bytes)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
                progress.advance(task, len(chunk))


def _move(service: Service, model: str, alias: str, wish: dict[str, int | None]) -> None:
    answer = service.call("PUT", f"/v1/registry/models/{model}/aliases/{alias}", json=wish).json()
    serving = answer["serving"] or "nothing yet"
    print(
        f"{model} {alias}: wanted {answer['wanted']}, serving {serving} "
        f"(generation {answer['generation']})"
    )


@app.command(name="list")
def list_models(*, registry: str | None = None, as_json: AsJson = False) -> None:
    """List all models with their aliases.

    Args:
        registry: URL of the registry.
        as_json: Print JSON.
    """
    found: list[dict[str, Any]] = []
    with _registry(registry) as service:
        while page := service.get(
            f"/v1/registry/models?after={found[-1]['model'] if found else ''}"
        )["models"]:
            found += page
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        print("No models yet: push one with `inferbus models push FOLDER --alias champion`.")
    for one in found:
        aliases = ", ".join(_alias_words(alias) for alias in one["aliases"]) or "no alias"
        print(f"{one['model']:<32} {one['n_versions']:>4} versions  {aliases}")


def _alias_words(alias: dict[str, Any]) -> str:
    if alias["wanted"] == alias["serving"]:
        return f"{alias['name']} -> {alias['wanted']}"
    now = f"serving {alias['serving']}" if alias["serving"] else "serving nothing yet"
    return f"{alias['name']} -> {alias['wanted']} ({now})"


@app.command
def show(
    model: str, version: int | None = None, *, registry: str | None = None, as_json: AsJson = False
) -> None:
    """Show a model's versions and aliases, or one version with its manifest.

    Args:
        model: Name of the model.
        version: Number of a version.
        registry: URL of the registry.
        as_json: Print JSON.
    """
    where = f"/v1/registry/models/{_name(model)}"
    with _registry(registry) as service:
        found = service.get(where if version is None else f"{where}/versions/{version}")
    if as_json:
        print(json.dumps(found))
    elif version is not None:
        print(f"{found['model']} version {found['version']}  {found['version_sha256']}")
        print(f"created {found['created_at']}")
        print(json.dumps(found["manifest"], indent=2))
    else:
        for alias in found["aliases"]:
            print(_alias_words(alias))
        for one in found["versions"]:
            print(f"{one['version']:>6}  {one['version_sha256'][:12]}  {one['created_at']}")


@app.command
def alias(
    model: str,
    alias: str,
    version: int,
    *,
    expect: int | None = None,
    expect_new: Annotated[bool, Parameter(negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    timeout_s: float = 120.0,
    registry: str | None = None,
) -> None:
    """Make an alias mean a version; the fleet follows without a failed request.

    Args:
        model: Name of the model.
        alias: The alias, such as champion.
        version: Number of the version.
        expect: Refuse unless the alias wants this version now.
        expect_new: Refuse if the alias exists.
        wait: Stay until the alias serves the version.
        timeout_s: How long to wait.
        registry: URL of the registry.
    """
    if expect is not None and expect_new:
        raise CommandError("--expect and --expect-new exclude one another: give one of them.")
    wish: dict[str, int | None] = {"version": version}
    if expect is not None or expect_new:
        wish["expect"] = expect
    with _registry(registry) as service:
        _move(service, _name(model), _name(alias), wish)
        if wait:
            from inferbus_cli.rollout import follow  # noqa: PLC0415 -- only where asked

            follow(service, model, alias, version, timeout_s)


@app.command
def rollout(model: str, *, registry: str | None = None, as_json: AsJson = False) -> None:
    """Show how far a model's rollout is: who holds and who pins which version.

    Args:
        model: Name of the model.
        registry: URL of the registry.
        as_json: Print JSON.
    """
    with _registry(registry) as service:
        found = service.get(f"/v1/registry/models/{_name(model)}/rollout")
    if as_json:
        print(json.dumps(found))
        return
    from inferbus_cli.rollout import lines  # noqa: PLC0415 -- only where shown

    print("\n".join(lines(found)))


def _name(text: str) -> str:
    """Return a name as a part of an address; the registry says whether it is a good one."""
    from urllib.parse import quote  # noqa: PLC0415 -- only where a name is sent

    return quote(text, safe="")
