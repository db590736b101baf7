"""`/v1/batches`: a batch is a job whose rows are the lines of a file.

In: the name of a file. Out: batch objects of the OpenAI API.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from inferbus_gateway import errors
from inferbus_gateway.api import files
from inferbus_gateway.api import openai_routes as shared
from inferbus_gateway.control.batches.files import Files
from inferbus_gateway.control.batches.fold import BatchFold, Known
from inferbus_gateway.control.batches.keeper import Keeper, model_not_found
from inferbus_gateway.control.jobs.fold import Progress
from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot import kinds, prompts
from inferbus_gateway.hot.route import unknown_model
from inferbus_schemas import access, batches, ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal, Verdict
from inferbus_telemetry.spans import Tracing

WINDOW = "24h"
_SPAN = "POST /v1/batches"
_WINDOW_MS = 24 * 3600 * 1000
ENDPOINTS = (*kinds.KINDS, kinds.EMBEDDINGS)
_FIELDS = frozenset(
    {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
)
_MAX_BODY_BYTES = 64 << 10
_MAX_LABELS, _MAX_LABEL, _MAX_LABEL_VALUE = 16, 64, 512
_OUTPUTS_KEPT_S = 7 * 24 * 3600
_MAY_NOT = "your key lacks the scope to infer with this model"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes need.

    `charge` spends one request of a caller's limits, or raises; so does `check_tokens`, where what
    it handed in before has used too many, but spends nothing.
    """

    keeper: Keeper
    files: Files
    fold: BatchFold
    new_id: Callable[[], bytes]
    charge: Callable[[Principal], None]
    check_tokens: Callable[[Principal], None]
    tracing: Tracing


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input_file_id", "endpoint", "completion_window"],
                    "additionalProperties": False,
                    "properties": {
                        "input_file_id": {"type": "string"},
                        "endpoint": {"enum": list(ENDPOINTS)},
                        "completion_window": {"enum": [WINDOW]},
                        "metadata": {
                            "type": ["object", "null"],
                            "additionalProperties": {
                                "type": "string",
                                "maxLength": _MAX_LABEL_VALUE,
                            },
                            "maxProperties": _MAX_LABELS,
                        },
                        "output_expires_after": {"type": ["object", "null"]},
                    },
                }
            }
        },
    }
}


def router(parts: Parts | None, prefix: str) -> APIRouter:
    """Return the routes; without `parts` each says that there is no store for files."""
    made = APIRouter(
        prefix=prefix + shared.BATCHES,
        tags=["batches"],
        route_class=shared.OpenAIRoute,
        responses=files.REFUSALS,
    )
    routes = _Routes(parts)
    made.post("", openapi_extra=_BODY)(routes.create)
    made.get("")(routes.listing)
    made.get("/{batch}")(routes.look)
    made.post("/{batch}/cancel")(routes.cancel)
    return made


