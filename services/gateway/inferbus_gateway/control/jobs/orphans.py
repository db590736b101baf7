"""Uploads that belong to no job: what gateways left that were killed while they took one.

In: the object store and the fold of `jobs.status`. Out: folders that are gone. A job that was
accepted and that the bus has never heard of is found here too, and goes on.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from inferbus_gateway.control.jobs.fold import Fold
from inferbus_kit.errors import InferbusError
from inferbus_kit.objects import Objects
from inferbus_schemas import jobs
from inferbus_schemas import messages as m

_log = structlog.get_logger("jobs")

_EVERY_S = 3600.0
_FIRST_S = 600.0
_AGE = timedelta(days=1)
_UPLOADS = "uploads/"


class Orphans:
    """Deletes uploads that nobody will ever ask for.

    Invariants: a folder goes only if its newest object is a day old and no accepted job has it as
    its input, whether the bus knows of that job or not.
    """

    def __init__(self, store: ObjectStore, fold: Fold) -> None:
        self._store = store
        self._objects = Objects(store)
        self._fold = fold

    async def run(self) -> None:
        """Look every hour, until cancelled."""
        await asyncio.sleep(_FIRST_S)
        while True:
            try:
                await self.sweep(datetime.now(UTC) - _AGE)
            except (InferbusError, BaseError, OSError) as error:
                _log.warning("orphans_not_swept", error=repr(error))
            await asyncio.sleep(_EVERY_S)

    async def sweep(self, older: datetime) -> int:
        """Delete orphans whose newest object is older than a time; return how many.

        Raises:
            ObjectStoreError, BaseError: some may be left.
        """
        newest: dict[str, datetime] = {}
        async for batch in obstore.list(self._store, prefix=_UPLOADS):
            for meta in batch:
                folder = _UPLOADS + meta["path"].removeprefix(_UPLOADS).partition("/")[0]
                newest[folder] = max(
                    newest.get(folder, meta["last_modified"]), meta["last_modified"]
                )
        old = {folder for folder, at in newest.items() if at < older} - self._fold.inputs()
        if not old:
            return 0
        await self._find_accepted()
        gone = old - self._fold.inputs()
        for folder in sorted(gone):
            _log.info("orphan_deleted", folder=folder)
            await self._objects.delete_folder(folder)
        return len(gone)

    async def _find_accepted(self) -> None:
        """Tell the fold of jobs that were accepted and that the bus does not know."""
        found = await obstore.list_with_delimiter_async(self._store, prefix="jobs/")
        for prefix in found["common_prefixes"]:
            job_id = jobs.parse_id(prefix.rstrip("/").rpartition("/")[2])
            if job_id is None or job_id in self._fold:
                continue
            raw = await self._objects.get(jobs.job_path(job_id))
            if raw is not None:
                said = m.JobStatus(job=m.Job.FromString(raw))
                self._fold.apply(said, int(time.time() * 1000))
