"""`/v1/registry/models/{model}/versions`: registering and showing versions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from inferbus_registry.requests import caller_of, read_body
from inferbus_registry.versions.service import (
    MAX_MANIFEST_BYTES,
    Registered,
    Version,
    VersionService,
)


def routes(service: VersionService) -> APIRouter:
    """Return the routes on `service`."""
    router = APIRouter(prefix="/v1/registry/models/{model}/versions", tags=["versions"])

    @router.post(
        "",
        summary="Register a version by its manifest",
        status_code=201,
        responses={200: {"model": Registered, "description": "The same version was there"}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"type": "object"}}},
            }
        },
    )
    async def register(model: str, request: Request, response: Response) -> Registered:
        raw = await read_body(request, MAX_MANIFEST_BYTES)
        done = await service.register(caller_of(request), model, raw)
        response.status_code = 201 if done.created else 200
        return done

    @router.get("/{version}", summary="One version")
    async def get(model: str, version: int) -> Version:
        return await service.get(model, version)

    return router
