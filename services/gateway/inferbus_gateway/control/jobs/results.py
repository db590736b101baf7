"""The results of a job, from the objects that its workers wrote.

In: a job that has ended. Out: its rows in the order of the input, each with how it ended. Of a job
that tried the failed rows of another one again, the rows of both: its own stand over the other's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from inferbus_gateway import errors
from inferbus_gateway.hot import numbers
from inferbus_kit.objects import Objects
from inferbus_schemas import ids, jobs, tensors
from inferbus_schemas import messages as m

MAX_RETRIES = 32
"""So many jobs may continue one, each the one before it; their results are read side by side."""
_encode = msgspec.json.Encoder().encode


class Results:
    """Reads results.

    Invariants: rows come in ascending order, each number once; one chunk of each job at a time is
    in memory.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def _lineage(self, job: m.Job) -> list[m.Job]:
        """Return a job and those that it continues, newest first."""
        lineage = [job]
        while lineage[-1].parent:
            raw = await self._objects.get(jobs.job_path(lineage[-1].parent))
            if raw is None:
                raise errors.NotFoundError("the job that this one continues is gone")
            lineage.append(m.Job.FromString(raw))
        return lineage

    async def check_continues(self, job: m.Job) -> None:
        """Check that one more job can continue a job.

        Raises:
            InvalidRequestError: it is the last of as many as may be.
            NotFoundError: one that it continues is gone.
            ObjectStoreError: they cannot be read.
        """
        if len(await self._lineage(job)) > MAX_RETRIES:
            raise errors.InvalidRequestError(
                f"rows are tried again {MAX_RETRIES} times; send those that failed as a new job"
            )

    async def rows(self, job: m.Job) -> AsyncGenerator[m.RowResult]:
        """Yield the rows of a job and of those that it continues.

        Raises:
            NotFoundError: they are gone.
            ObjectStoreError: they cannot be read.
        """
        lineage = await self._lineage(job)
        merged = self._own(lineage.pop())
        for newer in reversed(lineage):
            merged = _overlaid(merged, self._own(newer))
        async for row in merged:
            yield row

    async def _own(self, job: m.Job) -> AsyncIterator[m.RowResult]:
        for number in range(job.n_chunks):
            raw = await self._objects.get(jobs.results_path(job.id, number))
            if raw is None:
                raise errors.NotFoundError("the results of this job are gone")
            for row in m.ChunkResults.FromString(raw).rows:
                yield row

    async def failed(self, job: m.Job) -> AsyncIterator[m.Row]:
        """Yield the rows of a job that did not end well, as its input has them.

        Rows that were refused are left out: they can never run.

        Raises:
            NotFoundError, ObjectStoreError: see `rows`.
        """
        for number in range(job.n_chunks):
            results = await self._objects.get(jobs.results_path(job.id, number))
            chunk = await self._objects.get(jobs.input_path(job.input, number))
            if results is None or chunk is None:
                raise errors.NotFoundError("the rows of this job are gone")
            failed = {
                row.number
                for row in m.ChunkResults.FromString(results).rows
                if row.prediction.outcome != m.OUTCOME_OK
            }
            for given in m.Chunk.FromString(chunk).rows:
                if given.number in failed and not given.refused:
                    yield given


async def _overlaid(
    below: AsyncIterator[m.RowResult], above: AsyncIterator[m.RowResult]
) -> AsyncIterator[m.RowResult]:
    """Merge two ascending streams; of two rows with one number that of `above` is taken."""
    over = await anext(above, None)
    async for row in below:
        while over is not None and over.number < row.number:
            yield over
            over = await anext(above, None)
        if over is not None and over.number == row.number:
            yield over
            over = await anext(above, None)
        else:
            yield row
    while over is not None:
        yield over
        over = await anext(above, None)


def line(row: m.RowResult) -> bytes:
    """Return a row as a line of JSON.

    `{"row", "id", "request_id", "status": "ok", "outputs": [...]}`, outputs as infer writes them,
    or `"status": "failed"` (or `"cancelled"`) with `"error": {"code", "message"}`. A row that has
    an answer, but no JSON form, reads `failed` too.
    """
    said = row.prediction
    fields: dict[str, Any] = {"row": row.number, "request_id": ids.text(said.id)}
    if said.client_request_id:
        fields["id"] = said.client_request_id
    error = {"code": said.error_code, "message": said.error_message}
    if said.outcome == m.OUTCOME_OK:
        try:
            fields |= {"status": "ok", "outputs": _outputs(said.outputs)}
        except numbers.NumbersError as reason:
            error = {"code": "no_json_form", "message": str(reason)}
        else:
            return _encode(fields) + b"\n"
    status = "cancelled" if said.outcome == m.OUTCOME_CANCELLED else "failed"
    return _encode({**fields, "status": status, "error": error}) + b"\n"


def _outputs(raw: bytes) -> list[dict[str, Any]]:
    """Return tensors as infer writes them.

    Raises:
        NumbersError: one has no JSON form.
    """
    out = []
    for one in m.TensorSet.FromString(raw).tensors:
        try:
            data = numbers.unpack(one.data, one.datatype, tensors.n_elements(one.shape))
        except numbers.NumbersError:
            raise numbers.NumbersError(
                f"output {one.name!r} has no JSON form; read the results as Parquet"
            ) from None
        head = {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
        out.append({**head, "data": data})
    return out
