"""An OpenID provider on the loopback address: keys that it publishes, tokens that it signs.

In: what a test wants. Out: a JWKS address, and tokens of every kind, good and bad.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

if TYPE_CHECKING:
    from collections.abc import Iterator

ISSUER = "https://idp.example"
AUDIENCE = "inferbus"


def _jwk(key: Any, kid: str) -> dict[str, Any]:
    kinds: dict[Any, Any] = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
    }
    for kind, algorithm in kinds.items():
        if isinstance(key, kind):
            return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}
    return {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


@dataclass(slots=True)
class Provider:
    """Signs tokens; `keys` are what it publishes."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    raw: bytes | None = None
    port: int = 0
    n_asked: int = 0
    private: dict[str, tuple[Any, str]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"

    @property
    def environment(self) -> dict[str, str]:
        """What a process is told to take its tokens."""
        return {
            "INFERBUS_OIDC_ISSUER": ISSUER,
            "INFERBUS_OIDC_AUDIENCE": AUDIENCE,
            "INFERBUS_OIDC_JWKS_URL": self.url,
        }

    def add(self, algorithm: str = "ES256", *, published: bool = True, bits: int = 2048) -> str:
        """Make a key and return its id."""
        kid = secrets.token_hex(4)
        key: Any
        if algorithm == "RS256":
            key = rsa.generate_private_key(65537, bits)
        elif algorithm == "ES256":
            key = ec.generate_private_key(ec.SECP256R1())
        else:
            key = ed25519.Ed25519PrivateKey.generate()
        self.private[kid] = (key, algorithm)
        if published:
            self.keys.append(_jwk(key, kid))
        return kid

    def token(self, kid: str, *, head: dict[str, Any] | None = None, **changes: Any) -> str:
        """Sign a token; a claim that is changed to None is left out."""
        now_s = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "exp": now_s + 300,
            "tenant": "acme",
            "scope": "openid infer:* models:read",
            **changes,
        }
        said = {name: value for name, value in claims.items() if value is not None}
        key, algorithm = self.private[kid]
        return jwt.encode(said, key, algorithm, headers={"kid": kid, **(head or {})})


@contextlib.contextmanager
def provider(port: int = 0) -> Iterator[Provider]:
    """Run a provider until the block ends; port 0 takes a free one."""
    made = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.n_asked += 1
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("location", made.url)
                self.end_headers()
                return
            if self.path == "/broken":
                self.wfile.write(b"this is no HTTP\r\n\r\n")
                return
            body = made.raw if made.raw is not None else json.dumps({"keys": made.keys}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.port = server.server_address[1]
    looks = {"poll_interval": 0.02}  # at whether it is to end
    Thread(target=server.serve_forever, kwargs=looks, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
