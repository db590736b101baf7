"""An HTTPS server of a test's own, with an authority of its own, on loopback.

In: paths with what they answer. Out: its origin and the file of its authority's certificate.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Return the files of an authority, and of a key with a certificate for `host`."""
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in ("ca", host)]
    made = []
    for number, key in enumerate(keys):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[number])
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=number == 0, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        )
        made.append(builder.sign(keys[0], hashes.SHA256()))
    authority, pair = folder / "authority.pem", folder / "server.pem"
    authority.write_bytes(made[0].public_bytes(serialization.Encoding.PEM))
    pair.write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made[1].public_bytes(serialization.Encoding.PEM)
    )
    return authority, pair


class HttpsOrigin:
    """The server; `answers` maps a target to status, headers and body, `asked` is what came."""

    def __init__(self, folder: Path, host: str = "localhost") -> None:
        self.host = host
        self.authority, pair = certificate(folder, host)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair)
        self._server: asyncio.Server | None = None
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.port = 0

    @property
    def url(self) -> str:
        """Its origin."""
        return f"https://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest)}
        target = line.split()[1]
        self.asked.append((target, headers["host"]))
        status, more, body = self.answers.get(target, (404, {}, b"none"))
        said = {"content-length": str(len(body)), "connection": "close", **more}
        text = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        writer.write(f"HTTP/1.1 {status} x\r\n{text}\r\n".encode() + body)
        await writer.drain()
        writer.close()
