"""What may go wrong around a key, on a Valkey that stalls, forgets and refuses: nobody waits for
nothing, nothing runs twice, nothing is held for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from inferbus_gateway import errors
from inferbus_gateway.control import idempotency, readers
from inferbus_gateway.control.idempotency import Keys, KeysAwayError, Stored
from inferbus_gateway.control.once import Once
from inferbus_gateway.control.trail import SETTLED_MS
from inferbus_gateway.hot.keyed import Name, Place
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.requests import Waiter
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, ids, topics
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership

ME, LIFE = "gateway-me", 7
POOL = "pool"


@dataclass(eq=False)
class Asked:
    """A request with a key as a protocol has it; the test ends what was opened."""

    name: Name
    timeout_s: float = 20.0
    refusal: Exception | None = None
    on_open: Callable[[], None] = lambda: None
    mark: str = ""
    size_bytes: int = 10
    gone: bool = False
    place: Place | None = None
    opened: list[Place] = field(default_factory=list)
    then: Callable[[Entry], None] | None = None
    end: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    start_s: float = field(default_factory=time.monotonic)
    of: Place | None = None

    @property
    def deadline_s(self) -> float:
        # As where it stands in the body.
        return self.start_s + (30.0 if self.place is None else self.timeout_s)

    def prepare(self, place: Place | None) -> Place:
        self.place = place or Place(ids.uuid7(_now_ms(), secrets.randbits(74)), 0, 1, POOL)
        return self.place

    def open(self, then: Callable[[Entry], None]) -> None:
        assert self.place is not None
        self.on_open()
        if self.refusal is not None:
            raise self.refusal
        self.opened.append(self.place)
        self.then = then

    def answer(self, said: m.Prediction | None, error: errors.InferbusError | None = None) -> None:
        """End what was opened."""
        assert self.place is not None
        assert self.then is not None
        waiter = Waiter(lambda _entry: None, self.start_s)
        waiter.prediction, waiter.offset, waiter.error = said, 5, error
        request = m.Request(id=self.place.id, version=1, reply_partition=self.place.partition)
        self.then(Entry(request, POOL, n_rows=1, deadline_s=self.deadline_s, waiter=waiter))

    def ended(self, entry: Entry) -> None:
        self.end.set_result(entry.waiter.prediction or entry.waiter.error)

    def recalled(self, prediction: m.Prediction, offset: int) -> None:  # noqa: ARG002 -- of the protocol
        self.end.set_result(prediction)

    def refuse(self, error: Exception, place: Place | None = None) -> None:
        self.of = place
        self.end.set_result(error)


@dataclass
class Bus:
    """A gateway's part that runs keyed requests, on a real Kafka."""

    once: Once
    keys: Keys
    fleet: Membership
    pending: Pending
    producer: Producer

    def beats(self, instance: str, life: int = LIFE) -> None:
        beat = m.Heartbeat(instance=instance, state=m.STATE_ACTIVE, life=life)
        self.fleet.apply(f"gateway/{instance}", beat, offset=self.fleet.position, append_ms=1000)

    async def say(self, place: Place) -> int:
        """Write the record of a request; return its offset."""
        entry = topics.topic(topics.PREDICTIONS)
        said = m.Prediction(id=place.id, attempt=1, outcome=m.OUTCOME_OK, model="m", version=1)
        head = envelope.headers(entry.ce_type, "/inferbus/test/once", f"{ids.text(place.id)}/1")
        done = await self.producer.send(
            entry.name, place.partition, said.SerializeToString(), key=b"m", headers=head
        )
        return int((await done).offset)


@contextlib.asynccontextmanager
async def bus_on(bootstrap: str, valkey_url: str) -> AsyncIterator[Bus]:
    pending, fleet, keys = Pending(), Membership(), Keys(valkey_url)
    producer = Producer(bootstrap, client_id="test-once")
    replies = Replies(bootstrap, ME, pending, producer, lambda: None)
    made = Once(bootstrap, ME, LIFE, keys=keys, fleet=fleet, replies=replies, pending=pending)
    try:
        yield Bus(made, keys, fleet, pending, producer)
    finally:
        await made.stop()


@pytest.fixture
async def bus(kafka_bootstrap: str, private_valkey: str) -> AsyncIterator[Bus]:
    async with bus_on(kafka_bootstrap, private_valkey) as made:
        await made.producer.start()
        try:
            yield made
        finally:
            await made.producer.stop()


