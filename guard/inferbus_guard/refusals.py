"""Why a listener refuses by itself, and in which words.

In: a reason, and the target as far as it was read. Out: headers and body of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

Headers = Sequence[tuple[bytes, bytes]]


class Refusal(NamedTuple):
    """Why the listener itself refuses: a stable code, and a sentence for people."""

    status: int
    code: str
    error: str


Refuse = Callable[[bytes, Refusal], tuple[Headers, bytes]]
"""Return headers and body of a refusal, by its target as far as that was read.

It is asked of every refusal, also where the answer can no longer be written.
"""


def refuse_plainly(_target: bytes, why: Refusal) -> tuple[Headers, bytes]:
    """Refuse every path alike, as JSON."""
    body = json.dumps({"error": why.error}).encode()
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-inferbus-error-code", why.code.encode()),
    ], body


MALFORMED = Refusal(400, "bad_http", "this is not a well-formed HTTP/1.1 request")
FRAMING = Refusal(400, "bad_framing", "chunk extensions or trailers are too large; send none")
UPGRADE = Refusal(400, "upgrade_with_body", "send the body without asking for an upgrade")
SLOW_HEAD = Refusal(408, "slow_headers", "the headers came too slowly; send it again, faster")
SLOW_BODY = Refusal(408, "slow_body", "the body came too slowly; send it again, faster")
BODY_TOO_LARGE = Refusal(413, "request_too_large", "the body is too large; send less at once")
UNREAD = Refusal(408, "answer_not_read", "the answer was not read for too long")
HEAD_TOO_LARGE = Refusal(431, "headers_too_large", "the headers are too large; send fewer")
CROWDED = Refusal(503, "too_many_connections", "too many connections; try again shortly")
