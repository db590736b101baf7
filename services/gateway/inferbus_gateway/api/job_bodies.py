"""Bodies of the routes of jobs: a job whose input is named, and what is said of a job.

In: JSON; how far a job is. Out: what was asked for; the bodies of answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inferbus_gateway.control.jobs.fold import Progress
from inferbus_gateway.control.jobs.forms import Form
from inferbus_gateway.errors import InvalidRequestError
from inferbus_gateway.hot.oip_body import show
from inferbus_schemas import ids

MAX_CHARACTERS = 256
"""Of a key that names a submission."""
_MAX_ASKED_BYTES = 16 << 10


class Named(BaseModel):
    """An input that is named and not sent; without `format`, the ending `.parquet` says it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    uri: str
    format: Literal["jsonl", "parquet"] | None = None

    @property
    def form(self) -> Form:
        """What form the input has."""
        path = self.uri.partition("?")[0]
        named = self.format or ("parquet" if path.endswith(".parquet") else "jsonl")
        return "parquet" if named == "parquet" else "lines"


class Asked(BaseModel):
    """A job whose input is named."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(max_length=64)
    version: str = Field(default="", max_length=64)
    client_job_id: str = Field(default="", max_length=MAX_CHARACTERS)
    input: Named


def asked_schema() -> dict[str, Any]:
    """Return the JSON schema of `Asked`, all in one place."""
    schema = Asked.model_json_schema()
    del schema["$defs"]
    schema["properties"]["input"] = Named.model_json_schema()
    return schema


async def read_asked(body: AsyncIterator[bytes]) -> Asked:
    """Return what a body asks for.

    Raises:
        InvalidRequestError: it cannot be read.
    """
    raw = b""
    async for piece in body:
        raw += piece
        if len(raw) > _MAX_ASKED_BYTES:
            raise InvalidRequestError("the body is too large; rows are sent as JSON lines")
    try:
        return Asked.model_validate_json(raw)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))[:64]
        raise InvalidRequestError(
            f"the body must be {{model, input: {{uri}}}}; wrong at {show(where or 'its JSON')}"
        ) from None


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
