"""`/v1/registry/models/{model}/rollout`: how far a rollout is."""

from __future__ import annotations

from fastapi import APIRouter

from inferbus_registry.placement.service import Rollout, RolloutService


def routes(service: RolloutService) -> APIRouter:
    """Return the routes on `service`."""
    router = APIRouter(prefix="/v1/registry/models/{model}", tags=["placement"])

    @router.get("/rollout", summary="How far a rollout is")
    async def rollout(model: str) -> Rollout:
        return await service.rollout(model)

    return router
