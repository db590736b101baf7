"""Keys: made, listed, rotated with an overlap, revoked; each change is an event and a message.

In: what an admin wishes. Out: rows, events and messages for `access.keys` in one transaction, and
the text of a new key, once. An admin hands on only what it holds itself, and only to its own
tenant, unless that is the operator's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_kit.errors import StartupError
from inferbus_registry import errors, events
from inferbus_registry.database import Database
from inferbus_registry.keys import repository
from inferbus_registry.keys.forms import (
    KeyView,
    NewKey,
    Wish,
    ended,
    event_part,
    new_key_of,
    record_of,
    row_of,
    view_of,
)
from inferbus_registry.keys.repository import KeyRow
from inferbus_registry.outbox import repository as outbox
from inferbus_schemas import access, names, topics

_US = events.Caller(who="registry", request_id="")
_DELETED_AT_ONCE = 100
_ADMIN_KEY_ENDED = (
    "INFERBUS_ADMIN_KEY was revoked, has expired or has another secret; give a new one"
)


class KeyService:
    """Manages keys.

    Invariants: a key is in the database by its digest alone; nobody sees or changes a key of a
    foreign tenant but admins of the operator's; no caller makes a key that may more than itself;
    no tenant has more than `max_tenant_keys` by their wishes.
    """

    def __init__(
        self, database: Database, operator_tenant: str, max_tenant_keys: int = 10_000
    ) -> None:
        self._database = database
        self._operator_tenant = operator_tenant
        self._max_tenant_keys = max_tenant_keys

    async def find(self, key: str) -> access.Principal | None:
        """Return whom a key stands for now, or None.

        Raises:
            DatabaseUnavailableError: it cannot be told.
        """
        key_id = access.key_id(key)
        if key_id is None:
            return None
        async with self._database.read() as tx:
            row = await repository.get(tx, key_id)
        if row is None or not access.opens(record_of(row), key, _now().timestamp()):
            return None
        return access.holder(record_of(row))

    async def create(self, caller: events.Caller, by: access.Principal, wish: Wish) -> NewKey:
        """Make a key.

        Raises:
            InvalidRequestError, ForbiddenError, TooManyKeysError: it is refused.
        """
        tenant = by.tenant if wish.tenant is None else wish.tenant
        _check(wish, tenant)
        if tenant != by.tenant and not self._operates(by):
            raise errors.ForbiddenError("You make keys for your own tenant only.")
        _check_handed_on(by, wish.scopes)
        now = _now()
        key = _new_key()
        row = row_of(key, replace(wish, tenant=tenant), now, caller.who)
        async with self._database.write() as tx:
            await self._check_room(tx, tenant)
            await repository.add(tx, row)
            await _announce(tx, caller, "key_created", row, before=None)
        return new_key_of(key, row)

    async def page(
        self, by: access.Principal, tenant: str | None, after: str, limit: int
    ) -> list[KeyView]:
        """Return the keys that the caller manages, by id."""
        if not self._operates(by):
            if tenant not in {None, by.tenant}:
                return []
            tenant = by.tenant
        async with self._database.read() as tx:
            return [view_of(row) for row in await repository.page(tx, tenant, after, limit)]

    async def get(self, by: access.Principal, key_id: str) -> KeyView:
        """Return one key.

        Raises:
            KeyNotFoundError: there is none, or it is not the caller's to see.
        """
        async with self._database.read() as tx:
            return view_of(await self._managed(tx, by, key_id))

    async def history(
        self, by: access.Principal, key_id: str, after: int, limit: int
    ) -> list[events.Event]:
        """Return what happened to a key, oldest first; also to one that was deleted.

        Raises:
            KeyNotFoundError: there never was such a key, or it is not the caller's to see.
        """
        async with self._database.read() as tx:
            tenant = None if "\0" in key_id else await _tenant(tx, key_id)
            if tenant is None or not self._manages(by, tenant):
                raise errors.KeyNotFoundError
            return await events.history(tx, None, after, limit, key_id=key_id)

    async def rotate(
        self,
        caller: events.Caller,
        by: access.Principal,
        key_id: str,
        overlap_s: int,
        expires_in_s: int | None,
    ) -> NewKey:
        """Make a key's successor; the old one ends `overlap_s` from now, or before.

        Args:
            caller: who asks.
            by: the same, as a principal.
            key_id: the key to replace.
            overlap_s: how long both are good.
            expires_in_s: life of the new one; None: as long as the old one's was.

        Raises:
            KeyNotFoundError, KeyEndedError, ForbiddenError, TooManyKeysError: it is refused.
        """
        now = _now()
        key = _new_key()
        async with self._database.write() as tx:
            old = await self._managed(tx, by, key_id)
            _check_handed_on(by, old.scopes)
            if ended(old, now) or old.replaced_by is not None:
                raise errors.KeyEndedError
            await self._check_room(tx, old.tenant)
            if expires_in_s is None and old.expires_at is not None:
                expires_in_s = round((old.expires_at - old.created_at).total_seconds())
            wish = Wish(
                old.name,
                tuple(old.scopes),
                old.tenant,
                old.requests_per_s,
                old.burst,
                expires_in_s,
                old.tokens_per_min,
            )
            row = row_of(key, wish, now, caller.who)
            await repository.add(tx, row)
            await _announce(tx, caller, "key_created", row, before=None)
            over = now + timedelta(seconds=overlap_s)
            ends = over if old.expires_at is None else min(over, old.expires_at)
            changed = await repository.change(tx, key_id, expires_at=ends, replaced_by=row.id)
            await _announce(tx, caller, "key_rotated", changed, before=old)
        return new_key_of(key, row)

    async def revoke(self, caller: events.Caller, by: access.Principal, key_id: str) -> KeyView:
        """End a key now and for good; once more is harmless.

        Raises:
            KeyNotFoundError: there is none, or it is not the caller's to end.
        """
        async with self._database.write() as tx:
            old = await self._managed(tx, by, key_id)
            if old.revoked_at is not None:
                return view_of(old)
            changed = await repository.change(tx, key_id, revoked_at=_now())
            await _announce(tx, caller, "key_revoked", changed, before=old)
        return view_of(changed)

    async def note_uses(self, uses: Mapping[str, datetime]) -> None:
        """Note when keys were last used; it is no change of a key and tells nobody.

        Raises:
            DatabaseUnavailableError: it could not be noted.
        """
        async with self._database.write() as tx:
            await repository.note_uses(tx, uses)

    async def delete_ended(self, before: datetime) -> int:
        """Delete some of the keys that had ended before this time; return how many.

        Their histories stay. Call again until there is none.
        """
        async with self._database.write() as tx:
            deleted = await repository.delete_ended(tx, before, _DELETED_AT_ONCE)
            for row in deleted:
                await events.append(
                    tx,
                    _US,
                    "key_deleted",
                    key_id=row.id,
                    before=event_part(row),
                    after=None,
                    generation=await outbox.append_end(tx, topics.KEYS, row.id),
                )
        return len(deleted)

    async def ensure_admin(self, key: str) -> str:
        """Make sure that an all-mighty key of the operator's tenant is there; return its text.

        Args:
            key: the key that shall exist; empty makes a new one.

        Raises:
            StartupError: the text is no key, or that key has ended.
        """
        made = key or _new_key()
        key_id = access.key_id(made)
        if key_id is None:
            raise StartupError("INFERBUS_ADMIN_KEY is no key: mlk_<16 hex digits>_<43 characters>")
        now = _now()
        async with self._database.write() as tx:
            row = await repository.get(tx, key_id)
            if row is None and await _tenant(tx, key_id) is not None:
                raise StartupError(_ADMIN_KEY_ENDED)
            if row is None:
                wish = Wish("admin", access.ALL_SCOPES, self._operator_tenant)
                row = row_of(made, wish, now, "bootstrap")
                await repository.add(tx, row)
                caller = events.Caller("bootstrap", "admin-key")
                await _announce(tx, caller, "key_created", row, before=None)
        if not access.opens(record_of(row), made, now.timestamp()):
            raise StartupError(_ADMIN_KEY_ENDED)
        return made

    def _operates(self, by: access.Principal) -> bool:
        return by.tenant == self._operator_tenant

    def _manages(self, by: access.Principal, tenant: str) -> bool:
        return tenant == by.tenant or self._operates(by)

    async def _check_room(self, tx: AsyncConnection, tenant: str) -> None:
        if await repository.count(tx, tenant) >= self._max_tenant_keys:
            raise errors.TooManyKeysError(self._max_tenant_keys)

    async def _managed(self, tx: AsyncConnection, by: access.Principal, key_id: str) -> KeyRow:
        # Postgres refuses a text with a NUL.
        row = None if "\0" in key_id else await repository.get(tx, key_id)
        if row is None or not self._manages(by, row.tenant):
            raise errors.KeyNotFoundError
        return row


async def _tenant(tx: AsyncConnection, key_id: str) -> str | None:
    """Return whose a key is, or was before it was deleted."""
    if (row := await repository.get(tx, key_id)) is not None:
        return row.tenant
    told = await events.history(tx, None, 0, 1, key_id=key_id)
    return (told[0].before or told[0].after or {}).get("tenant") if told else None


def _now() -> datetime:
    return datetime.now(UTC)


def _new_key() -> str:
    return access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))


def _check(wish: Wish, tenant: str) -> None:
    try:
        names.check_tenant(tenant)
        for scope in wish.scopes:
            access.check_scope(scope)
    except (names.InvalidNameError, access.InvalidScopeError) as error:
        raise errors.InvalidRequestError(str(error)) from error


def _check_handed_on(by: access.Principal, scopes: Iterable[str]) -> None:
    lacking = [scope for scope in scopes if not access.covers(by.scopes, scope)]
    if lacking:
        raise errors.ForbiddenError(
            f"You hand on only what you hold, which {', '.join(lacking)} is not."
        )


async def _publish(tx: AsyncConnection, row: KeyRow) -> int:
    return await outbox.append(tx, topics.KEYS, row.id, record_of(row))


async def _announce(
    tx: AsyncConnection,
    caller: events.Caller,
    what: events.What,
    row: KeyRow,
    *,
    before: KeyRow | None,
) -> None:
    generation = await _publish(tx, row)
    await events.append(
        tx,
        caller,
        what,
        key_id=row.id,
        before=None if before is None else event_part(before),
        after=event_part(row),
        generation=generation,
    )
