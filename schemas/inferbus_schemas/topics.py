"""The catalogue of topics: names, settings, message types, writers and readers.

In: `topics/*.yaml`, which ship inside the package. Out: frozen `Topic` values. Topic names exist
nowhere else.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Literal

import msgspec

from inferbus_schemas import names
from inferbus_schemas.access import LOCAL_TENANT

Profile = Literal["one-machine", "production"]
Role = Literal["gateway", "worker", "registry", "logger", "user"]
"""A service, or `user`: programs of the operator or of a tenant."""

DLQ_RETENTION_MS = 14 * 24 * 3600 * 1000

REQUESTS = "inference.requests"
SUBMISSIONS = "inference.submissions"
PREDICTIONS = "inference.predictions"
ANSWERS = "inference.answers"
TOKENS = "inference.tokens"
CANCELLATIONS = "inference.cancellations"
VERSIONS = "models.versions"
DEPLOYMENTS = "models.deployments"
HEARTBEATS = "fleet.heartbeats"
KEYS = "access.keys"
SPENT = "access.spent"
JOB_CHUNKS = "jobs.chunks"
JOB_STATUS = "jobs.status"


class Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"name": "topic"}):
    """One topic of the catalogue.

    `name` may hold `{pool}` or `{tenant}`; `for_pool` and `for_tenant` fill it in.
    """

    name: str
    description: str
    kind: Literal["command", "fact", "state", "stream"]
    visibility: Literal["internal", "public"]
    message: str
    ce_type: str
    key: str
    partitioning: str
    producers: tuple[Role, ...]
    consumers: tuple[Role, ...]
    dead_letters: bool
    partitions: dict[Profile, int]
    config: dict[str, str | int | float]

    @property
    def per_pool(self) -> bool:
        """Whether each pool has a topic of its own."""
        return "{pool}" in self.name

    def for_pool(self, pool: str) -> Topic:
        """Return this topic with the pool's name in place."""
        return msgspec.structs.replace(
            self, name=self.name.replace("{pool}", names.check_pool(pool))
        )

    @property
    def per_tenant(self) -> bool:
        """Whether each tenant has a topic of its own."""
        return "{tenant}" in self.name

    def for_tenant(self, tenant: str) -> Topic:
        """Return this topic with the tenant's name in place."""
        return msgspec.structs.replace(
            self, name=self.name.replace("{tenant}", names.check_tenant(tenant))
        )


class NewTopic(msgspec.Struct, frozen=True):
    """A topic as an admin client creates it."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


@functools.cache
def catalogue() -> dict[str, Topic]:
    """Return all topics by their short name, such as `inference.predictions`."""
    import yaml  # noqa: PLC0415 -- read once; services that only need names do not wait for it

    found: dict[str, Topic] = {}
    folder = resources.files("inferbus_schemas") / "catalogue"
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            raw = yaml.safe_load(entry.read_text("utf-8"))
            found[entry.name.removesuffix(".yaml")] = msgspec.convert(raw, Topic)
    return found


def topic(short_name: str, pool: str | None = None, tenant: str | None = None) -> Topic:
    """Return one topic; topics of a pool or of a tenant need its name.

    Raises:
        KeyError: there is no such topic.
    """
    found = catalogue()[short_name]
    if tenant is not None and found.per_tenant:
        return found.for_tenant(tenant)
    return found.for_pool(pool) if pool is not None and found.per_pool else found


def dead_letters(name: str) -> str:
    """Return the name of a topic's dead letters."""
    return f"{name}.dlq"


def to_create(
    pools: tuple[str, ...],
    profile: Profile = "one-machine",
    tenants: tuple[str, ...] = (LOCAL_TENANT,),
) -> list[NewTopic]:
    """Return every topic that a stack with these pools and tenants needs, dead letters included."""
    production = profile == "production"
    replication = 3 if production else 1
    extra = {"min.insync.replicas": "2"} if production else {}
    out: list[NewTopic] = []
    for entry in catalogue().values():
        each_of = [entry]
        if entry.per_pool:
            each_of = [entry.for_pool(pool) for pool in pools]
        elif entry.per_tenant:
            each_of = [entry.for_tenant(tenant) for tenant in tenants]
        for each in each_of:
            config = {key: str(value) for key, value in each.config.items()} | extra
            out.append(NewTopic(each.name, each.partitions[profile], replication, config))
            if each.dead_letters:
                dlq = {"cleanup.policy": "delete", "retention.ms": str(DLQ_RETENTION_MS)}
                dlq |= {"max.message.bytes": config["max.message.bytes"]} | extra
                out.append(NewTopic(dead_letters(each.name), 1, replication, dlq))
    return out
