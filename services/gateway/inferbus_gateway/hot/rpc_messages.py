"""What the gRPC service reads and says beside tensors: metadata, statuses, messages of streams.

In: messages that may be none, metadata of calls, errors. Out: messages or the error that refuses
them, and what a client is told beside an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from inferbus_gateway import errors
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot import incoming
from inferbus_gateway.hot.access import Call
from inferbus_gateway.retry_after import retry_after_s
from inferbus_kit.errors import InferbusError

Metadata = tuple[tuple[str, str], ...]
M = TypeVar("M", bound=Message)
BROKEN = "something went wrong here; the request id names it in our log"


class Unreadable:
    """Stands for a message that is none of its kind.

    An error of a deserializer would leave the call open, with no answer, until its client goes.
    """


def reader(kind: type[M]) -> Callable[[bytes], M | Unreadable]:
    """Return the deserializer of a kind of message; it never raises."""

    def read(raw: bytes) -> M | Unreadable:
        try:
            return kind.FromString(raw)
        except DecodeError:
            return Unreadable()

    return read


def readable(asked: M | Unreadable) -> M:
    """Return the message.

    Raises:
        InvalidRequestError: it is none.
    """
    if isinstance(asked, Unreadable):
        raise errors.InvalidRequestError("the message is not of the kind that this method takes")
    return asked


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended: `answer` or `error`, and what the client is told beside it."""

    answer: pb.ModelInferResponse | None
    error: InferbusError | None
    metadata: Metadata

    @property
    def n_bytes(self) -> int:
        """How much the answer is; a refusal is nothing."""
        return 0 if self.answer is None else self.answer.ByteSize()


def bare(error: InferbusError) -> InferbusError:
    """Return an error without the frames that it came through.

    Where it is told later than it was raised, they hold what holds it, and the call's message:
    megabytes for each refusal, until the collector of cycles comes, which is seldom.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def status(error: InferbusError) -> grpc.StatusCode:
    """Return the status of an error, from the one table of errors."""
    return grpc.StatusCode[error.grpc_status]


def refusal_metadata(error: InferbusError, request_id: str) -> Metadata:
    """Return what stands beside an error without a record."""
    metadata = (("x-request-id", request_id), ("x-inferbus-error-code", error.code))
    wait_s = retry_after_s(error)
    if wait_s is None:
        return metadata
    # What clients with a retry policy obey.
    return (*metadata, ("grpc-retry-pushback-ms", str(1000 * wait_s)))


def wrapped(client_request_id: str, ended: Ended) -> pb.ModelStreamInferResponse:
    """Return one answer of a stream as Triton wraps it."""
    answer = ended.answer
    error = "" if answer is not None else str(ended.error or BROKEN)
    if answer is None:
        answer = pb.ModelInferResponse(id=client_request_id)
    for key, value in ended.metadata:
        answer.parameters[key].string_param = value
    answer.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(error_message=error, infer_response=answer)


class Said(NamedTuple):
    """What the metadata of a call say beside who calls."""

    traceparent: str
    key: bytes | None


def said_of(call: Call, *, alone: bool) -> Said:
    """Return what the metadata say; of a whole call, so only a request that is `alone` has a key.

    Raises:
        InvalidRequestError: a stream has one.
    """
    traceparent, key = "", None
    for name, value in call.invocation_metadata() or ():
        if name == "traceparent" and isinstance(value, str):
            traceparent = value
        elif name == "idempotency-key":
            key = value.encode() if isinstance(value, str) else value
    if key is not None and not alone:
        raise errors.InvalidRequestError("a stream takes no idempotency-key; send single requests")
    return Said(traceparent, key)


def keeps(call: Call) -> bool:
    """Tell as `incoming.keeps`, of the metadata.

    Raises:
        InvalidRequestError: they say something else of that.
    """
    said = call.invocation_metadata() or ()
    return incoming.keeps(
        [
            (name.encode(), value.encode() if isinstance(value, str) else value)
            for name, value in said
        ]
    )
