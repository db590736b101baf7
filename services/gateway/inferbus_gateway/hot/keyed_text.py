"""Requests of the routes of text that name an `Idempotency-Key`; see `keyed.Keyed`.

In: a body that passed its route's first look, and how that route reads it for a version. Out: one
answer, of the one record that stands for the key. A client that leaves ends no request, since it
comes back, but who waited for another one's answer waits no longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from inferbus_gateway.errors import InvalidRequestError, ParameterError
from inferbus_gateway.hot import embeddings, keyed, text_answers
from inferbus_gateway.hot.answer import Answer
from inferbus_gateway.hot.generations import (
    DEFAULT_TIMEOUT_US,
    Call,
    EndedError,
    Generations,
    ended,
)
from inferbus_gateway.hot.incoming import Head, left, timeout_s
from inferbus_gateway.hot.keyed import Name, Once, Place
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Requests, Waiter
from inferbus_gateway.hot.route import Routes, Target
from inferbus_kit.health import Receive
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that was read for a version: how it is put on the bus, and answered.

    `open` takes a waiter and the reply partition; `answer` a record and its receipt, and raises
    what stands for a record other than OK. `timeout_us` is for a client that names none.
    """

    open: Callable[[Waiter, int], Entry]
    answer: Callable[[m.Prediction, str], Answer]
    timeout_us: int | None = None


Read = Callable[[Target, bytes], Prepared]
"""Reads a request for a target and under an id; raises `InferbusError` where it is refused."""


class Refused(Protocol):
    """Returns the answer for an error, with the id that it names.

    `safe`: whatever became of the request, sending it again does not run it twice.
    """

    def __call__(self, error: Exception, request_id: bytes, *, safe: bool) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent, and to which path, without its prefix."""

    head: Head
    path: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its own id, should it be the first, who asks, and which model by name."""

    id: bytes
    tenant: str
    model: str
    version: str
    sent: Sent


class KeyedTexts:
    """Answers requests with a key, each by its one record."""

    def __init__(self, routes: Routes, requests: Requests, once: Once | None) -> None:
        self._routes = routes
        self._requests = requests
        self._once = once

    def takes(self, head: Head) -> bool:
        """Tell whether a request names a key."""
        return head.idempotency_key is not None and self._once is not None

    async def answer(
        self, asked: Asked, read: Read, refused: Refused, receive: Receive
    ) -> Answer | None:
        """Return the answer of a request that `takes` took; None where its client has left.

        Raises:
            InvalidRequestError: the key is none.
        """
        assert self._once is not None  # noqa: S101 -- see `takes`
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(answer: Answer) -> None:
            if not told.done():
                told.set_result(answer)

        leaving = asyncio.create_task(left(receive))
        try:
            self._once(
                _Keyed(asked, read, refused, done, leaving.done, self._routes, self._requests)
            )
            either: set[asyncio.Future[Any]] = {told, leaving}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return told.result() if told.done() else None
        finally:
            leaving.cancel()


class _Keyed:
    """One request.

    Invariants: `done` is told its answer once, which carries the mark.
    """

    def __init__(  # noqa: PLR0917 -- one caller
        self,
        asked: Asked,
        read: Read,
        refused: Refused,
        done: Callable[[Answer], None],
        gone: Callable[[], bool],
        routes: Routes,
        requests: Requests,
    ) -> None:
        sent = asked.sent
        self.name = Name(
            asked.tenant,
            keyed.key_sha256(sent.head.idempotency_key or b""),
            keyed.body_sha256(b"text", sent.path.encode(), sent.raw),
        )
        timeout_s(sent.head, None)  # What is refused must not be what others wait for.
        self.mark = ""
        self.size_bytes = len(sent.raw)
        self._asked = asked
        self._read = read
        self._refused = refused
        self._done = done
        self._gone = gone
        self._routes = routes
        self._requests = requests
        self._start_s = time.monotonic()
        self._prepared: tuple[Place, Prepared] | None = None

    @property
    def gone(self) -> bool:
        return self._gone()

    @property
    def deadline_s(self) -> float:
        timeout_us = None if self._prepared is None else self._prepared[1].timeout_us
        return self._start_s + timeout_s(self._asked.sent.head, timeout_us)

    def prepare(self, place: Place | None) -> Place:
        asked = self._asked
        if place is None:
            target = self._routes.resolve(asked.model, asked.version)
            partition = self._requests.partition
            place = Place(asked.id, partition, target.version, target.pool)
        else:
            target = self._routes.pinned_to(asked.model, place.version, place.pool)
        self._prepared = place, self._read(target, place.id)
        return place

    def open(self, then: Callable[[Entry], None]) -> None:
        place, prepared = self._ready
        prepared.open(Waiter(then, self._start_s), place.partition)

    def ended(self, entry: Entry) -> None:
        try:
            prediction = self._requests.settle(entry)
            answer = self._ready[1].answer(prediction, self._requests.receipt(entry))
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            answer = self._refused(error, entry.id, safe=self._safe)
        self._answer(answer)

    def recalled(self, prediction: m.Prediction, offset: int) -> None:
        place, prepared = self._ready
        try:
            answer = prepared.answer(prediction, f"{place.partition}:{offset}")
        except Exception as error:  # noqa: BLE001 -- as above
            answer = self._refused(error, place.id, safe=self._safe)
        self._answer(answer)

    def refuse(self, error: Exception, place: Place | None = None) -> None:
        request_id = self._asked.id if place is None else place.id
        self._answer(self._refused(error, request_id, safe=self._safe))

    @property
    def _ready(self) -> tuple[Place, Prepared]:
        assert self._prepared is not None  # noqa: S101 -- `prepare` comes first
        return self._prepared

    @property
    def _safe(self) -> bool:
        return self.mark != keyed.DEGRADED

    def _answer(self, answer: Answer) -> None:
        if self.mark:
            answer.headers.append((keyed.MARK.encode(), self.mark.encode()))
        self._done(answer)


def check_whole(stream: object) -> None:
    """Check that the answer is asked for whole, by what a route says of streaming.

    Raises:
        ParameterError: it is not.
    """
    if stream not in (None, False):
        raise ParameterError(
            "stream", "an Idempotency-Key is for answers that are not streamed; leave out one"
        )


def generating(generations: Generations, make: Callable[[Target, bytes], Call]) -> Read:
    """Return how a request is read that generates."""

    def read(target: Target, request_id: bytes) -> Prepared:
        call = make(target, request_id)

        def answer(prediction: m.Prediction, receipt: str) -> Answer:
            if (error := ended(prediction)) is not None:
                raise EndedError(error, prediction)
            return text_answers.generated(call, prediction, receipt)

        return Prepared(partial(generations.open, call), answer, DEFAULT_TIMEOUT_US)

    return read


def embedding(
    requests: Requests, check: Callable[[Target], embeddings.Ask], caller: Principal, head: Head
) -> Read:
    """Return how a request for vectors is read: its texts are one request on the bus."""

    def read(target: Target, request_id: bytes) -> Prepared:
        ask = check(target)
        if len(ask.texts) > (most := target.manifest.batching.max_rows):
            raise InvalidRequestError(
                f"with an Idempotency-Key this model takes at most {most} texts; send several"
            )
        part = embeddings.Part(request_id, caller, target, ask.texts, head)

        def answer(prediction: m.Prediction, receipt: str) -> Answer:
            vectors = embeddings.vectors_of(embeddings.good(prediction))
            said = ask.answer(request_id, vectors, prediction.input_tokens)
            return text_answers.of_vectors(request_id, target, [receipt], said)

        return Prepared(partial(embeddings.open_part, requests, part), answer)

    return read
