"""Keys through the REST surface: made once, scoped, rotated, revoked; foreign ones do not exist."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from inferbus_kit.errors import StartupError
from inferbus_registry import door
from inferbus_registry.app import Services, routes_of
from inferbus_registry.database import Database
from inferbus_registry.events import Caller
from inferbus_registry.keys.service import KeyService
from inferbus_registry.keys.uses import KeyUses
from inferbus_registry.migrate import migrate
from inferbus_schemas import access
from inferbus_schemas import messages as m
from inferbus_schemas.access import Verdict
from tests.support.registry import ADMIN, ADMIN_KEY, Parts, RegistryProcess

if TYPE_CHECKING:
    import httpx


def make(running: RegistryProcess, *scopes: str, by: str = ADMIN_KEY, **wish: Any) -> str:
    """Make a key and return its text."""
    body = {"name": "test", "scopes": list(scopes), **wish}
    with running.client_of(by) as client:
        answer = client.post("/keys", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


def an_id(key: str) -> str:
    return str(access.key_id(key))


def refused(answer: httpx.Response, status: int, code: str) -> bool:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return True


def test_a_key_opens_what_its_scopes_say(running: RegistryProcess) -> None:
    key = make(running, "models:read")
    with running.client_of(key) as client:
        assert client.get("/models").status_code == 200
        assert refused(client.get("/keys"), 403, "forbidden")
    with running.client_of(None) as client:
        answer = client.get("/models")
    assert refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "presented", ["", "Bearer", "Bearer x", f"Basic {ADMIN_KEY}", f"Bearer {ADMIN_KEY}x"]
)
def test_what_is_no_good_key_opens_nothing(running: RegistryProcess, presented: str) -> None:
    with running.client_of(None) as client:
        answer = client.get("/models", headers={"authorization": presented})
    assert refused(answer, 401, "unauthorized")


def test_a_key_is_shown_once_and_stored_nowhere(running: RegistryProcess) -> None:
    key = make(running, "models:read")
    with running.client as client:
        for path in ("/keys", f"/keys/{an_id(key)}", f"/keys/{an_id(key)}/events"):
            text = client.get(path).text
            assert an_id(key) in text
            assert key not in text
            assert access.key_sha256(key).hex() not in text


@pytest.mark.parametrize(
    "wish",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["models:read"], "tenant": "../x"},
        {"scopes": ["models:read"], "name": ""},
        {"scopes": ["models:read"], "name": "a\nb"},
        {"scopes": ["models:read"], "expires_in_s": 0},
        {"scopes": ["models:read"], "requests_per_s": -1},
        {"scopes": ["models:read"], "sha256": "00"},
    ],
)
def test_wishes_that_are_refused(running: RegistryProcess, wish: dict[str, Any]) -> None:
    with running.client as client:
        assert refused(client.post("/keys", json={"name": "x", **wish}), 422, "invalid_request")


def test_nobody_hands_on_more_than_it_holds(running: RegistryProcess) -> None:
    mighty = make(running, *access.ALL_SCOPES, tenant="acme")
    admin = make(running, "admin", "infer:digits", tenant="acme", by=ADMIN_KEY)
    assert make(running, "infer:digits", by=admin)
    with running.client_of(admin) as client:
        for scope in ("infer:*", "infer:minilm", "deploy", "models:read"):
            wish = {"name": "x", "scopes": [scope]}
            assert refused(client.post("/keys", json=wish), 403, "forbidden")
        wish = {"name": "x", "scopes": ["infer:digits"], "tenant": "local"}
        assert refused(client.post("/keys", json=wish), 403, "forbidden")
        stolen = client.post(f"/keys/{an_id(mighty)}/rotate", json={})
        assert refused(stolen, 403, "forbidden"), "its secret would be a way up"


def test_an_expired_key_opens_nothing(running: RegistryProcess) -> None:
    key = make(running, "models:read", expires_in_s=1)
    with running.client_of(key) as client:
        assert client.get("/models").status_code == 200
        time.sleep(1.05)
        assert refused(client.get("/models"), 401, "unauthorized")
    with running.client as client:
        answer = client.post(f"/keys/{an_id(key)}/rotate", json={})
    assert refused(answer, 409, "key_ended")


def test_rotation_overlaps_and_ends(running: RegistryProcess) -> None:
    wish: dict[str, Any] = {"requests_per_s": 5, "tokens_per_min": 900, "expires_in_s": 1000}
    old = make(running, "models:read", "infer:digits", **wish)
    with running.client as client:
        made = client.post(f"/keys/{an_id(old)}/rotate", json={"overlap_s": 1}).json()
        shown = client.get(f"/keys/{made['id']}").json()
        again = client.post(f"/keys/{an_id(old)}/rotate", json={})
    assert refused(again, 409, "key_ended")
    assert (shown["scopes"], shown["requests_per_s"]) == (["infer:digits", "models:read"], 5.0)
    assert shown["tokens_per_min"] == 900
    assert shown["expires_at"] is not None
    for key in (old, made["key"]):
        with running.client_of(key) as client:
            assert client.get("/models").status_code == 200
    time.sleep(1.05)
    with running.client_of(old) as client:
        assert refused(client.get("/models"), 401, "unauthorized")
    with running.client_of(made["key"]) as client:
        assert client.get("/models").status_code == 200


def test_every_change_of_a_key_is_one_event(running: RegistryProcess) -> None:
    key = make(running, "models:read")
    with running.client as client:
        client.post(f"/keys/{an_id(key)}/rotate", json={}, headers={"x-request-id": "turn-1"})
        for _ in range(2):
            assert client.delete(f"/keys/{an_id(key)}").json()["revoked_at"]
        told = client.get(f"/keys/{an_id(key)}/events").json()["events"]
    assert [one["what"] for one in told] == ["key_created", "key_rotated", "key_revoked"]
    assert {one["who"] for one in told} == {ADMIN}
    assert told[1]["request_id"] == "turn-1"
    assert told[1]["before"]["replaced_by"] is None
    assert told[2]["after"]["revoked"] is True


FOREIGN = [one for one in sorted(door.POLICIES.table) if "{key_id}" in one[1]]
TENANTLESS = frozenset({"model", "sha256", "version", "alias", "file"})
"""What stands in addresses and belongs to no tenant."""


def test_every_object_in_an_address_is_a_tenants_or_nobodys() -> None:
    """A route that names something new says here whose it is, and who else may not see it."""
    named = {name for _, path in door.POLICIES.table for name in re.findall(r"\{(\w+)\}", path)}
    assert named == TENANTLESS | {"key_id"}
    assert len(FOREIGN) >= 4


def test_foreign_keys_do_not_exist(running: RegistryProcess) -> None:
    """Whatever is done to another tenant's key, the answer is that of a key that is not there."""
    ours = make(running, "admin", "audit:read", tenant="acme")
    theirs = make(running, "models:read", tenant="globex")
    with running.client_of(ours) as client:
        for method, path in FOREIGN:
            said = []
            for key_id in (an_id(theirs), "0" * 16):
                body: dict[str, Any] | None = {} if method == "POST" else None
                answer = client.request(method, running.url + path.format(key_id=key_id), json=body)
                assert refused(answer, 404, "key_not_found")
                said.append({k: v for k, v in answer.json().items() if k != "request_id"})
            assert said[0] == said[1]
        assert client.get("/keys", params={"tenant": "globex"}).json() == {"keys": []}
        assert {one["tenant"] for one in client.get("/keys").json()["keys"]} == {"acme"}
    with running.client_of(theirs) as client:
        assert client.get("/models").status_code == 200, "nothing was done to it"


