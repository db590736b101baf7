"""An engine's answer cut by rows into the answers of its requests; pure.

In: the tensors of a batch. Out: per request a serialised `TensorSet` and its digest, exactly the
bytes of its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from inferbus_schemas import tensors
from inferbus_worker.engines import wire


class Answer:
    """The outputs of one batch.

    Invariants: cuts of disjoint ranges of rows that cover the batch hold all of its bytes, once.
    """

    def __init__(
        self, heads: Sequence[wire.TensorHead], body: memoryview | bytes, n_rows: int
    ) -> None:
        self._parts: list[tuple[wire.TensorHead, memoryview, int]] = []
        self._elements: dict[str, list[bytes]] = {}
        self._by_name: dict[str, tuple[wire.TensorHead, memoryview, int]] = {}
        view = memoryview(body)
        at = 0
        for head in heads:
            part = (head, view[at : at + head.n_bytes], head.n_bytes // n_rows)
            self._parts.append(part)
            self._by_name[head.name] = part
            at += head.n_bytes

    def cut(self, row: int, rows: int, wanted: Sequence[str]) -> tuple[bytes, bytes]:
        """Return the serialised outputs of `rows` rows from `row` on, and their digest.

        `wanted` names outputs in the order in which they were asked for; empty means all.
        """
        parts = [self._by_name[name] for name in wanted] if wanted else self._parts
        message: list[bytes] = []
        digest: list[bytes] = []
        for head, view, row_bytes in parts:
            if head.datatype == "BYTES":
                data = self._cut_bytes(head, view, row, rows)
            else:
                data = bytes(view[row * row_bytes : (row + rows) * row_bytes])
            before = tensors.heads(head.name, head.datatype, (rows, *head.shape[1:]), len(data))
            message += (before.message, data)
            digest += (before.digest, data)
        return b"".join(message), hashlib.sha256(b"".join(digest)).digest()

    def _cut_bytes(self, head: wire.TensorHead, view: memoryview, row: int, rows: int) -> bytes:
        elements = self._elements.get(head.name)
        if elements is None:
            elements = self._elements[head.name] = tensors.split_bytes(bytes(view))
        per_row = len(elements) // head.shape[0]
        return tensors.join_bytes(elements[row * per_row : (row + rows) * per_row])
