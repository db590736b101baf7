"""Who may call the gateway: what is remembered, what is forgotten, every route by every scope."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from inferbus_gateway import door, errors, job_wiring
from inferbus_gateway.api.openai import OpenAI, before
from inferbus_gateway.api.v2 import control_routes, make_app
from inferbus_gateway.api.views import Views
from inferbus_gateway.app import front_door
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.control.resume import Resumer
from inferbus_gateway.hot import access as hot
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.incoming import Bodies
from inferbus_gateway.hot.infer import Infer
from inferbus_gateway.hot.statistics import Statistics
from inferbus_kit.health import Health
from inferbus_kit.metrics import gateway_metrics
from inferbus_schemas import access, ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import Verdict
from tests.gateway.fleet_records import Fleet
from tests.gateway.key_records import bearer, key, record
from tests.gateway.no_bus import requests_of, routes_of

LOOPBACK = (b"127.0.0.1:8080", "127.0.0.1")


class Known:
    """A gateway's access, and its keys."""

    def __init__(self, *, local: bool = False) -> None:
        self.keys = access.Keyring()
        self.access = Access(self.keys, local=local)

    def apply(self, said: m.AccessKey) -> None:
        """Take a record as the state feed does."""
        self.keys.apply(said)
        self.access.changed()

    def ask(self, presented: bytes | None, model: str = "digits") -> access.Principal:
        return self.access.check(presented, *LOOPBACK, access.INFER, model)


def test_a_revoked_key_is_forgotten_at_once() -> None:
    known = Known()
    with pytest.raises(errors.UnauthorizedError):
        known.ask(bearer(1))
    known.apply(record(1, "infer:*"))
    assert known.ask(bearer(1)).tenant == "acme"
    assert known.ask(bearer(1)) is known.ask(bearer(1)), "it is remembered"
    known.apply(record(1, "infer:*", generation=2, revoked=True))
    with pytest.raises(errors.UnauthorizedError):
        known.ask(bearer(1))


def test_a_key_is_not_remembered_past_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_800_000_000.0
    monkeypatch.setattr(hot, "time", SimpleNamespace(time=lambda: now_s, monotonic=lambda: 0.0))
    known = Known()
    known.apply(record(1, "infer:*", expires_us=int((now_s + 1) * 1e6)))
    assert known.ask(bearer(1))
    now_s += 1.0
    with pytest.raises(errors.UnauthorizedError):
        known.ask(bearer(1))


def test_what_is_remembered_is_bounded() -> None:
    known = Known()
    for number in range(hot.MAX_KNOWN + 10):
        known.keys.apply(record(number, "infer:*"))
        known.ask(bearer(number))
    assert len(known.access._known) == hot.MAX_KNOWN
    for number in range(hot.MAX_KNOWN + 10):
        with pytest.raises((errors.UnauthorizedError, errors.TooManyBadKeysError)):
            known.ask(bearer(number) + b"x")
    assert len(known.access._known) == hot.MAX_KNOWN, "what opens nothing is not kept"


