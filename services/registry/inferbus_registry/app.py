"""The control plane's HTTP surface, made by a function from its services."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.types import ASGIApp

from inferbus_registry import problems
from inferbus_registry.artifacts import endpoints as artifacts
from inferbus_registry.artifacts.service import BlobService
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


def make_app(services: Services) -> ASGIApp:
    """Return the app; `/openapi.json` describes it."""
    app = FastAPI(
        title="Inferbus registry",
        description="Versions of models, their aliases, and where they run.",
        version="1",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.install(app)
    app.include_router(artifacts.routes(services.blobs))
    app.include_router(models.routes(services.models))
    app.include_router(placement.routes(services.rollouts))
    app.include_router(versions.routes(services.versions))
    return problems.Outermost(app)
