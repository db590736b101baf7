"""The jars of Apache Kafka, by digest.

In: `jgo.lock.toml`, the network when a jar is missing. Out: the class path, each jar checked
against the lock. `write_lock` makes the lock from `jgo.toml`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inferbus_dev.errors import LauncherError

if TYPE_CHECKING:
    from collections.abc import Callable

DOWNLOAD_THREADS = 6
DOWNLOAD_TIMEOUT_S = 30
_OFFLINE = (
    "Apache Kafka's jars could not be downloaded: check the network (or the proxy settings) and "
    "run `make up` again; what has arrived is kept."
)


async def class_path(
    lock: Path, repository: Path, on_progress: Callable[[int, int], None]
) -> tuple[Path, ...]:
    """Return every jar of the lock, in its order, downloading what `repository` lacks.

    `on_progress(n, total)` is called from another thread after each jar.
    Raises LauncherError when a jar cannot be had or differs from the lock.
    """
    return await asyncio.to_thread(_class_path, lock, repository, on_progress)


def lock_digest(lock: Path) -> str:
    """Return the sha256 of the lock file in hex."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def write_lock(spec: Path, lock: Path) -> int:
    """Resolve `spec` to `lock` and return the number of jars; needs the network."""
    import requests  # noqa: PLC0415 -- see _download
    from jgo.env import EnvironmentBuilder, EnvironmentSpec  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    # The resolver would otherwise report every version that it overrides.
    logging.getLogger("jgo").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(repo_cache=Path(scratch, "repository"))
        builder = EnvironmentBuilder(context=context, cache_dir=Path(scratch, "environments"))
        try:
            resolved = builder.resolve_lockfile(EnvironmentSpec.load(spec))
        except (requests.RequestException, RuntimeError) as error:
            raise LauncherError(_OFFLINE) from error
        resolved.save(lock)
    return len(resolved.dependencies)


class _Jar(NamedTuple):
    """One jar of the lock."""

    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where a Maven repository keeps it."""
        suffix = f"-{self.classifier}" if self.classifier else ""
        name = f"{self.artifact}-{self.version}{suffix}.{self.packaging}"
        return Path(*self.group.split("."), self.artifact, self.version, name)


def _class_path(
    lock: Path, repository: Path, on_progress: Callable[[int, int], None]
) -> tuple[Path, ...]:
    locked = _read(lock)
    repository.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in locked if not (repository / jar.path).exists()]
    on_progress(len(locked) - len(missing), len(locked))
    if missing:
        _download(missing, repository, lambda n: on_progress(len(locked) - n, len(locked)))
    for jar in locked:
        _check(jar, repository / jar.path)
    return tuple(repository / jar.path for jar in locked)


def _read(lock: Path) -> list[_Jar]:
    try:
        return [
            _Jar(
                group=entry["groupId"],
                artifact=entry["artifactId"],
                version=entry["version"],
                classifier=entry.get("classifier", ""),
                packaging=entry["packaging"],
                sha256=entry["sha256"],
            )
            for entry in tomllib.loads(lock.read_text("utf-8"))["dependencies"]
        ]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise LauncherError(
            f"{lock.name} lacks a jar's name or checksum: make it again with "
            "`python -m inferbus_dev lock-jars`."
        ) from error


def _download(missing: list[_Jar], repository: Path, left: Callable[[int], None]) -> None:
    """Fetch into a folder of this process, check, then move: a jar in place is always whole."""
    # Needed on the first start alone, and half a second of every start if imported above.
    import requests  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=repository))
    context = MavenContext(repo_cache=staging, timeout=DOWNLOAD_TIMEOUT_S)

    def fetch(jar: _Jar) -> None:
        component = context.project(jar.group, jar.artifact).at_version(jar.version)
        arrived = component.artifact(jar.classifier, jar.packaging).resolve()
        _check(jar, arrived)
        target = repository / jar.path
        target.parent.mkdir(parents=True, exist_ok=True)
        arrived.replace(target)

    pool = ThreadPoolExecutor(DOWNLOAD_THREADS, thread_name_prefix="jars")
    try:
        waiting = [pool.submit(fetch, jar) for jar in missing]
        for count, future in enumerate(as_completed(waiting), start=1):
            future.result()
            left(len(missing) - count)
    except (requests.RequestException, RuntimeError) as error:
        raise LauncherError(_OFFLINE) from error
    finally:
        pool.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):
            shutil.rmtree(staging)


def _check(jar: _Jar, path: Path) -> None:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != jar.sha256:
        raise LauncherError(
            f"{path.name} is not the file that dev/kafka/jgo.lock.toml names by its sha256, so it "
            "was not run: delete it from the `jars` folder of the cache and start again."
        )