def test_nobody_needs_a_key_here_alone() -> None:
    known = Known(local=True)
    assert known.ask(None) is access.ANONYMOUS
    assert known.ask(None).tenant == "local"
    for host, peer in (
        (b"evil.example", "127.0.0.1"),
        (b"127.0.0.1", "10.0.0.9"),
        (b"", "127.0.0.1"),
        (b"127.0.0.1", ""),
    ):
        with pytest.raises(errors.UnauthorizedError):
            known.access.check(None, host, peer, access.INFER, "digits")
    with pytest.raises(errors.UnauthorizedError):
        known.ask(b"Bearer wrong")
    with pytest.raises(errors.UnauthorizedError, match="a key is needed"):
        known.access.check(None, *LOOPBACK, access.DEPLOY)
    with pytest.raises(errors.UnauthorizedError):
        Known().ask(None)


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("sec-fetch-site", "cross-site", True),
        ("sec-fetch-site", "same-site", True),
        ("sec-fetch-site", "same-origin", False),
        ("sec-fetch-site", "none", False),
        ("origin", "https://evil.example", True),
        ("origin", "null", True),
        ("origin", "http://127.0.0.1:9999", True),
        ("origin", "http://127.0.0.1.evil.example:8080", True),
        ("origin", "https://127.0.0.1:8080", True),
        ("origin", "http://127.0.0.1:8080", False),
        ("origin", "http://localhost:8080", False),
        ("accept", "cross-site", False),
    ],
)
def test_a_page_of_another_site_needs_a_key(name: str, value: str, *, refused: bool) -> None:
    known = Known(local=True)
    known.apply(record(1, "infer:*"))
    headers = [(b"host", LOOPBACK[0]), (name.encode(), value.encode())]
    ask = (*LOOPBACK, access.INFER, "digits")
    for _ in range(2):
        if refused:
            with pytest.raises(errors.ForbiddenError, match="page of another site"):
                known.access.check(None, *ask, headers=headers)
        else:
            assert known.access.check(None, *ask, headers=headers) is access.ANONYMOUS
    assert known.access.check(bearer(1), *ask, headers=headers).tenant == "acme"


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via"])
def test_what_a_proxy_passed_on_needs_a_key(name: bytes) -> None:
    """It is from this machine to us, and may be from anywhere to the proxy."""
    known = Known(local=True)
    known.apply(record(1, "infer:*"))
    ask = (*LOOPBACK, access.INFER, "digits")
    with pytest.raises(errors.UnauthorizedError, match="a proxy passed this on"):
        known.access.check(None, *ask, headers=[(name, b"8.8.8.8")])
    assert known.access.check(bearer(1), *ask, headers=[(name, b"8.8.8.8")]).tenant == "acme"
    call: Any = SimpleNamespace(
        invocation_metadata=lambda: ((name.decode(), "8.8.8.8"),), peer=lambda: "ipv4:127.0.0.1:9"
    )
    with pytest.raises(errors.UnauthorizedError, match="a proxy passed this on"):
        known.access.check_call(call, access.INFER, "digits")
    call.invocation_metadata = lambda: (("user-agent", "x"),)
    assert known.access.check_call(call, access.INFER, "digits") is access.ANONYMOUS


def test_while_nothing_is_heard_of_keys_none_is_good() -> None:
    known = Known(local=True)
    known.apply(record(1, "infer:*"))
    assert known.ask(bearer(1)).tenant == "acme"
    known.access.stale = "nothing is heard"
    for policy in (access.INFER, access.MODELS_READ, access.AUTHENTICATED):
        with pytest.raises(errors.BusUnavailableError, match="nothing is heard; try again"):
            known.access.check(bearer(1), *LOOPBACK, policy, "digits")
    assert known.ask(None) is access.ANONYMOUS
    known.access.stale = ""
    assert known.ask(bearer(1)).tenant == "acme"


def test_a_model_that_is_not_to_be_known_answers_like_one_that_is_not_there() -> None:
    known = Known()
    known.apply(record(1, "infer:digits"))
    said = []
    for model in ("secret", "there-is-no-such"):
        with pytest.raises(errors.UnknownModelError) as refused:
            known.ask(bearer(1), model)
        said.append(str(refused.value).replace(model, "M"))
    assert said[0] == said[1]


class Gateway:
    """Both doors of a gateway without a bus; version 1 of `digits` is deployed."""

    def __init__(self) -> None:
        self.keys = access.Keyring()
        fleet = Fleet()
        self.routes = routes_of(fleet)
        parts: Any = SimpleNamespace(partition=0)
        metrics = gateway_metrics(CollectorRegistry())
        requests = requests_of(parts, metrics)
        known = Access(self.keys, local=False)
        infer = Infer(
            routes=self.routes,
            requests=requests,
            metrics=metrics,
            bodies=Bodies(1 << 20, 1 << 24),
            access=known,
        )
        views = Views(self.routes, requests.statistics)
        repository = ModelRepository(self.routes, "http://127.0.0.1:9")
        text = OpenAI(
            access=known,
            routes=self.routes,
            requests=requests,
            generations=parts,
            resumer=Resumer(
                "",
                "g",
                producer=parts,
                fleet=fleet.seen,
                replies=parts,
                streams=parts,
                cancel=parts,
            ),
            metrics=metrics,
            bodies=Bodies(1 << 20, 1 << 24),
        )
        control = make_app(
            views, repository, Health(), known, lambda: ids.uuid7(1, 1), *job_wiring.routers()
        )
        self.app: Any = front_door(infer, before(text, control))

    async def ask(
        self, method: str, path: str, presented: bytes | None, body: Any = None
    ) -> httpx.Response:
        head = [] if presented is None else [(b"authorization", presented)]
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(method, path, headers=head, json=body)


