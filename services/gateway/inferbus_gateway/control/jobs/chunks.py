"""Rows gathered into chunks; pure.

In: rows in their order. Out: chunks of bounded rows and bytes, so that a worker can hold one with
all of its answers.
"""

from __future__ import annotations

import math

from inferbus_schemas import jobs, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Manifest

_UNKNOWN_DIM = 64
_MAX_ANSWER_BYTES = 16 << 20
_GENERATED_ROWS = 32


def rows_per_chunk(manifest: Manifest, generation_task: str) -> int:
    """Return how many rows a chunk of this version may have.

    Args:
        manifest: of the version.
        generation_task: the task whose rows take seconds each, not milliseconds.
    """
    if manifest.task == generation_task:
        return _GENERATED_ROWS
    answer_bytes = 0
    for spec in manifest.signature.outputs:
        inner = [_UNKNOWN_DIM if dim == -1 else dim for dim in spec.shape[1:]]
        answer_bytes += math.prod(inner) * tensors.ITEM_BYTES.get(spec.datatype, _UNKNOWN_DIM)
    return max(1, min(jobs.MAX_CHUNK_ROWS, _MAX_ANSWER_BYTES // max(1, answer_bytes)))


class Chunks:
    """Gathers the rows of one job.

    Invariants: each row comes out in exactly one chunk, in order; a chunk has `max_rows` at most,
    and more than `MAX_CHUNK_BYTES` only if it has one row.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: list[m.Row] = []
        self._n_bytes = 0

    def add(self, row: m.Row) -> m.Chunk | None:
        """Take a row; return the chunk that is full without it, if it is."""
        size_bytes = len(row.tensors) + len(row.refused) + len(row.client_request_id)
        if row.HasField("generation"):
            size_bytes += row.generation.ByteSize()
        full = len(self._rows) >= self._max_rows or (
            self._rows and self._n_bytes + size_bytes > jobs.MAX_CHUNK_BYTES
        )
        done = self.rest() if full else None
        self._rows.append(row)
        self._n_bytes += size_bytes
        return done

    def rest(self) -> m.Chunk | None:
        """Return the chunk of the rows that are left, if any."""
        if not self._rows:
            return None
        done = m.Chunk(rows=self._rows)
        self._rows, self._n_bytes = [], 0
        return done
