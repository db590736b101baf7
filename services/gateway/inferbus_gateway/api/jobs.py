"""Routes of jobs: submit, look, list, fetch results, cancel, try failed rows again.

In: HTTP, an upload as it streams. Out: JSON, or results as they are read; errors as RFC 9457
problem documents.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from inferbus_gateway import errors
from inferbus_gateway.api import header_docs
from inferbus_gateway.api.job_bodies import (
    MAX_CHARACTERS,
    JobBody,
    JobList,
    asked_schema,
    body,
    read_asked,
)
from inferbus_gateway.api.problems import PROBLEMS, ProblemRoute
from inferbus_gateway.api.streamed import Streamed
from inferbus_gateway.control.jobs import parquet
from inferbus_gateway.control.jobs.dispatch import Dispatcher
from inferbus_gateway.control.jobs.fold import Fold, Progress
from inferbus_gateway.control.jobs.forms import BYTES, FORMS, JSON_LINES, Limits
from inferbus_gateway.control.jobs.parquet import MEDIA_TYPE
from inferbus_gateway.control.jobs.remote import Remote
from inferbus_gateway.control.jobs.results import Results, line
from inferbus_gateway.control.jobs.submit import Submissions, Wish
from inferbus_gateway.control.jobs.turns import Busy, Turns
from inferbus_gateway.hot.route import Routes, Target, unknown_model
from inferbus_kit.objects import Objects
from inferbus_schemas import access, ids, jobs
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal, Verdict
from inferbus_telemetry.spans import Tracing

_log = structlog.get_logger("jobs")
_One = TypeVar("_One")

PATH = "/v1/jobs"
_SUBMIT, _RETRY = f"POST {PATH}", f"POST {PATH}/{{job}}/retry"
_JSON = "application/json"
_PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes need."""

    routes: Routes
    fold: Fold
    objects: Objects
    submissions: Submissions
    dispatcher: Dispatcher
    results: Results
    charge: Callable[[Principal], None]
    """Spends one request of a caller's limits, or raises."""
    check_tokens: Callable[[Principal], None]
    """Raises where what a caller handed in before has used too many tokens; spends none."""
    busy: Busy
    limits: Limits
    remote: Remote
    tracing: Tracing

    @contextlib.contextmanager
    def taking(self, wish: Wish, name: str, traceparent: str) -> Iterator[Wish]:
        """Record a span around taking a job, where it is sampled; yield the wish that names it."""
        with self.tracing.around(name, traceparent, "SERVER") as context:
            yield replace(wish, traceparent=context)

    def wish(
        self,
        caller: Principal,
        target: Target,
        key: str,
        *,
        client_job_id: str = "",
        version: str = "",
    ) -> Wish:
        """Return a caller's wish for a job of this version; where it counts tokens, debt counts."""
        return Wish(
            target,
            caller.tenant,
            caller.name,
            key,
            client_job_id,
            version=version,
            check=partial(self.check_tokens, caller) if target.counts_tokens else None,
        )


_SAME: dict[int | str, dict[str, Any]] = {200: {"model": JobBody, "description": "Taken before"}}
_ROWS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            JSON_LINES: {"schema": {"type": "string"}},
            MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
        },
        "description": "A line a row, or a Parquet file",
    }
}
_KEY: dict[str, Any] = {"parameters": [header_docs.JOB_KEY]}
_UPLOAD: dict[str, Any] = {
    **_KEY,
    "requestBody": {
        "required": True,
        "content": {
            JSON_LINES: {
                "schema": {"type": "string"},
                "example": '{"features": [5.1, 3.5, 1.4, 0.2]}\n{"features": [4.9, 3, 1.4, 0.2]}\n',
            },
            MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
            _JSON: {"schema": asked_schema()},
            BYTES: {"schema": {"type": "string", "format": "binary"}},
        },
    },
}


def router(parts: Parts | None) -> APIRouter:
    """Return the routes; without `parts` each says that jobs are not set up here."""
    made = APIRouter(prefix=PATH, tags=["jobs"], route_class=ProblemRoute, responses=PROBLEMS)
    routes = _Routes(parts)
    made.post(
        "",
        status_code=202,
        openapi_extra=_UPLOAD,
        response_model=JobBody,
        responses=_SAME,
    )(routes.submit)
    made.get("", response_model=JobList)(routes.listing)
    made.get("/{job}", response_model=JobBody)(routes.look)
    made.delete("/{job}", response_model=JobBody)(routes.cancel)
    made.get("/{job}/results", response_class=StreamingResponse, responses=_ROWS)(routes.fetch)
    made.post("/{job}/retry", status_code=202, openapi_extra=_KEY, response_model=JobBody)(
        routes.retry
    )
    return made


