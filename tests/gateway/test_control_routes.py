"""The control routes and the OpenAPI document, without a bus."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from inferbus_gateway import job_wiring
from inferbus_gateway.api.v2 import control_routes, make_app
from inferbus_gateway.api.views import Views
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.route import Routes
from inferbus_gateway.hot.statistics import Statistics
from inferbus_kit.health import Health
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import Keyring
from tests.gateway.fleet_records import Fleet, deployment, version
from tests.gateway.key_records import bearer, record

ID = ids.uuid7(1, 1)


class Control:
    """The app over a fleet of one worker that holds version 1 of `m`."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.health = Health()
        self.statistics = Statistics()
        self.routes = Routes(Pins(), self.fleet.seen, Placement(self.fleet.seen, 1))
        self.routes.apply_version(version("m", 1))
        self.routes.apply_deployment(
            deployment("m", 1, {"champion": (1, 0), "next": (1, 0)}, (1,), min_ready=2)
        )

        self.repository = ModelRepository(self.routes, "http://127.0.0.1:9")
        keys = Keyring()
        keys.apply(record(1, "deploy"))
        self.access = Access(keys, local=True)

    async def ask(
        self, path: str, method: str = "GET", body: bytes = b"", *, key: bytes | None = None
    ) -> httpx.Response:
        views = Views(self.routes, self.statistics)
        app: Any = make_app(views, self.repository, self.health, self.access, lambda: ID)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            head = [] if key is None else [(b"authorization", key)]
            return await http.request(method, path, content=body, headers=head)


@pytest.fixture
def control() -> Control:
    return Control()


def check_error(got: httpx.Response, status: int, code: str) -> None:
    assert (got.status_code, got.headers["x-inferbus-error-code"]) == (status, code)
    assert got.headers["x-request-id"] == ids.text(ID)
    assert ("retry-after" in got.headers) == (status == 503)


async def test_a_model_that_no_worker_has_loaded_yet(control: Control) -> None:
    for path in ("/v2/models/m", "/v2/models/m/ready", "/v2/models/m/versions/next"):
        check_error(await control.ask(path), 503, "no_worker")
    got = await control.ask("/v2/models/m/versions/1/ready")
    check_error(got, 503, "no_worker")
    assert got.json() == {"name": "m", "ready": False}
    assert (await control.ask("/v2/models/m/versions/1")).json()["versions"] == []


async def test_probes_tell_what_the_loops_say(control: Control) -> None:
    assert (await control.ask("/v2/health/live")).json() == {"live": True}
    for path in ("/v2/health/ready", "/readyz"):
        assert (await control.ask(path)).status_code == 503
    control.health.ready("start")
    assert (await control.ask("/v2/health/ready")).json() == {"ready": True}
    control.health.watch("upkeep", -1.0)
    for path in ("/v2/health/live", "/v2/health/ready", "/livez", "/readyz"):
        assert (await control.ask(path)).status_code == 503


