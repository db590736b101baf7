"""Hostile HTTP requests from a seed, and what a server made of them.

In: valid bodies for routes. Out: requests as bytes on the wire - bodies changed in a few places,
lengths that lie, bombs, odd headers and paths - and a tally of the answers, with each one that
breaks a rule: 500, silence, or a body that tells what it should not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SILENCE_S = 5.0
"""An answer that takes longer counts as a hang."""
_DEADLINE = f"x-inferbus-timeout-ms: {int(SILENCE_S * 500)}\r\n"
_GENERATING = 0.2
LEAKS = re.compile(
    rb"Traceback|\.py\b|site-packages|/(?:tmp|home|root|usr|var)/|0x[0-9a-f]{6,}|(?:asyncpg|aiokafka)\."
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**70, 1e308, -1e-320, 0.5),
    *(
        "",
        "x",
        "A" * 5000,
        "../../etc/passwd",
        "\x00",
        "\ud800",
        "\u202e",
        "${jndi:ldap://x}",
        "NaN",
    ),
    *([], {}, [[]], [None], {"": ""}, [1, "a", {}], {"$ref": "#"}, [[[[[[[[[1]]]]]]]]], [0] * 3000),
)
LITERALS = (b"NaN", b"Infinity", b"1e999", b"-", b"01", b"tru", b"'x'", b'"\\u12"', b"[" * 20_000)

_ROW = {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}
_TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a cat"]}
_SAID = [{"role": "user", "content": "Hi"}]
VALID: Mapping[str, Any] = {
    "/v2/models/breast-cancer/infer": {
        "id": "x",
        "parameters": {"timeout": 0},
        "inputs": [_ROW],
        "outputs": [{"name": "label", "parameters": {"classification": 1}}],
    },
    "/v2/models/minilm/infer": {"inputs": [_TEXT]},
    "/v2/models/smollm2/generate": {
        "text_input": "Hi",
        "parameters": {"max_tokens": 1, "temperature": 0},
    },
    "/v1/embeddings": {"model": "minilm", "input": ["a", "b"], "encoding_format": "base64"},
    "/v1/completions": {"model": "smollm2", "prompt": "Hi", "max_tokens": 1, "n": 1},
    "/v1/chat/completions": {
        "model": "smollm2",
        "messages": _SAID,
        "max_tokens": 1,
        "temperature": 0,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"5": 1},
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
    },
    "/v2/repository/index": {"ready": True},
}
"""A body that is fine for each route that takes one, of the sample models."""


@dataclass(slots=True)
class Tally:
    """Answers by status, and the worst: what was sent (its start) and what came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    closed: int = 0
    broken: list[tuple[str, bytes, bytes]] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Requests that were sent."""
        return sum(self.statuses.values()) + self.closed + len(self.broken)


def requests(seed: int, valid: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield hostile requests without end; `valid` has a body that is fine for each POST route."""
    chance = random.Random(seed)
    routes = sorted(valid)
    quick = [path for path in routes if "max_tokens" not in json.dumps(valid[path])]
    kinds = (_json, _json, _json, _text, _binary, _encoded, _headed, _addressed)
    while True:
        # Text takes its time: a fifth of the requests may ask for some.
        path = chance.choice(routes if chance.random() < _GENERATING else quick)
        yield chance.choice(kinds)(chance, path, valid[path])


