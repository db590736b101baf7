"""One Apache Kafka broker on the loopback address.

In: the checked jars, a Java, a data folder, two ports. Out: the spec of a child process that is
ready when the broker answers and has registered itself.
"""

from __future__ import annotations

import asyncio
import base64
import os
import string
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferbus_dev import java, process
from inferbus_dev.errors import DISK_FULL, LauncherError
from inferbus_dev.paths import KAFKA_FILES
from inferbus_dev.ports import LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path

HEAP = "-Xmx384m"
FLAGS = (HEAP, "-XX:+UseSerialGC")
READY_TIMEOUT_S = 60.0
# The first run also writes the class-data archive as it ends.
STOP_TIMEOUT_S = 30.0
_PROBE_TIMEOUT_S = 2.0
_API_VERSIONS = 18
_METADATA = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where a broker keeps its data and listens.

    Invariants: `folder` belongs to this broker alone; both ports are on the loopback address.
    """

    folder: Path
    log: Path
    port: int
    controller_port: int
    class_path: tuple[Path, ...]
    runtime: java.Java
    archive: java.Archive

    @property
    def bootstrap(self) -> str:
        """What clients take as `bootstrap_servers`."""
        return f"{LOOPBACK}:{self.port}"

    def command(self, shared: tuple[str, ...], main: str, *arguments: str) -> tuple[str, ...]:
        """Return the command line of one of Kafka's programs; `shared`: its archive's options."""
        return (
            str(self.runtime.program),
            *FLAGS,
            *shared,
            f"-Dlog4j2.configurationFile={KAFKA_FILES / 'log4j2.properties'}",
            "-cp",
            os.pathsep.join(map(str, self.class_path)),
            main,
            *arguments,
        )


async def prepare(broker: Broker) -> None:
    """Write the broker's properties and format its storage if that is still to be done."""
    broker.folder.mkdir(parents=True, exist_ok=True)
    template = string.Template((KAFKA_FILES / "server.properties").read_text("utf-8"))
    data = broker.folder / "data"
    properties = broker.folder / "server.properties"
    properties.write_text(
        template.substitute(port=broker.port, controller_port=broker.controller_port, data=data)
    )
    if (data / "meta.properties").exists():
        return
    cluster = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=").replace("-", "A")
    arguments = ("format", "--standalone", "-t", cluster, "-c", str(properties))
    with broker.log.open("ab") as log:
        formatting = await asyncio.create_subprocess_exec(
            *broker.command(broker.archive.reading, "kafka.tools.StorageTool", *arguments),
            stdout=log,
            stderr=log,
        )
    try:
        code = await formatting.wait()
    finally:
        if formatting.returncode is None:
            formatting.kill()
            await formatting.wait()
    if code != 0:
        raise LauncherError(why_failed(broker.log, "Kafka could not format its data folder"))


def child(broker: Broker, env: process.Environment) -> process.ChildSpec:
    """Return the spec of the broker's process."""

    async def ready() -> bool:
        return await answers(broker.port)

    return process.ChildSpec(
        role="kafka",
        index=0,
        argv=broker.command(
            broker.archive.recording_or_reading,
            "kafka.Kafka",
            str(broker.folder / "server.properties"),
        ),
        env=env,
        log=broker.log,
        ready=ready,
        ready_timeout_s=READY_TIMEOUT_S,
        stop_timeout_s=STOP_TIMEOUT_S,
        on_end=broker.archive.keep,
    )


def why_failed(log: Path, what: str) -> str:
    """Return one sentence on a failure that the log explains."""
    said = "\n".join(process.last_lines(log, 40))
    if "No space left on device" in said:
        return DISK_FULL
    return f"{what}: the reason stands at the end of {log.parent.name}/{log.name}."


def archive_refused(log: Path, since: int) -> bool:
    """Say whether Java started without the class-data archive that it was given."""
    said = process.last_lines(log, 200, since=since)
    return any(line.startswith("[") and "[cds" in line and "shar" in line for line in said)


async def answers(port: int) -> bool:
    """Say whether the broker answers ApiVersions and lists itself as a live broker."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                versions = await _ask(reader, writer, _API_VERSIONS, 0, b"")
                metadata = await _ask(reader, writer, _METADATA, 1, struct.pack(">i", 0))
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, struct.error):
        return False
    # After the correlation id: the error of ApiVersions v0, the count of brokers in Metadata v1.
    (error,) = struct.unpack_from(">h", versions, 4)
    (brokers,) = struct.unpack_from(">i", metadata, 4)
    return bool(error == 0 and brokers > 0)


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    api: int,
    version: int,
    body: bytes,
) -> bytes:
    """Send one request with an old header (v1, no client id) and return the answer."""
    message = struct.pack(">hhih", api, version, 1, -1) + body
    writer.write(struct.pack(">i", len(message)) + message)
    await writer.drain()
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)
