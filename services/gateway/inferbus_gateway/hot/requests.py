"""One request on the bus, whatever protocol it came by: from tensors to its terminal record.

In: a pinned target, a serialised TensorSet, a deadline. Out: an entry whose waiter is told once how
the request ended. Until the frame is handed to the producer a request may be refused; after that
only a terminal record ends it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

from prometheus_client import Counter, Histogram

from inferbus_gateway import errors
from inferbus_gateway.hot.keyed import Place
from inferbus_gateway.hot.limits import Limits
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.publish import Publisher
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.route import Target
from inferbus_gateway.hot.statistics import Figures, Statistics
from inferbus_kit.errors import InferbusError
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal
from inferbus_schemas.generation import n_tokens
from inferbus_telemetry.spans import OpenSpan, Tracing

_ID_BYTES = 10
"""Of these 80 random bits an id takes 74."""
_ENTROPY_BYTES = 400 * _ID_BYTES


class Waiter:
    """Where one request waits for its end; told once, by calling `then` in the reader's own turn.

    `prediction` and `offset` are set by a terminal record; `error` where Kafka never saw the
    request or where no record came in time; `charged` is who pays for tokens, where there are
    any. `then` must not raise and must not wait.
    """

    __slots__ = ("charged", "error", "offset", "prediction", "read_s", "span", "start_s", "then")

    def __init__(self, then: Callable[[Entry], None], start_s: float) -> None:
        self.then = then
        self.start_s = start_s
        self.prediction: m.Prediction | None = None
        self.offset = -1
        self.read_s = 0.0
        self.error: InferbusError | None = None
        self.span: OpenSpan | None = None
        self.charged: Principal | None = None

    @property
    def ended(self) -> bool:
        """Whether it was told."""
        return self.prediction is not None or self.error is not None

    def resolve(self, entry: Entry, prediction: m.Prediction, offset: int, read_s: float) -> None:
        """A terminal record ended the request."""
        self.prediction, self.offset, self.read_s = prediction, offset, read_s
        self.then(entry)

    def refuse(self, entry: Entry, error: InferbusError) -> None:
        """Nothing of the request was handed over."""
        self.error = error
        self.then(entry)

    def give_up(self, entry: Entry) -> None:
        """No record came in time."""
        self.error = errors.OutcomeUnknownError(
            "the deadline passed and it is not known how the request ended; "
            "look its id up in the log later"
        )
        self.then(entry)


class Requests:
    """Opens requests and accounts for their ends.

    Invariants: every accepted request is registered before its frame leaves; while `refusing`
    says why, nothing is accepted; `settle` is called once per entry that ended; while `stopping`,
    no client is taken for one that left.
    """

    def __init__(
        self,
        *,
        pending: Pending,
        publisher: Publisher,
        replies: Replies,
        metrics: GatewayMetrics,
        tracing: Tracing,
        limits: Limits,
        max_tensor_bytes: int,
        max_rows: int,
        max_tenant_pending: int,
    ) -> None:
        self._pending = pending
        self._publisher = publisher
        self._replies = replies
        self._metrics = metrics
        self._tracing = tracing
        self._limits = limits
        self._max_tenant_pending = max_tenant_pending
        self.max_tensor_bytes = max_tensor_bytes
        self.max_rows = max_rows
        self._entropy, self._entropy_at = b"", _ENTROPY_BYTES
        self._counters: dict[tuple[str, int, str], tuple[Counter, Histogram, Figures]] = {}
        self.statistics = Statistics()
        self.refusing = ""
        self.stopping = False

    def new_id(self) -> bytes:
        """Mint a request id."""
        at = self._entropy_at
        if at == _ENTROPY_BYTES:
            self._entropy, at = os.urandom(_ENTROPY_BYTES), 0
        self._entropy_at = at + _ID_BYTES
        bits = int.from_bytes(self._entropy[at : at + _ID_BYTES], "big")
        return ids.uuid7(time.time_ns() // 1_000_000, bits)

    def admit(self) -> None:
        """Check that a request may be taken now.

        Raises:
            BusUnavailableError: what this gateway knows is not fresh.
            OverloadedError: too many requests wait here.
        """
        if self.refusing:
            raise errors.BusUnavailableError(f"{self.refusing}; try again shortly")
        if self._pending.full:
            raise errors.OverloadedError("too many requests wait here; try again shortly")

    def enter(self, caller: Principal) -> None:
        """Spend one request of a caller that is known, before what it sent is read.

        It is spent whatever becomes of the request: what cannot be read costs us the most.

        Raises:
            RateLimitedError, TenantBusyError: the caller is at a limit of its own.
        """
        self._check_pending(caller)
        self._limits.take(caller, time.monotonic())

    def at_once(self, caller: Principal) -> int:
        """Return how many requests of a caller may ever enter at one time."""
        return self._limits.at_once(caller, self._max_tenant_pending)

    def enter_parts(self, caller: Principal, n_more: int) -> None:
        """Spend all further requests that one which has entered becomes, or none of them.

        Raises:
            RateLimitedError, TenantBusyError: as `enter`.
        """
        self._check_pending(caller, n_more)
        self._limits.take(caller, time.monotonic(), n_more)

    def _check_pending(self, caller: Principal, n_more: int = 0) -> None:
        n_pending = self._pending.by_tenant.get(caller.tenant, 0)
        if n_pending + n_more >= self._max_tenant_pending:
            raise errors.TenantBusyError

    def open(
        self,
        request_id: bytes,
        target: Target,
        tensors: bytes,
        *,
        caller: Principal,
        n_rows: int,
        outputs: Sequence[str],
        client_request_id: str,
        timeout_s: float,
        waiter: Waiter,
        traceparent: str = "",
        span: str = "",
        generation: m.Generation | None = None,
        reply_partition: int | None = None,
    ) -> Entry:
        """Register a request and place it into this tick's frame.

        Args:
            request_id: from `new_id`.
            target: what the request is pinned to.
            tensors: a serialised TensorSet, checked against the target's signature.
            caller: who asks, as let in by `enter`; its tenant is the request's.
            n_rows: for the batcher and for placement.
            outputs: names wanted, empty for all.
            client_request_id: echoed to the client and kept in the record; may be empty.
            timeout_s: from `waiter.start_s` until the deadline.
            waiter: told how it ended.
            traceparent: of the caller, or empty.
            span: name of the server span where the request is sampled.
            generation: how to generate, for a version that does.
            reply_partition: where its records stand; that of this gateway where None is given.

        Raises:
            BusUnavailableError, OverloadedError: as `admit`.
            RateLimitedError: the caller has no tokens left.
            TenantBusyError: its tenant has as many unanswered requests as it may.
            TooLargeError: the tensors are over `max_tensor_bytes`.
        """
        self.admit()
        if len(tensors) > self.max_tensor_bytes:
            # A short JSON text may hold many numbers.
            raise errors.too_large(self.max_tensor_bytes)
        self._check_pending(caller)
        if target.counts_tokens:
            self._limits.check_tokens(caller, waiter.start_s)
            waiter.charged = caller
        request = m.Request(
            id=request_id,
            tenant=caller.tenant,
            model=target.model,
            version=target.version,
            reply_partition=self.partition if reply_partition is None else reply_partition,
            may_retry=True,
            criticality=2,
            client_request_id=client_request_id,
            outputs=outputs,
            tensors=tensors,
            generation=generation,
        )
        # Whatever refuses comes before the span is opened: nobody would end it.
        if self._tracing.on and self._tracing.sampled(traceparent):
            waiter.span = self._tracing.open(span, parent=traceparent, kind="SERVER")
            request.traceparent = waiter.span.traceparent
        entry = Entry(
            request,
            target.pool,
            n_rows=n_rows,
            deadline_s=waiter.start_s + timeout_s,
            waiter=waiter,
        )
        self._pending.add(entry, waiter.start_s)
        self._publisher.place(entry)
        return entry

    @property
    def partition(self) -> int:
        """Where the records of new requests stand."""
        return self._replies.partition

    def forwarding(self, entry: Entry) -> None:
        """Note that a part of its answer leaves: it is never placed again."""
        self._pending.forwarding(entry)

    def abandon(self, request_id: bytes) -> None:
        """The client of a generation has left: have it ended, unless it has."""
        entry = self._pending.find(request_id)
        if entry is not None and not self.stopping:
            self._publisher.cancel(entry.id, entry.pool)

    def opener(self) -> tuple[Waiter, asyncio.Future[Entry]]:
        """Return a waiter for callers that await, and the future of its ended entry."""
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()

        def then(entry: Entry) -> None:
            if not future.done():
                future.set_result(entry)

        return Waiter(then, time.monotonic()), future

    def settle(self, entry: Entry, delivered_tokens: int = 0) -> m.Prediction:
        """End the span, count the end, and return the terminal record of an ended entry.

        `delivered_tokens` came before the end, and are spent whatever the record says of them.

        Raises:
            InferbusError: Kafka never saw the request; it is not accepted and not counted.
            OutcomeUnknownError: no record came in time.
        """
        waiter: Waiter = entry.waiter
        prediction, request = waiter.prediction, entry.request
        error = waiter.error or InferbusError("the request ended without an answer")
        outcome = error.code if prediction is None else _outcome(prediction)
        if waiter.span is not None:
            waiter.span.end(
                inferbus__request_id=ids.text(entry.id),
                inferbus__model=request.model,
                inferbus__version=request.version,
                inferbus__outcome=outcome,
            )
        if waiter.charged is not None:
            used = max(delivered_tokens, 0 if prediction is None else n_tokens(prediction))
            self._limits.charge(waiter.charged, used, time.monotonic())
        if prediction is not None or isinstance(error, errors.OutcomeUnknownError):
            self._count(entry, prediction, outcome, time.monotonic() - waiter.start_s)
        if prediction is None:
            raise error
        return prediction

    def receipt(self, entry: Entry) -> str:
        """Return where the terminal record stands, `partition:offset`."""
        return f"{entry.request.reply_partition}:{entry.waiter.offset}"

    def _count(
        self, entry: Entry, prediction: m.Prediction | None, outcome: str, seconds: float
    ) -> None:
        request = entry.request
        key = (request.model, request.version, outcome)
        counter = self._counters.get(key)
        if counter is None:
            labels = (key[0], str(key[1]))
            counter = self._counters[key] = (
                self._metrics.requests.labels(*labels, outcome),
                self._metrics.request_seconds.labels(*labels),
                self.statistics.of(request.model, request.version),
            )
        counter[0].inc()
        counter[1].observe(seconds)
        counter[2].ended(prediction, entry.n_rows, seconds, time.time())


def ended_before(
    place: Place, target: Target, prediction: m.Prediction, offset: int, start_s: float
) -> Entry:
    """Return the ended entry of a request that another one was, from its record; it is not open."""
    waiter = Waiter(lambda _entry: None, start_s)
    waiter.prediction, waiter.offset, waiter.read_s = prediction, offset, time.monotonic()
    request = m.Request(
        id=place.id, model=target.model, version=place.version, reply_partition=place.partition
    )
    return Entry(request, place.pool, n_rows=1, deadline_s=start_s, waiter=waiter)


def failure(prediction: m.Prediction) -> InferbusError:
    """Return the error that a terminal record other than OK stands for."""
    kind = errors.BY_OUTCOME.get(prediction.outcome, errors.FailedError)
    return kind(prediction.error_message or "the request could not be answered")


def _outcome(prediction: m.Prediction) -> str:
    return "ok" if prediction.outcome == m.OUTCOME_OK else m.outcome_name(prediction.outcome)
