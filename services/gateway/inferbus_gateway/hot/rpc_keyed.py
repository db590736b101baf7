"""A gRPC call with an `idempotency-key`, and how long a call may take.

In: a call and what it says. Out: what `keyed` asks of each request that has a key: its name, its
place, its opening and its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot import keyed
from inferbus_gateway.hot.incoming import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from inferbus_gateway.hot.keyed import Name, Place
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Waiter, ended_before
from inferbus_gateway.hot.rpc_messages import Ended, Said
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal

if TYPE_CHECKING:
    from inferbus_gateway.hot.rpc_infer import Question, RpcInfer


def timeout_s(remaining_s: float | None, timeout_us: int | None) -> float:
    """Return how long a request may take: the sooner of the call's deadline and its own."""
    found = [MAX_TIMEOUT_S]
    if remaining_s is not None:
        found.append(remaining_s)
    if timeout_us is not None:
        found.append(timeout_us / 1e6)
    return DEFAULT_TIMEOUT_S if len(found) == 1 else min(found)


class KeyedCall:
    """A call with an `idempotency-key`; see `keyed.Keyed`."""

    def __init__(
        self,
        infer: RpcInfer,
        request_id: bytes,
        asked: pb.ModelInferRequest,
        said: Said,
        remaining_s: float | None,
        *,
        caller: Principal,
        future: asyncio.Future[Ended],
    ) -> None:
        self.name = Name(
            caller.tenant,
            keyed.key_sha256(said.key or b""),
            keyed.body_sha256(b"grpc", asked.SerializeToString(deterministic=True)),
        )
        self.mark = ""
        self.size_bytes = asked.ByteSize()
        self._infer = infer
        self._id = request_id
        self._asked = asked
        self._said = said
        self._remaining_s = remaining_s
        self._caller = caller
        self._future = future
        self._start_s = time.monotonic()
        self._question: Question | None = None
        self._place: Place | None = None

    @property
    def gone(self) -> bool:
        # Who leaves cancels the call, and the call what it awaits.
        return self._future.cancelled()

    @property
    def deadline_s(self) -> float:
        timeout_us = None if self._question is None else self._question.parsed.timeout_us
        return self._start_s + timeout_s(self._remaining_s, timeout_us)

    def prepare(self, place: Place | None) -> Place:
        if place is not None and self._place is not None and self._place.pinned_as(place):
            self._place = place
            return place
        question = self._infer.parse(self._asked, place or self._asked.model_version)
        self._question = question
        self._place = place or self._infer.place(question, self._id)
        return self._place

    def open(self, then: Callable[[Entry], None]) -> None:
        question, place = self._prepared
        self._infer.open(
            question,
            place.id,
            Waiter(then, self._start_s),
            caller=self._caller,
            said=self._said,
            remaining_s=self._remaining_s,
            reply_partition=place.partition,
        )

    def ended(self, entry: Entry) -> None:
        self._tell(self._infer.ended(self._prepared[0], entry))

    def recalled(self, prediction: m.Prediction, offset: int) -> None:
        question, place = self._prepared
        entry = ended_before(place, question.target, prediction, offset, self._start_s)
        self._tell(self._infer.recalled(question, entry))

    def refuse(self, error: Exception, place: Place | None = None) -> None:
        self._tell(self._infer.refused(error, self._id if place is None else place.id))

    @property
    def _prepared(self) -> tuple[Question, Place]:
        assert self._question is not None and self._place is not None  # noqa: S101, PT018 -- `prepare` comes first
        return self._question, self._place

    def _tell(self, ended: Ended) -> None:
        if self.mark:
            ended = replace(ended, metadata=(*ended.metadata, (keyed.MARK, self.mark)))
        if not self._future.done():
            self._future.set_result(ended)