class _Routes:
    """The endpoints. A job of another tenant is one that does not exist."""

    def __init__(self, parts: Parts | None) -> None:
        self._maybe = parts

    @property
    def _parts(self) -> Parts:
        if self._maybe is None:
            raise errors.JobsNotConfiguredError(
                "this gateway has no object store: set INFERBUS_OBJECT_STORE_URL"
            )
        return self._maybe

    async def submit(
        self,
        request: Request,
        model: Annotated[str, Query(max_length=64)] = "",
        version: Annotated[str, Query(max_length=64)] = "",
        client_job_id: Annotated[str, Query(max_length=MAX_CHARACTERS)] = "",
    ) -> Response:
        """Take a job: a line of JSON per row, the body of an infer request or the row's inputs.

        Or a Parquet file with a column per input. Or JSON that names the model, in the place of the
        parameters, and a URI where the rows are, of those that the operator allows.

        With the header Idempotency-Key, or a client_job_id, sending it again gives the same job.
        """
        parts = self._parts
        caller = _caller(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == _JSON:
            return await self._submit_named(request, caller)
        if not model:
            raise errors.InvalidRequestError("the parameter model is missing; see /docs")
        target = _target(parts, caller, model, version)
        form = FORMS.get(kind)
        if form is None:
            raise errors.UnsupportedMediaTypeError(f"send rows as {JSON_LINES} or {MEDIA_TYPE}")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise errors.UnsupportedEncodingError("send the rows without a Content-Encoding")
        parts.charge(caller)
        key = _key(request, client_job_id)
        wish = parts.wish(caller, target, key, client_job_id=client_job_id, version=version)
        with parts.taking(wish, _SUBMIT, _traceparent(request)) as named:
            job, new = await parts.submissions.submit(named, request.stream(), form)
        return self._answer(job.id, HTTPStatus.ACCEPTED if new else HTTPStatus.OK)

    async def _submit_named(self, request: Request, caller: Principal) -> Response:
        """Take a job whose input is at a URI."""
        parts = self._parts
        asked = await read_asked(request.stream())
        target = _target(parts, caller, asked.model, asked.version)
        parts.charge(caller)
        key = _key(request, asked.client_job_id)
        wish = parts.wish(
            caller, target, key, client_job_id=asked.client_job_id, version=asked.version
        )
        with parts.taking(wish, _SUBMIT, _traceparent(request)) as named:
            async with parts.remote.open(asked.input.uri) as found:
                job, new = await parts.submissions.submit(named, found, asked.input.form)
        return self._answer(job.id, HTTPStatus.ACCEPTED if new else HTTPStatus.OK)

    async def listing(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str, Query(max_length=36)] = "",
    ) -> JobList:
        """List your tenant's jobs, newest first."""
        last = jobs.parse_id(before) if before else b""
        if last is None:
            raise errors.InvalidRequestError("before must be the id of a job")
        found = self._parts.fold.of_tenant(_caller(request).tenant, _now_ms(), last, limit)
        more = ids.text(found[-1].job.id) if len(found) == limit else None
        return JobList(jobs=[body(one) for one in found], next=more)

    async def look(self, request: Request, job: str) -> JobBody:
        """Tell how far a job is."""
        return body(await self._progress(request, job))

    async def cancel(self, request: Request, job: str) -> JobBody:
        """Cancel what has not run of a job; of a job that has ended nothing changes."""
        caller = _caller(request)
        self._parts.charge(caller)
        progress = await self._progress(request, job)
        _may(caller, progress.job.model)
        if not progress.finished:
            await self._parts.dispatcher.cancel(progress.job, caller.name)
        return body(await self._progress(request, job))

    async def fetch(
        self,
        request: Request,
        job: str,
        as_: Annotated[Literal["", "jsonl", "parquet"], Query(alias="format")] = "",
    ) -> StreamingResponse:
        """Return a line of JSON, or a row of a Parquet file, for each row of the input, in order.

        `format` says which; without it the header Accept does.
        """
        parts = self._parts
        parts.charge(_caller(request))
        progress = await self._progress(request, job)
        _finished(progress)
        rows = parts.results.rows(progress.job)
        first = await anext(rows)
        if as_ == "parquet" or (not as_ and MEDIA_TYPE in request.headers.get("accept", "")):
            told = progress.job
            target = parts.routes.pinned_to(told.model, told.version, told.pool)
            results = _behind(first, rows)
            limits, signature = parts.limits, target.manifest.signature
            share = limits.parquet.of(_caller(request).tenant)
            table = parquet.file(share, results, signature, limits.max_parquet_bytes)
            # Its process runs, or was refused, before the answer has a status.
            pieces = _behind(await anext(table), table)
            return Streamed(pieces, MEDIA_TYPE, share.pace.patience_s)
        written = _written(first, rows, Turns(parts.busy))
        return Streamed(written, JSON_LINES)

    async def retry(self, request: Request, job: str) -> Response:
        """Make a new job of the rows that failed or were cancelled; its results overlay these.

        Rows that were refused as they were read are left out: they can never run.
        """
        parts = self._parts
        caller = _caller(request)
        progress = await self._progress(request, job)
        _finished(progress)
        old = progress.job
        _may(caller, old.model)
        target = parts.routes.pinned_to(old.model, old.version, old.pool)
        parts.charge(caller)
        await parts.results.check_continues(old)
        wish = parts.wish(caller, target, _key(request, ""))
        with parts.taking(wish, _RETRY, _traceparent(request)) as named:
            rows = parts.results.failed(old)
            new = await parts.submissions.submit_rows(named, rows, old.id)
        return self._answer(new.id, HTTPStatus.ACCEPTED)

    async def _progress(self, request: Request, text: str) -> Progress:
        """Return a job of the caller's tenant.

        Raises:
            JobNotFoundError: there is none.
        """
        parts = self._parts
        job_id = jobs.parse_id(text)
        if job_id is not None:
            if job_id not in parts.fold:
                # Another gateway may have taken it a moment ago.
                raw = await parts.objects.get(jobs.job_path(job_id))
                if raw is not None:
                    parts.fold.apply(m.JobStatus(job=m.Job.FromString(raw)), _now_ms())
            found = parts.fold.progress(job_id, _now_ms())
            if found is not None and found.job.tenant == _caller(request).tenant:
                return found
        raise errors.JobNotFoundError("there is no such job")

    def _answer(self, job_id: bytes, status: int) -> Response:
        progress = self._parts.fold.progress(job_id, _now_ms())
        if progress is None:
            raise errors.JobNotFoundError("there is no such job")
        location = f"{PATH}/{ids.text(job_id)}"
        return JSONResponse(body(progress).model_dump(), status, {"location": location})


