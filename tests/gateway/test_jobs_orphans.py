"""Uploads that nobody will ask for go; those of jobs, and those that may still be coming, stay."""

from __future__ import annotations

import os
import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from inferbus_gateway.control.jobs.fold import Fold
from inferbus_gateway.control.jobs.orphans import Orphans
from inferbus_kit.objects import Objects, open_store
from inferbus_schemas import ids, jobs
from inferbus_schemas import messages as m


def job(folder: str) -> m.Job:
    return m.Job(id=ids.uuid7(1, secrets.randbits(74)), n_chunks=1, n_rows=1, input=folder)


async def test_only_old_uploads_of_no_job_go(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    objects, fold = Objects(store), Fold()
    names = ("known", "unsaid", "old", "coming", "young")
    for name in names:
        for chunk in range(2):
            await objects.put(jobs.input_path(f"uploads/{name}", chunk), b"rows")
    days_ago_s = time.time() - 3 * 86_400
    for name in names[:3]:
        for chunk in range(2):
            path = tmp_path / jobs.input_path(f"uploads/{name}", chunk)
            os.utime(path, (days_ago_s, days_ago_s))
    first = tmp_path / jobs.input_path("uploads/coming", 0)
    os.utime(first, (days_ago_s, days_ago_s))
    known, unsaid = job("uploads/known"), job("uploads/unsaid")
    fold.apply(m.JobStatus(job=known), 1)
    # Accepted by a gateway that died before it said so.
    await objects.create(jobs.job_path(unsaid.id), unsaid.SerializeToString())
    await objects.create(f"jobs/{ids.text(known.id)}/done/00000000", b"")

    orphans = Orphans(store, fold)
    assert await orphans.sweep(datetime.now(UTC) - timedelta(days=1)) == 1
    left = {path.name for path in (tmp_path / "uploads").iterdir() if any(path.iterdir())}
    assert left == {"known", "unsaid", "coming", "young"}
    assert [one.id for one in fold.undispatched(int(time.time() * 1000) + 10, 0)] == [
        known.id,
        unsaid.id,
    ]
    assert await orphans.sweep(datetime.now(UTC) - timedelta(days=1)) == 0
