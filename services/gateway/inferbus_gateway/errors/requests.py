"""Why a request is not taken, whatever it asks for: its form, its caller, its size, its key."""

from __future__ import annotations

from collections.abc import Sequence

from inferbus_kit.errors import InferbusError


class InvalidRequestError(InferbusError):
    """The request is not well formed, or does not fit the model."""

    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class ParameterError(InvalidRequestError):
    """A field of the request that cannot be taken; `param` names it."""

    code = "invalid_parameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class TooManyRowsError(InvalidRequestError):
    """The request has more rows than one may have; a job takes them."""

    code = "too_many_rows"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, name: str, n_rows: int, max_rows: int) -> None:
        super().__init__(
            f"input {name!r}: {n_rows} rows are more than the {max_rows} that a request may have; "
            "send them in several requests, or as a job with a row a line"
        )


class UnauthorizedError(InferbusError):
    """No key or token was presented, or one that is unknown, expired or revoked."""

    code = "unauthorized"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class ForbiddenError(InferbusError):
    """The key or token is good and lacks the scope."""

    code = "forbidden"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFoundError(InferbusError):
    """No such route."""

    code = "not_found"
    http_status = 404
    grpc_status = "UNIMPLEMENTED"


class MethodNotAllowedError(InferbusError):
    """The route exists, the method does not."""

    code = "method_not_allowed"
    http_status = 405
    grpc_status = "UNIMPLEMENTED"

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(f"this route takes {' and '.join(allowed)} only")
        self.allowed = allowed


class TooLargeError(InferbusError):
    """The body is over the limit for inline requests."""

    code = "request_too_large"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


def too_large(max_body_bytes: int) -> TooLargeError:
    """Return the error that refuses what is over the limit."""
    return TooLargeError(f"the body is over {max_body_bytes} bytes; send fewer rows per request")


class UnsupportedEncodingError(InferbusError):
    """The body's Content-Encoding is not one that we read."""

    code = "unsupported_encoding"
    http_status = 415
    grpc_status = "UNIMPLEMENTED"


class UnsupportedMediaTypeError(InferbusError):
    """The body's Content-Type is not one that the route reads."""

    code = "unsupported_media_type"
    http_status = 415
    grpc_status = "UNIMPLEMENTED"


class RateLimitedError(InferbusError):
    """The key or the tenant is over its limit of requests or tokens; this one was not accepted."""

    code = "rate_limited"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("more than your limit of requests or tokens; send fewer, or later")
        self.retry_after_s = retry_after_s


class TenantBusyError(InferbusError):
    """The tenant has as many unanswered requests, or files, as it may; this one was not taken."""

    code = "too_many_in_flight"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(
        self, message: str = "your tenant has too many unanswered requests; wait for some of them"
    ) -> None:
        super().__init__(message)
        self.retry_after_s = 0.0


class TooManyBadKeysError(InferbusError):
    """This address has presented many keys that open nothing; good ones are taken all the same."""

    code = "too_many_bad_keys"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the key or token is unknown, expired or revoked, as many before; wait")
        self.retry_after_s = retry_after_s


class KeyReusedError(InferbusError):
    """The idempotency key stands for another request, or another job."""

    code = "idempotency_key_reused"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class ResultNotRetainedError(InferbusError):
    """The request with this idempotency key was answered, and its answer is no longer kept."""

    code = "result_not_retained"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"
