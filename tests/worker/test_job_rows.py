"""Rows of a chunk whose answers are too large together; pure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inferbus_schemas import generation, ids
from inferbus_schemas import messages as m
from inferbus_worker.hot.work import Work
from inferbus_worker.jobs import rows


def test_a_row_whose_answer_is_not_kept_has_cost_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "_MAX_RESULT_BYTES", 10)
    desk: Any = SimpleNamespace(executors={})
    job = m.Job(id=ids.uuid7(1, 1), model="m", version=1, tenant="acme")
    chunk = m.Chunk(rows=[m.Row(number=0)])
    run = rows._Run(rows.RowRunner(desk, "w"), job, chunk)
    work = run._work(0, 0.0)
    generated = m.Generated(
        run=7, prompt_tokens=5, completion_tokens=6, choices=[m.Choice(finish_reason="stop")]
    )
    answer = m.Prediction(
        id=work.request.id,
        outcome=m.OUTCOME_OK,
        outputs=bytes(11),
        generated=generated,
        input_tokens=4,
    )
    run.keep(work, answer)
    (said,) = run._records
    assert said is not None
    assert (said.outcome, said.outputs) == (m.OUTCOME_OUTPUT_TOO_LARGE, b"")
    assert generation.n_tokens(said) == 15
    assert not said.generated.choices


def test_a_row_that_makes_way_is_first_again_and_was_not_tried() -> None:
    given: list[Work] = []
    executor = SimpleNamespace(
        failed_reason="",
        job_rows=(2, 2),
        asked_s=float("-inf"),
        add=given.append,
        pump=lambda _now_s: None,
    )
    desk: Any = SimpleNamespace(executors={("m", 1): executor}, open_rows=0, last_s=float("-inf"))
    job = m.Job(id=ids.uuid7(1, 1), model="m", version=1)
    chunk = m.Chunk(rows=[m.Row(number=at) for at in range(3)])
    run = rows._Run(rows.RowRunner(desk, "w"), job, chunk)
    run._waiting.extend(range(3))
    for n_yields in range(20):
        assert run._give(100.0 + n_yields)
        first, second = given
        assert first.request.may_retry
        assert (first.n_yields, first.n_alone_deaths) == (n_yields, n_yields)
        first.n_alone_deaths += 1
        given.clear()
        run.again(second)
        run.again(first)
    assert list(run._waiting) == [0, 1, 2]