async def _behind(first: _One, rest: AsyncGenerator[_One]) -> AsyncGenerator[_One]:
    async with contextlib.aclosing(rest):
        yield first
        async for one in rest:
            yield one


async def _written(
    first: m.RowResult, rows: AsyncGenerator[m.RowResult], turns: Turns
) -> AsyncGenerator[bytes]:
    """Yield the lines of results in pieces worth a write."""
    held, size_bytes = [line(first)], 0
    async for row in rows:
        held.append(line(row))
        size_bytes += len(held[-1])
        await turns.pause()
        if size_bytes > _PIECE_BYTES:
            yield b"".join(held)
            held, size_bytes = [], 0
    yield b"".join(held)


def _caller(request: Request) -> Principal:
    caller: Principal = request.state.principal
    return caller


def _traceparent(request: Request) -> str:
    return request.headers.get("traceparent", "")


def _may(caller: Principal, model: str) -> None:
    """Check that the caller may ask this model.

    Raises:
        ForbiddenError, UnknownModelError: it may not, or may not know that there is one.
    """
    verdict = access.judge(caller, access.INFER, model)
    if verdict is Verdict.HIDDEN:
        raise unknown_model(model)
    if verdict is Verdict.FORBIDDEN:
        raise errors.ForbiddenError("your key lacks the scope to infer with this model")


def _target(parts: Parts, caller: Principal, model: str, version: str) -> Target:
    _may(caller, model)
    return parts.routes.resolve(model, version)


def _key(request: Request, client_job_id: str) -> str:
    """Return what names this submission; empty where nothing does."""
    given = request.headers.get("idempotency-key", "")
    if len(given) > MAX_CHARACTERS:
        raise errors.InvalidRequestError("Idempotency-Key is too long")
    if given:
        return f"key:{given}"
    return f"id:{client_job_id}" if client_job_id else ""


def _finished(progress: Progress) -> None:
    if not progress.finished:
        raise errors.JobNotFinishedError(f"the job is {progress.state}; wait until it has ended")


def _now_ms() -> int:
    return int(time.time() * 1000)
