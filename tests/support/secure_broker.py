"""A broker that wants TLS and a name, and lets each name do what its ACLs say.

In: a folder. Out: its address, the file of its authority, and an administrator who may do anything.
The Kafka is the project's own; what is added is a listener, an authorizer and two kinds of secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import os
import re
import secrets
import shlex
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from inferbus_dev import java, kafka, ports
from inferbus_dev.paths import cache_dir
from tests.support.shared_jars import class_path

READY_S = 60.0
_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass(frozen=True, slots=True)
class SecureBroker:
    """A running broker: `bootstrap` wants TLS and a name; `admin` may do anything."""

    bootstrap: str
    ca_file: Path
    passwords: Mapping[str, str]
    admin: AdminClient

    def librdkafka(self, user: str) -> dict[str, str]:
        """The settings of a program of another library."""
        return {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": self.passwords[user],
            "ssl.ca.location": str(self.ca_file),
        }

    def environment(self, user: str) -> dict[str, str]:
        """What a process of ours is told."""
        return {
            "INFERBUS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "INFERBUS_KAFKA_SASL_USERNAME": user,
            "INFERBUS_KAFKA_SASL_PASSWORD": self.passwords[user],
            "INFERBUS_KAFKA_CA_FILE": str(self.ca_file),
        }

    async def allow(self, page: str) -> int:
        """Make the ACLs that a page's `kafka-acls.sh --add` lines say; return how many."""
        made = [each for line in _commands(page) for each in _bindings(line)]
        for done in self.admin.create_acls(made).values():
            await asyncio.to_thread(done.result, 30)
        return len(made)


def _commands(page: str) -> list[list[str]]:
    joined = page.replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^kafka-acls\.sh .*$", joined, re.MULTILINE)]


def _bindings(command: list[str]) -> list[AclBinding]:
    """Read a line as `kafka-acls.sh` does; another flag than these is an error."""
    flags: dict[str, list[str]] = {}
    words = iter(command[1:])
    for word in words:
        flags.setdefault(word, []).append("" if word == "--add" else next(words))
    known = {"--add", "--bootstrap-server", "--allow-principal", "--operation", "--topic"}
    assert flags.keys() <= known | {"--group", "--resource-pattern-type"}, flags
    pattern = flags.get("--resource-pattern-type", ["literal"])[0].upper()
    return [
        AclBinding(
            kind,
            name,
            ResourcePatternType[pattern],
            principal,
            "*",
            AclOperation[operation.upper()],
            AclPermissionType.ALLOW,
        )
        for flag, kind in (("--topic", ResourceType.TOPIC), ("--group", ResourceType.GROUP))
        for name in flags.get(flag, [])
        for principal in flags["--allow-principal"]
        for operation in flags["--operation"]
    ]


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that signs itself; return it alone, and with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker of a test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "ca.pem").write_bytes(public)
    (folder / "broker.pem").write_bytes(private + public)
    return folder / "ca.pem", folder / "broker.pem"


@contextlib.asynccontextmanager
async def secure_broker(folder: Path, users: tuple[str, ...]) -> AsyncIterator[SecureBroker]:
    """Run the broker; its users have passwords and may do nothing yet."""
    ca_file, pem = _certificate(folder)
    jars, runtime = await class_path(), java.bundled()
    archive = await java.archive(runtime, jars, kafka.FLAGS, cache_dir(os.environ) / "java")
    broker = kafka.Broker(
        folder=folder / "kafka",
        log=folder / "kafka.log",
        port=ports.free_port(),
        controller_port=ports.free_port(),
        class_path=jars,
        runtime=runtime,
        archive=archive,
    )
    await kafka.prepare(broker)
    outside = ports.free_port()
    properties = broker.folder / "server.properties"
    said = properties.read_text()
    for name in ("listeners", "advertised.listeners"):
        said = re.sub(rf"(?m)^({name}=.*)$", rf"\1,SECURE://127.0.0.1:{outside}", said)
    said = re.sub(r"(?m)^(listener.security.protocol.map=.*)$", r"\1,SECURE:SASL_SSL", said)
    said = re.sub(r"(?m)^(advertised.listeners=.*?),CONTROLLER://[^,\n]*", r"\1", said)
    properties.write_text(
        said
        + f"""
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config={_LOGIN}
ssl.keystore.type=PEM
ssl.keystore.location={pem}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
    )
    with broker.log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *broker.command(archive.reading, "kafka.Kafka", str(properties)), stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(READY_S):
            while not await kafka.answers(broker.port):
                assert process.returncode is None, broker.log.read_text()[-2000:]
                await asyncio.sleep(0.1)
        made = SecureBroker(
            f"127.0.0.1:{outside}",
            ca_file,
            {user: secrets.token_urlsafe(12) for user in users},
            AdminClient({"bootstrap.servers": broker.bootstrap}),
        )
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        for done in made.admin.alter_user_scram_credentials(
            [
                UserScramCredentialUpsertion(user, scram, password.encode())
                for user, password in made.passwords.items()
            ]
        ).values():
            await asyncio.to_thread(done.result, 30)
        yield made
    finally:
        process.terminate()
        await process.wait()
