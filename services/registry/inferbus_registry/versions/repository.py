"""Rows of versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import tables

_versions = tables.versions


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One registered version; `manifest` is its JSON."""

    model: str
    version: int
    version_sha256: str
    manifest: bytes
    created_at: datetime


async def by_identity(tx: AsyncConnection, model: str, version_sha256: str) -> VersionRow | None:
    """Return the version of a model that has this identity."""
    found = await tx.execute(
        select(_versions).where(
            _versions.c.model == model, _versions.c.version_sha256 == version_sha256
        )
    )
    row = found.mappings().one_or_none()
    return None if row is None else VersionRow(**row)


async def by_number(tx: AsyncConnection, model: str, version: int) -> VersionRow | None:
    """Return a version by its number."""
    found = await tx.execute(
        select(_versions).where(_versions.c.model == model, _versions.c.version == version)
    )
    row = found.mappings().one_or_none()
    return None if row is None else VersionRow(**row)


async def add(tx: AsyncConnection, model: str, version_sha256: str, manifest: bytes) -> VersionRow:
    """Write a version under the next number of its model; writes run one after another."""
    await tx.execute(upsert(tables.models).values(model=model).on_conflict_do_nothing())
    highest = await tx.execute(
        select(func.coalesce(func.max(_versions.c.version), 0)).where(_versions.c.model == model)
    )
    added = await tx.execute(
        insert(_versions)
        .values(
            model=model,
            version=highest.scalar_one() + 1,
            version_sha256=version_sha256,
            manifest=manifest,
        )
        .returning(_versions)
    )
    return VersionRow(**added.mappings().one())


async def count(tx: AsyncConnection) -> int:
    """Return how many versions are registered."""
    return int((await tx.execute(select(func.count()).select_from(_versions))).scalar_one())
