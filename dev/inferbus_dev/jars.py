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
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inferbus_dev.errors import LauncherError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jgo.maven import MavenContext

DOWNLOAD_THREADS = 6
DOWNLOAD_TIMEOUT_S = 30
_OFFLINE = (
    "Apache Kafka's jars could not be downloaded: check the network (or the proxy settings) and "
    "run `make up` again; what has arrived is kept."
)


class Progress(NamedTuple):
    """How many jars are in place, of how many, and what this run has received so far."""

    here: int
    total: int
    received_bytes: int


async def class_path(
    lock: Path, repository: Path, on_progress: Callable[[Progress], None]
) -> tuple[Path, ...]:
    """Return every jar of the lock, in its order, downloading what `repository` lacks.

    `on_progress` is called from other threads. Cancelling ends the downloads at once.
    Raises LauncherError when a jar cannot be had or differs from the lock.
    """
    locked = _read(lock)
    download = _Download(repository, locked, on_progress)
    try:
        return await asyncio.to_thread(download.run)
    except asyncio.CancelledError:
        download.cancelled.set()
        raise


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


class _CancelledError(Exception):
    """The launcher stops, or another jar has failed, while jars arrive."""


class _Download:
    """Fetches missing jars side by side.

    Invariants: a jar is fetched into a folder of this process, checked, then moved, so one that
    is in place is always whole.
    """

    def __init__(
        self, repository: Path, locked: list[_Jar], on_progress: Callable[[Progress], None]
    ) -> None:
        self.cancelled = threading.Event()
        self._repository = repository
        self._locked = locked
        self._here = 0
        self._received_bytes = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def run(self) -> tuple[Path, ...]:
        """Fetch what is missing, check all; raises LauncherError when network or a jar fails."""
        self._repository.mkdir(parents=True, exist_ok=True)
        missing = [jar for jar in self._locked if not (self._repository / jar.path).exists()]
        self._tell(jars=len(self._locked) - len(missing))
        if missing:
            self._fetch_all(missing)
        for jar in self._locked:
            _check(jar, self._repository / jar.path)
        return tuple(self._repository / jar.path for jar in self._locked)

    def _fetch_all(self, missing: list[_Jar]) -> None:
        # Needed on the first start alone, and half a second of every start if imported above.
        import requests  # noqa: PLC0415
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415

        staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self._repository))
        resolver = PythonResolver(progress_callback=self._receiving)
        context = MavenContext(resolver, repo_cache=staging, timeout=DOWNLOAD_TIMEOUT_S)
        pool = ThreadPoolExecutor(DOWNLOAD_THREADS, thread_name_prefix="jars")
        try:
            for future in as_completed([pool.submit(self._fetch, context, jar) for jar in missing]):
                future.result()
        except (requests.RequestException, RuntimeError) as error:
            raise LauncherError(_OFFLINE) from error
        finally:
            self.cancelled.set()
            pool.shutdown(cancel_futures=True)
            with contextlib.suppress(OSError):
                shutil.rmtree(staging)

    def _fetch(self, context: MavenContext, jar: _Jar) -> None:
        component = context.project(jar.group, jar.artifact).at_version(jar.version)
        arrived = component.artifact(jar.classifier, jar.packaging).resolve()
        _check(jar, arrived)
        target = self._repository / jar.path
        target.parent.mkdir(parents=True, exist_ok=True)
        arrived.replace(target)
        self._tell(jars=1)

    @contextlib.contextmanager
    def _receiving(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield lambda count: self._tell(received_bytes=count)

    def _tell(self, *, jars: int = 0, received_bytes: int = 0) -> None:
        if self.cancelled.is_set():
            raise _CancelledError
        with self._lock:
            self._here += jars
            self._received_bytes += received_bytes
            told = Progress(self._here, len(self._locked), self._received_bytes)
        self._on_progress(told)


def _check(jar: _Jar, path: Path) -> None:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != jar.sha256:
        raise LauncherError(
            f"{path.name} is not the file that dev/kafka/jgo.lock.toml names by its sha256, so it "
            "was not run: delete it from the `jars` folder of the cache and start again."
        )
