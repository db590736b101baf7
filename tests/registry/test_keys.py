"""Keys and tokens through the REST surface: scoped, ended, named; foreign keys do not exist."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

import pytest

from inferbus_registry import door
from inferbus_registry.app import Services, routes_of
from inferbus_schemas import access
from inferbus_schemas.access import Verdict
from tests.support.registry import ADMIN, ADMIN_KEY, RegistryProcess, authorization

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.support.provider import Provider


@pytest.fixture(scope="module")
def token(running: RegistryProcess, idp: Provider) -> Callable[..., str]:
    """Signs tokens whose key the registry has fetched."""
    (kid,) = idp.private

    def signed(**claims: Any) -> str:
        return idp.token(kid, **claims)

    until_s = time.monotonic() + 20
    with running.client_of(signed()) as client:
        while client.get("/models").status_code == 401:
            assert time.monotonic() < until_s
            time.sleep(0.02)
    return signed


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


def test_a_token_opens_what_its_scopes_say(
    running: RegistryProcess, token: Callable[..., str]
) -> None:
    with running.client_of(token(scope="openid models:read")) as client:
        assert client.get("/models").status_code == 200
        answer = client.get("/keys")
    assert refused(answer, 403, "forbidden")
    assert "token has not the scope admin" in answer.json()["detail"]


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1_700_000_000},
        {"nbf": 4_000_000_000},
        {"aud": "another"},
        {"iss": "https://evil.example"},
        {"tenant": None},
        {"tenant": "../x"},
    ],
    ids=str,
)
def test_a_token_that_says_the_wrong_thing_opens_nothing(
    running: RegistryProcess, token: Callable[..., str], claims: dict[str, Any]
) -> None:
    with running.client_of(token(**claims)) as client:
        answer = client.get("/models")
    assert refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_manages_keys_of_its_tenant_and_is_named_in_histories(
    running: RegistryProcess, token: Callable[..., str]
) -> None:
    theirs = make(running, "models:read", tenant="globex")
    with running.client_of(token(tenant="initech", scope="admin audit:read deploy")) as client:
        made = client.post("/keys", json={"name": "ci", "scopes": ["deploy"]}).json()
        assert made["tenant"] == "initech"
        assert client.get(f"/keys/{made['id']}").json()["created_by"] == "initech/token:ada"
        assert [one["id"] for one in client.get("/keys").json()["keys"]] == [made["id"]]
        (told,) = client.get(f"/keys/{made['id']}/events").json()["events"]
        assert told["who"] == "initech/token:ada"
        for wish in ({"scopes": ["models:read"]}, {"scopes": ["deploy"], "tenant": "globex"}):
            answer = client.post("/keys", json={"name": "x", **wish})
            assert refused(answer, 403, "forbidden")
        assert refused(client.delete(f"/keys/{an_id(theirs)}"), 404, "key_not_found")
    with running.client_of(token(tenant="local", scope="admin")) as client:
        assert client.delete(f"/keys/{made['id']}").json()["revoked_at"], "of the operator's"


def test_an_alias_that_a_token_moved_says_so(
    running: RegistryProcess, token: Callable[..., str]
) -> None:
    model = f"m-{secrets.token_hex(4)}"
    running.push(model)
    with running.client_of(token(sub="robot-7", scope="deploy audit:read")) as client:
        assert client.put(f"/models/{model}/aliases/live", json={"version": 1}).status_code == 200
        told = client.get(f"/models/{model}/events").json()["events"]
    assert [one["who"] for one in told if one["what"] == "alias_moved"] == ["acme/token:robot-7"]


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
        {"scopes": ["models:read"], "requests_per_s": 1e-17},
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


def test_an_overlap_lengthens_no_life(running: RegistryProcess) -> None:
    key = make(running, "models:read", expires_in_s=60)
    with running.client as client:
        before = client.get(f"/keys/{an_id(key)}").json()["expires_at"]
        assert client.post(f"/keys/{an_id(key)}/rotate", json={"overlap_s": 3600}).is_success
        assert client.get(f"/keys/{an_id(key)}").json()["expires_at"] == before


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
        heir = told[1]["after"]["replaced_by"]
        (made,) = client.get(f"/keys/{heir}/events").json()["events"]
    assert (made["what"], made["request_id"], made["before"]) == ("key_created", "turn-1", None)
    assert made["after"]["scopes"] == ["models:read"]
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
def with_one_scope(running: RegistryProcess, token: Callable[..., str]) -> dict[str, list[str]]:
    """A key and a token of each scope."""
    return {scope: [make(running, scope, tenant="acme"), token(scope=scope)] for scope in SCOPES}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_by_every_scope(
    running: RegistryProcess, with_one_scope: dict[str, list[str]], method: str, path: str
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
    presented = [(scope, one) for scope, ones in with_one_scope.items() for one in ones]
    with running.client_of(None) as client:
        answers = [
            (scope, client.request(method, running.url + where, headers=authorization(key)))
            for scope, key in ((None, None), *presented)
        ]
    for scope, answer in answers:
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
