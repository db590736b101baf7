"""`/v1/registry/keys`: making, listing, rotating and revoking keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator

from inferbus_registry.events import Event
from inferbus_registry.keys.forms import KeyView, NewKey, Wish
from inferbus_registry.keys.service import KeyService
from inferbus_registry.requests import Text, caller_of, json_body, principal_of, read_json
from inferbus_schemas.access import LEAST_RATE_PER_S

_DAY_S = 24 * 3600
_MAX_BIGINT = (1 << 63) - 1

Life = Annotated[int, Field(strict=True, ge=1, le=3660 * _DAY_S)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class KeyWish(BaseModel):
    """What a new key shall be; a limit left out or 0 is none."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")
    scopes: list[str] = Field(min_length=1, max_length=100)
    tenant: str | None = None
    requests_per_s: float = Field(default=0, ge=0, le=1e6, allow_inf_nan=False)
    burst: int = Field(default=0, strict=True, ge=0, le=1_000_000)
    tokens_per_min: int = Field(default=0, strict=True, ge=0, le=1_000_000_000)
    expires_in_s: Life | None = None

    @field_validator("requests_per_s")
    @classmethod
    def _is_counted(cls, rate_per_s: float) -> float:
        if 0 < rate_per_s < LEAST_RATE_PER_S:
            raise ValueError("must be 0, for none, or at least a request an hour (0.000278)")
        return rate_per_s


class Rotation(BaseModel):
    """How a key is replaced: for how long both are good, and how long the new one lives."""

    model_config = ConfigDict(extra="forbid")

    overlap_s: int = Field(default=3600, strict=True, ge=0, le=90 * _DAY_S)
    expires_in_s: Life | None = None


class KeyPage(BaseModel):
    """Keys by id; the next page is `?after=` the last one's id."""

    keys: list[KeyView]


class EventPage(BaseModel):
    """Events, oldest first; the next page is `?after=` the last one's id."""

    events: list[Event]


def routes(service: KeyService) -> APIRouter:
    """Return the routes on `service`."""
    router = APIRouter(prefix="/v1/registry/keys", tags=["keys"])

    @router.post("", summary="Make a key", status_code=201, openapi_extra=json_body(KeyWish))
    async def create(request: Request) -> NewKey:
        wish = await read_json(request, KeyWish)
        return await service.create(
            caller_of(request),
            principal_of(request),
            Wish(
                wish.name,
                tuple(wish.scopes),
                wish.tenant,
                wish.requests_per_s,
                wish.burst,
                wish.expires_in_s,
                wish.tokens_per_min,
            ),
        )

    @router.get("", summary="All keys that you manage")
    async def page(
        request: Request,
        tenant: Text | None = None,
        after: Text = "",
        limit: Limit = 1000,
    ) -> KeyPage:
        return KeyPage(keys=await service.page(principal_of(request), tenant, after, limit))

    @router.get("/{key_id}", summary="One key")
    async def get(key_id: str, request: Request) -> KeyView:
        return await service.get(principal_of(request), key_id)

    @router.get("/{key_id}/events", summary="Every change of a key")
    async def history(
        key_id: str,
        request: Request,
        after: Annotated[int, Query(ge=0, le=_MAX_BIGINT)] = 0,
        limit: Limit = 100,
    ) -> EventPage:
        found = await service.history(principal_of(request), key_id, after, limit)
        return EventPage(events=found)

    @router.post(
        "/{key_id}/rotate",
        summary="Replace a key; both are good for a while",
        status_code=201,
        openapi_extra=json_body(Rotation),
    )
    async def rotate(key_id: str, request: Request) -> NewKey:
        wish = await read_json(request, Rotation)
        return await service.rotate(
            caller_of(request),
            principal_of(request),
            key_id,
            wish.overlap_s,
            wish.expires_in_s,
        )

    @router.delete("/{key_id}", summary="Revoke a key")
    async def revoke(key_id: str, request: Request) -> KeyView:
        return await service.revoke(caller_of(request), principal_of(request), key_id)

    return router
