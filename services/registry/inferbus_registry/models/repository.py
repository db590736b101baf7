"""Rows of models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import tables

_models = tables.models
_versions = tables.versions


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model and how many versions it has, which is also the number of the newest."""

    model: str
    created_at: datetime
    n_versions: int


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version without its manifest."""

    version: int
    version_sha256: str
    created_at: datetime


async def page(tx: AsyncConnection, after: str, limit: int) -> list[ModelRow]:
    """Return models by name, those after `after` first."""
    n_versions = select(func.count()).where(_versions.c.model == _models.c.model).scalar_subquery()
    found = await tx.execute(
        select(_models.c.model, _models.c.created_at, n_versions)
        .where(_models.c.model > after)
        .order_by(_models.c.model)
        .limit(limit)
    )
    return [ModelRow(*row) for row in found.all()]


async def get(tx: AsyncConnection, model: str) -> ModelRow | None:
    """Return one model."""
    count = select(func.count()).where(_versions.c.model == model).scalar_subquery()
    found = await tx.execute(
        select(_models.c.model, _models.c.created_at, count).where(_models.c.model == model)
    )
    row = found.one_or_none()
    return None if row is None else ModelRow(*row)


async def versions(tx: AsyncConnection, model: str) -> list[VersionLine]:
    """Return a model's versions, oldest first."""
    found = await tx.execute(
        select(_versions.c.version, _versions.c.version_sha256, _versions.c.created_at)
        .where(_versions.c.model == model)
        .order_by(_versions.c.version)
    )
    return [VersionLine(*row) for row in found.all()]


async def has_version(tx: AsyncConnection, model: str, version: int) -> bool:
    """Tell whether a version is registered."""
    found = await tx.execute(
        select(_versions.c.version).where(
            _versions.c.model == model, _versions.c.version == version
        )
    )
    return found.first() is not None
