"""ModelInfer and ModelStreamInfer of the gRPC service; the twin of `infer` for HTTP.

In: messages of calls. Out: messages whose records are in the log; what HTTP says in headers stands
in trailing metadata, and for streams in each answer's parameters. The deadline of a call is the
deadline of its requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from inferbus_gateway import errors
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot import classify, oip_proto
from inferbus_gateway.hot.access import Access, Call
from inferbus_gateway.hot.fit import Parsed
from inferbus_gateway.hot.incoming import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Requests, Waiter, failure
from inferbus_gateway.hot.route import Routes, Target
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import INFER

_log = structlog.get_logger("rpc")

Metadata = tuple[tuple[str, str], ...]
Context = grpc.aio.ServicerContext[pb.ModelInferRequest, pb.ModelInferResponse]
StreamContext = grpc.aio.ServicerContext[pb.ModelInferRequest, pb.ModelStreamInferResponse]

M = TypeVar("M", bound=Message)
STREAM_WINDOW: Final = 32
"""Requests of one stream that are read and not answered; past it the stream is read no further."""
_SPAN = "inference.GRPCInferenceService/ModelInfer"
_BROKEN = "something went wrong here; the request id names it in our log"


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


Asked = pb.ModelInferRequest | Unreadable


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended: `answer` or `error`, and what the client is told beside it."""

    answer: pb.ModelInferResponse | None
    error: InferbusError | None
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class _Question:
    """What the answer of one request needs to know of its question."""

    target: Target
    parsed: Parsed