ROUTES = sorted(door.POLICIES.table)
SCOPES = [*access.ALL_SCOPES, "infer:none"]


@pytest.fixture(scope="module")
def one_scope_keys(running: RegistryProcess) -> dict[str, str]:
    return {scope: make(running, scope, tenant="acme") for scope in SCOPES}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_by_every_scope(
    running: RegistryProcess, one_scope_keys: dict[str, str], method: str, path: str
) -> None:
    """The answer is the table's, before anything of the request is looked at."""
    policy = door.POLICIES.table[method, path]
    model = f"m-{secrets.token_hex(4)}"
    where = path.format(
        model=model,
        sha256="0" * 64,
        version="1",
        alias="champion",
        key_id="0" * 16,
        file="swagger-ui.css",
    )
    named = model if "{model}" in path else ""
    for scope in (None, *SCOPES):
        key = None if scope is None else one_scope_keys[scope]
        with running.client_of(key) as client:
            client.base_url = running.url
            answer = client.request(method, where)
        status = answer.status_code
        if policy == access.PUBLIC:
            assert status == 200
        elif scope is None:
            assert status == 401
        else:
            caller = access.principal("acme", "x", [scope])
            verdict = access.judge(caller, policy, named)
            assert (status == 403) == (verdict is Verdict.FORBIDDEN), (scope, answer.text)
            if verdict is Verdict.HIDDEN:
                assert refused(answer, 404, "model_not_found")
            assert status != 401
            assert status < 500


