"""Results of jobs that continue one another, from a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferbus_gateway import errors
from inferbus_gateway.control.jobs.results import MAX_RETRIES, Results
from inferbus_kit.objects import Objects, open_store
from inferbus_schemas import ids, jobs
from inferbus_schemas import messages as m


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects(open_store((tmp_path / "objects").as_uri()))


async def line_of(store: Objects, n_retries: int) -> list[m.Job]:
    """Put a job of two rows, and so many that tried the second row again, oldest first."""
    line: list[m.Job] = []
    for at in range(n_retries + 1):
        parent = line[-1].id if line else b""
        job = m.Job(id=ids.uuid7(1_700_000_000_000, at), n_chunks=1, parent=parent)
        results = m.ChunkResults()
        for number in (0, 1)[bool(parent) :]:
            said = m.Prediction(outcome=m.OUTCOME_FAILED, error_message=f"try {at}")
            results.rows.add(number=number, prediction=said)
        await store.put(jobs.job_path(job.id), job.SerializeToString())
        await store.put(jobs.results_path(job.id, 0), results.SerializeToString())
        line.append(job)
    return line


async def test_as_many_retries_as_may_be_have_their_results(store: Objects) -> None:
    *_, before, last = await line_of(store, MAX_RETRIES)
    results = Results(store)
    found = [(row.number, row.prediction.error_message) async for row in results.rows(last)]
    assert found == [(0, "try 0"), (1, f"try {MAX_RETRIES}")]
    await results.check_continues(before)
    with pytest.raises(errors.InvalidRequestError, match="tried again 32 times"):
        await results.check_continues(last)


async def test_what_continues_a_job_that_is_gone_is_not_tried_again(store: Objects) -> None:
    first, _, last = await line_of(store, 2)
    await store.delete(jobs.job_path(first.id))
    with pytest.raises(errors.NotFoundError, match="is gone"):
        await Results(store).check_continues(last)