class RpcInfer:
    """The two methods that infer.

    Invariants: every request is answered once, and counted whether or not its client is still
    there; a stream's answers come in the order of its requests, at most `STREAM_WINDOW` at a time.
    """

    def __init__(
        self, *, access: Access, routes: Routes, requests: Requests, metrics: GatewayMetrics
    ) -> None:
        self._access = access
        self._routes = routes
        self._requests = requests
        self._metrics = metrics

    async def unary(self, asked: Asked, context: Context) -> pb.ModelInferResponse:
        """Answer one request; a failure ends the call with its status."""
        ended = await self._ask(asked, context, context.time_remaining())
        if ended.answer is not None:
            context.set_trailing_metadata(ended.metadata)
            return ended.answer
        error = ended.error or InferbusError(_BROKEN)
        await context.abort(status(error), str(error), ended.metadata)
        raise AssertionError  # `abort` raises

    async def stream(
        self, asked: AsyncIterator[Asked], context: StreamContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of a stream in their order; a failure ends only its request."""
        window: asyncio.Queue[tuple[str, asyncio.Future[Ended]] | None] = asyncio.Queue(
            STREAM_WINDOW
        )

        async def read() -> None:
            try:
                async for one in asked:
                    name = "" if isinstance(one, Unreadable) else one.id
                    await window.put((name, self._ask(one, context, context.time_remaining())))
            except Exception:  # noqa: BLE001 -- whatever ends the reading, what was read is answered
                _log.exception("rpc_stream_failed")
            await window.put(None)

        reading = asyncio.create_task(read(), name="rpc-stream")
        try:
            while (waiting := await window.get()) is not None:
                yield _wrapped(waiting[0], await waiting[1])
        finally:
            await cancel(reading)

    def _ask(self, message: Asked, call: Call, remaining_s: float | None) -> asyncio.Future[Ended]:
        """Open one request; the future is resolved even where nobody waits for it any more."""
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        request_id = self._requests.new_id()
        start_s = time.monotonic()
        try:
            self._requests.admit()
            asked = readable(message)
            caller = self._access.check_call(call, INFER, asked.model_name)
            target = self._routes.resolve(asked.model_name, asked.model_version)
            question = _Question(target, oip_proto.parse(asked, target.manifest.signature))
            parsed = question.parsed

            def then(entry: Entry) -> None:
                ended = self._ended(question, entry)
                if not future.done():
                    future.set_result(ended)

            self._requests.open(
                request_id,
                target,
                parsed.tensors,
                caller=caller,
                n_rows=parsed.n_rows,
                outputs=parsed.outputs,
                client_request_id=parsed.client_request_id,
                timeout_s=_timeout_s(remaining_s, parsed.timeout_us),
                waiter=Waiter(then, start_s),
                traceparent=_traceparent(call),
                span=_SPAN,
            )
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            future.set_result(self._refused(error, request_id))
        return future

    def _ended(self, question: _Question, entry: Entry) -> Ended:
        try:
            return self._answered(question, entry, self._requests.settle(entry))
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            return self._refused(error, entry.id)

    def _refused(self, error: Exception, request_id: bytes) -> Ended:
        """Return the end of a request that has no record, or none that we know of."""
        text = ids.text(request_id)
        if not isinstance(error, InferbusError):
            _log.error("rpc_infer_failed", request_id=text, exc_info=error)
            error = InferbusError(_BROKEN)
        elif not isinstance(error, errors.OutcomeUnknownError):
            self._metrics.rejected.labels(error.code).inc()
        return Ended(None, error, refusal_metadata(error, text))

    def _answered(self, question: _Question, entry: Entry, prediction: m.Prediction) -> Ended:
        parsed, target = question.parsed, question.target
        metadata: Metadata = (
            ("x-request-id", ids.text(entry.id)),
            ("x-inferbus-receipt", self._requests.receipt(entry)),
            ("x-inferbus-model-version", str(target.version)),
            ("x-inferbus-served-by", prediction.served_by),
        )
        try:
            if prediction.outcome != m.OUTCOME_OK:
                raise failure(prediction)
            outputs: Sequence[m.Tensor] = m.TensorSet.FromString(prediction.outputs).tensors
            if parsed.classes:
                outputs = classify.replace(outputs, parsed.classes, target.manifest.task_settings)
            answer = oip_proto.render(
                outputs,
                model=target.model,
                version=target.version,
                client_request_id=parsed.client_request_id,
                raw=parsed.binary is None,
            )
        except (InferbusError, DecodeError) as error:
            if isinstance(error, DecodeError):
                error = errors.FailedError(
                    "the model's answer cannot be read; tell who deployed it"
                )
            code = ("x-inferbus-error-code", prediction.error_code or error.code)
            return Ended(None, error, (*metadata, code))
        digest = ("x-inferbus-output-sha256", prediction.output_sha256.hex())
        return Ended(answer, None, (*metadata, digest))


def status(error: InferbusError) -> grpc.StatusCode:
    """Return the status of an error, from the one table of errors."""
    return grpc.StatusCode[error.grpc_status]


def refusal_metadata(error: InferbusError, request_id: str) -> Metadata:
    """Return what stands beside an error without a record."""
    metadata = (("x-request-id", request_id), ("x-inferbus-error-code", error.code))
    wait_s = errors.retry_after_s(error)
    if wait_s is None:
        return metadata
    # What clients with a retry policy obey.
    return (*metadata, ("grpc-retry-pushback-ms", str(1000 * wait_s)))


def _wrapped(client_request_id: str, ended: Ended) -> pb.ModelStreamInferResponse:
    """Return one answer of a stream as Triton wraps it."""
    answer = ended.answer
    error = "" if answer is not None else str(ended.error or _BROKEN)
    if answer is None:
        answer = pb.ModelInferResponse(id=client_request_id)
    for key, value in ended.metadata:
        answer.parameters[key].string_param = value
    answer.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(error_message=error, infer_response=answer)


def _timeout_s(remaining_s: float | None, timeout_us: int | None) -> float:
    """Return how long a request may take: the sooner of the call's deadline and its own."""
    found = [MAX_TIMEOUT_S]
    if remaining_s is not None:
        found.append(remaining_s)
    if timeout_us is not None:
        found.append(timeout_us / 1e6)
    return DEFAULT_TIMEOUT_S if len(found) == 1 else min(found)


def _traceparent(call: Call) -> str:
    for key, value in call.invocation_metadata() or ():
        if key == "traceparent":
            return value if isinstance(value, str) else ""
    return ""