def test_every_route_stands_in_the_table() -> None:
    app = routes_of(Services(None, None, None, None, None))  # type: ignore[arg-type]
    served = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    described = {("GET", path) for path in ("/openapi.json", "/docs", "/docs/static/{file}")}
    assert served | described == set(door.POLICIES.table)


def test_what_is_not_in_the_table_is_not_reached(running: RegistryProcess) -> None:
    with running.client as client:
        client.base_url = running.url
        for method, path in itertools.product(
            ("GET", "POST"), ("/docs/oauth2-redirect", "/", "/v1/registry")
        ):
            assert refused(client.request(method, path), 404, "not_found")
        answer = client.patch("/v1/registry/keys", json={})
    assert refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_the_last_use_is_shown(running: RegistryProcess) -> None:
    key, idle = make(running, "models:read"), make(running, "models:read")
    with running.client_of(key) as client:
        assert client.get("/models").status_code == 200
    until_s = time.monotonic() + 20
    with running.client as client:
        while client.get(f"/keys/{an_id(key)}").json()["last_used_at"] is None:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        assert client.get(f"/keys/{an_id(idle)}").json()["last_used_at"] is None


async def test_of_what_gateways_tell_the_latest_is_noted(parts: Parts) -> None:
    service = KeyService(parts.database, "local")
    key_id = an_id(await service.ensure_admin(""))
    uses = KeyUses(service)

    async def noted(*used_us: int) -> int:
        uses.heard(m.KeyUse(id=key_id, used_us=one) for one in used_us)
        uses.heard([m.KeyUse(id="0" * 16, used_us=5)])
        newest, uses._newest = uses._newest, {}
        await service.note_uses(newest)
        connection = await asyncpg.connect(parts.url)
        try:
            at: datetime = await connection.fetchval(
                "SELECT last_used_at FROM registry.keys WHERE id = $1", key_id
            )
        finally:
            await connection.close()
        return round(at.timestamp() * 1e6)

    now_us = 1_790_000_000_000_000
    assert await noted(now_us) == now_us
    assert await noted(now_us - 60_000_000) == now_us, "it never goes back"
    assert await noted(now_us + 3, now_us + 1, -1, 1 << 62, 0) == now_us + 3


async def test_keys_reach_the_topic_by_their_digest_alone(parts: Parts) -> None:
    service = KeyService(parts.database, "local")
    key = await service.ensure_admin("")
    assert await service.ensure_admin(key) == key
    connection = await asyncpg.connect(parts.url)
    try:
        rows = await connection.fetch("SELECT message FROM registry.outbox")
        dump = str(await connection.fetch("SELECT * FROM registry.keys"))
        dump += str(await connection.fetch("SELECT * FROM registry.events"))
    finally:
        await connection.close()
    assert len(rows) == 1
    record = m.AccessKey.FromString(rows[0]["message"])
    assert record.sha256 == access.key_sha256(key)
    assert key.split("_", 2)[2] not in dump + str(rows[0]["message"])
    ring = access.Keyring()
    ring.apply(record)
    found = ring.find(key, time.time())
    assert found is not None
    assert found.scopes == frozenset(access.ALL_SCOPES)


async def test_an_admin_key_that_has_ended_is_no_admin_key(postgres_database: str) -> None:
    database = Database(postgres_database, "test")
    try:
        await migrate(database)
        service = KeyService(database, "local")
        key = await service.ensure_admin("")
        found = await service.find(key)
        assert found is not None
        await service.revoke(Caller("x", "y"), found, an_id(key))
        with pytest.raises(StartupError, match="revoked"):
            await service.ensure_admin(key)
        with pytest.raises(StartupError, match="no key"):
            await service.ensure_admin("secret")
    finally:
        await database.stop()