@pytest.fixture
async def admin(private_valkey: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(private_valkey)
    try:
        yield client
    finally:
        await client.aclose()


def _now_ms() -> int:
    return int(time.time() * 1000)


def new_name(tenant: str = "acme") -> Name:
    return Name(tenant, secrets.token_bytes(32), bytes(32))


def stored(name: Name, **fields: Any) -> Stored:
    base: dict[str, Any] = {
        "key": idempotency.part_of(name),
        "body": name.body_sha256.hex(),
        "id": ids.uuid7(_now_ms(), secrets.randbits(74)).hex(),
        "partition": 0,
        "version": 1,
        "pool": POOL,
        "gateway": "gateway-a",
        "life": LIFE,
        "since": 0,
        "claimed_ms": _now_ms(),
    }
    return Stored(**(base | fields))


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.005)


async def stands(keys: Keys, name: Name, wanted: Stored | None) -> None:
    """Wait until this stands under a key."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(KeysAwayError):
                if await keys.get(name) == wanted:
                    return
            await asyncio.sleep(0.02)


async def test_a_claim_that_came_late_is_taken_back_where_its_request_is_refused(
    bus: Bus, admin: Any
) -> None:
    asked = Asked(new_name(), refusal=errors.OverloadedError("full"))
    await admin.execute_command("CLIENT", "PAUSE", 700, "ALL")
    bus.once(asked)
    assert isinstance(await asked.end, errors.OverloadedError)
    assert asked.mark == "degraded"
    # It arrives all the same, when the server goes on.
    await admin.ping()
    await stands(bus.keys, asked.name, None)


async def test_a_key_that_names_this_process_and_is_not_open_goes_on(bus: Bus) -> None:
    asked = Asked(new_name())
    mine = stored(asked.name, gateway=ME)
    bus.beats(ME)
    assert await bus.keys.claim(asked.name, mine) is None
    bus.once(asked)
    await until(lambda: asked.opened)
    assert asked.opened == [mine.place]
    asked.answer(said := m.Prediction(id=mine.place.id))
    assert await asked.end == said
    assert asked.mark == "replayed"


@pytest.mark.parametrize("is_noted", [True, False])
async def test_who_follows_never_runs_it_again_because_valkey_is_away(
    bus: Bus, admin: Any, *, is_noted: bool
) -> None:
    asked = Asked(new_name())
    first = stored(asked.name)
    bus.beats(first.gateway)
    assert await bus.keys.claim(asked.name, first) is None
    bus.once(asked)
    await until(lambda: asked.place == first.place)
    # From now on nobody can claim.
    await admin.execute_command("ACL", "SETUSER", "default", "-set")
    if is_noted:
        # Another one's end, so that only what stands under the key leads there.
        place = stored(asked.name).place
        second = {"id": place.id.hex(), "offset": await bus.say(place)}
        await admin.execute_command("ACL", "SETUSER", "default", "+set")
        await bus.keys.swap(asked.name, first, stored(asked.name, **second))
        await admin.execute_command("ACL", "SETUSER", "default", "-set")
        said = await asked.end
        assert isinstance(said, m.Prediction)
        assert said.id == place.id
        assert asked.mark == "replayed"
    else:
        await bus.keys.drop(asked.name, first)
        said = await asked.end
        assert isinstance(said, errors.BusUnavailableError)
        assert asked.mark == ""
    assert not asked.opened


async def test_the_record_is_found_however_wrong_the_clock_of_its_gateway(bus: Bus) -> None:
    asked = Asked(new_name())
    ahead = ids.uuid7(_now_ms() + 3_600_000, secrets.randbits(74))
    place = Place(ahead, 0, 1, POOL)
    offset = await bus.say(place)
    gone = stored(asked.name, id=ahead.hex(), since=offset)
    assert await bus.keys.claim(asked.name, gone) is None
    bus.once(asked)
    said = await asked.end
    assert isinstance(said, m.Prediction)
    assert (said.id, asked.opened) == (ahead, [])


async def test_an_old_id_that_was_inherited_lately_stays(bus: Bus) -> None:
    asked = Asked(new_name())
    old = ids.uuid7(_now_ms() - 2 * SETTLED_MS, secrets.randbits(74)).hex()
    since = await bus.say(stored(asked.name).place)
    lately = stored(asked.name, id=old, since=since)
    assert await bus.keys.claim(asked.name, lately) is None
    bus.once(asked)
    await until(lambda: asked.opened)
    assert asked.opened == [lately.place]
    now = await bus.keys.get(asked.name)
    assert now is not None
    assert now.claimed_ms >= lately.claimed_ms
    asked.answer(None, errors.OverloadedError("no worker"))
    assert isinstance(await asked.end, errors.OverloadedError)
    assert asked.mark == ""
    await stands(bus.keys, asked.name, lately)


async def test_who_waits_counts_as_pending(bus: Bus) -> None:
    name = new_name()
    first, *others = (Asked(name) for _ in range(3))
    bus.once(first)
    await until(lambda: first.opened)
    for one in others:
        bus.once(one)
    assert (bus.pending.by_tenant, bus.pending.n_bytes) == ({"acme": 2}, 20)
    full = Pending(max_requests=2)
    for _ in others:
        assert not full.full
        full.hold("acme", 1)
    assert full.full
    first.answer(said := m.Prediction(id=first.opened[0].id))
    assert [await one.end for one in others] == [said, said]
    assert (bus.pending.by_tenant, bus.pending.n_bytes) == ({}, 0)


async def test_a_tenant_has_a_part_of_the_readers(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_OF_A_TENANT", 1)
    slow, refused, other = Asked(new_name()), Asked(new_name()), Asked(new_name("globex"))
    bus.beats("gateway-a")
    for one in (slow, refused):
        assert await bus.keys.claim(one.name, stored(one.name)) is None
    place = stored(other.name).place
    noted = stored(other.name, id=place.id.hex(), offset=await bus.say(place))
    assert await bus.keys.claim(other.name, noted) is None
    bus.once(slow)
    await until(lambda: bus.once._follow._readers._held["acme"])
    bus.once(refused)
    bus.once(other)
    assert isinstance(await refused.end, errors.TenantBusyError)
    assert isinstance(await other.end, m.Prediction)
    assert not slow.end.done()


async def test_who_waits_for_another_and_leaves_holds_nothing(bus: Bus) -> None:
    """The first of a key runs to its end, whoever leaves; who follows or joins it does not."""
    first, joined = Asked(new_name()), Asked(new_name())
    joined.name = first.name
    follows, takes_over = Asked(new_name()), Asked(new_name())
    takes_over.name = follows.name
    there = stored(follows.name)
    bus.beats(there.gateway)
    assert await bus.keys.claim(follows.name, there) is None
    for one in (first, follows):
        bus.once(one)
    await until(lambda: first.opened and bus.once._follow._readers._held["acme"] == 1)
    for one in (joined, takes_over):
        bus.once(one)
    assert bus.pending.by_tenant == {"acme": 3}
    for one in (first, joined, follows):
        one.gone = True
    await until(lambda: takes_over.place == there.place)
    await until(lambda: bus.pending.by_tenant == {"acme": 1})
    await until(lambda: bus.once._follow._readers._held["acme"] == 1)
    takes_over.gone = True
    await until(
        lambda: bus.pending.by_tenant == {} and bus.once._follow._readers._held["acme"] == 0
    )
    assert not any(one.end.done() for one in (first, joined, follows, takes_over))
    first.answer(said := m.Prediction(id=first.opened[0].id))
    assert await first.end == said


async def test_whose_first_does_not_end_learns_its_id(bus: Bus) -> None:
    first, joined = Asked(new_name()), Asked(new_name(), timeout_s=0.1)
    joined.name = first.name
    bus.once(first)
    await until(lambda: first.opened)
    bus.once(joined)
    followed = Asked(new_name(), timeout_s=0.1)
    there = stored(followed.name)
    bus.beats(there.gateway)
    assert await bus.keys.claim(followed.name, there) is None
    bus.once(followed)
    for one, place in ((joined, first.opened[0]), (followed, there.place)):
        assert isinstance(await one.end, errors.OutcomeUnknownError)
        assert (one.of, one.mark) == (place, "")
    first.answer(m.Prediction())
    await first.end


async def test_a_kafka_that_does_not_answer_keeps_nobody_beyond_its_deadline(
    private_valkey: str,
) -> None:
    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with bus_on(f"127.0.0.1:{port}", private_valkey) as bus:
        asked = Asked(new_name(), timeout_s=0.1)
        assert await bus.keys.claim(asked.name, stored(asked.name)) is None
        bus.once(asked)
        assert isinstance(await asked.end, errors.OutcomeUnknownError)
        assert asked.of is not None
    server.close()
