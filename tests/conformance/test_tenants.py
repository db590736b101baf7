"""What one tenant owns does not exist for another: every route that names it, by every scope.

The cases come from the gateway's own tables, so a route that nobody has thought of fails here. What
keys may see of models, which belong to no tenant, stands in tests/gateway/test_access.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from inferbus_dev.stack import Stack
from inferbus_gateway import door
from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_schemas import access

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PREFIXES = ("", "/openai")
ROUTES = sorted(key for key, policy in door.POLICIES.table.items() if policy != access.PUBLIC)
OWNED = frozenset({"job", "batch", "file", "request_id"})
"""Parts of paths that name what a tenant owns."""
OF_ALL = frozenset({"model", "version"})
LISTS = {
    "/v1/jobs": ("jobs", "job", "before"),
    **{f"{prefix}/v1/files": ("data", "file", "after") for prefix in PREFIXES},
    **{f"{prefix}/v1/batches": ("data", "batch", "after") for prefix in PREFIXES},
}
"""Where a list stands in its answer, of what, and the parameter that names one of them."""
NAMED_IN_BODIES = {("POST", f"{prefix}/v1/batches") for prefix in PREFIXES}
ASKING = {
    ("POST", f"{prefix}/v1/{path}")
    for prefix in PREFIXES
    for path in (
        *("chat/completions", "completions", "embeddings", "responses", "rerank", "score"),
        "files",
    )
} | {("POST", "/v1/jobs")}
"""These make something and name nothing that is there, but by a key of idempotency."""
OF_NOBODY = {
    *(("GET", path) for path in ("/v2", "/v2/", "/v2/models/stats")),
    *(("GET", f"{prefix}/v1/models") for prefix in PREFIXES),
    ("POST", "/v2/repository/index"),
}

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
ROW = {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}
JSON_LINES = {"content-type": "application/x-ndjson"}


def parts(path: str) -> frozenset[str]:
    return frozenset(re.findall(r"{(\w+)}", path))


NAMING = [(method, path) for method, path in ROUTES if parts(path) & OWNED]


def test_every_route_is_of_a_kind_that_is_tried() -> None:
    lists = {("GET", path) for path in LISTS}
    told = lists | NAMED_IN_BODIES | ASKING | OF_NOBODY
    nameless = {(method, path) for method, path in ROUTES if not parts(path)}
    assert told == nameless
    for _, path in ROUTES:
        assert parts(path) <= OF_ALL or parts(path) <= OWNED, path


def test_no_method_names_what_a_tenant_owns() -> None:
    """Names of models, and a caller's own name for its request."""
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert set(service.methods_by_name) == set(door.METHODS)
    named = {
        field.name
        for method in service.methods
        for field in method.input_type.fields
        if field.type in {field.TYPE_STRING, field.TYPE_BYTES} and not field.is_repeated
    }
    models = {"name", "version", "model_name", "model_version", "repository_name"}
    assert named == models | {"id"}


