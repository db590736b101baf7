"""Every error that the gateway answers with: code, HTTP status, gRPC status, retryable."""

from __future__ import annotations

from collections.abc import Sequence

from inferbus_kit import errors as kit
from inferbus_kit.errors import InferbusError, ObjectStoreError, OverloadedError
from inferbus_schemas import messages as m

__all__ = [
    "BY_OUTCOME",
    "BusUnavailableError",
    "CancelledError",
    "ContextExceededError",
    "DeadlineExceededError",
    "ExpiredError",
    "FailedError",
    "ForbiddenError",
    "InferbusError",
    "InvalidRequestError",
    "JobNotFinishedError",
    "JobNotFoundError",
    "JobsNotConfiguredError",
    "KeyReusedError",
    "LoadFailedError",
    "MethodNotAllowedError",
    "NoWorkerError",
    "NotDeployedError",
    "NotFoundError",
    "ObjectStoreError",
    "OutcomeUnknownError",
    "OutputTooLargeError",
    "OverloadedError",
    "ParameterError",
    "PoisonError",
    "RateLimitedError",
    "ReconnectError",
    "RegistryUnavailableError",
    "ResultNotRetainedError",
    "StreamBrokenError",
    "StreamExpiredError",
    "StreamNotFoundError",
    "TenantBusyError",
    "TooLargeError",
    "TooManyBadKeysError",
    "TooManyJobRowsError",
    "TooManyJobsError",
    "UnauthorizedError",
    "UnknownModelError",
    "UnsupportedEncodingError",
    "UnsupportedMediaTypeError",
    "UriRefusedError",
    "UriUnreadableError",
    "WrongTaskError",
    "too_large",
]


class InvalidRequestError(InferbusError):
    """The request is not well formed, or does not fit the model."""

    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


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


class LoadFailedError(InferbusError):
    """No worker could load the model."""

    code = "load_failed"
    http_status = 400
    grpc_status = "FAILED_PRECONDITION"


class ParameterError(InvalidRequestError):
    """A field of the request that cannot be taken; `param` names it."""

    code = "invalid_parameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class WrongTaskError(InvalidRequestError):
    """The model does something else than this route."""

    code = "wrong_task"


class ContextExceededError(InvalidRequestError):
    """Prompt and answer do not fit the model's context."""

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


class UnknownModelError(InferbusError):
    """No such model, version or alias is known, or none that the key may know of."""

    code = "unknown_model"
    http_status = 404
    grpc_status = "NOT_FOUND"


class NotDeployedError(InferbusError):
    """The version exists, but no pool holds it; the message names those that are deployed."""

    code = "not_deployed"
    http_status = 404
    grpc_status = "NOT_FOUND"


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
    """The tenant has as many unanswered requests as it may; this one was not accepted."""

    code = "too_many_in_flight"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self) -> None:
        super().__init__("your tenant has too many unanswered requests; wait for some of them")
        self.retry_after_s = 0.0


class TooManyBadKeysError(InferbusError):
    """This address has presented many keys that open nothing; good ones are taken all the same."""

    code = "too_many_bad_keys"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the key or token is unknown, expired or revoked, as many before; wait")
        self.retry_after_s = retry_after_s


class TooManyJobsError(InferbusError):
    """The tenant has as many unfinished jobs as it may; this one was not taken."""

    code = "too_many_jobs"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self) -> None:
        super().__init__("your tenant has too many unfinished jobs; wait for some of them")


class TooManyJobRowsError(InferbusError):
    """The tenant's unfinished jobs have as many rows left as they may; this one was not taken."""

    code = "too_many_job_rows"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "the unfinished jobs of your tenant have too many rows; wait, or send less"
        )


class UnsupportedMediaTypeError(InferbusError):
    """The body's Content-Type is not one that the route reads."""

    code = "unsupported_media_type"
    http_status = 415
    grpc_status = "UNIMPLEMENTED"


class JobNotFoundError(InferbusError):
    """There is no such job, or it is another tenant's."""

    code = "job_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class JobNotFinishedError(InferbusError):
    """The job has not ended, so it has no results yet and cannot be tried again."""

    code = "job_not_finished"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class KeyReusedError(InferbusError):
    """The idempotency key stands for another request, or another job."""

    code = "idempotency_key_reused"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class UriRefusedError(InferbusError):
    """The input may not be read from this URI."""

    code = "uri_refused"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class UriUnreadableError(InferbusError):
    """The input cannot be read from this URI."""

    code = "uri_unreadable"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class ResultNotRetainedError(InferbusError):
    """The request with this idempotency key was answered, and its answer is no longer kept."""

    code = "result_not_retained"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class JobsNotConfiguredError(InferbusError):
    """This gateway has no object store, so it takes no jobs."""

    code = "jobs_not_configured"
    http_status = 501
    grpc_status = "UNIMPLEMENTED"


class NoWorkerError(InferbusError):
    """No live worker holds the version; the request was not accepted."""

    code = "no_worker"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class BusUnavailableError(kit.BusUnavailableError):
    """Kafka takes nothing at present; the request was not accepted."""


class RegistryUnavailableError(InferbusError):
    """The registry, which alone changes what is loaded, does not do so now."""

    code = "registry_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class OutcomeUnknownError(InferbusError):
    """The deadline passed and no record says how the request ended; it may still be answered."""

    code = "outcome_unknown"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class PoisonError(InferbusError):
    """This payload crashes the engine."""

    code = "poison"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class ExpiredError(InferbusError):
    """The deadline had passed before an engine could take the request."""

    code = "expired"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True


class DeadlineExceededError(InferbusError):
    """No answer came before the deadline."""

    code = "deadline_exceeded"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True


class CancelledError(InferbusError):
    """The request was cancelled."""

    code = "cancelled"
    http_status = 499
    grpc_status = "CANCELLED"


class OutputTooLargeError(InferbusError):
    """The answer is over the limit for inline answers."""

    code = "output_too_large"
    http_status = 422
    grpc_status = "RESOURCE_EXHAUSTED"


class FailedError(InferbusError):
    """The request could not be answered."""

    code = "failed"
    http_status = 500
    grpc_status = "INTERNAL"


BY_OUTCOME: dict[int, type[InferbusError]] = {
    m.OUTCOME_INVALID_INPUT: InvalidRequestError,
    m.OUTCOME_POISON: PoisonError,
    m.OUTCOME_EXPIRED: ExpiredError,
    m.OUTCOME_DEADLINE_EXCEEDED: DeadlineExceededError,
    m.OUTCOME_CANCELLED: CancelledError,
    m.OUTCOME_OUTPUT_TOO_LARGE: OutputTooLargeError,
    m.OUTCOME_FAILED: FailedError,
}
"""The error that answers each terminal outcome but OK; others are answered as FAILED."""
