"""The shape of every error that a client may see.

Each package lists its own errors once, as subclasses with class attributes; the edges turn them
into the dialect of the route.
"""

from __future__ import annotations

from typing import ClassVar


class InferbusError(Exception):
    """An error with a stable code; `str(error)` is a sentence for people, without internals.

    Invariants: `code` never changes once released; the message holds no path, address or stack.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False


class StartupError(InferbusError):
    """The process cannot start; the message says what to do and is its last line."""

    code = "startup"


class OverloadedError(InferbusError):
    """We are at a limit of our own; the request was not accepted."""

    code = "overloaded"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class BusUnavailableError(InferbusError):
    """Kafka did not take a record in time; whether it will still appear is unknown."""

    code = "bus_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class ObjectStoreError(InferbusError):
    """The object store did not do what it was asked for."""

    code = "object_store_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True
