"""A request of more rows than run at once, piece by piece; pure.

In: its tensors, and what the engine says of each piece. Out: the tensors of the next piece, and in
the end one answer, as if the engine had been given all rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from inferbus_schemas import tensors
from inferbus_worker.engines import wire

QUICK_US: Final = 25_000
LONG_US: Final = 100_000
"""Pieces grow while they take less than the one, and shrink where they take more than the other."""


class Pieces:
    """One request.

    Invariants: pieces are runs of rows that follow one another; the next one may be asked for when
    the one before was answered; none has more than `most_rows`, or twice those of the one before
    where that was quick; a piece that cannot be answered ends the request.
    """

    def __init__(
        self, heads: Sequence[wire.TensorHead], buffers: Sequence[bytes], most_rows: int
    ) -> None:
        self._heads = heads
        self._buffers = buffers
        self._elements = [
            tensors.split_bytes(data) if head.datatype == "BYTES" else None
            for head, data in zip(heads, buffers, strict=True)
        ]
        self._least = self._step = most_rows
        self._n_rows = heads[0].shape[0]
        self._at = self._n_asked = 0
        self._outputs: tuple[wire.TensorHead, ...] = ()
        self._parts: list[list[bytes]] = []
        self._row_tokens: list[int] = []
        self._engine_us = 0
        self.executions: dict[int, tuple[int, int]] = {}
        """By rows: how often so many were computed at once, and for how long in all."""

    @property
    def n_tokens(self) -> int:
        """Tokens of the rows that were computed."""
        return sum(self._row_tokens)

    def next(self) -> tuple[list[wire.TensorHead], list[bytes]]:
        """Return the tensors of the next piece."""
        self._n_asked = min(self._step, self._n_rows - self._at)
        heads, buffers = [], []
        for head, data, elements in zip(self._heads, self._buffers, self._elements, strict=True):
            if elements is None:
                size = head.n_bytes // self._n_rows
                part = data[self._at * size : (self._at + self._n_asked) * size]
            else:
                size = len(elements) // self._n_rows
                part = tensors.join_bytes(
                    elements[self._at * size : (self._at + self._n_asked) * size]
                )
            shape = (self._n_asked, *head.shape[1:])
            heads.append(msgspec.structs.replace(head, shape=shape, n_bytes=len(part)))
            buffers.append(part)
        return heads, buffers

    def answered(self, done: wire.Done, body: memoryview) -> tuple[wire.Done, memoryview] | None:
        """Take the answer of a piece; return that of the request, None while rows are left."""
        self._engine_us += done.engine_us
        if done.bad_rows or done.error:
            bad = {self._at + row: why for row, why in done.bad_rows.items()}
            said = msgspec.structs.replace(done, bad_rows=bad, engine_us=self._engine_us)
            return said, memoryview(b"")
        self._row_tokens += done.row_tokens
        count, before_us = self.executions.get(self._n_asked, (0, 0))
        self.executions[self._n_asked] = (count + 1, before_us + done.engine_us)
        self._keep(done, body)
        self._at += self._n_asked
        if done.engine_us < QUICK_US:
            self._step *= 2
        elif done.engine_us > LONG_US:
            self._step = max(self._least, self._step // 2)
        return None if self._at < self._n_rows else self._whole(done)

    def _keep(self, done: wire.Done, body: memoryview) -> None:
        self._outputs = self._outputs or done.outputs
        self._parts = self._parts or [[] for _ in done.outputs]
        at = 0
        for head, parts in zip(done.outputs, self._parts, strict=True):
            parts.append(bytes(body[at : at + head.n_bytes]))
            at += head.n_bytes

    def _whole(self, last: wire.Done) -> tuple[wire.Done, memoryview]:
        buffers = [b"".join(parts) for parts in self._parts]
        heads = tuple(
            msgspec.structs.replace(head, shape=(self._n_rows, *head.shape[1:]), n_bytes=len(data))
            for head, data in zip(self._outputs, buffers, strict=True)
        )
        done = msgspec.structs.replace(
            last, outputs=heads, engine_us=self._engine_us, row_tokens=tuple(self._row_tokens)
        )
        return done, memoryview(b"".join(buffers))
