"""The door of the gateway: who may call which route; what is not in the table has no route.

In: a request of the control routes as it arrives. Out: the app is called with `state.principal`, or
the request is refused before its body is read. The hot route stands in the table too, and asks
`Access` itself; `api/rpc_door` stands before the methods of the gRPC service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from inferbus_gateway import errors
from inferbus_gateway.hot.access import Access
from inferbus_kit import docs
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Asgi, Receive, Scope, Send
from inferbus_schemas import access
from inferbus_schemas.policies import Match, Policies, WrongMethod

_MODEL = "/v2/models/{model}"
_VERSION = f"{_MODEL}/versions/{{version}}"
_JOBS = "/v1/jobs"
_JOB = f"{_JOBS}/{{job}}"

_OPENAI = (
    ("POST", "chat/completions"),
    ("POST", "completions"),
    ("POST", "embeddings"),
    ("POST", "responses"),
    ("POST", "rerank"),
    ("POST", "score"),
    ("GET", "models"),
    ("GET", "streams/{request_id}"),
    ("GET", "files"),
    ("GET", "files/{file}"),
    ("GET", "files/{file}/content"),
    ("GET", "batches"),
    ("GET", "batches/{batch}"),
)
_CHANGING = (
    ("POST", "files"),
    ("DELETE", "files/{file}"),
    ("POST", "batches"),
    ("POST", "batches/{batch}/cancel"),
)
"""What makes, ends or deletes something of the caller's tenant."""

POLICIES = Policies(
    {
        ("GET", "/livez"): access.PUBLIC,
        ("GET", "/readyz"): access.PUBLIC,
        ("GET", docs.PATH): access.PUBLIC,
        ("GET", "/asyncapi.json"): access.PUBLIC,
        ("GET", f"{docs.PATH}/static/{{file}}"): access.PUBLIC,
        ("GET", "/openapi.json"): access.PUBLIC,
        ("GET", "/v2"): access.AUTHENTICATED,
        ("GET", "/v2/"): access.AUTHENTICATED,
        ("GET", "/v2/health/live"): access.PUBLIC,
        ("GET", "/v2/health/ready"): access.PUBLIC,
        ("GET", "/v2/models/stats"): access.MODELS_READ,
        ("POST", "/v2/repository/index"): access.MODELS_READ,
        ("POST", "/v2/repository/models/{model}/load"): access.DEPLOY,
        ("POST", "/v2/repository/models/{model}/unload"): access.DEPLOY,
        ("GET", _MODEL): access.MODELS_READ,
        ("GET", _VERSION): access.MODELS_READ,
        ("GET", f"{_MODEL}/ready"): access.MODELS_READ,
        ("GET", f"{_VERSION}/ready"): access.MODELS_READ,
        ("GET", f"{_MODEL}/config"): access.MODELS_READ,
        ("GET", f"{_VERSION}/config"): access.MODELS_READ,
        ("GET", f"{_MODEL}/stats"): access.MODELS_READ,
        ("GET", f"{_VERSION}/stats"): access.MODELS_READ,
        ("POST", f"{_MODEL}/infer"): access.INFER,
        ("POST", f"{_VERSION}/infer"): access.INFER,
        ("POST", f"{_MODEL}/generate"): access.INFER,
        ("POST", f"{_VERSION}/generate"): access.INFER,
        ("POST", f"{_MODEL}/generate_stream"): access.INFER,
        ("POST", f"{_VERSION}/generate_stream"): access.INFER,
        **{
            (method, f"{prefix}/v1/{path}"): access.AUTHENTICATED
            for prefix in ("", "/openai")
            for method, path in _OPENAI
        },
        **{
            (method, f"{prefix}/v1/{path}"): access.INFER_SOME
            for prefix in ("", "/openai")
            for method, path in _CHANGING
        },
        ("GET", "/v1/models/{model}"): access.MODELS_READ,
        ("GET", "/openai/v1/models/{model}"): access.MODELS_READ,
        ("POST", _JOBS): access.INFER_SOME,
        ("GET", _JOBS): access.AUTHENTICATED,
        ("GET", _JOB): access.AUTHENTICATED,
        ("DELETE", _JOB): access.INFER_SOME,
        ("GET", f"{_JOB}/results"): access.AUTHENTICATED,
        ("POST", f"{_JOB}/retry"): access.INFER_SOME,
    }
)
"""Each route of the gateway. One whose model stands in its body, or in what it changes, is
AUTHENTICATED or INFER_SOME here, and asks for INFER once it knows the model."""

METHODS = {
    "ServerLive": access.PUBLIC,
    "ServerReady": access.PUBLIC,
    "ServerMetadata": access.AUTHENTICATED,
    "ModelReady": access.MODELS_READ,
    "ModelMetadata": access.MODELS_READ,
    "ModelConfig": access.MODELS_READ,
    "ModelStatistics": access.MODELS_READ,
    "RepositoryIndex": access.MODELS_READ,
    "RepositoryModelLoad": access.DEPLOY,
    "RepositoryModelUnload": access.DEPLOY,
    "ModelInfer": access.INFER,
    "ModelStreamInfer": access.INFER,
}
"""Each method of the gRPC service; health and reflection are for anyone."""

Refuse = Callable[[InferbusError, Scope, Receive, Send], Awaitable[None]]
"""Answers a request with an error, in the dialect of its route."""


class Door:
    """Stands before the control routes.

    Invariants: the app sees only requests of routes in `POLICIES`, each with a principal that may
    use it in `state.principal`.
    """

    def __init__(self, app: Asgi, access_: Access, refuse: Refuse) -> None:
        self._app = app
        self._access = access_
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in or refuse it."""
        try:
            principal = self._admit(scope)
        except InferbusError as error:
            await self._refuse(error, scope, receive, send)
        else:
            scope.setdefault("state", {})["principal"] = principal
            await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> access.Principal:
        found = POLICIES.find(scope["method"], scope["path"])
        if isinstance(found, Match):
            if found.policy == access.PUBLIC:
                return access.ANONYMOUS
            headers = dict(scope["headers"])
            return self._access.check(
                headers.get(b"authorization"),
                headers.get(b"host", b""),
                peer_of(scope),
                found.policy,
                # No name has a colon: what follows one is a version.
                found.model.partition(":")[0] or found.model,
                headers=scope["headers"],
            )
        if isinstance(found, WrongMethod):
            raise errors.MethodNotAllowedError(found.allowed)
        raise errors.NotFoundError("no such route")


def peer_of(scope: Scope) -> str:
    """Return the address of the connection's other end; empty where it has none."""
    client = scope.get("client")
    return client[0] if client else ""
