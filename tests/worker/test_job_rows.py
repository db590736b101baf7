"""Rows of a chunk whose answers are too large together; pure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inferbus_schemas import generation, ids
from inferbus_schemas import messages as m
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
