"""How a request may end that was taken, or whose bus is away."""

from __future__ import annotations

from inferbus_gateway.errors.requests import InvalidRequestError
from inferbus_kit import errors as kit
from inferbus_kit.errors import InferbusError
from inferbus_schemas import messages as m


class BusUnavailableError(kit.BusUnavailableError):
    """Kafka takes nothing at present; the request was not accepted."""


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