JOB = "01a218ed-6c2b-7123-b887-755a3d43693b"
SCOPES = [*access.ALL_SCOPES, "infer:digits", "infer:other"]


@pytest.mark.parametrize("model", ["digits", "foreign"])
@pytest.mark.parametrize(("method", "path"), sorted(door.POLICIES.table))
async def test_every_route_by_every_scope(method: str, path: str, model: str) -> None:
    """The answer is the table's, before anything of the request is looked at."""
    gateway = Gateway()
    policy = door.POLICIES.table[method, path]
    parts = {"version": "1", "file": "swagger-ui.css", "request_id": "r", "job": JOB, "batch": "b"}
    where = path.format(model=model, **parts)
    named = model if "{model}" in path else ""
    for number, scope in enumerate(SCOPES, 1):
        gateway.keys.apply(record(number, scope))
        got = await gateway.ask(method, where, bearer(number))
        verdict = access.judge(access.principal("acme", "x", [scope]), policy, named)
        code = got.headers.get("x-inferbus-error-code", "")
        assert (code == "forbidden") == (verdict is Verdict.FORBIDDEN), (scope, got.text)
        assert (got.status_code == 403) == (verdict is Verdict.FORBIDDEN)
        if verdict is Verdict.HIDDEN:
            assert (got.status_code, code) == (404, "unknown_model")
        assert code != "unauthorized"
        assert got.status_code != 500
    for presented in (None, b"", b"Bearer x", bearer(1) + b"x", bearer(999)):
        got = await gateway.ask(method, where, presented)
        if policy == access.PUBLIC:
            assert got.status_code in {200, 503}
        else:
            assert (got.status_code, got.headers["www-authenticate"]) == (401, "Bearer")
            assert got.headers["x-inferbus-error-code"] == "unauthorized"
            assert "x-request-id" in got.headers


async def test_a_key_of_one_model_sees_its_versions_by_name() -> None:
    gateway = Gateway()
    gateway.keys.apply(record(1, "infer:digits"))
    for prefix in ("", "/openai"):
        for name in ("digits", "digits:1", "digits:champion"):
            got = await gateway.ask("GET", f"{prefix}/v1/models/{name}", bearer(1))
            assert (got.status_code, got.json().get("id")) == (200, name), got.text
        for name in ("digits:2", "other:1", ":digits"):
            got = await gateway.ask("GET", f"{prefix}/v1/models/{name}", bearer(1))
            assert got.status_code == 404


def dialect(got: httpx.Response) -> str:
    """Tell in whose words an error is."""
    said = got.json()
    if got.headers["content-type"] == "application/problem+json":
        return "problem" if said["status"] == got.status_code else ""
    if isinstance(said["error"], str):
        return "triton"
    return "openai" if {"message", "type", "param", "code"} == said["error"].keys() else ""


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("want", "paths"),
    [
        ("openai", ("", "/", "/x", "/audio/speech", "/jobsx", "/filesx", "/files/f/x", "/batch")),
        ("problem", ("/jobs/", f"/jobs/{JOB}/x")),
    ],
)
async def test_what_is_no_route_is_told_in_the_words_of_its_prefix(
    want: str, paths: tuple[str, ...], method: str
) -> None:
    gateway = Gateway()
    prefixes = ("/v1",) if want == "problem" else ("/v1", "/openai/v1")
    for path in (f"{prefix}{path}" for prefix in prefixes for path in paths):
        got = await gateway.ask(method, path, None)
        assert (got.status_code, got.headers["x-inferbus-error-code"]) == (404, "not_found")
        assert dialect(got) == want, path
        assert "x-request-id" in got.headers
    assert dialect(await gateway.ask(method, "/v2/x", None)) == "triton"