def _wire(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    head = "".join(f"{one}\r\n" for one in headers)
    start = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{_DEADLINE}{head}"
    return f"{start}content-length: {len(body)}\r\n\r\n".encode("utf-8", "surrogateescape") + body


def _json(chance: random.Random, path: str, valid: Any) -> bytes:
    """Change one to four places of the body."""
    body = json.loads(json.dumps(valid))
    for _ in range(chance.randint(1, 4)):
        body = _changed(chance, body)
    return _wire(path, json.dumps(body).encode(), "content-type: application/json")


def _changed(chance: random.Random, value: Any) -> Any:
    deeper = isinstance(value, dict | list) and value and chance.random() < 0.8
    if not deeper:
        return chance.choice(VALUES)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [*value[:at], _changed(chance, value[at]), *value[at + 1 :]]
    key = chance.choice(sorted(value))
    what = chance.random()
    if what < 0.1:
        return {name: one for name, one in value.items() if name != key}
    if what < 0.2:
        return {
            **value,
            chance.choice(("", "x" * 999, "\u0000", "parameters")): chance.choice(VALUES),
        }
    return {**value, key: _changed(chance, value[key])}


def _text(chance: random.Random, path: str, valid: Any) -> bytes:
    """Break the text: cut, doubled keys, literals that are none, nests, bytes."""
    text = json.dumps(valid).encode()
    at = chance.randrange(len(text))
    bodies = (
        text[:at],
        text + text,
        text.replace(b'{"', b'{"inputs": 1, "', 1).replace(b'{"', b'{"model": 1, "', 1),
        text[:at] + chance.choice(LITERALS) + text[at:],
        b"[" * chance.choice((10, 1000, 100_000)),
        b'{"a":' * 30_000,
        chance.randbytes(chance.randrange(1, 4000)),
        b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"),
    )
    return _wire(path, chance.choice(bodies))


def _binary(chance: random.Random, path: str, valid: Any) -> bytes:
    """Lie about lengths and shapes of binary tensors."""
    shape = chance.choice(([1, 30], [-1, 30], [2**31, 30], [2**40, 2**40], [0], [1] * 50, [], [30]))
    kind = chance.choice(("FP32", "BYTES", "BF16", "INT64", "BOOL", "", "FP999"))
    data = chance.randbytes(chance.choice((0, 1, 4, 119, 120, 121, 5000)))
    if kind == "BYTES" and chance.random() < 0.5:
        data = b"\xff\xff\xff\xff" + data
    size = chance.choice((len(data), 0, -1, len(data) + 1, 2**40, "9", None))
    tensor = {"name": "features", "shape": shape, "datatype": kind}
    head = json.dumps({**valid, "inputs": [{**tensor, "parameters": {"binary_data_size": size}}]})
    said = chance.choice((len(head), 0, len(head) + 5, 10**12, "abc", -1, ""))
    return _wire(path, head.encode() + data, f"Inference-Header-Content-Length: {said}")


def _packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _encoded(chance: random.Random, path: str, valid: Any) -> bytes:
    """Compress badly, or far too well."""
    text = json.dumps(valid).encode()
    bodies = (
        _packed(bytes(chance.choice((1 << 20, 8 << 20, 40 << 20)))),
        _packed(text)[:-4],
        _packed(text) + b"more",
        zlib.compress(text)[3:],
        _packed(_packed(text)),
        chance.randbytes(200),
        text,
    )
    kind = chance.choice(("gzip", "deflate", "br", "gzip, gzip", "identity", "\x7f", ""))
    return _wire(path, chance.choice(bodies), f"content-encoding: {kind}")


def _headed(chance: random.Random, path: str, valid: Any) -> bytes:
    """Send headers that are wrong, large, many or doubled."""
    odd = (
        f"x-inferbus-timeout-ms: {chance.choice((0, -1, 10**30, 'x', '1e3', ''))}",
        f"traceparent: {chance.choice(('00-0-0-0', 'x' * 3000, '', '00-' + 'g' * 55))}",
        f"authorization: {chance.choice(('Bearer', 'Bearer mlk_a_b', 'Basic eDp4', 'x' * 9000))}",
        f"authorization: Bearer ey{'A' * chance.choice((1, 4000))}.e30.{'A' * 86}",
        f"host: {chance.choice(('evil.example', '127.0.0.1.evil', '[::1', 'x' * 4000))}",
        f"accept-encoding: {chance.choice(('gzip;q=9', '*', ',' * 3000, 'gzip, deflate, br'))}",
        f"content-type: {chance.choice(('multipart/x; boundary=' + 'b' * 5000, 'text/x', ''))}",
        "transfer-encoding: chunked",
        "content-length: 5",
        "expect: 100-continue",
        "connection: upgrade\r\nupgrade: websocket",
        *(f"x-{number}: {'y' * chance.choice((1, 400))}" for number in range(3)),
    )
    many = chance.choice((1, 1, 2, 3, 150))
    picked = [chance.choice(odd) for _ in range(many)]
    return _wire(path, json.dumps(valid).encode(), *picked)


def _addressed(chance: random.Random, path: str, valid: Any) -> bytes:
    """Go where nothing is."""
    bad = (
        "../x",
        "%2e%2e%2f",
        "%00",
        "%0d%0aset-cookie:x",
        "x" * 3000,
        "%F0%9F",
        "stats",
        ";",
        "*",
        "",
    )
    place = chance.choice(
        (
            f"/v2/models/{chance.choice(bad)}/infer",
            f"/v2/models/breast-cancer/versions/{chance.choice(bad)}/infer",
            f"/v2/models/{chance.choice(bad)}/{chance.choice(('config', 'stats', 'ready', ''))}",
            f"/v1/{chance.choice(('models', 'streams', 'chat', 'jobs'))}/{chance.choice(bad)}",
            f"/{chance.choice(bad)}",
            f"{path}?{chance.choice(bad)}",
            "http://127.0.0.1/v2",
            "*",
        )
    )
    method = chance.choice(("POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
    return _wire(
        place, b"" if method in {"GET", "HEAD"} else json.dumps(valid).encode(), method=method
    )


async def throw(port: int, wires: Iterator[bytes], n: int, tally: Tally) -> None:
    """Send `n` requests over a connection, a new one whenever the server has closed it."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    for _ in range(n):
        wire = next(wires)
        if reader is None or writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        goes_on = False
        try:
            writer.write(wire)
            async with asyncio.timeout(SILENCE_S):
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                goes_on = await _answer(reader, wire, tally)
        except TimeoutError:
            tally.broken.append(("silence", wire[:2000], b""))
        except (ConnectionError, asyncio.IncompleteReadError):
            tally.closed += 1
        if not goes_on:
            writer.transport.abort()
            reader = writer = None
    if writer is not None:
        writer.close()


async def _answer(reader: asyncio.StreamReader, wire: bytes, tally: Tally) -> bool:
    """Read one answer into the tally; tell whether the connection goes on."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    if status == 100:
        return await _answer(reader, wire, tally)
    length = re.search(rb"content-length: (\d+)", head)
    body = b""
    if not wire.startswith(b"HEAD"):
        body = await reader.readexactly(int(length[1])) if length else await reader.read(1 << 20)
    if status == 500 or status > 504:
        tally.broken.append((f"status {status}", wire[:2000], body[:500]))
    elif found := LEAKS.search(body):
        tally.broken.append((f"tells {found[0]!r}", wire[:2000], body[:500]))
    else:
        tally.statuses[status] += 1
    # What a lying length leaves behind would be read as the next request.
    return bool(length) and b"connection: close" not in head and status < 400
