"""Results of jobs that continue one another, from a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferbus_gateway import errors
from inferbus_gateway.control.jobs.results import MAX_RETRIES, Results, line
from inferbus_kit.objects import Objects, open_store
from inferbus_schemas import ids, jobs, tensors
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


@pytest.mark.parametrize(
    ("datatype", "data", "told"),
    [
        ("FP16", bytes(2), None),
        ("BF16", bytes(2), None),
        ("BYTES", tensors.join_bytes([b"\xff"]), None),
        ("BYTES", tensors.join_bytes([b"a"]), ["a"]),
        ("FP32", bytes(4), [0.0]),
    ],
)
def test_a_row_without_a_json_form_says_where_its_answer_is(
    datatype: str, data: bytes, told: list[object] | None
) -> None:
    outputs = m.TensorSet()
    outputs.tensors.add(name="fine", datatype="INT8", shape=[1], data=b"\1")
    outputs.tensors.add(name="y", datatype=datatype, shape=[1], data=data)
    said = m.Prediction(
        id=ids.uuid7(1, 1), outcome=m.OUTCOME_OK, outputs=outputs.SerializeToString()
    )
    found = json.loads(line(m.RowResult(number=5, prediction=said)))
    assert (found["row"], found["status"]) == (5, "failed" if told is None else "ok")
    if told is not None:
        assert [one["data"] for one in found["outputs"]] == [[1], told]
        return
    assert "outputs" not in found
    assert found["error"] == {
        "code": "no_json_form",
        "message": "output 'y' has no JSON form; read the results as Parquet",
    }
