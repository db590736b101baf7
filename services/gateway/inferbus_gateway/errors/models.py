"""What is wrong with the model that a request names."""

from __future__ import annotations

from inferbus_gateway.errors.requests import InvalidRequestError
from inferbus_kit.errors import InferbusError


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


class WrongTaskError(InvalidRequestError):
    """The model does something else than this route."""

    code = "wrong_task"


class LoadFailedError(InferbusError):
    """No worker could load the model."""

    code = "load_failed"
    http_status = 400
    grpc_status = "FAILED_PRECONDITION"


class NoWorkerError(InferbusError):
    """No live worker holds the version; the request was not accepted."""

    code = "no_worker"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class RegistryUnavailableError(InferbusError):
    """The registry, which alone changes what is loaded, does not do so now."""

    code = "registry_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True
