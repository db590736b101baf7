"""Why the listener itself refuses, before any route is asked; the codes are those of its guard."""

from __future__ import annotations

from inferbus_gateway.errors.requests import InvalidRequestError, TooLargeError
from inferbus_guard.refusals import Refusal
from inferbus_kit.errors import InferbusError


class BadHttpError(InvalidRequestError):
    """What came is not well-formed HTTP/1.1."""

    code = "bad_http"


class BadFramingError(InvalidRequestError):
    """Chunk extensions or trailers are too large."""

    code = "bad_framing"


class UpgradeWithBodyError(InvalidRequestError):
    """A request with a body asks for another protocol."""

    code = "upgrade_with_body"


class SlowHeadersError(InferbusError):
    """The headers came too slowly."""

    code = "slow_headers"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True


class SlowBodyError(InferbusError):
    """The body came too slowly."""

    code = "slow_body"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True


class AnswerNotReadError(InferbusError):
    """The client did not read its answer; nobody sees this, it is counted."""

    code = "answer_not_read"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True


class HeadersTooLargeError(InferbusError):
    """The headers are too large or too many."""

    code = "headers_too_large"
    http_status = 431
    grpc_status = "RESOURCE_EXHAUSTED"


class TooManyConnectionsError(InferbusError):
    """This gateway has as many connections as it may."""

    code = "too_many_connections"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


_BY_CODE = {
    kind.code: kind
    for kind in (
        AnswerNotReadError,
        BadFramingError,
        BadHttpError,
        HeadersTooLargeError,
        SlowBodyError,
        SlowHeadersError,
        TooLargeError,
        TooManyConnectionsError,
        UpgradeWithBodyError,
    )
}


def of_connection(why: Refusal) -> InferbusError:
    """Return the error for what the listener refuses."""
    return _BY_CODE[why.code](why.error)
