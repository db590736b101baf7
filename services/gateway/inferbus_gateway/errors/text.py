"""What may befall generated text and its streams."""

from __future__ import annotations

from inferbus_gateway.errors.requests import InvalidRequestError
from inferbus_kit.errors import InferbusError


class ContextExceededError(InvalidRequestError):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class StreamNotFoundError(InferbusError):
    """No such stream, or none of this tenant."""

    code = "stream_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class StreamExpiredError(InferbusError):
    """The pieces of a stream are past their retention; only its whole text is left."""

    code = "stream_expired"
    http_status = 410
    grpc_status = "NOT_FOUND"


class StreamBrokenError(InferbusError):
    """A piece of a stream is missing, or what ended it is not what began it."""

    code = "stream_broken"
    grpc_status = "DATA_LOSS"


class ReconnectError(InferbusError):
    """This gateway stops; the stream goes on at another one."""

    code = "reconnect"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True