@dataclass(frozen=True, slots=True)
class Things:
    """What tenant A has - of each kind what has ended and what runs - and how others call.

    `others` are callers of other tenants: a key with every scope, one for each, and no key.
    """

    mine: httpx.AsyncClient
    key: str
    others: Mapping[str, dict[str, str]]
    names: Mapping[str, tuple[str, ...]]

    async def seen(self) -> dict[str, Any]:
        """Return what A is told of all it has, without what time changes."""
        said: dict[str, Any] = {}
        for path, (where, kind, _) in LISTS.items():
            found = await self.json(path)
            said[path] = sorted(one["id"] for one in found[where])
            assert set(self.names[kind]) <= set(said[path])
        for kind, path in (("job", "/v1/jobs"), ("batch", "/v1/batches")):
            for name in self.names[kind]:
                found = await self.json(f"{path}/{name}")
                said[name] = found.get("state", found.get("status"))
        for name in self.names["file"]:
            said[name] = await self.json(f"/v1/files/{name}")
            said[f"{name} content"] = (await self.mine.get(f"/v1/files/{name}/content")).text
        for name in self.names["request_id"]:
            again = await self.mine.get(f"/v1/streams/{name}")
            assert again.status_code == 200, again.text
            said[name] = [one for one in again.text.splitlines() if one.startswith("data: ")]
        (ended, _) = self.names["job"]
        said[f"{ended} results"] = (await self.mine.get(f"/v1/jobs/{ended}/results")).text
        return said

    async def json(self, path: str) -> dict[str, Any]:
        answer = await self.mine.get(path)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def make_key(stack: Stack, tenant: str, *scopes: str) -> str:
    async with httpx.AsyncClient(base_url=stack.registry, timeout=20, trust_env=False) as http:
        made = await http.post(
            "/v1/registry/keys",
            json={"name": "tenants", "tenant": tenant, "scopes": scopes},
            headers={"authorization": f"Bearer {stack.api_key}"},
        )
    assert made.status_code == 201, made.text
    key = made.json()["key"]
    async with httpx.AsyncClient(base_url=stack.http, timeout=20, trust_env=False) as http:
        async with asyncio.timeout(30):
            head = {"authorization": f"Bearer {key}"}
            while (await http.get("/v2", headers=head)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    return str(key)


async def batch_of(mine: httpx.AsyncClient, url: str, bodies: list[dict[str, Any]]) -> Any:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    form = {"file": ("in.jsonl", text)}
    file = await mine.post("/v1/files", files=form, data={"purpose": "batch"})
    wish = {"input_file_id": file.json()["id"], "endpoint": url, "completion_window": "24h"}
    made = await mine.post("/v1/batches", json=wish)
    assert made.status_code == 200, made.text
    return made.json()


async def until(mine: httpx.AsyncClient, path: str, key: str, wanted: str) -> Any:
    async with asyncio.timeout(60):
        while (found := (await mine.get(path)).json()).get(key) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


def job_of(batch: str) -> str:
    """Return the job that has a batch's id."""
    digits = batch.rpartition("_")[2]
    return "-".join(digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def things(stack: Stack) -> AsyncIterator[Things]:
    """One of everything; a long batch runs until all is over."""
    name = secrets.token_hex(4)
    key = await make_key(stack, f"a-{name}", "infer:*")
    named = (("all", access.ALL_SCOPES), *((scope, (scope,)) for scope in access.ALL_SCOPES))
    keys = {scope: await make_key(stack, f"b-{name}", *scopes) for scope, scopes in named}
    others = {scope: {"authorization": f"Bearer {one}"} for scope, one in keys.items()}
    head = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=stack.http, timeout=60, trust_env=False, headers=head
    ) as mine:
        rows = b'{"features": %s}\n' % json.dumps(ROW["data"]).encode() * 3
        job = await mine.post("/v1/jobs?model=breast-cancer", content=rows, headers=JSON_LINES)
        vectors = await batch_of(mine, EMBEDDINGS, [{"model": "minilm", "input": "a cat"}])
        await until(mine, f"/v1/jobs/{job.json()['id']}", "state", "completed")
        vectors = await until(mine, f"/v1/batches/{vectors['id']}", "status", "completed")
        asked = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}
        told = await mine.post(CHAT, json={**asked, "max_tokens": 4, "stream": True})
        long = await batch_of(mine, CHAT, [{**asked, "max_tokens": 100}] * 200)
        await until(mine, f"/v1/batches/{long['id']}", "status", "in_progress")
        yield Things(
            mine=mine,
            key=key,
            others={**others, "nobody": {}},
            names={
                "job": (job.json()["id"], job_of(long["id"])),
                "batch": (vectors["id"], long["id"]),
                "file": (vectors["output_file_id"], long["input_file_id"]),
                "request_id": (told.headers["x-request-id"],),
            },
        )
        stopped = await mine.post(f"/v1/batches/{long['id']}/cancel")
        assert stopped.json()["status"] == "cancelling", "it ran until its owner ended it"


NOWHERE = {
    "job": "01a218ed-6c2b-7123-b887-755a3d43693b",
    "batch": "batch_01a218ed6c2b7123b887755a3d43693b",
    "file": "file-01a218ed6c2b7123b887755a3d43693b",
    "request_id": "01a218ed-6c2b-7123-b887-755a3d43693b",
}
"""Well-formed names of nothing."""
_OWN = ("x-request-id", "date", "content-length")


def told(answer: httpx.Response, name: str) -> tuple[Any, ...]:
    """Return everything that an answer says, with the name asked for and its own id taken out."""
    own_id = answer.headers.get("x-request-id", "")
    text = answer.text.replace(name, "NAME")
    text = text.replace(own_id, "ID") if own_id else text
    head = {key: value for key, value in answer.headers.items() if key not in _OWN}
    return answer.status_code, head, text


