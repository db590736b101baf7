"""Control routes of the Open Inference Protocol, and the documentation of all routes.

In: views of models, the repository and health. Out: a FastAPI app; `POST .../infer` never reaches
it, it is described here only.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field

from inferbus_gateway import VERSION, errors
from inferbus_gateway.api import extensions, header_docs, refusals, text_docs
from inferbus_gateway.api.extensions import UNKNOWN, ErrorBody
from inferbus_gateway.api.views import ModelMetadata, ServerMetadata, Views
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.door import POLICIES, Door
from inferbus_gateway.hot.access import Access
from inferbus_kit import docs
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Asgi, Health, Receive, Scope, Send, health_answer
from inferbus_schemas import asyncapi, ids
from inferbus_schemas.access import AUTHENTICATED, PUBLIC
from inferbus_schemas.policies import Match

_log = structlog.get_logger("api")


class Ready(BaseModel):
    """Whether a model can answer."""

    name: str
    ready: bool


class RequestTensor(BaseModel):
    """A tensor: `data` nested or flat, or `parameters.binary_data_size` and bytes behind."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """A request of the Open Inference Protocol.

    Of its parameters, `timeout` (microseconds) and `binary_data_output` mean something; those of a
    sequence are refused, others are ignored.
    """

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[RequestTensor]
    outputs: list[RequestedOutput] | None = None


class InferResponse(BaseModel):
    """An answer; its receipt stands in the header x-inferbus-receipt."""

    model_name: str
    model_version: str
    id: str
    outputs: list[RequestTensor]


class Taken(BaseModel):
    """Where the answer of a request will be that nobody waits for."""

    job: str


class Live(BaseModel):
    """Whether this process lives."""

    live: bool


class ServerReady(BaseModel):
    """Whether this gateway can take requests."""

    ready: bool


def make_app(
    views: Views,
    repository: ModelRepository,
    health: Health,
    access: Access,
    new_id: Callable[[], bytes],
    *more: APIRouter,
    count: Callable[[str], object] = str,
) -> Asgi:
    """Return the app of the control routes behind its door; each answer names a request id.

    `count` hears the code of each refusal; that a model is not ready is none.
    """
    inner = Door(control_routes(views, repository, health, *more), access, _refuse)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        extra = [(b"x-request-id", ids.text(new_id()).encode())]
        if scope["path"].startswith(docs.PATH):
            extra.append((b"content-security-policy", docs.POLICY))

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                for name, value in () if scope["path"].endswith("/ready") else headers:
                    if name == refusals.CODE:
                        count(value.decode())
                message["headers"] = [*headers, *extra]
            await send(message)

        await inner(_as_get(scope), receive, send_with_id)

    return app


def _as_get(scope: Scope) -> Scope:
    """Return what asks the same by GET, where anyone may: some who watch health ask by HEAD.

    The listener leaves the body of an answer to HEAD out.
    """
    found = POLICIES.find("GET", scope["path"]) if scope["method"] == "HEAD" else None
    if isinstance(found, Match) and found.policy == PUBLIC:
        return {**scope, "method": "GET"}
    return scope


def control_routes(
    views: Views, repository: ModelRepository, health: Health, *more: APIRouter
) -> FastAPI:
    """Return the app of the control routes without its door; its document has all routes."""
    app = FastAPIOffline(
        title="Inferbus gateway",
        version=VERSION,
        description="Open Inference Protocol v2 over Apache Kafka.",
        redirect_slashes=False,
        **docs.PAGE,
    )
    app.add_exception_handler(InferbusError, _inferbus_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
    _add_server_routes(app, views, health)
    app.include_router(extensions.routes(views, repository))
    _add_model_routes(app, views)
    for router in more:
        app.include_router(router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _either(kind: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Say that a probe answers alike whether it is well or not."""
    return {200: {"model": kind}, 503: {"model": kind}}


_READY = _either(Ready) | {404: UNKNOWN[404]}


def _add_server_routes(app: FastAPI, views: Views, health: Health) -> None:
    @app.get("/v2/", tags=["server"])
    @app.get("/v2", tags=["server"])
    async def server_metadata() -> ServerMetadata:
        """Tell name, version and extensions of this server."""
        return views.server()

    @app.get("/v2/health/live", tags=["server"], responses=_either(Live))
    async def live() -> JSONResponse:
        """Tell whether this process lives."""
        alive = not health.silent_loops()
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @app.get("/v2/health/ready", tags=["server"], responses=_either(ServerReady))
    async def ready() -> JSONResponse:
        """Tell whether this gateway can take requests."""
        fit = not health.reasons()
        return JSONResponse({"ready": fit}, 200 if fit else 503)

    @app.get("/asyncapi.json", tags=["operations"])
    async def topics() -> JSONResponse:
        """Describe the topics: who writes what, who reads it (AsyncAPI 3.0)."""
        return JSONResponse(asyncapi.document())

    @app.get("/livez", tags=["operations"], responses={503: {"description": "A loop is silent"}})
    @app.get("/readyz", tags=["operations"], responses={503: {"description": "Not ready"}})
    async def probes(request: Request) -> Response:
        """Answer a probe of an orchestrator."""
        status, body = health_answer(health, request.url.path) or (404, b"{}")
        return Response(body, status, media_type="application/json")


