"""Triton's extensions over REST: configuration, statistics and the model repository.

In: views of models and the repository. Out: routes. Bodies are read whatever their content type,
since Triton's clients name none.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError

from inferbus_gateway import errors
from inferbus_gateway.api.views import AllStatistics, ModelConfig, ModelIndex, Views
from inferbus_gateway.control.repository import ModelRepository
from inferbus_schemas import json_bounds

T = TypeVar("T", bound=BaseModel)


class ErrorBody(BaseModel):
    """An error; its stable code stands in the header x-inferbus-error-code."""

    error: str


class IndexRequest(BaseModel):
    """Which versions to list: all, or those that can answer now."""

    ready: bool = False


class LoadRequest(BaseModel):
    """Loading takes neither a configuration nor files: a version comes by the registry."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class UnloadRequest(BaseModel):
    """`unload_dependents` means nothing here: no model depends on another one."""

    parameters: dict[str, Any] = Field(default_factory=dict)


UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "Unknown model"},
    503: {"model": ErrorBody, "description": "Not loaded yet"},
}
_CHANGE: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Not possible"},
    404: {"model": ErrorBody, "description": "Unknown model"},
    503: {"model": ErrorBody, "description": "The registry is away"},
    504: {"model": ErrorBody, "description": "Not done yet"},
}


def routes(views: Views, repository: ModelRepository) -> APIRouter:
    """Return the routes; a model cannot be called `stats`."""
    router = APIRouter(prefix="/v2")
    _add_model_routes(router, views)
    _add_repository_routes(router, views, repository)
    return router


def _add_model_routes(router: APIRouter, views: Views) -> None:
    @router.get("/models/stats", tags=["models"])
    async def all_statistics() -> AllStatistics:
        """Say what this gateway has answered, by version."""
        return views.statistics()

    @router.get("/models/{model}/stats", tags=["models"], responses=UNKNOWN)
    async def statistics(model: str) -> AllStatistics:
        """Say what this gateway has answered of the version that the default alias means now."""
        return views.statistics(model)

    @router.get("/models/{model}/versions/{version}/stats", tags=["models"], responses=UNKNOWN)
    async def version_statistics(model: str, version: str) -> AllStatistics:
        """Say what this gateway has answered of a version."""
        return views.statistics(model, version)

    @router.get(
        "/models/{model}/config",
        tags=["models"],
        responses=UNKNOWN,
        response_model_exclude_none=True,
    )
    async def config(model: str) -> ModelConfig:
        """Describe the version that the default alias means now, as Triton does."""
        return views.config(model)

    @router.get(
        "/models/{model}/versions/{version}/config",
        tags=["models"],
        responses=UNKNOWN,
        response_model_exclude_none=True,
    )
    async def version_config(model: str, version: str) -> ModelConfig:
        """Describe a version as Triton does."""
        return views.config(model, version)


def _add_repository_routes(router: APIRouter, views: Views, repository: ModelRepository) -> None:
    @router.post(
        "/repository/index",
        tags=["repository"],
        responses={400: _CHANGE[400]},
        openapi_extra=_body(IndexRequest),
    )
    async def index(request: Request) -> list[ModelIndex]:
        """List the registered versions and whether workers hold them."""
        asked = await _read(request, IndexRequest)
        return views.index(only_ready=asked.ready)

    @router.post(
        "/repository/models/{model}/load",
        tags=["repository"],
        responses=_CHANGE,
        openapi_extra=_body(LoadRequest),
    )
    async def load(model: str, request: Request) -> dict[str, str]:
        """Have the fleet serve a registered model; answers once it does."""
        asked = await _read(request, LoadRequest)
        await repository.load(model, _presented(request), frozenset(asked.parameters))
        return {}

    @router.post(
        "/repository/models/{model}/unload",
        tags=["repository"],
        responses=_CHANGE,
        openapi_extra=_body(UnloadRequest),
    )
    async def unload(model: str, request: Request) -> dict[str, str]:
        """Have the fleet serve a model no more; its versions stay registered."""
        await _read(request, UnloadRequest)
        await repository.unload(model, _presented(request))
        return {}


def _presented(request: Request) -> str:
    return request.headers.get("authorization", "")


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


async def _read(request: Request, kind: type[T]) -> T:
    """Return the body, which may be empty.

    Raises:
        InvalidRequestError: it is not what the route takes.
    """
    raw = await request.body()
    try:
        json_bounds.check(raw)
        return kind.model_validate_json(raw) if raw else kind()
    except json_bounds.TooManyPartsError as error:
        raise errors.InvalidRequestError(str(error)) from None
    except ValidationError:
        raise errors.InvalidRequestError("the body does not fit this route; see /docs") from None
