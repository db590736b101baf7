"""What the routes of jobs say of a job.

In: how far it is. Out: the bodies of answers.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel

from inferbus_gateway.control.jobs.fold import Progress
from inferbus_schemas import ids


class Counts(BaseModel):
    """Rows of a job; `refused` are those of `failed`, or to be, that could not be read."""

    rows: int
    done: int
    ok: int
    failed: int
    cancelled: int
    refused: int


class JobBody(BaseModel):
    """A job. `state`: queued, running, completed, cancelling or cancelled."""

    id: str
    model: str
    version: int
    state: str
    counts: Counts
    progress: float
    rows_per_s: float
    eta_s: float | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    parent: str | None
    client_job_id: str | None


class JobList(BaseModel):
    """Jobs, newest first; `next` goes into `before` for those behind them."""

    jobs: list[JobBody]
    next: str | None


def body(one: Progress) -> JobBody:
    """Return a job as its routes show it."""
    job = one.job
    return JobBody(
        id=ids.text(job.id),
        model=job.model,
        version=job.version,
        state=one.state,
        counts=Counts(
            rows=job.n_rows,
            done=one.n_done,
            ok=one.n_ok,
            failed=one.n_failed,
            cancelled=one.n_cancelled,
            refused=job.n_refused,
        ),
        progress=round(one.n_done / job.n_rows, 4),
        rows_per_s=round(one.rows_per_s, 1),
        eta_s=None if one.left_s is None else round(one.left_s, 1),
        created_at=_time(one.created_ms) or "",
        started_at=_time(one.started_ms),
        finished_at=_time(one.finished_ms),
        parent=ids.text(job.parent) if job.parent else None,
        client_job_id=job.client_job_id or None,
    )


def _time(unix_ms: int) -> str | None:
    if not unix_ms:
        return None
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