@pytest.mark.parametrize("scope", ["models:read", "deploy", "admin", "audit:read"])
async def test_a_key_that_may_not_infer_changes_no_job_batch_or_file(scope: str) -> None:
    gateway = Gateway()
    gateway.keys.apply(record(1, scope))
    names = {"job": JOB, "file": "f", "batch": "b"}
    for method, path in door.POLICIES.table:
        if path.removeprefix("/openai").startswith(KEEPING):
            got = await gateway.ask(method, path.format(**names), bearer(1))
            reads = method == "GET"
            assert (got.status_code == 403) is not reads, (method, path, got.text)
            assert dialect(got) == ("problem" if path.startswith("/v1/jobs") else "openai")


BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "completions": {"prompt": "x"},
    "embeddings": {"input": "x"},
    "responses": {"input": "x"},
    "rerank": {"query": "x", "documents": ["x"]},
    "score": {"text_1": "x", "text_2": "x"},
}
KEEPING = ("/v1/jobs", "/v1/files", "/v1/batches")
"""These name no model in such a body: tests/conformance/test_tenants.py."""
ASKING = [
    path
    for method, path in sorted(door.POLICIES.table)
    if method == "POST"
    and (short := path.removeprefix("/openai")).startswith("/v1/")
    and not short.startswith(KEEPING)
]


@pytest.mark.parametrize("model", ["digits", "foreign"])
@pytest.mark.parametrize("path", ASKING)
async def test_a_model_that_stands_in_the_body_is_asked_for_too(path: str, model: str) -> None:
    """In OpenAI's shape; whether there is such a model is no part of the answer."""
    short = path.removeprefix("/openai").removeprefix("/v1/")
    gateway = Gateway()
    body = {"model": model, **BODIES[short]}
    for number, scope in enumerate(SCOPES, 1):
        gateway.keys.apply(record(number, scope))
        got = await gateway.ask("POST", path, bearer(number), body)
        verdict = access.judge(access.principal("acme", "x", [scope]), access.INFER, model)
        code = got.json()["error"]["code"]
        assert (got.status_code == 403) == (verdict is Verdict.FORBIDDEN), (scope, got.text)
        assert (code == "forbidden") == (verdict is Verdict.FORBIDDEN)
        if verdict is Verdict.HIDDEN:
            assert got.status_code == 404
            assert f"{model} is not deployed" in got.json()["error"]["message"]
    got = await gateway.ask("POST", path, None, body)
    assert (got.status_code, got.headers["www-authenticate"]) == (401, "Bearer")
    assert got.json()["error"]["code"] == "unauthorized"


def test_every_route_stands_in_the_table() -> None:
    routes = Gateway().routes
    views = Views(routes, Statistics())
    app = control_routes(views, ModelRepository(routes, ""), Health(), *job_wiring.routers())
    served = {
        (verb.upper(), path) for path, verbs in app.openapi()["paths"].items() for verb in verbs
    }
    described = {("GET", path) for path in ("/openapi.json", "/docs", "/docs/static/{file}")}
    assert served | described == set(door.POLICIES.table)
    for method, path in served:
        policy = door.POLICIES.table[method, path]
        told = set(app.openapi()["paths"][path][method.lower()]["responses"])
        assert policy == access.PUBLIC or {"401", "429"} <= told, path
        assert policy in {access.PUBLIC, access.AUTHENTICATED} or "403" in told, path


async def test_what_is_not_in_the_table_is_not_reached() -> None:
    gateway = Gateway()
    for path in ("/", "/v3", "/docs/oauth2-redirect", "/v2/models", "/metrics"):
        got = await gateway.ask("GET", path, bearer(1))
        assert (got.status_code, got.headers["x-inferbus-error-code"]) == (404, "not_found")
    got = await gateway.ask("GET", "/v2/models/digits/infer", None)
    assert (got.status_code, got.headers["allow"]) == (405, "POST")


def test_a_known_header_is_looked_up_and_nothing_else() -> None:
    known = Known()
    known.apply(record(1, "infer:*"))
    known.ask(bearer(1))
    known.access._keys = None  # type: ignore[assignment]
    assert known.ask(bearer(1)).name == f"key:{access.key_id(key(1))}"
