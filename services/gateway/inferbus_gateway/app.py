"""The gateway at run time: its parts, its front door, the stages of its start and stop.

In: the parts that `wiring` built. Out: stages of the lifecycle, in the order of their start.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from aiokafka.errors import KafkaError

from inferbus_gateway import errors
from inferbus_gateway.api.rpc import RpcServer
from inferbus_gateway.control.fleet import Beats, choose_reply_partition
from inferbus_gateway.control.leases import Leases
from inferbus_gateway.control.once import Once
from inferbus_gateway.control.upkeep import Upkeep
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.infer import Infer
from inferbus_gateway.hot.publish import Publisher
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.requests import Requests
from inferbus_gateway.hot.streams import Streams
from inferbus_gateway.hot.submissions import Submissions
from inferbus_gateway.job_wiring import Jobs
from inferbus_gateway.settings import GatewaySettings
from inferbus_guard.protocol import Direct, Handler
from inferbus_kit.consume import StateReader
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Asgi, Health, Receive, Scope, Send
from inferbus_kit.heartbeat import Beater
from inferbus_kit.http import HttpServer
from inferbus_kit.lifecycle import Lifecycle, cancel
from inferbus_kit.produce import Producer
from inferbus_schemas import topics
from inferbus_schemas.membership import Membership
from inferbus_telemetry.spans import Tracing

if TYPE_CHECKING:
    from inferbus_kit.tokens import Tokens

_log = structlog.get_logger("gateway")

_FRESH_S = 5.0
_KEYS_LAST_S = 55.0
"""So long after they were last heard of, keys open nothing: with `_JUDGE_S`, within a minute."""
_OLD_KEYS = "Kafka tells nothing of keys, and they may have been revoked"
_JUDGE_S = 0.5
_STREAMS_SHARE = 0.8
"""Of the time to drain, the part after which streams are told to go on elsewhere."""


@dataclass(frozen=True, slots=True)
class Process:
    """Everything a gateway is made of; built once, by `wiring`."""

    settings: GatewaySettings
    health: Health
    metrics_server: HttpServer
    http_server: HttpServer
    rpc_server: RpcServer
    tracing: Tracing
    producer: Producer
    control: Producer
    readers: tuple[StateReader, ...]
    keys: StateReader
    access: Access
    fleet: Membership
    replies: Replies
    publisher: Publisher
    requests: Requests
    infer: Infer
    once: Once
    submissions: Submissions | None
    streams: Streams
    upkeep: Upkeep
    leases: Leases
    tokens: Tokens | None
    jobs: Jobs
    beats: Beats
    beater: Beater


_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_PLAIN_INFER = re.compile(rb"/v2/models/([\w.-]+)(?:/versions/([\w.-]+))?/infer")
_MAX_TARGETS = 4096
_MAX_TARGET_BYTES = 160


def front_door(infer: Infer, control: Asgi) -> Asgi:
    """Return the ASGI app: the hot route by plain ASGI, all else by `control`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = _INFER.fullmatch(scope["path"])
        if found is None or scope["method"] != "POST":
            await control(scope, receive, send)
        else:
            await infer(scope, receive, send, found[1], found[2] or "")

    return app


def side_door(infer: Infer) -> Direct:
    """Return what the listener asks first: the hot route, where nothing odd is in its URL."""

    @functools.lru_cache(maxsize=_MAX_TARGETS)
    def known(target: bytes) -> Handler | None:
        found = _PLAIN_INFER.fullmatch(target)
        if found is None:
            return None
        model, version = found[1].decode(), (found[2] or b"").decode()
        return functools.partial(infer.direct, model, version)

    # Anyone may send any target: what is remembered of them is short.
    return lambda target: known(target) if len(target) <= _MAX_TARGET_BYTES else None


def add_stages(process: Process, lifecycle: Lifecycle) -> None:
    """Add the gateway's stages: the listeners last, so that they close first."""
    gateway = _Gateway(process, lifecycle)
    lifecycle.add("metrics", start=process.metrics_server.start, stop=process.metrics_server.stop)
    lifecycle.add("tracing", stop=process.tracing.stop)
    lifecycle.add("producer", start=process.producer.start, stop=process.producer.stop)
    lifecycle.add("control", start=process.control.start, stop=process.control.stop)
    lifecycle.add("replies", start=gateway.take_reply_partition, stop=process.replies.stop)
    lifecycle.add("streams", start=gateway.read_tokens, stop=process.streams.stop)
    lifecycle.add("beat", start=gateway.say_hello, stop=gateway.say_goodbye)
    lifecycle.add("publisher", stop=process.publisher.stop)
    lifecycle.add("loops", start=gateway.start_loops, stop=process.leases.stop)
    lifecycle.add("once", stop=process.once.stop)
    if (submissions := process.submissions) is not None:
        lifecycle.add(
            "submissions", start=lambda: submissions.start(lifecycle.spawn), stop=submissions.stop
        )
    drain_s = process.settings.drain_timeout_s + process.settings.grace_s
    lifecycle.add("listeners", start=gateway.open, stop=gateway.close, stop_timeout_s=drain_s + 5.0)


