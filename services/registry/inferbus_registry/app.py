"""The control plane's HTTP surface, made by a function from its services."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from inferbus_kit import docs
from inferbus_registry import problems
from inferbus_registry.artifacts import endpoints as artifacts
from inferbus_registry.artifacts.service import BlobService
from inferbus_registry.door import Door, Find, Verify
from inferbus_registry.keys import endpoints as keys
from inferbus_registry.keys.service import KeyService
from inferbus_registry.models import endpoints as models
from inferbus_registry.models.service import ModelService
from inferbus_registry.placement import endpoints as placement
from inferbus_registry.placement.service import RolloutService
from inferbus_registry.versions import endpoints as versions
from inferbus_registry.versions.service import VersionService


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes stand on."""

    blobs: BlobService
    versions: VersionService
    models: ModelService
    rollouts: RolloutService
    keys: KeyService


def make_app(services: Services, find: Find, verify: Verify, *, local: bool) -> ASGIApp:
    """Return the app behind its door; `/openapi.json` describes it, for people `/docs`.

    Args:
        services: what the routes stand on.
        find: says whom a key stands for.
        verify: says whom a token stands for.
        local: let callers on this machine read models without a key.
    """
    return problems.Outermost(Door(routes_of(services), find, verify, local=local))


def routes_of(services: Services) -> FastAPI:
    """Return the app without its door."""
    app = FastAPIOffline(
        title="Inferbus registry",
        description="Versions of models, their aliases, where they run, and who may call.",
        version="1",
        redirect_slashes=False,
        responses=problems.RESPONSES,
        **docs.PAGE,
    )
    problems.install(app)
    app.include_router(artifacts.routes(services.blobs))
    app.include_router(models.routes(services.models))
    app.include_router(placement.routes(services.rollouts))
    app.include_router(versions.routes(services.versions))
    app.include_router(keys.routes(services.keys))
    return app
