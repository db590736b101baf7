"""Whole answers of the routes of text, from the records that they are made of.

In: what was asked, and how it ended. Out: an answer with the headers that name its origin.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferbus_gateway.hot.answer import Answer, Headers
from inferbus_gateway.hot.generations import Call
from inferbus_gateway.hot.route import Target
from inferbus_schemas import ids
from inferbus_schemas import messages as m


def generated(call: Call, prediction: m.Prediction, receipt: str) -> Answer:
    """Return a text, whole."""
    headers = [*call.headers(), *origin(prediction)]
    headers.append((b"x-inferbus-receipt", receipt.encode()))
    return as_json(200, headers, call.dialect.answer(prediction))


def of_vectors(
    request_id: bytes, target: Target, receipts: list[str], body: dict[str, Any]
) -> Answer:
    """Return what was made of the vectors of some texts."""
    headers = [
        (b"x-request-id", ids.text(request_id).encode()),
        (b"x-inferbus-model-version", target.version_header),
        (b"x-inferbus-receipt", ",".join(receipts).encode()),
    ]
    return as_json(200, headers, body)


def origin(prediction: m.Prediction) -> Headers:
    """Return the headers that name who wrote a record and what of it can be checked."""
    head = [(b"x-inferbus-served-by", prediction.served_by.encode())]
    if prediction.output_sha256:
        head.append((b"x-inferbus-output-sha256", prediction.output_sha256.hex().encode()))
    return head


def as_json(status: int, headers: Headers, body: dict[str, Any]) -> Answer:
    """Return an answer with a body of JSON."""
    raw = msgspec.json.encode(body)
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(raw)),
        *headers,
    ]
    return Answer(status, head, raw)
