"""What routes of the OpenAI API share that FastAPI serves: errors, pages, who asks.

In: errors of any kind. Out: the object that the `openai` SDK reads; lists as its pages are.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from inferbus_gateway.api.refusing import RefusingRoute
from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot import dialects
from inferbus_gateway.retry_after import retry_after_s
from inferbus_kit.errors import InferbusError
from inferbus_schemas.access import Principal

PREFIXES = ("/v1", "/openai/v1")
FILES, BATCHES = "/files", "/batches"


def served_here(path: str) -> bool:
    """Tell whether a path is one of files or batches."""
    return any(under(path, f"{prefix}{kind}") for prefix in PREFIXES for kind in (FILES, BATCHES))


def under(path: str, root: str) -> bool:
    """Tell whether a path is `root` or lies under it."""
    return path.startswith(root) and path[len(root) :][:1] in {"", "/"}


def refusal(error: InferbusError) -> Response:
    """Return an error as the OpenAI API writes it."""
    head = {
        "x-inferbus-error-code": error.code,
        "x-should-retry": "true" if error.retryable else "false",
    }
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        head["www-authenticate"] = "Bearer"
    if (wait_s := retry_after_s(error)) is not None:
        head["retry-after"] = str(wait_s)
    return JSONResponse(dialects.openai_error(error), error.http_status, head)


class OpenAIRoute(RefusingRoute):
    """A route whose errors are those of the OpenAI API."""

    @staticmethod
    def refused(error: InferbusError) -> Response:
        return refusal(error)

    @staticmethod
    def wrong(error: RequestValidationError) -> InferbusError:
        name = next((str(one["loc"][-1]) for one in error.errors()), "")
        return ParameterError(name, f"{name} is wrong; see /docs")


def caller_of(request: Request) -> Principal:
    """Return who asks; the door has put it there."""
    caller: Principal = request.state.principal
    return caller


def refuse_key(request: Request) -> None:
    """Check that a request names no key, where none would be honoured.

    Raises:
        ParameterError: it does.
    """
    if "idempotency-key" in request.headers:
        raise ParameterError(
            "Idempotency-Key", "files and batches take no Idempotency-Key; list them to find one"
        )


class Page(NamedTuple):
    """A part of a list, and whether there is more behind it."""

    items: list[dict[str, Any]]
    more: bool

    def body(self) -> dict[str, Any]:
        """Return it as the SDK reads pages."""
        return {
            "object": "list",
            "data": self.items,
            "first_id": self.items[0]["id"] if self.items else None,
            "last_id": self.items[-1]["id"] if self.items else None,
            "has_more": self.more,
        }


def page(items: Sequence[dict[str, Any]], after: str, limit: int) -> Page:
    """Return the items behind the one with the id `after`.

    Raises:
        ParameterError: there is none with that id.
    """
    start = 0
    if after:
        at = next((at for at, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise ParameterError("after", "after names nothing of this list")
        start = at + 1
    return Page(list(items[start : start + limit]), start + limit < len(items))
