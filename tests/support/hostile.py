"""Hostile HTTP requests from a seed, and what a server made of them.

In: shapes. Out: requests as bytes on the wire - bodies changed in a few places, lengths that lie,
bombs, odd headers and paths - and a tally of the answers, with each one that breaks a rule: 500,
silence, or a body that tells what it should not.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from inferbus_gateway.hot.fit import MAX_ROWS
from tests.support.hostile_shapes import JSON, PARTS, Shape, many, shapes

SILENCE_S = 5.0
"""An answer that takes longer counts as a hang."""
_DEADLINE = f"x-inferbus-timeout-ms: {int(SILENCE_S * 500)}\r\n"
_GENERATING = 0.2
LEAKS = re.compile(
    rb"Traceback|\.py\b|site-packages|/(?:tmp|home|root|usr|var)/|0x[0-9a-f]{6,}|(?:asyncpg|aiokafka)\."
    rb"|something went wrong here"
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


def requests(seed: int, file: str = "file-none") -> Iterator[bytes]:
    """Yield hostile requests without end; `file` is there for batches."""
    chance = random.Random(seed)
    every = shapes(file)
    quick = [shape for shape in every if not shape.generates]
    json_kinds = (
        _json,
        _json,
        _json,
        _text,
        _binary,
        _encoded,
        _headed,
        _addressed,
        _rows,
        _filled,
    )
    while True:
        # Text takes its time: a fifth of the requests may ask for some.
        shape = chance.choice(every if chance.random() < _GENERATING else quick)
        plain = isinstance(shape.body, bytes)
        kinds = (_bytes, _bytes, _bytes, _encoded, _headed, _addressed) if plain else json_kinds
        yield chance.choice(kinds)(chance, shape)


def _wire(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    head = "".join(f"{one}\r\n" for one in headers)
    start = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{_DEADLINE}{head}"
    return f"{start}content-length: {len(body)}\r\n\r\n".encode("utf-8", "surrogateescape") + body


def _json(chance: random.Random, shape: Shape) -> bytes:
    """Change one to four places of the body."""
    body = json.loads(shape.raw)
    for _ in range(chance.randint(1, 4)):
        body = _changed(chance, body)
    return _wire(shape.path, json.dumps(body).encode(), f"content-type: {shape.kind}")


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


def _bytes(chance: random.Random, shape: Shape) -> bytes:
    """Break lines and forms: cut, turned round, doubled, flipped, with junk, of another kind."""
    raw = shape.raw
    at, to = sorted(chance.randrange(len(raw)) for _ in range(2))
    flipped = bytearray(raw)
    for _ in range(chance.randint(1, 8)):
        flipped[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    bodies = (
        raw,
        raw[:at],
        raw[:at] + raw[to:],
        raw[to:] + raw[:at],
        raw * chance.choice((2, 50)),
        bytes(flipped),
        raw[:at] + chance.choice((b"\r\n", b"\n", b"--b", b"--b--\r\n", *LITERALS)) + raw[at:],
        raw[:at] + b"x" * (2 << 20) + raw[at:],
    )
    kinds = (shape.kind, shape.kind, shape.kind, "multipart/form-data", "text/plain", JSON)
    return _wire(shape.path, chance.choice(bodies), f"content-type: {chance.choice(kinds)}")


def _text(chance: random.Random, shape: Shape) -> bytes:
    """Break the text: cut, doubled keys, literals that are none, nests, bytes."""
    text = shape.raw
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
    return _wire(shape.path, chance.choice(bodies), f"content-type: {shape.kind}")


def _binary(chance: random.Random, shape: Shape) -> bytes:
    """Lie about lengths and shapes of binary tensors."""
    dimensions = chance.choice(
        ([1, 30], [-1, 30], [2**31, 30], [2**40, 2**40], [0], [1] * 50, [], [30])
    )
    kind = chance.choice(("FP32", "BYTES", "BF16", "INT64", "BOOL", "", "FP999"))
    data = chance.randbytes(chance.choice((0, 1, 4, 119, 120, 121, 5000)))
    if kind == "BYTES" and chance.random() < 0.5:
        data = b"\xff\xff\xff\xff" + data
    size = chance.choice((len(data), 0, -1, len(data) + 1, 2**40, "9", None))
    tensor = {"name": "features", "shape": dimensions, "datatype": kind}
    head = json.dumps(
        {**shape.body, "inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}
    )
    said = chance.choice((len(head), 0, len(head) + 5, 10**12, "abc", -1, ""))
    return _wire(shape.path, head.encode() + data, f"Inference-Header-Content-Length: {said}")


def _rows(chance: random.Random, _shape: Shape) -> bytes:
    """Ask for far more rows than a request may have, in few bytes."""
    count = chance.choice((MAX_ROWS + 1, 50_000, 800_000))
    if chance.random() < 0.5:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [count], "data": ["a"] * count}
        return _wire("/v2/models/minilm/infer", json.dumps({"inputs": [tensor]}).encode())
    tensor = {"name": "features", "datatype": "FP32", "shape": [count, 30], "data": [0]}
    return _wire("/v2/models/breast-cancer/infer", json.dumps({"inputs": [tensor]}).encode())


def _filled(chance: random.Random, shape: Shape) -> bytes:
    """Put what becomes many times as much in memory in some place, known or not."""
    body = json.loads(shape.raw)
    place, name = body, chance.choice((*body, "x"))
    if "inputs" in body and chance.random() < 0.5:
        place, name = body["inputs"][0], chance.choice(("data", "shape", "name", "parameters"))
    place[name] = "\x00"
    part = many(chance.choice(PARTS), chance.choice((64 << 10, 512 << 10, (4 << 20) - 2000)))
    return _wire(shape.path, json.dumps(body).encode().replace(b'"\\u0000"', part))


def _packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _encoded(chance: random.Random, shape: Shape) -> bytes:
    """Compress badly, or far too well."""
    text = shape.raw
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
    body = chance.choice(bodies)
    return _wire(shape.path, body, f"content-encoding: {kind}", f"content-type: {shape.kind}")


def _headed(chance: random.Random, shape: Shape) -> bytes:
    """Send headers that are wrong, large, many or doubled."""
    odd = (
        f"x-inferbus-timeout-ms: {chance.choice((0, -1, 10**30, 'x', '1e3', ''))}",
        f"traceparent: {chance.choice(('00-0-0-0', 'x' * 3000, '', '00-' + 'g' * 55))}",
        f"authorization: {chance.choice(('Bearer', 'Bearer mlk_a_b', 'Basic eDp4', 'x' * 9000))}",
        f"authorization: Bearer ey{'A' * chance.choice((1, 4000))}.e30.{'A' * 86}",
        f"host: {chance.choice(('evil.example', '127.0.0.1.evil', '[::1', 'x' * 4000))}",
        f"accept-encoding: {chance.choice(('gzip;q=9', '*', ',' * 3000, 'gzip, deflate, br'))}",
        f"content-type: {chance.choice(('multipart/x; boundary=' + 'b' * 5000, 'text/x', ''))}",
        f"idempotency-key: {chance.choice(('', 'k', 'x' * 300, chr(1), 'k, k'))}",
        f"prefer: {chance.choice(('respond-async', 'respond-async, wait=x', ',=;', 'x' * 3000))}",
        f"x-inferbus-on-disconnect: {chance.choice(('keep', 'x'))}",
        "transfer-encoding: chunked",
        "content-length: 5",
        "expect: 100-continue",
        "connection: upgrade\r\nupgrade: websocket",
        *(f"x-{number}: {'y' * chance.choice((1, 400))}" for number in range(3)),
    )
    many = chance.choice((1, 1, 2, 3, 150))
    picked = [chance.choice(odd) for _ in range(many)]
    return _wire(shape.path, shape.raw, f"content-type: {shape.kind}", *picked)


_KEPT = ("models", "streams", "chat", "jobs", "files", "batches")
_WORDS = ("limit", "after", "before", "order")
_ID = "01a218ed-6c2b-7123-b887-755a3d43693b"


def _addressed(chance: random.Random, shape: Shape) -> bytes:
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
            f"/v1/{chance.choice(_KEPT)}/{chance.choice(bad)}",
            f"/v1/{chance.choice(_KEPT)}/{_ID}/{chance.choice(('results', 'content', 'cancel'))}",
            f"/v1/{chance.choice(_KEPT)}?{chance.choice(_WORDS)}={chance.choice(bad)}",
            f"/{chance.choice(bad)}",
            f"{shape.path}?{chance.choice(bad)}",
            "http://127.0.0.1/v2",
            "*",
        )
    )
    method = chance.choice(("POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
    return _wire(place, b"" if method in {"GET", "HEAD"} else shape.raw, method=method)


async def a_file(url: str) -> str:
    """Upload a file for batches; return its id."""
    (shape,) = (one for one in shapes("") if one.path == "/v1/files")
    head = {"content-type": shape.kind}
    async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
        made = await http.post(shape.path, content=shape.raw, headers=head)
    return str(made.raise_for_status().json()["id"])


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
    chunked = b"transfer-encoding: chunked" in head
    if not wire.startswith(b"HEAD"):
        if chunked:
            body = await _chunks(reader)
        else:
            body = await (reader.readexactly(int(length[1])) if length else reader.read(1 << 20))
    if status == 500 or status > 504:
        tally.broken.append((f"status {status}", wire[:2000], body[:500]))
    elif found := LEAKS.search(body):
        tally.broken.append((f"tells {found[0]!r}", wire[:2000], body[:500]))
    else:
        tally.statuses[status] += 1
    # What a lying length leaves behind would be read as the next request.
    return bool(length or chunked) and b"connection: close" not in head and status < 400


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a body of chunks to its end; one that is cut off raises."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body