async def test_a_fault_of_ours_says_nothing_of_itself(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("/secret/path at 10.0.0.1")

    monkeypatch.setattr(control.routes, "resolve", broken)
    got = await control.ask("/v2/models/m")
    check_error(got, 500, "internal")
    assert "secret" not in got.text
    assert "request id" in got.json()["error"]


def headers(operation: dict[str, Any]) -> set[str]:
    return {one["name"] for one in operation["parameters"] if one["in"] == "header"}


def test_the_document_names_what_headers_change(control: Control) -> None:
    views = Views(control.routes, control.statistics)
    app = control_routes(views, control.repository, control.health, *job_wiring.routers())
    paths = app.openapi()["paths"]
    infer = paths["/v2/models/{model}/infer"]["post"]
    assert {"202", "408", "409", "422", "429", "431", "499"} <= infer["responses"].keys()
    assert infer["responses"]["202"]["headers"].keys() == {"Location"}
    both = {"Idempotency-Key", "x-inferbus-timeout-ms"}
    assert headers(infer) == {"Prefer", "Inference-Header-Content-Length", *both}
    assert headers(paths["/openai/v1/streams/{request_id}"]["get"]) == {"Last-Event-ID"}
    for path in ("/v1/chat/completions", "/v2/models/{model}/generate_stream"):
        assert headers(paths[path]["post"]) == {*both, "x-inferbus-on-disconnect"}
    assert headers(paths["/v1/rerank"]["post"]) == both
    for path in ("/v1/chat/completions", "/openai/v1/score", "/v2/models/{model}/generate"):
        text = paths[path]["post"]
        assert {"408", "409", "422", "429", "431", "499"} <= text["responses"].keys()
        assert "Idempotency-Key" in headers(text)
    for path in ("/v1/jobs", "/v1/jobs/{job}/retry"):
        job = paths[path]["post"]
        assert {"202", "408", "409", "429", "431"} <= job["responses"].keys()
        assert "Idempotency-Key" in headers(job)


async def test_other_methods_are_named(control: Control) -> None:
    got = await control.ask("/v2/models/m", "POST")
    check_error(got, 405, "method_not_allowed")
    assert got.headers["allow"] == "GET"
    check_error(await control.ask("/v2/models/m/"), 404, "not_found")


async def test_the_openapi_document_is_whole(control: Control) -> None:
    document = (await control.ask("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    names = re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))
    assert names
    for name in names:
        assert name.removeprefix("#/components/schemas/") in schemas, name
    operations = [each for path in document["paths"].values() for each in path.values()]
    listed = [each["operationId"] for each in operations]
    assert len(set(listed)) == len(listed)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            given = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert given == set(re.findall(r"{(\w+)}", path))
            assert "200" in operation["responses"]
    infer = document["paths"]["/v2/models/{model}/versions/{version}/infer"]["post"]
    error = infer["responses"]["503"]["content"]["application/json"]["schema"]["$ref"]
    assert error.endswith("/ErrorBody")
    assert set(schemas["InferRequest"]["required"]) == {"inputs"}


async def test_the_configuration_leaves_the_rows_out(control: Control) -> None:
    got = (await control.ask("/v2/models/m/versions/1/config")).json()
    meta = (await control.ask("/v2/models/m/versions/1")).json()
    assert got["max_batch_size"] > 0
    assert got["dynamic_batching"]["max_queue_delay_microseconds"] >= 0
    for one, other in zip(got["input"], meta["inputs"], strict=True):
        assert one["dims"] == other["shape"][1:]
        assert one["data_type"] == f"TYPE_{other['datatype']}"
    assert got["model_transaction_policy"] == {"decoupled": False}
    check_error(await control.ask("/v2/models/no/config"), 404, "unknown_model")


async def test_statistics_of_one_version_and_of_all(control: Control) -> None:
    for path in ("/v2/models/m/stats", "/v2/models/m/versions/next/stats"):
        check_error(await control.ask(path), 503, "no_worker")
    got = (await control.ask("/v2/models/m/versions/1/stats")).json()["model_stats"][0]
    assert (got["name"], got["version"], got["inference_count"]) == ("m", "1", 0)
    assert (await control.ask("/v2/models/stats")).json() == {"model_stats": []}
    said = m.Prediction(outcome=m.OUTCOME_OK, engine_us=2, batch_size=1)
    control.statistics.of("m", 1).ended(said, 4, 5e-6, 0.006)
    got = (await control.ask("/v2/models/stats")).json()["model_stats"][0]
    assert (got["inference_count"], got["execution_count"], got["last_inference"]) == (4, 1, 6)
    assert got["inference_stats"]["success"] == {"count": 1, "ns": 5000}
    assert got["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert got["batch_stats"][0]["compute_infer"] == {"count": 1, "ns": 2000}


async def test_the_index_says_how_far_each_version_is(control: Control) -> None:
    control.routes.apply_version(version("m", 2))
    control.fleet.worker(0, ("m", 1))
    control.routes.fleet_changed()
    loaded = {"name": "m", "version": "1", "state": "READY", "reason": ""}
    unloaded = {"name": "m", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert (await control.ask("/v2/repository/index", "POST")).json() == [loaded, unloaded]
    got = await control.ask("/v2/repository/index", "POST", b'{"ready": true}')
    assert got.json() == [loaded]
    control.routes.apply_deployment(deployment("m", 2, {"champion": (2, 1)}, (1, 2)))
    got = await control.ask("/v2/repository/index", "POST")
    assert got.json() == [loaded, unloaded | {"state": "LOADING", "reason": ""}]
    failed = m.Resident(
        model="m", version=2, readiness=m.READINESS_FAILED, reason="no such operator"
    )
    control.fleet.worker(0, ("m", 1), others=[failed])
    control.routes.fleet_changed()
    got = await control.ask("/v2/repository/index", "POST")
    assert got.json() == [loaded, unloaded | {"reason": "no such operator"}]
    for body in (b"[]", b"{", b'{"ready": "x"}', b'{"ready": true'):
        check_error(await control.ask("/v2/repository/index", "POST", body), 400, "invalid_request")


async def test_load_and_unload_need_the_registry(control: Control) -> None:
    for verb in ("load", "unload"):
        got = await control.ask(f"/v2/repository/models/m/{verb}", "POST")
        check_error(got, 401, "unauthorized")
        got = await control.ask(f"/v2/repository/models/m/{verb}", "POST", key=bearer(1))
        check_error(got, 503, "registry_unavailable")
        got = await control.ask(f"/v2/repository/models/No%20name/{verb}", "POST", key=bearer(1))
        check_error(got, 400, "invalid_request")
    body = b'{"parameters": {"config": "{}"}}'
    got = await control.ask("/v2/repository/models/m/load", "POST", body, key=bearer(1))
    check_error(got, 400, "invalid_request")
    assert "failed to load 'm'" in got.json()["error"]