class _Gateway:
    """The steps of a gateway's start and stop."""

    def __init__(self, process: Process, lifecycle: Lifecycle) -> None:
        self._process = process
        self._lifecycle = lifecycle

    async def take_reply_partition(self) -> None:
        """Read the state topics to their ends, then take the partition that is named least."""
        process = self._process
        process.health.not_ready("start", "reading the state topics")
        await asyncio.gather(*(reader.start() for reader in process.readers))
        # Both have as many, but for the moment in which somebody gives them more.
        count = min(
            [
                await process.producer.n_partitions(topics.topic(name).name)
                for name in (topics.PREDICTIONS, topics.TOKENS)
            ]
        )
        partition = choose_reply_partition(process.fleet, process.settings.instance, count)
        process.health.watch("replies", 10.0)
        await process.replies.start(partition, self._lifecycle.spawn)
        _log.info("reply_partition", partition=partition)

    async def read_tokens(self) -> None:
        """Read the tokens of the streams that are answered in the reply partition."""
        self._process.health.watch("streams", 10.0)
        await self._process.streams.start(self._process.replies.partition, self._lifecycle.spawn)

    async def say_hello(self) -> None:
        """Beat once before serving: nobody may let go of a version that is pinned here.

        Raises:
            BusUnavailableError: Kafka did not take the beat.
        """
        try:
            await self._process.beater.beat_now()
        except (TimeoutError, KafkaError) as error:
            raise errors.BusUnavailableError("Kafka does not answer; is it running?") from error
        await self._process.beater.start()

    async def start_loops(self) -> None:
        self._lifecycle.spawn("upkeep", self._process.upkeep.run(self._process.health))
        self._lifecycle.spawn("leases", self._process.leases.run(self._process.health))
        if self._process.tokens is not None:
            self._lifecycle.spawn("tokens", self._process.tokens.run())
        self._lifecycle.spawn("judge", self._judge())
        for name, run in self._process.jobs.loops:
            self._lifecycle.spawn(name, run())

    async def open(self) -> None:
        await self._process.http_server.start()
        await self._process.rpc_server.start()
        self._process.health.ready("start")
        await self._process.rpc_server.report()

    async def close(self) -> None:
        """Not ready, a short grace, close the listeners, finish what is in flight."""
        process = self._process
        process.health.not_ready("stop", "draining")
        await process.rpc_server.report()
        process.beats.draining = True
        process.infer.draining = True
        await self._beat()
        await asyncio.sleep(process.settings.grace_s)
        farewell = asyncio.create_task(self._send_streams_away())
        await asyncio.gather(process.http_server.stop(), process.rpc_server.stop())
        await cancel(farewell)

    async def _send_streams_away(self) -> None:
        """Let streams end for most of the time, then let them go on at another gateway."""
        await asyncio.sleep(self._process.settings.drain_timeout_s * _STREAMS_SHARE)
        self._process.requests.stopping = True
        self._process.streams.leaving.set()

    async def say_goodbye(self) -> None:
        """Leave the fleet: nobody need wait for this gateway's pins."""
        process = self._process
        await process.beater.stop()
        await self._say(None)
        await asyncio.gather(*(reader.stop() for reader in process.readers))

    async def _beat(self) -> None:
        await self._say(self._process.beats.make()[1])

    async def _say(self, beat: object) -> None:
        process = self._process
        with contextlib.suppress(TimeoutError, KafkaError, InferbusError):
            await process.beater.write(process.beats.key, beat, 2.0)  # type: ignore[arg-type]

    async def _judge(self) -> None:
        """Ready: what this gateway knows is fresh and others hear of it."""
        process = self._process
        while True:
            await asyncio.sleep(_JUDGE_S)
            now_s = time.monotonic()
            reason = ""
            if now_s - process.beater.last_ack_monotonic_s > _FRESH_S:
                reason = "Kafka acknowledges no beats"
            elif now_s - min(one.last_read_monotonic_s for one in process.readers) > _FRESH_S:
                reason = "the state topics are not being read"
            process.requests.refusing = reason
            keys_age_s = now_s - process.keys.last_heard_monotonic_s
            process.access.stale = _OLD_KEYS if keys_age_s > _KEYS_LAST_S else ""
            if reason:
                process.health.not_ready("kafka", reason)
            else:
                process.health.ready("kafka")