class _Routes:
    """The endpoints. A batch of another tenant is one that does not exist."""

    def __init__(self, parts: Parts | None) -> None:
        self._maybe = parts

    @property
    def _parts(self) -> Parts:
        if self._maybe is None:
            raise files.no_store()
        return self._maybe

    async def create(self, request: Request) -> JSONResponse:
        """Take a batch: each line of its input is one request of its endpoint, run within a day."""
        parts, caller = self._parts, shared.caller_of(request)
        shared.refuse_key(request)
        body = prompts.decode(await _body(request))
        batch = m.Batch(id=parts.new_id(), tenant=caller.tenant, principal=caller.name)
        _read(body, batch)
        name = body.get("input_file_id")
        if not isinstance(name, str):
            raise ParameterError("input_file_id", "input_file_id must name a file")
        file = await parts.files.find(name, caller.tenant)
        if file.purpose != files.INPUT:
            raise ParameterError("input_file_id", f"the file's purpose is not {files.INPUT}")
        parts.check_tokens(caller)
        parts.charge(caller)
        batch.input_file = file.id
        # All other lines must ask the same model.
        batch.model = await parts.keeper.model_of(batch)
        given = request.headers.get("traceparent", "")
        with parts.tracing.around(_SPAN, given, "SERVER") as context:
            batch.traceparent = context
            known = await self._taken(batch, caller)
        return JSONResponse(self._described(known))

    async def _taken(self, batch: m.Batch, caller: Principal) -> Known:
        """Take a batch whose caller may ask its model.

        Raises:
            ForbiddenError: the caller may not.
            ObjectStoreError, BusUnavailableError: it may have been taken or not.
        """
        name, _, _ = batch.model.partition(":")
        verdict = access.judge(caller, access.INFER, name)
        if name and verdict is Verdict.FORBIDDEN:
            raise errors.ForbiddenError(_MAY_NOT)
        if name and verdict is Verdict.HIDDEN:
            error = model_not_found(str(unknown_model(name)))
            return await self._parts.keeper.refuse(batch, error)
        return await self._parts.keeper.accept(batch)

    async def listing(
        self,
        request: Request,
        after: Annotated[str, Query(max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> JSONResponse:
        """List your tenant's batches, newest first."""
        known = self._parts.fold.batches_of(shared.caller_of(request).tenant)
        names = [{"id": batches.batch_name(one.batch.id)} for one in reversed(known)]
        found = shared.page(names, after, limit)
        by_name = {batches.batch_name(one.batch.id): one for one in known}
        items = [self._described(by_name[one["id"]]) for one in found.items]
        return JSONResponse(shared.Page(items, found.more).body())

    async def look(self, request: Request, batch: str) -> JSONResponse:
        """Tell how far a batch is."""
        return JSONResponse(self._described(await self._find(request, batch)))

    async def cancel(self, request: Request, batch: str) -> JSONResponse:
        """Cancel what has not run of a batch; of one that has ended nothing changes."""
        caller = shared.caller_of(request)
        self._parts.charge(caller)
        known = await self._find(request, batch)
        name, _, _ = known.batch.model.partition(":")
        if name and access.judge(caller, access.INFER, name) is not Verdict.ALLOWED:
            raise errors.ForbiddenError(_MAY_NOT)
        if known.ended is None and not known.cancelled_ms:
            await self._parts.keeper.cancel(known, caller.name)
        return JSONResponse(self._described(await self._find(request, batch)))

    async def _find(self, request: Request, name: str) -> Known:
        return await self._parts.keeper.find(name, shared.caller_of(request).tenant)

    def _described(self, known: Known) -> dict[str, Any]:
        return described(known, self._parts.keeper.progress(known))


async def _body(request: Request) -> bytes:
    """Return a body, which is short.

    Raises:
        TooLargeError: it is not.
    """
    held = bytearray()
    async for piece in request.stream():
        held += piece
        if len(held) > _MAX_BODY_BYTES:
            raise errors.too_large(_MAX_BODY_BYTES)
    return bytes(held)


def _read(body: dict[str, Any], batch: m.Batch) -> None:
    """Put what a body says into a batch, but for its file.

    Raises:
        ParameterError: a field is wrong.
    """
    for name in body:
        if name not in _FIELDS:
            raise ParameterError(name[:64], "unknown parameter")
    endpoint = body.get("endpoint")
    if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
        raise ParameterError("endpoint", f"endpoint is one of {', '.join(ENDPOINTS)}")
    if body.get("completion_window") != WINDOW:
        raise ParameterError("completion_window", f"completion_window must be {WINDOW}")
    batch.endpoint = endpoint
    batch.expires_ms = ids.unix_ms(batch.id) + _WINDOW_MS
    batch.outputs_kept_ms = 1000 * _outputs_kept_s(body.get("output_expires_after"))
    metadata = body.get("metadata")
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > _MAX_LABELS:
        raise ParameterError("metadata", f"metadata is an object of at most {_MAX_LABELS} texts")
    for key, value in metadata.items():
        if not _fits(key, _MAX_LABEL) or not _fits(value, _MAX_LABEL_VALUE):
            raise ParameterError(
                "metadata",
                f"a key of metadata has up to {_MAX_LABEL}, a text {_MAX_LABEL_VALUE} characters",
            )
        batch.metadata[key] = value


def _fits(text: Any, most: int) -> bool:
    if not isinstance(text, str) or len(text) > most:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _outputs_kept_s(said: Any) -> int:
    if said is None:
        return _OUTPUTS_KEPT_S
    seconds = said.get("seconds") if isinstance(said, dict) else None
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise ParameterError("output_expires_after", "output_expires_after.seconds is a number")
    if said.get("anchor") != "created_at":
        raise ParameterError("output_expires_after", "output_expires_after.anchor is created_at")
    return files.check_kept_s(seconds, "output_expires_after.seconds")


def described(known: Known, job: Progress | None) -> dict[str, Any]:
    """Return a batch as the OpenAI API has it."""
    batch, ended = known.batch, known.ended
    status = known.status(job)
    end_s = _seconds(known.ended_ms)
    cancelled = status in {"cancelling", "cancelled"}
    return {
        "id": batches.batch_name(batch.id),
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": _errors(ended),
        "input_file_id": batches.file_name(batch.input_file),
        "completion_window": WINDOW,
        "status": status,
        "output_file_id": _file(ended.output_file if ended is not None else b""),
        "error_file_id": _file(ended.error_file if ended is not None else b""),
        "created_at": ids.unix_ms(batch.id) // 1000,
        "in_progress_at": _seconds(known.accepted_ms),
        "expires_at": batch.expires_ms // 1000,
        "finalizing_at": _seconds(job.finished_ms) if job is not None else None,
        "completed_at": end_s if status == "completed" else None,
        "failed_at": end_s if status == "failed" else None,
        "expired_at": end_s if status == "expired" else None,
        "cancelling_at": _seconds(known.cancelled_ms) if cancelled else None,
        "cancelled_at": end_s if status == "cancelled" else None,
        "request_counts": _counts(ended, job),
        "usage": _usage(ended),
        "metadata": dict(batch.metadata) or None,
    }


def _seconds(unix_ms: int) -> int | None:
    return unix_ms // 1000 if unix_ms else None


def _file(file_id: bytes) -> str | None:
    return batches.file_name(file_id) if file_id else None


def _errors(ended: m.BatchEnded | None) -> dict[str, Any] | None:
    if ended is None or not ended.errors:
        return None
    data = [
        {
            "code": one.code,
            "message": one.message,
            "param": one.param or None,
            "line": one.line or None,
        }
        for one in ended.errors
    ]
    return {"object": "list", "data": data}


def _counts(ended: m.BatchEnded | None, job: Progress | None) -> dict[str, int]:
    if ended is not None:
        n_rows, n_ok, n_failed = ended.n_rows, ended.n_ok, ended.n_rows - ended.n_ok
    elif job is not None:
        n_rows, n_ok, n_failed = job.job.n_rows, job.n_ok, job.n_failed + job.n_cancelled
    else:
        n_rows = n_ok = n_failed = 0
    return {"total": n_rows, "completed": n_ok, "failed": n_failed}


def _usage(ended: m.BatchEnded | None) -> dict[str, Any] | None:
    if ended is None or ended.end == m.BATCH_END_FAILED:
        return None
    return {
        "input_tokens": ended.prompt_tokens,
        "input_tokens_details": {"cached_tokens": ended.cached_tokens},
        "output_tokens": ended.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": ended.prompt_tokens + ended.completion_tokens,
    }
