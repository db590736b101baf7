"""Beats, deployments and versions as the bus carries them, for tests of pure parts.

In: short arguments. Out: protobuf messages, and a `Membership` that has read them.
"""

from __future__ import annotations

import hashlib
from typing import Any

from inferbus_schemas import manifest as manifests
from inferbus_schemas import membership
from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease, Membership

POOL = "default"


def lease(
    inbox: int, epoch: int = 1, state: int = m.STATE_ACTIVE, end_offset: int = 0
) -> InboxLease:
    """Return a lease as a Membership would hold it."""
    return InboxLease(
        POOL, inbox, f"worker-{inbox}", 1, epoch, state, end_offset, m.Heartbeat(), 0, 0
    )


class Fleet:
    """A Membership and the records that were fed to it, one second apart."""

    def __init__(self) -> None:
        self.seen = Membership()
        self._now_ms = 1_000_000
        self._offset = 0

    def feed(self, key: str, beat: m.Heartbeat | None, after_ms: int = 0) -> None:
        self._now_ms += after_ms
        self.seen.apply(key, beat, offset=self._offset, append_ms=self._now_ms)
        self._offset += 1

    def worker(self, inbox: int, *ready: tuple[str, int], after_ms: int = 0, **said: Any) -> None:
        """Beat as the owner of an inbox that holds these versions READY."""
        state = said.pop("state", m.STATE_ACTIVE)
        part = m.WorkerBeat(
            pool=said.pop("pool", POOL),
            inbox=inbox,
            epoch=said.pop("epoch", 1),
            residents=[
                m.Resident(model=model, version=version, readiness=m.READINESS_READY)
                for model, version in ready
            ]
            + said.pop("others", []),
            **said,
        )
        beat = m.Heartbeat(instance=f"worker-{inbox}", state=state, life=1, worker=part)
        self.feed(membership.inbox_key(part.pool, inbox), beat, after_ms)

    def gateway(self, name: str, partition: int, after_ms: int = 0) -> None:
        """Beat as a gateway."""
        part = m.GatewayBeat(reply_partition=partition)
        beat = m.Heartbeat(instance=name, state=m.STATE_ACTIVE, life=1, gateway=part)
        self.feed(membership.gateway_key(name), beat, after_ms)

    def silence(self, seconds: int) -> None:
        """Let others' beats say that time has passed."""
        for _ in range(seconds):
            self.gateway("clock", 0, after_ms=1000)


def deployment(
    model: str,
    generation: int,
    aliases: dict[str, tuple[int, int]],
    versions: tuple[int, ...],
    *,
    min_ready: int = 1,
    pool: str = POOL,
) -> m.Deployment:
    """Return a deployment; aliases are name -> (wanted, serving)."""
    return m.Deployment(
        model=model,
        generation=generation,
        aliases=[
            m.Alias(name=name, wanted=wanted, serving=serving)
            for name, (wanted, serving) in aliases.items()
        ],
        pools=[m.PoolVersions(pool=pool, versions=versions, min_ready=min_ready)],
    )


SIGNATURE = manifests.Signature(
    inputs=(manifests.TensorSpec("x", "FP32", (-1, 2)),),
    outputs=(
        manifests.TensorSpec("y", "FP32", (-1, 2)),
        manifests.TensorSpec("label", "INT64", (-1,)),
    ),
)


def version(model: str, number: int) -> m.ModelVersion:
    """Return a registered version with `SIGNATURE`."""
    manifest = manifests.Manifest(
        model=model,
        task="tensor",
        engine="onnx",
        signature=SIGNATURE,
        files=(manifests.FileEntry("model.onnx", f"{number:064x}", 1),),
    )
    return m.ModelVersion(
        model=model,
        version=number,
        version_sha256=hashlib.sha256(f"{model}/{number}".encode()).digest(),
        manifest=manifests.encode(manifest),
        generation=number,
    )
