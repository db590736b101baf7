"""Answers as ASGI messages: head and body, headers that every answer carries.

In: a rendered answer or an error. Out: bytes on the connection. No message holds a path, an address
or a stack.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from inferbus_gateway.hot.oip import Rendered
from inferbus_gateway.retry_after import retry_after_s
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Send
from inferbus_schemas import messages as m

Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and body."""

    status: int
    headers: Headers
    body: bytes


def ok(
    rendered: Rendered,
    prediction: m.Prediction,
    *,
    version: bytes,
    request_id: str,
    receipt: str,
    timing: str,
) -> Answer:
    """Return the answer of an OK record."""
    headers = [
        _JSON if rendered.json_length is None else _BINARY,
        (b"content-length", b"%d" % len(rendered.body)),
        (b"x-request-id", request_id.encode()),
        (b"x-inferbus-model-version", version),
        (b"x-inferbus-served-by", prediction.served_by.encode()),
        (b"x-inferbus-output-sha256", prediction.output_sha256.hex().encode()),
        (b"x-inferbus-receipt", receipt.encode()),
    ]
    if timing:
        headers.append((b"x-inferbus-timing", timing.encode()))
    if rendered.json_length is not None:
        headers.append((b"inference-header-content-length", b"%d" % rendered.json_length))
    return Answer(200, headers, rendered.body)


def accepted(where: str, request_id: str) -> Answer:
    """Return the answer of a request whose result will be elsewhere."""
    body = msgspec.json.encode({"job": where})
    headers = [
        _JSON,
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"location", where.encode()),
        (b"preference-applied", b"respond-async"),
    ]
    return Answer(202, headers, body)


def reject(
    error: InferbusError,
    request_id: str,
    *,
    code: str = "",
    receipt: str = "",
    version: bytes = b"",
    served_by: str = "",
) -> Answer:
    """Return the answer of an error in the shape of the Open Inference Protocol."""
    body = msgspec.json.encode({"error": str(error)})
    headers = [
        _JSON,
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"x-inferbus-error-code", (code or error.code).encode()),
    ]
    if receipt:
        headers.append((b"x-inferbus-receipt", receipt.encode()))
        headers.append((b"x-inferbus-model-version", version))
        headers.append((b"x-inferbus-served-by", served_by.encode()))
    if error.http_status == 401:  # noqa: PLR2004 -- RFC 9110 asks to say how
        headers.append((b"www-authenticate", b"Bearer"))
    if (wait_s := retry_after_s(error)) is not None:
        headers.append((b"retry-after", b"%d" % wait_s))
    return Answer(error.http_status, headers, body)


async def send(send_: Send, answer: Answer) -> None:
    """Write an answer."""
    await send_({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send_({"type": "http.response.body", "body": answer.body})
