"""Builds the gateway's part in jobs and batches, once, from its settings.

In: settings and the parts that it shares with requests. Out: routes, the folds of `jobs.status` and
what feeds them, and the loops that go on with jobs and batches; without an object store refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from inferbus_gateway.api import batches as batches_api
from inferbus_gateway.api import files as files_api
from inferbus_gateway.api import jobs as api
from inferbus_gateway.api import later, openai_routes
from inferbus_gateway.control.batches.files import Files, now_ms
from inferbus_gateway.control.batches.fold import BatchFold
from inferbus_gateway.control.batches.keeper import Around, Keeper, batch_feed
from inferbus_gateway.control.jobs.dispatch import Dispatcher, job_feed
from inferbus_gateway.control.jobs.fold import Fold
from inferbus_gateway.control.jobs.forms import Limits
from inferbus_gateway.control.jobs.origins import Origins
from inferbus_gateway.control.jobs.orphans import Orphans
from inferbus_gateway.control.jobs.remote import Remote
from inferbus_gateway.control.jobs.results import Results
from inferbus_gateway.control.jobs.submit import Submissions
from inferbus_gateway.control.jobs.turns import Busy
from inferbus_gateway.hot.infer import Later
from inferbus_gateway.hot.route import Routes
from inferbus_gateway.settings import GatewaySettings
from inferbus_kit.consume import Record
from inferbus_kit.health import Health
from inferbus_kit.objects import Objects, open_store
from inferbus_kit.produce import Producer
from inferbus_schemas.access import Principal
from inferbus_telemetry.spans import Tracing

STREAMED = frozenset(
    {
        api.PATH.encode(),
        *(f"{prefix}{openai_routes.FILES}".encode() for prefix in openai_routes.PREFIXES),
    }
)
"""Paths whose bodies are read as they stream, within bounds of their own."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """The gateway's part in jobs and batches; `loops` is empty where there is no object store."""

    fold: Fold
    feed: Callable[[Record], None]
    routers: tuple[APIRouter, ...]
    loops: tuple[tuple[str, Callable[[], Coroutine[Any, Any, None]]], ...]
    later: Later | None


def jobs_of(
    settings: GatewaySettings,
    producer: Producer,
    health: Health,
    routes: Routes,
    *,
    new_id: Callable[[], bytes],
    charge: Callable[[Principal], None],
    busy: Busy,
    tracing: Tracing,
) -> Jobs:
    """Build it.

    Raises:
        StartupError: the object store's URL cannot be used.
    """
    fold = Fold()
    if not settings.object_store_url:
        return Jobs(fold, job_feed(fold), routers(), (), None)
    store = open_store(settings.object_store_url)
    objects = Objects(store)
    dispatcher = Dispatcher(producer, objects, fold, settings.instance, health)
    limits = Limits(
        settings.max_job_rows,
        settings.max_job_bytes,
        settings.max_body_bytes,
        settings.tenant_max_jobs,
        settings.tenant_max_job_rows,
        settings.max_parquet_bytes,
        settings.max_rows,
    )

    def check_tokens(caller: Principal) -> None:
        fold.spent.check(caller, settings.tenant_tokens_per_min, now_ms())

    submissions = Submissions(objects, dispatcher, limits, new_id, busy=busy, load=fold.load)
    parts = api.Parts(
        routes=routes,
        fold=fold,
        objects=objects,
        submissions=submissions,
        dispatcher=dispatcher,
        results=Results(objects),
        charge=charge,
        check_tokens=check_tokens,
        busy=busy,
        limits=limits,
        remote=Remote(Origins(settings.job_uri_sources, settings.job_uri_networks)),
        tracing=tracing,
    )
    batch_fold = BatchFold()
    files = Files(objects, dispatcher, batch_fold)
    keeper = Keeper(
        Around(
            objects=objects,
            fold=batch_fold,
            files=files,
            job_fold=fold,
            dispatcher=dispatcher,
            submissions=submissions,
            routes=routes,
            health=health,
            max_line_bytes=settings.max_body_bytes,
            busy=busy,
        )
    )
    feeds = (job_feed(fold), batch_feed(batch_fold))

    def feed(record: Record) -> None:
        for one in feeds:
            one(record)

    made = routers(
        parts,
        files_api.Parts(files, batch_fold, settings.max_file_bytes, new_id, charge),
        batches_api.Parts(keeper, files, batch_fold, new_id, charge, check_tokens, tracing),
    )
    orphans = Orphans(store, fold)
    loops = (("jobs", dispatcher.run), ("batches", keeper.run), ("orphans", orphans.run))
    return Jobs(fold, feed, made, loops, later.Later(parts))


def routers(
    parts: api.Parts | None = None,
    files: files_api.Parts | None = None,
    batches: batches_api.Parts | None = None,
) -> tuple[APIRouter, ...]:
    """Return the routes of jobs, files and batches; without their parts they only refuse."""
    return (
        api.router(parts),
        *(files_api.router(files, prefix) for prefix in openai_routes.PREFIXES),
        *(batches_api.router(batches, prefix) for prefix in openai_routes.PREFIXES),
    )
