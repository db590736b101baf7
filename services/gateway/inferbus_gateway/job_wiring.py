"""Builds the gateway's part in jobs, once, from its settings.

In: settings and the parts that it shares with requests. Out: routes, the fold of `jobs.status` and
what feeds it, and the loop that goes on with jobs; without an object store only refusals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter

from inferbus_gateway.api import jobs as api
from inferbus_gateway.api import later
from inferbus_gateway.control.jobs.dispatch import Dispatcher, job_feed
from inferbus_gateway.control.jobs.fold import Fold
from inferbus_gateway.control.jobs.forms import Limits
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

STREAMED = frozenset({api.PATH.encode()})
"""Paths whose bodies are read as they stream, within bounds of their own."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """The gateway's part in jobs; `dispatcher` is None where there is no object store."""

    fold: Fold
    feed: Callable[[Record], None]
    router: APIRouter
    dispatcher: Dispatcher | None
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
) -> Jobs:
    """Build it.

    Raises:
        StartupError: the object store's URL cannot be used.
    """
    fold = Fold()
    if not settings.object_store_url:
        return Jobs(fold, job_feed(fold), api.router(None), None, None)
    objects = Objects(open_store(settings.object_store_url))
    dispatcher = Dispatcher(producer, objects, fold, settings.instance, health)
    limits = Limits(
        settings.max_job_rows,
        settings.max_job_bytes,
        settings.max_body_bytes,
        settings.tenant_max_jobs,
        settings.tenant_max_job_rows,
        settings.max_parquet_bytes,
    )
    parts = api.Parts(
        routes=routes,
        fold=fold,
        objects=objects,
        submissions=Submissions(objects, dispatcher, limits, new_id, busy=busy, load=fold.load),
        dispatcher=dispatcher,
        results=Results(objects),
        charge=charge,
        busy=busy,
    )
    return Jobs(fold, job_feed(fold), api.router(parts), dispatcher, later.Later(parts))
