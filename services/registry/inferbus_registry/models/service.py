"""Models and their aliases: an alias moves by compare-and-set, and the fleet follows.

In: a wish for an alias. Out: desired state under a new generation, the event and the message in
one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import errors, events
from inferbus_registry.database import Database
from inferbus_registry.models import repository
from inferbus_registry.outbox import repository as outbox
from inferbus_registry.placement import desired
from inferbus_registry.placement import repository as placement
from inferbus_schemas import names, topics


@dataclass(frozen=True, slots=True)
class AliasView:
    """What an alias wants and serves; 0 serves nothing yet."""

    name: str
    wanted: int
    serving: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """One line of the list of models."""

    model: str
    created_at: datetime
    n_versions: int
    aliases: list[AliasView]


@dataclass(frozen=True, slots=True)
class ModelDetail:
    """One model with all its versions."""

    model: str
    created_at: datetime
    n_versions: int
    aliases: list[AliasView]
    versions: list[repository.VersionLine]


@dataclass(frozen=True, slots=True)
class AliasMoved:
    """An alias after a change, and the generation of the desired state that says so."""

    model: str
    alias: str
    wanted: int
    serving: int
    generation: int


@dataclass(frozen=True, slots=True)
class Loading:
    """What a model's aliases mean after it was loaded or unloaded, and since which generation."""

    model: str
    aliases: list[AliasView]
    generation: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What the caller of a compare-and-set believes: None is "the alias does not exist"."""

    version: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes whose alias is set."""

    pool: str
    min_ready: int


class ModelService:
    """Shows models and moves their aliases.

    Invariants: a registered version is held by no pool until an alias wants it; a moved alias
    takes no version away from a pool: only the rollout's end does.
    """

    def __init__(self, database: Database, place: Placement) -> None:
        self._database = database
        self._place = place

    async def page(self, after: str, limit: int) -> list[ModelView]:
        """Return models by name, those after `after` first."""
        async with self._database.read() as tx:
            rows = await repository.page(tx, after, limit)
            return [
                ModelView(row.model, row.created_at, row.n_versions, await _aliases(tx, row.model))
                for row in rows
            ]

    async def get(self, model: str) -> ModelDetail:
        """Return one model.

        Raises:
            ModelNotFoundError: there is none.
        """
        async with self._database.read() as tx:
            row = await _existing(tx, model)
            return ModelDetail(
                row.model,
                row.created_at,
                row.n_versions,
                await _aliases(tx, model),
                await repository.versions(tx, model),
            )

    async def history(self, model: str, after: int, limit: int) -> list[events.Event]:
        """Return a model's events, oldest first.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        async with self._database.read() as tx:
            await _existing(tx, model)
            return await events.history(tx, model, after, limit)

    async def set_alias(
        self,
        caller: events.Caller,
        model: str,
        alias: str,
        version: int,
        expected: Expected | None,
    ) -> AliasMoved:
        """Make an alias want a version.

        Args:
            caller: who asks.
            model: a registered model.
            alias: the alias; made where it does not exist.
            version: a registered version of the model.
            expected: what it must want now; None checks nothing.

        Raises:
            VersionNotFoundError, AliasConflictError, InvalidRequestError: it is refused.
            DatabaseUnavailableError, BusyError: try again.
        """
        try:
            names.check_model(model)
            names.check_alias(alias)
        except names.InvalidNameError as error:
            raise errors.InvalidRequestError(str(error)) from error
        async with self._database.write() as tx:
            if not await repository.has_version(tx, model, version):
                raise errors.VersionNotFoundError
            now = {row.alias: row for row in await placement.aliases(tx, model)}.get(alias)
            wanted = None if now is None else now.wanted
            if expected is not None and expected.version != wanted:
                raise errors.AliasConflictError(wanted)
            serving = 0 if now is None else now.serving
            if wanted == version:
                generation = await outbox.generation(tx, topics.DEPLOYMENTS, model)
            else:
                await placement.put_wanted(tx, model, alias, version)
                await self._hold(tx, model, version)
                generation = await desired.announce(tx, model)
                await events.append(
                    tx,
                    caller,
                    "alias_moved",
                    model,
                    before=None if now is None else _event_part(now),
                    after={"alias": alias, "wanted": version, "serving": serving},
                    generation=generation,
                )
        return AliasMoved(model, alias, version, serving, generation)

    async def load(self, caller: events.Caller, model: str) -> Loading:
        """Give a model without aliases those back that it was unloaded with.

        A model that never had one gets the default alias, on its newest version; one that has an
        alias stays as it is.

        Raises:
            ModelNotFoundError, VersionNotFoundError: there is no such model, or it has no version.
            InvalidRequestError, DatabaseUnavailableError, BusyError: it is refused, or try again.
        """
        async with self._database.write() as tx:
            row = await _existing(tx, model)
            now = await placement.aliases(tx, model)
            if now:
                return await _loading(tx, model)
            if row.n_versions == 0:
                raise errors.VersionNotFoundError
            wanted = await events.last_removed(tx, model) or {names.DEFAULT_ALIAS: row.n_versions}
            for alias, version in wanted.items():
                await placement.put_wanted(tx, model, alias, version)
                await self._hold(tx, model, version)
            generation = await desired.announce(tx, model)
            for alias, version in wanted.items():
                await events.append(
                    tx,
                    caller,
                    "alias_moved",
                    model,
                    before=None,
                    after={"alias": alias, "wanted": version, "serving": 0},
                    generation=generation,
                )
            return await _loading(tx, model)

    async def unload(self, caller: events.Caller, model: str) -> Loading:
        """Take all aliases of a model away; pools let its versions go once nobody uses them.

        Raises:
            ModelNotFoundError, InvalidRequestError, DatabaseUnavailableError, BusyError: as `load`.
        """
        async with self._database.write() as tx:
            await _existing(tx, model)
            now = await placement.aliases(tx, model)
            if now:
                await placement.drop_aliases(tx, model)
                generation = await desired.announce(tx, model)
                for row in now:
                    await events.append(
                        tx,
                        caller,
                        "alias_removed",
                        model,
                        before=_event_part(row),
                        after=None,
                        generation=generation,
                    )
            return await _loading(tx, model)

    async def _hold(self, tx: AsyncConnection, model: str, version: int) -> None:
        """Have every pool of the model hold a version beside those that it holds."""
        held = await placement.pools(tx, model)
        if not held:
            held = [placement.PoolRow(model, self._place.pool, (), self._place.min_ready)]
        for row in held:
            await placement.put_pool(tx, model, row.pool, {*row.versions, version}, row.min_ready)


def _event_part(row: placement.AliasRow) -> dict[str, str | int]:
    return {"alias": row.alias, "wanted": row.wanted, "serving": row.serving}


async def _existing(tx: AsyncConnection, model: str) -> repository.ModelRow:
    try:
        names.check_model(model)
    except names.InvalidNameError as error:
        raise errors.InvalidRequestError(str(error)) from error
    row = await repository.get(tx, model)
    if row is None:
        raise errors.ModelNotFoundError
    return row


async def _loading(tx: AsyncConnection, model: str) -> Loading:
    generation = await outbox.generation(tx, topics.DEPLOYMENTS, model)
    return Loading(model, await _aliases(tx, model), generation)


async def _aliases(tx: AsyncConnection, model: str) -> list[AliasView]:
    return [
        AliasView(row.alias, row.wanted, row.serving) for row in await placement.aliases(tx, model)
    ]
