"""`/v1/registry/models`: models, aliases, history."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from inferbus_registry.events import Event
from inferbus_registry.models.service import (
    AliasMoved,
    Expected,
    Loading,
    ModelDetail,
    ModelService,
    ModelView,
)
from inferbus_registry.requests import Text, caller_of, json_body, read_json

_MAX_INT = (1 << 31) - 1
_MAX_BIGINT = (1 << 63) - 1

VersionNumber = Annotated[int, Field(strict=True, ge=1, le=_MAX_INT)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class AliasWish(BaseModel):
    """The version that an alias shall mean; `expect` left out checks nothing, null says "new"."""

    model_config = ConfigDict(extra="forbid")

    version: VersionNumber
    expect: VersionNumber | None = None

    def expected(self) -> Expected | None:
        """Return what was expected, if anything was."""
        return Expected(self.expect) if "expect" in self.model_fields_set else None


class ModelPage(BaseModel):
    """Models by name; the next page is `?after=` the last one's name."""

    models: list[ModelView]


class EventPage(BaseModel):
    """Events, oldest first; the next page is `?after=` the last one's id."""

    events: list[Event]


def routes(service: ModelService) -> APIRouter:
    """Return the routes on `service`."""
    router = APIRouter(prefix="/v1/registry/models", tags=["models"])

    @router.get("", summary="All models")
    async def page(after: Text = "", limit: Limit = 1000) -> ModelPage:
        return ModelPage(models=await service.page(after, limit))

    @router.get("/{model}", summary="One model")
    async def get(model: str) -> ModelDetail:
        return await service.get(model)

    @router.get("/{model}/events", summary="Every change of a model")
    async def history(
        model: str,
        after: Annotated[int, Query(ge=0, le=_MAX_BIGINT)] = 0,
        limit: Limit = 100,
    ) -> EventPage:
        return EventPage(events=await service.history(model, after, limit))

    @router.put(
        "/{model}/aliases/{alias}",
        summary="Make an alias mean a version",
        openapi_extra=json_body(AliasWish),
    )
    async def set_alias(model: str, alias: str, request: Request) -> AliasMoved:
        wish = await read_json(request, AliasWish)
        return await service.set_alias(
            caller_of(request), model, alias, wish.version, wish.expected()
        )

    @router.post("/{model}/load", summary="Have the fleet serve a model again")
    async def load(model: str, request: Request) -> Loading:
        return await service.load(caller_of(request), model)

    @router.post("/{model}/unload", summary="Have the fleet serve a model no more")
    async def unload(model: str, request: Request) -> Loading:
        return await service.unload(caller_of(request), model)

    return router