def refusal(method: str, path: str, who: str) -> int:
    """Return what a caller is told: that it may change nothing, or that nothing is there."""
    changes = door.POLICIES.table[method, path] == access.INFER_SOME
    return 403 if changes and who not in {"all", "nobody", access.INFER_ALL} else 404


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("method", "path"), NAMING)
async def test_what_a_route_names_is_not_there_for_others(
    things: Things, stack: Stack, method: str, path: str
) -> None:
    """As nothing is: the same status, headers and words; and its owner still has it."""
    (kind,) = parts(path)
    before = await things.seen()
    async with httpx.AsyncClient(base_url=stack.http, timeout=60, trust_env=False) as http:
        for who, head in things.others.items():
            nothing = NOWHERE[kind]
            want = told(await http.request(method, path.format(**NOWHERE), headers=head), nothing)
            assert want[0] == refusal(method, path, who), (who, want)
            for name in things.names[kind]:
                got = await http.request(method, path.format(**{kind: name}), headers=head)
                assert told(got, name) == want, (who, name)
    assert await things.seen() == before


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("method", "path"), sorted(NAMED_IN_BODIES))
async def test_what_a_body_names_is_not_there_for_others(
    things: Things, stack: Stack, method: str, path: str
) -> None:
    before = await things.seen()
    async with httpx.AsyncClient(base_url=stack.http, timeout=60, trust_env=False) as http:
        for who, head in things.others.items():
            said = []
            for name in (NOWHERE["file"], *things.names["file"]):
                wish = {
                    "input_file_id": name,
                    "endpoint": EMBEDDINGS,
                    "completion_window": "24h",
                }
                said.append(told(await http.request(method, path, json=wish, headers=head), name))
            assert said[0][0] == refusal(method, path, who), (who, said)
            assert said == [said[0]] * len(said), who
    assert await things.seen() == before


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("path", sorted(LISTS))
async def test_lists_show_nothing_of_others(things: Things, stack: Stack, path: str) -> None:
    where, kind, after = LISTS[path]
    async with httpx.AsyncClient(base_url=stack.http, timeout=60, trust_env=False) as http:
        for who, head in things.others.items():
            shown = await http.get(path, headers=head)
            listed = {one["id"] for one in shown.json()[where]}
            assert not listed & set(things.names[kind]), who
            assert who == "nobody" or not listed, "this tenant has made nothing"
            said = [
                told(await http.get(f"{path}?{after}={name}", headers=head), name)
                for name in (NOWHERE[kind], *things.names[kind])
            ]
            if who != "nobody":  # tests of other modules are the same nobody
                assert said == [said[0]] * len(said), who


@pytest.mark.asyncio(loop_scope="session")
async def test_a_key_of_idempotency_is_its_tenants_alone(things: Things, stack: Stack) -> None:
    """The same key and the same request, through every door, are another tenant's own."""
    other = things.others["all"]
    rows = b'{"features": %s}\n' % json.dumps(ROW["data"]).encode()
    infer, jobs = "/v2/models/breast-cancer/infer", "/v1/jobs?model=breast-cancer"
    own_name = f"{jobs}&client_job_id={secrets.token_hex(8)}"
    said = [{"role": "user", "content": "Hi"}]
    chat = {"model": "smollm2", "messages": said, "max_tokens": 2}
    async with httpx.AsyncClient(base_url=stack.http, timeout=60, trust_env=False) as http:
        for path, body, head, marks in (
            (infer, {"json": {"inputs": [ROW]}}, {}, "x-request-id"),
            (infer, {"json": {"inputs": [ROW]}}, {"prefer": "respond-async"}, "location"),
            (CHAT, {"json": chat}, {}, "x-request-id"),
            (EMBEDDINGS, {"json": {"model": "minilm", "input": "a"}}, {}, "x-request-id"),
            (jobs, {"content": rows}, JSON_LINES, "location"),
            (own_name, {"content": rows}, JSON_LINES, "location"),
        ):
            word = {} if path == own_name else {"idempotency-key": f"key-{secrets.token_hex(8)}"}
            sent = {**head, **word}
            mine = [await things.mine.post(path, **body, headers=sent) for _ in range(2)]
            assert mine[0].headers[marks] == mine[1].headers[marks], "it is known again"
            got = await http.post(path, **body, headers={**sent, **other})
            assert got.status_code == mine[0].status_code, got.text
            assert got.headers[marks] != mine[0].headers[marks]
            assert "x-inferbus-idempotency" not in got.headers
    asked = pb.ModelInferRequest(model_name="breast-cancer", raw_input_contents=[bytes(120)])
    asked.inputs.add(name="features", datatype="FP32", shape=[1, 30])
    word = {"idempotency-key": f"key-{secrets.token_hex(8)}"}
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        infer_ = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        own = {"authorization": f"Bearer {things.key}"}
        seen = []
        for head in (own, own, other):
            call = infer_(asked, metadata=tuple({**head, **word}.items()), timeout=60)
            await call
            seen.append({str(key): str(value) for key, value in await call.trailing_metadata()})
        ids = [one["x-request-id"] for one in seen]
        assert ids[0] == ids[1] != ids[2]
        assert "x-inferbus-idempotency" not in seen[2]
