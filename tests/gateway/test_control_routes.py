"""The control routes and the OpenAPI document, without a bus."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from inferbus_gateway.api.v2 import make_app
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.route import Routes
from inferbus_kit.health import Health
from inferbus_schemas import ids
from inferbus_schemas.access import Keyring
from tests.gateway.fleet_records import Fleet, deployment, version

ID = ids.uuid7(1, 1)


class Control:
    """The app over a fleet of one worker that holds version 1 of `m`."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.health = Health()
        self.routes = Routes(Pins(), self.fleet.seen, Placement(self.fleet.seen, 1))
        self.routes.apply_version(version("m", 1))
        self.routes.apply_deployment(
            deployment("m", 1, {"champion": (1, 0), "next": (1, 0)}, (1,), min_ready=2)
        )

    async def ask(self, path: str, method: str = "GET") -> httpx.Response:
        local = Access(Keyring(), local=True)
        app: Any = make_app(self.routes, self.health, local, lambda: ID)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(method, path)


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


async def test_what_is_advertised_is_what_works(control: Control) -> None:
    said = (await control.ask("/v2")).json()
    assert said["name"] == "inferbus"
    assert said["extensions"] == ["binary_tensor_data", "parameters"]


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
