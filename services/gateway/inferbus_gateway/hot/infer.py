"""POST /v2/models/{m}[/versions/{v}]/infer, from the body's bytes to the answer's.

In: one HTTP request, whole from the listener or by plain ASGI. Out: one answer whose record is in
the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from inferbus_gateway import errors
from inferbus_gateway.hot import classify, fit, oip
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.answer import Answer, accepted, ok, reject, send
from inferbus_gateway.hot.compress import compressing
from inferbus_gateway.hot.hops import Hops
from inferbus_gateway.hot.incoming import Bodies, Head, keeps, left, read_head, timeout_s
from inferbus_gateway.hot.keyed import Once, Place
from inferbus_gateway.hot.keyed_infer import Done, Gone, KeyedInfer
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Requests, Waiter, failure
from inferbus_gateway.hot.route import Routes, Target
from inferbus_guard.protocol import Exchange
from inferbus_guard.refusals import Headers
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Receive, Scope, Send
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import INFER, Principal

_log = structlog.get_logger("infer")

Later = Callable[
    [Target, m.Row, Principal, bytes | None, str, str, Callable[[str | Exception], None]], None
]
"""Takes a request that nobody waits for, with its key or none, the version that was asked for and
its trace context, and tells where its answer will be, or why nowhere."""

SPAN = "POST /v2/models/{model}/infer"
_BROKEN = "something went wrong here; the request id names it in our log"


def _stays() -> bool:
    """Tell of a client that nobody looks after."""
    return False


class Infer:
    """The hot route.

    Invariants: every request is answered once; every answer but a refusal names the record that it
    was made from, or says that none is known; while `draining`, each answer closes its connection;
    a client that leaves ends its request where the model generates, and nowhere else.
    """

    def __init__(
        self,
        *,
        routes: Routes,
        requests: Requests,
        metrics: GatewayMetrics,
        bodies: Bodies,
        access: Access,
        later: Later | None = None,
        once: Once | None = None,
    ) -> None:
        self._later = later
        self._once = once
        self._access = access
        self._routes = routes
        self._requests = requests
        self._metrics = metrics
        self._bodies = bodies
        self._hops = Hops(metrics)
        self.draining = False

    async def __call__(
        self, scope: Scope, receive: Receive, send_: Send, model: str, version: str
    ) -> None:
        """Answer one request that comes by ASGI."""
        request_id = self._requests.new_id()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        leaving: asyncio.Task[None] | None = None
        ends = False

        def done(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        try:
            self._requests.admit()
            head = read_head(scope["headers"])
            client = scope.get("client")
            caller = self._access.check(
                head.authorization,
                head.host,
                client[0] if client else "",
                INFER,
                model,
                headers=scope["headers"],
            )
            self._requests.enter(caller)
            body = await self._bodies.read(receive, head)
            address, gone = (model, version), _stays
            if head.idempotency_key is not None:
                leaving = asyncio.create_task(left(receive))
                gone = leaving.done
            headers = scope["headers"]
            ends = self._start(
                request_id, head, body, address, headers, caller=caller, done=done, gone=gone
            )
            if ends:
                leaving = asyncio.create_task(left(receive))
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            done(self.refused(error, request_id))
        if leaving is not None:
            either: set[asyncio.Future[Any]] = {future, leaving}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
            if not future.done():
                if ends:
                    self._requests.abandon(request_id)
                return
        answer = await future
        if self.draining:
            answer.headers.append((b"connection", b"close"))
        await send(send_, answer)

    def direct(self, model: str, version: str, exchange: Exchange) -> None:
        """Answer one request that the listener hands over whole."""
        request_id = self._requests.new_id()

        def done(answer: Answer) -> None:
            exchange.respond(answer.status, answer.headers, answer.body, close=self.draining)

        try:
            self._requests.admit()
            head = read_head(exchange.headers)
            caller = self._access.check(
                head.authorization,
                head.host,
                exchange.peer,
                INFER,
                model,
                headers=exchange.headers,
            )
            self._requests.enter(caller)
            body = exchange.body
            if head.encoding:
                body = self._bodies.decompress(body, head.encoding)
            address = (model, version)
            gone = partial(getattr, exchange, "disconnected")
            headers = exchange.headers
            if self._start(
                request_id, head, body, address, headers, caller=caller, done=done, gone=gone
            ):
                exchange.left = partial(self._requests.abandon, request_id)
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            done(self.refused(error, request_id))

    def _start(
        self,
        request_id: bytes,
        head: Head,
        body: bytes,
        address: tuple[str, str],
        headers: Headers,
        *,
        caller: Principal,
        done: Done,
        gone: Gone,
    ) -> bool:
        """Begin to answer a request; tell whether one who leaves ends it."""
        start_s = time.monotonic()
        if head.coding:
            done = compressing(head.coding, done)
        later = self._later if head.respond_async else None
        if head.idempotency_key is not None and later is None and self._once is not None:
            self._once(
                KeyedInfer(
                    self, request_id, head, body, address, caller=caller, done=done, gone=gone
                )
            )
            return False
        target = self._routes.resolve(*address)
        parsed = self._parse(head, body, target)
        if later is not None:
            if parsed.classes:
                raise errors.InvalidRequestError("classification needs an answer at once")
            fit.check_kept(parsed.n_rows, parsed.outputs, target.manifest.signature)
            row = m.Row(
                tensors=parsed.tensors,
                outputs=parsed.outputs,
                client_request_id=parsed.client_request_id,
            )
            tell = partial(self._taken, request_id, done)
            key, version = head.idempotency_key, address[1]
            later(target, row, caller, key, version, head.traceparent, tell)
            return False
        ends = target.generates and not keeps(headers)
        call = Call(target, parsed, done)
        waiter = Waiter(partial(self.ended, call), start_s)
        self.open(call, request_id, waiter, head=head, caller=caller)
        return ends

    def parse(self, head: Head, body: bytes, model: str, place: Place | str, done: Done) -> Call:
        """Read a request for a version by name, or for the one of a place."""
        if isinstance(place, Place):
            target = self._routes.pinned_to(model, place.version, place.pool)
        else:
            target = self._routes.resolve(model, place)
        return Call(target, self._parse(head, body, target), done)

    def _parse(self, head: Head, body: bytes, target: Target) -> oip.Parsed:
        max_rows = self._requests.max_rows
        return oip.parse(body, head.json_length, target.manifest.signature, max_rows)

    def place(self, call: Call, request_id: bytes) -> Place:
        """Return where a new request stands."""
        target = call.target
        return Place(request_id, self._requests.partition, target.version, target.pool)

    def open(
        self,
        call: Call,
        request_id: bytes,
        waiter: Waiter,
        *,
        head: Head,
        caller: Principal,
        reply_partition: int | None = None,
    ) -> None:
        """Put a request that was parsed on the bus; raises as `Requests.open` does."""
        parsed = call.parsed
        self._requests.open(
            request_id,
            call.target,
            parsed.tensors,
            caller=caller,
            n_rows=parsed.n_rows,
            outputs=parsed.outputs,
            client_request_id=parsed.client_request_id,
            timeout_s=timeout_s(head, parsed.timeout_us),
            waiter=waiter,
            traceparent=head.traceparent,
            span=SPAN,
            reply_partition=reply_partition,
        )
        call.parsed_s = time.monotonic()

    def _taken(self, request_id: bytes, done: Done, where: str | Exception) -> None:
        """Answer a request that nobody waits for: where its result will be."""
        if isinstance(where, Exception):
            done(self.refused(where, request_id))
        else:
            done(accepted(where, ids.text(request_id)))

    def ended(self, call: Call, entry: Entry) -> None:
        """Answer a request that was opened."""
        try:
            prediction = self._requests.settle(entry)
            answer = self._answered(call, entry, prediction)
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            answer = self.refused(error, entry.id)
        call.done(answer)

    def recalled(self, call: Call, entry: Entry) -> None:
        """Answer a request from the record of another one that it repeats."""
        try:
            answer = self._answered(call, entry, entry.waiter.prediction)
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            answer = self.refused(error, entry.id)
        call.done(answer)

    def refused(self, error: Exception, request_id: bytes) -> Answer:
        """Return the answer of a request that has no record, or none that we know of."""
        if isinstance(error, errors.OutcomeUnknownError):
            return reject(error, ids.text(request_id))
        if isinstance(error, InferbusError):
            self._metrics.rejected.labels(error.code).inc()
            return reject(error, ids.text(request_id))
        _log.error("infer_failed", request_id=ids.text(request_id), exc_info=error)
        return reject(InferbusError(_BROKEN), ids.text(request_id))

    def _answered(self, call: Call, entry: Entry, prediction: m.Prediction) -> Answer:
        request_id, target = ids.text(entry.id), call.target
        receipt = self._requests.receipt(entry)
        try:
            if prediction.outcome != m.OUTCOME_OK:
                raise failure(prediction)
            outputs: Iterable[m.Tensor] = m.TensorSet.FromString(prediction.outputs).tensors
            if call.parsed.classes:
                outputs = classify.replace(
                    outputs, call.parsed.classes, target.manifest.task_settings
                )
            rendered = oip.render(
                outputs,
                model=target.model,
                version=target.version,
                client_request_id=call.parsed.client_request_id,
                binary=call.parsed.binary,
            )
        except (InferbusError, DecodeError) as error:
            if isinstance(error, DecodeError):
                error = errors.FailedError(
                    "the model's answer cannot be read; tell who deployed it"
                )
            return reject(
                error,
                request_id,
                code=prediction.error_code,
                receipt=receipt,
                version=target.version_header,
                served_by=prediction.served_by,
            )
        return ok(
            rendered,
            prediction,
            version=target.version_header,
            request_id=request_id,
            receipt=receipt,
            timing=self._hops.timing(entry, prediction, call.parsed_s) if call.parsed_s else "",
        )


class Call:
    """What the answer of a request needs to know of its question; `parsed_s` once it is opened."""

    __slots__ = ("done", "parsed", "parsed_s", "target")

    def __init__(self, target: Target, parsed: oip.Parsed, done: Done) -> None:
        self.target = target
        self.parsed = parsed
        self.done = done
        self.parsed_s = 0.0