def _add_model_routes(app: FastAPI, views: Views) -> None:
    @app.get("/v2/models/{model}", tags=["models"], responses=UNKNOWN)
    async def model_metadata(model: str) -> ModelMetadata:
        """Describe the version that the model's default alias means now."""
        return views.model(model)

    @app.get("/v2/models/{model}/versions/{version}", tags=["models"], responses=UNKNOWN)
    async def version_metadata(model: str, version: str) -> ModelMetadata:
        """Describe a version, by number, alias or digest prefix."""
        return views.model(model, version)

    @app.get("/v2/models/{model}/ready", tags=["models"], responses=_READY)
    async def model_ready(model: str) -> JSONResponse:
        """Tell whether the model can answer."""
        return _ready(views, model, "")

    @app.get("/v2/models/{model}/versions/{version}/ready", tags=["models"], responses=_READY)
    async def version_ready(model: str, version: str) -> JSONResponse:
        """Tell whether a version can answer."""
        return _ready(views, model, version)


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with the routes that FastAPI does not serve."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        parts = document.setdefault("components", {}).setdefault("schemas", {})
        for kind in (InferRequest, InferResponse, Taken, ErrorBody):
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            parts.update(schema.pop("$defs", {}))
            parts[kind.__name__] = schema
        plain, versioned = "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"
        document["paths"][plain] = {"post": _infer_operation("infer", ["model"])}
        document["paths"][versioned] = {
            "post": _infer_operation("infer_version", ["model", "version"])
        }
        text_docs.describe(document)
        _describe_the_door(document)
        app.openapi_schema = document
    return app.openapi_schema


def _describe_the_door(document: dict[str, Any]) -> None:
    """Add what the door says to each route that does not tell it in its own words."""
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    said = {
        "401": {"description": "No key, or not a good one", "content": body},
        "403": {"description": "The key lacks the scope", "content": body},
        "429": {"description": "Too many bad keys", "content": body},
        "431": {"description": "The headers are too large", "content": body},
    }
    for (method, path), policy in POLICIES.table.items():
        operation = document["paths"].get(path, {}).get(method.lower())
        if operation is None or policy == PUBLIC:
            continue
        for status, response in said.items():
            if status != "403" or policy != AUTHENTICATED:
                operation["responses"].setdefault(status, response)


def _infer_operation(name: str, parameters: list[str]) -> dict[str, Any]:
    def content(schema: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

    failures = {
        str(status): {"description": "Refused or failed", "content": content("ErrorBody")}
        for status in text_docs.FAILURES
    }
    return {
        "tags": ["infer"],
        "operationId": name,
        "summary": "Infer",
        "description": "Tensors as JSON, or as bytes after the JSON where the header "
        "Inference-Header-Content-Length gives the length of the JSON. The parameter "
        "classification of an output asks for its greatest values, as `value:index:label`.",
        "parameters": [
            *(
                {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
                for each in parameters
            ),
            header_docs.PREFER,
            header_docs.IDEMPOTENCY_KEY,
            header_docs.TIMEOUT,
            header_docs.JSON_LENGTH,
        ],
        "requestBody": {"required": True, "content": content("InferRequest")},
        "responses": {
            "200": {
                "description": "The answer; with tensors as bytes where the request asks for them",
                "content": content("InferResponse") | {"application/octet-stream": {}},
            },
            "202": {
                "description": "Taken as a job, where Prefer asked for it",
                "headers": {"Location": {"schema": {"type": "string"}}},
                "content": content("Taken"),
            },
            **failures,
        },
    }


def _ready(views: Views, model: str, version: str) -> JSONResponse:
    name, fit = views.ready(model, version)
    body = {"name": name, "ready": fit}
    if fit:
        return JSONResponse(body)
    return JSONResponse(body, 503, refusals.head(errors.NoWorkerError, 503))


async def _inferbus_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, InferbusError):
        raise error
    return refusals.plain(error)


async def _refuse(error: InferbusError, scope: Scope, receive: Receive, send: Send) -> None:
    answer = refusals.by_path(scope["path"], error)
    if isinstance(error, errors.MethodNotAllowedError):
        answer.headers["allow"] = ", ".join(error.allowed)
    await answer(scope, receive, send)


async def _invalid(_request: Request, _error: Exception) -> Response:
    error = errors.InvalidRequestError("the request does not fit this route; see /docs")
    return refusals.plain(error)


async def _unexpected(_request: Request, error: Exception) -> Response:
    _log.error("route_failed", exc_info=error)
    said = "something went wrong here; the request id names it in our log"
    return refusals.plain(InferbusError(said))
