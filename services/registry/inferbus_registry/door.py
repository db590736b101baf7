"""The door of the control plane: who may call which route; what is not in the table has no route.

In: a request as it arrives. Out: the app is called with `state.principal`, or the request is
refused before a byte of its body is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from inferbus_kit import docs
from inferbus_kit.errors import InferbusError
from inferbus_registry import errors, problems
from inferbus_schemas import access
from inferbus_schemas.policies import Match, Policies, WrongMethod

_REGISTRY = "/v1/registry"
_MODEL = f"{_REGISTRY}/models/{{model}}"
_KEY = f"{_REGISTRY}/keys/{{key_id}}"

POLICIES = Policies(
    {
        ("GET", "/openapi.json"): access.PUBLIC,
        ("GET", docs.PATH): access.PUBLIC,
        ("GET", f"{docs.PATH}/static/{{file}}"): access.PUBLIC,
        ("HEAD", f"{_REGISTRY}/blobs/{{sha256}}"): access.MODELS_WRITE,
        ("PUT", f"{_REGISTRY}/blobs/{{sha256}}"): access.MODELS_WRITE,
        ("GET", f"{_REGISTRY}/models"): access.MODELS_READ,
        ("GET", _MODEL): access.MODELS_READ,
        ("GET", f"{_MODEL}/events"): access.AUDIT_READ,
        ("GET", f"{_MODEL}/rollout"): access.MODELS_READ,
        ("GET", f"{_MODEL}/versions/{{version}}"): access.MODELS_READ,
        ("POST", f"{_MODEL}/load"): access.DEPLOY,
        ("POST", f"{_MODEL}/unload"): access.DEPLOY,
        ("POST", f"{_MODEL}/versions"): access.MODELS_WRITE,
        ("PUT", f"{_MODEL}/aliases/{{alias}}"): access.DEPLOY,
        ("GET", f"{_REGISTRY}/keys"): access.ADMIN,
        ("POST", f"{_REGISTRY}/keys"): access.ADMIN,
        ("GET", _KEY): access.ADMIN,
        ("DELETE", _KEY): access.ADMIN,
        ("GET", f"{_KEY}/events"): access.AUDIT_READ,
        ("POST", f"{_KEY}/rotate"): access.ADMIN,
    }
)

Find = Callable[[str], Awaitable[access.Principal | None]]
"""Says whom a key stands for now, if anyone."""
Verify = Callable[[str], access.Principal | None]
"""Says whom a token that is no key of ours stands for now, if anyone."""


def nobody(_token: str) -> access.Principal | None:
    """Take no tokens."""
    return None


class Door:
    """Stands before the app.

    Invariants: the app sees only requests of routes in `POLICIES`, each with a principal that may
    use it; who presents a key or token that is not good is refused, also where none is needed.
    """

    def __init__(self, app: ASGIApp, find: Find, verify: Verify, *, local: bool) -> None:
        self._app = app
        self._find = find
        self._verify = verify
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in or refuse it."""
        if scope["type"] != "http":
            return
        found = POLICIES.find(scope["method"], scope["path"])
        if isinstance(found, Match):
            try:
                scope["state"]["principal"] = await self._admit(scope, found)
            except InferbusError as error:
                await self._refuse(problems.ours, error, scope, receive, send)
            else:
                await self._app(scope, receive, send)
            return
        missing = problems.nothing_here(found.allowed if isinstance(found, WrongMethod) else ())
        await self._refuse(problems.http, missing, scope, receive, send)

    async def _admit(self, scope: Scope, route: Match) -> access.Principal:
        if route.policy == access.PUBLIC:
            return access.ANONYMOUS
        caller = await self._caller(scope)
        verdict = access.judge(caller, route.policy, route.model)
        if verdict is access.Verdict.HIDDEN:
            raise errors.ModelNotFoundError
        if verdict is access.Verdict.FORBIDDEN and caller is access.ANONYMOUS:
            raise errors.UnauthorizedError
        if verdict is access.Verdict.FORBIDDEN:
            raise errors.ForbiddenError(f"Your key or token has not the scope {route.policy}.")
        return caller

    async def _caller(self, scope: Scope) -> access.Principal:
        headers = dict(scope["headers"])
        presented = headers.get(b"authorization")
        if presented is None:
            if self._local and _from_this_machine(scope, headers.get(b"host", b"")):
                return access.ANONYMOUS
            raise errors.UnauthorizedError
        text = access.bearer(presented)
        if text is None:
            raise errors.UnauthorizedError
        is_key = access.key_id(text) is not None
        found = await self._find(text) if is_key else self._verify(text)
        if found is None:
            raise errors.UnauthorizedError
        return found

    async def _refuse(
        self,
        answer: Callable[[Request, Exception], Awaitable[Response]],
        error: Exception,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        response = await answer(Request(scope), error)
        await response(scope, receive, send)


def _from_this_machine(scope: Scope, host: bytes) -> bool:
    client = scope.get("client")
    return (
        client is not None
        and access.is_loopback_address(client[0])
        and access.is_loopback_host(host)
        and not access.came_from_afar(scope["headers"], host)
    )
