"""Requests of the hot route that name an `Idempotency-Key`; see `keyed.Keyed`.

In: a body, and how the route reads and opens it. Out: one answer, of the one record that stands for
the key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from inferbus_gateway.hot import keyed
from inferbus_gateway.hot.answer import Answer
from inferbus_gateway.hot.incoming import Head, timeout_s
from inferbus_gateway.hot.keyed import Name, Place
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Waiter, ended_before
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal

if TYPE_CHECKING:
    from inferbus_gateway.hot.infer import Call, Infer

Done = Callable[[Answer], None]
"""Takes the answer of one request, once; must not raise."""

Gone = Callable[[], bool]
"""Tells whether the client of one request has left."""


class KeyedInfer:
    """One request."""

    def __init__(  # noqa: PLR0917 -- one caller
        self,
        infer: Infer,
        request_id: bytes,
        head: Head,
        body: bytes,
        address: tuple[str, str],
        caller: Principal,
        *,
        done: Done,
        gone: Gone,
    ) -> None:
        model, version = address
        self.name = Name(
            caller.tenant,
            keyed.key_sha256(head.idempotency_key or b""),
            keyed.body_sha256(
                b"http", model.encode(), version.encode(), b"%r" % head.json_length, body
            ),
        )
        timeout_s(head, None)  # What is refused must not be what others wait for.
        self.mark = ""
        self.size_bytes = len(body)
        self._infer = infer
        self._id = request_id
        self._head = head
        self._body = body
        self._address = address
        self._caller = caller
        self._done = done
        self._gone = gone
        self._start_s = time.monotonic()
        self._call: Call | None = None
        self._place: Place | None = None

    @property
    def gone(self) -> bool:
        return self._gone()

    @property
    def deadline_s(self) -> float:
        timeout_us = None if self._call is None else self._call.parsed.timeout_us
        return self._start_s + timeout_s(self._head, timeout_us)

    def prepare(self, place: Place | None) -> Place:
        if place is not None and self._place is not None and self._place.pinned_as(place):
            self._place = place
            return place
        model, version = self._address
        call = self._infer.parse(self._head, self._body, model, place or version, self._answer)
        self._call = call
        self._place = place or self._infer.place(call, self._id)
        return self._place

    def open(self, then: Callable[[Entry], None]) -> None:
        call, place = self._prepared
        waiter = Waiter(then, self._start_s)
        self._infer.open(
            call,
            place.id,
            waiter,
            head=self._head,
            caller=self._caller,
            reply_partition=place.partition,
        )

    def ended(self, entry: Entry) -> None:
        self._infer.ended(self._prepared[0], entry)

    def recalled(self, prediction: m.Prediction, offset: int) -> None:
        call, place = self._prepared
        entry = ended_before(place, call.target, prediction, offset, self._start_s)
        self._infer.recalled(call, entry)

    def refuse(self, error: Exception, place: Place | None = None) -> None:
        self._answer(self._infer.refused(error, self._id if place is None else place.id))

    @property
    def _prepared(self) -> tuple[Call, Place]:
        assert self._call is not None and self._place is not None  # noqa: S101, PT018 -- `prepare` comes first
        return self._call, self._place

    def _answer(self, answer: Answer) -> None:
        if self.mark:
            answer.headers.append((keyed.MARK.encode(), self.mark.encode()))
        self._done(answer)
