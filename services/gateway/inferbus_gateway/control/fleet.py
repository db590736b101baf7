"""What the gateway reads from the state topics, and what it says of itself.

In: records of `models.versions`, `models.deployments`, `fleet.heartbeats` and `access.keys`. Out:
routing state, keys, and this gateway's beats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from inferbus_gateway import VERSION
from inferbus_gateway.control.upkeep import Upkeep
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.pending import Pending
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.route import Routes
from inferbus_kit.consume import Record
from inferbus_schemas import membership
from inferbus_schemas import messages as m
from inferbus_schemas.access import Keyring
from inferbus_schemas.membership import Membership


class StateFeed:
    """Applies records of the state topics to the routing state and to who may call."""

    def __init__(
        self, routes: Routes, fleet: Membership, upkeep: Upkeep, keys: Keyring, access: Access
    ) -> None:
        self._routes = routes
        self._fleet = fleet
        self._upkeep = upkeep
        self._keys = keys
        self._access = access

    def key(self, record: Record) -> None:
        if record.value is None:
            self._keys.forget((record.key or b"").decode())
        else:
            self._keys.apply(m.AccessKey.FromString(record.value))
        self._access.changed()

    def version(self, record: Record) -> None:
        if record.value is not None:
            self._routes.apply_version(m.ModelVersion.FromString(record.value))

    def deployment(self, record: Record) -> None:
        if record.value is None:
            self._routes.end_deployment((record.key or b"").decode())
        else:
            self._routes.apply_deployment(m.Deployment.FromString(record.value))

    def heartbeat(self, record: Record) -> None:
        beat = None if record.value is None else m.Heartbeat.FromString(record.value)
        key = (record.key or b"").decode()
        self._fleet.apply(key, beat, offset=record.offset, append_ms=record.timestamp)
        self._routes.fleet_changed()
        if beat is not None and beat.worker.HasField("inbox"):
            self._upkeep.beat_seen(beat.worker.pool, beat.worker.inbox)


class Beats:
    """What this gateway's heartbeat says."""

    def __init__(
        self,
        instance: str,
        *,
        life: int,
        pins: Pins,
        pending: Pending,
        replies: Replies,
        job_versions: Callable[[], Iterable[tuple[str, str, int]]] = tuple,
        key_uses: Callable[[], Iterable[m.KeyUse]] = tuple,
    ) -> None:
        self._key_uses = key_uses
        self._job_versions = job_versions
        self._instance = instance
        self._life = life
        self._pins = pins
        self._pending = pending
        self._replies = replies
        self.draining = False

    @property
    def key(self) -> str:
        """The key of this gateway's beats."""
        return membership.gateway_key(self._instance)

    def make(self) -> tuple[str, m.Heartbeat]:
        """Return key and value of a beat."""
        flying = {(one.request.model, one.request.version) for one in self._pending}
        part = m.GatewayBeat(
            reply_partition=self._replies.partition,
            models=self._pins.beat(flying),
            in_flight=len(self._pending),
            generation_read=self._pins.generation,
            job_versions=[
                m.JobVersion(pool=pool, model=model, version=version)
                for pool, model, version in sorted(self._job_versions())
            ],
            key_uses=self._key_uses(),
        )
        state = m.STATE_DRAINING if self.draining else m.STATE_ACTIVE
        return self.key, m.Heartbeat(
            instance=self._instance,
            state=state,
            life=self._life,
            inferbus_version=VERSION,
            gateway=part,
        )


def choose_reply_partition(fleet: Membership, instance: str, n_partitions: int) -> int:
    """Return the partition that live gateways name least; ties by a hash of the instance."""
    taken = [0] * n_partitions
    for member in fleet.gateways():
        partition = member.beat.gateway.reply_partition
        if 0 <= partition < n_partitions:
            taken[partition] += 1
    least = [number for number in range(n_partitions) if taken[number] == min(taken)]
    digest = hashlib.sha256(instance.encode()).digest()
    return least[int.from_bytes(digest[:4], "big") % len(least)]
