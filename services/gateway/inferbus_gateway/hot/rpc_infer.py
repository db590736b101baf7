"""ModelInfer and ModelStreamInfer of the gRPC service; the twin of `infer` for HTTP.

In: messages of calls. Out: messages whose records are in the log; what HTTP says in headers stands
in trailing metadata, and for streams in each answer's parameters. The deadline of a call is the
deadline of its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from inferbus_gateway import errors
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot import classify, oip_proto
from inferbus_gateway.hot.access import Access, Call
from inferbus_gateway.hot.fit import Parsed
from inferbus_gateway.hot.keyed import Once, Place
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Requests, Waiter, failure
from inferbus_gateway.hot.route import Routes, Target
from inferbus_gateway.hot.rpc_keyed import KeyedCall, timeout_s
from inferbus_gateway.hot.rpc_messages import (
    BROKEN,
    Ended,
    Metadata,
    Said,
    Unreadable,
    bare,
    keeps,
    readable,
    refusal_metadata,
    said_of,
    status,
    wrapped,
)
from inferbus_gateway.hot.rpc_unread import Unread
from inferbus_gateway.hot.shares import Shares
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import INFER, INFER_SOME, Principal

_log = structlog.get_logger("rpc")

Context = grpc.aio.ServicerContext[pb.ModelInferRequest, pb.ModelInferResponse]
StreamContext = grpc.aio.ServicerContext[pb.ModelInferRequest, pb.ModelStreamInferResponse]

STREAM_WINDOW: Final = 32
"""Requests of one stream that are read and not answered; past it the stream is read no further."""
_SPAN = "inference.GRPCInferenceService/ModelInfer"


Asked = pb.ModelInferRequest | Unreadable


@dataclass(frozen=True, slots=True)
class Question:
    """What the answer of one request needs to know of its question."""

    target: Target
    parsed: Parsed


class RpcInfer:
    """The two methods that infer.

    Invariants: every request is answered once, and counted whether or not its client is still
    there; a stream's answers come in the order of its requests, at most `STREAM_WINDOW` at a time,
    and are held as `unread` from when they are there until they are sent; a client that leaves ends
    what a model generates for it, and nothing else.
    """

    def __init__(
        self,
        *,
        access: Access,
        routes: Routes,
        requests: Requests,
        metrics: GatewayMetrics,
        streams: Shares,
        unread: Unread,
        once: Once | None = None,
    ) -> None:
        self._streams = streams
        self.unread = unread
        self._once = once
        self._access = access
        self._routes = routes
        self._requests = requests
        self._metrics = metrics

    async def unary(self, asked: Asked, context: Context) -> pb.ModelInferResponse:
        """Answer one request; a failure ends the call with its status."""
        ended = await self._ask(asked, context, context.time_remaining(), alone=True)
        if ended.answer is not None:
            context.set_trailing_metadata(ended.metadata)
            return ended.answer
        error = ended.error or InferbusError(BROKEN)
        # What `abort` raises holds this frame until the collector comes; not its megabytes too.
        del asked
        await context.abort(status(error), str(error), ended.metadata)
        raise AssertionError  # `abort` raises

    async def stream(
        self, asked: AsyncIterator[Asked], context: StreamContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of a stream in their order; a failure ends only its request.

        A tenant that has its share of open streams gets no other one.
        """
        with contextlib.ExitStack() as place:
            try:
                caller = self._access.check_call(context, INFER_SOME)
                place.enter_context(self._streams.held(caller.tenant))
            except InferbusError as error:
                ended = self.refused(error, self._requests.new_id())
                await context.abort(status(error), str(error), ended.metadata)
            async with contextlib.aclosing(self._answers(asked, context, caller.tenant)) as answers:
                async for answer in answers:
                    yield answer
                    del answer  # The next one may be long in coming.

    async def _answers(
        self, asked: AsyncIterator[Asked], context: StreamContext, tenant: str
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        window: asyncio.Queue[tuple[str, asyncio.Future[Ended]] | None] = asyncio.Queue(
            STREAM_WINDOW
        )

        async def read() -> None:
            try:
                async for one in asked:
                    name = "" if isinstance(one, Unreadable) else one.id
                    ended = self._ask(one, context, context.time_remaining())
                    try:
                        await window.put((name, ended))
                    except asyncio.CancelledError:
                        self.unread.drop(tenant, ended)
                        raise
            except Exception:  # noqa: BLE001 -- whatever ends the reading, what was read is answered
                _log.exception("rpc_stream_failed")
            await window.put(None)

        reading = asyncio.create_task(read(), name="rpc-stream")
        try:
            while (waiting := await window.get()) is not None:
                name, future = waiting
                try:
                    n_bytes = (await future).n_bytes
                except asyncio.CancelledError:
                    self.unread.drop(tenant, future)
                    raise
                answer = wrapped(name, future.result())
                del waiting, future
                try:
                    yield answer
                finally:
                    self.unread.give(tenant, n_bytes)
                del answer
        finally:
            try:
                await cancel(reading)
            finally:
                while not window.empty():
                    if (left := window.get_nowait()) is not None:
                        self.unread.drop(tenant, left[1])

    def _ask(
        self, message: Asked, call: Call, remaining_s: float | None, *, alone: bool = False
    ) -> asyncio.Future[Ended]:
        """Open one request; the future is resolved even where nobody waits for it any more."""
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        request_id = self._requests.new_id()
        start_s = time.monotonic()
        try:
            self._requests.admit()
            asked = readable(message)
            caller = self._access.check_call(call, INFER, asked.model_name)
            self._requests.enter(caller)
            said = said_of(call, alone=alone)
            if said.key is not None and self._once is not None:
                self._once(
                    KeyedCall(
                        self, request_id, asked, said, remaining_s, caller=caller, future=future
                    )
                )
                return future
            question = self.parse(asked, asked.model_version)
            holder = None if alone else caller.tenant
            waiter = Waiter(partial(self._tell, question, future, holder), start_s)
            ends = question.target.generates and not keeps(call)
            self.open(
                question, request_id, waiter, caller=caller, said=said, remaining_s=remaining_s
            )
            if ends:
                future.add_done_callback(partial(self._left, request_id))
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            future.set_result(self.refused(error, request_id))
        return future

    def _left(self, request_id: bytes, future: asyncio.Future[Ended]) -> None:
        # Who leaves cancels the call, and the call what it awaits.
        if future.cancelled():
            self._requests.abandon(request_id)

    def _tell(
        self, question: Question, future: asyncio.Future[Ended], holder: str | None, entry: Entry
    ) -> None:
        """Give an answer to who waits; those of a stream are held from here on, as its tenant's."""
        ended = self.ended(question, entry)
        if future.done():
            return
        if holder is not None and (refused := self.unread.refusal(holder, ended.n_bytes)):
            ended = self.refused(refused, entry.id)
        future.set_result(ended)

    def parse(self, asked: pb.ModelInferRequest, place: Place | str) -> Question:
        """Read a request for a version by name, or for the one of a place."""
        if isinstance(place, Place):
            target = self._routes.pinned_to(asked.model_name, place.version, place.pool)
        else:
            target = self._routes.resolve(asked.model_name, place)
        max_rows = self._requests.max_rows
        return Question(target, oip_proto.parse(asked, target.manifest.signature, max_rows))

    def place(self, question: Question, request_id: bytes) -> Place:
        """Return where a new request stands."""
        target = question.target
        return Place(request_id, self._requests.partition, target.version, target.pool)

    def open(
        self,
        question: Question,
        request_id: bytes,
        waiter: Waiter,
        *,
        caller: Principal,
        said: Said,
        remaining_s: float | None,
        reply_partition: int | None = None,
    ) -> None:
        """Put a request that was parsed on the bus; raises as `Requests.open` does."""
        parsed = question.parsed
        self._requests.open(
            request_id,
            question.target,
            parsed.tensors,
            caller=caller,
            n_rows=parsed.n_rows,
            outputs=parsed.outputs,
            client_request_id=parsed.client_request_id,
            timeout_s=timeout_s(remaining_s, parsed.timeout_us),
            waiter=waiter,
            traceparent=said.traceparent,
            span=_SPAN,
            reply_partition=reply_partition,
        )

    def ended(self, question: Question, entry: Entry) -> Ended:
        """Return the end of a request that was opened."""
        try:
            return self._answered(question, entry, self._requests.settle(entry))
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            return self.refused(error, entry.id)

    def recalled(self, question: Question, entry: Entry) -> Ended:
        """Return the end of a request that repeats another one, from that one's record."""
        try:
            return self._answered(question, entry, entry.waiter.prediction)
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            return self.refused(error, entry.id)

    def refused(self, error: Exception, request_id: bytes) -> Ended:
        """Return the end of a request that has no record, or none that we know of."""
        text = ids.text(request_id)
        if not isinstance(error, InferbusError):
            _log.error("rpc_infer_failed", request_id=text, exc_info=error)
            error = InferbusError(BROKEN)
        elif not isinstance(error, errors.OutcomeUnknownError):
            self._metrics.rejected.labels(error.code).inc()
        return Ended(None, bare(error), refusal_metadata(error, text))

    def _answered(self, question: Question, entry: Entry, prediction: m.Prediction) -> Ended:
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
            return Ended(None, bare(error), (*metadata, code))
        digest = ("x-inferbus-output-sha256", prediction.output_sha256.hex())
        return Ended(answer, None, (*metadata, digest))
