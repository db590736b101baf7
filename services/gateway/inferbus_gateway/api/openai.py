"""The OpenAI API: chats, completions, embeddings, reranking, models, streams; plain ASGI.

In: one HTTP request under `/v1` or `/openai/v1`, or Triton's `generate`. Out: an answer in the
shape that the `openai` SDK reads, errors too. Bodies are read by hand, as all hot ones are: what is
not known is refused, never passed on.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog

from inferbus_gateway import errors
from inferbus_gateway.api import jobs
from inferbus_gateway.api.openai_routes import PREFIXES, served_here, under
from inferbus_gateway.control.resume import Resumer
from inferbus_gateway.door import Door, peer_of
from inferbus_gateway.hot import dialects, embeddings, prompts, rerank
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.answer import Answer, Headers, send
from inferbus_gateway.hot.generations import Call, EndedError, Generations
from inferbus_gateway.hot.incoming import Bodies, Head, keeps, read_head
from inferbus_gateway.hot.keyed import Once
from inferbus_gateway.hot.keyed_text import (
    Asked,
    KeyedTexts,
    Read,
    Sent,
    check_whole,
    embedding,
    generating,
)
from inferbus_gateway.hot.kinds import EMBEDDINGS, KINDS, Kind, settings_of
from inferbus_gateway.hot.requests import Requests
from inferbus_gateway.hot.route import Routes, Target
from inferbus_gateway.hot.text_answers import as_json, generated, of_vectors, origin
from inferbus_gateway.retry_after import retry_after_s
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Asgi, Receive, Scope, Send
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import ids
from inferbus_schemas.access import INFER, Principal

_log = structlog.get_logger("openai")

_PREFIX = "/openai"
_GENERATE = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/generate(_stream)?")
_BROKEN = "something went wrong here; the request id names it in our log"
_UNAUTHORIZED = 401

Route = Callable[[Scope, Receive, Send, bytes], Awaitable[None]]


class OpenAI:
    """The routes.

    Invariants: each request is answered once; until a response has begun every error has its own
    status and the shape of its route.
    """

    def __init__(
        self,
        *,
        access: Access,
        routes: Routes,
        requests: Requests,
        generations: Generations,
        resumer: Resumer,
        metrics: GatewayMetrics,
        bodies: Bodies,
        once: Once | None = None,
    ) -> None:
        self._keyed = KeyedTexts(routes, requests, once)
        self._access = access
        self._routes = routes
        self._requests = requests
        self._generations = generations
        self._resumer = resumer
        self._metrics = metrics
        self._bodies = bodies
        self._by_path: dict[str, Route] = {
            **{path: partial(self._text, kind) for path, kind in KINDS.items()},
            EMBEDDINGS: partial(self._vectors, embeddings.read),
            "/v1/rerank": partial(self._vectors, rerank.read_rerank),
            "/v1/score": partial(self._vectors, rerank.read_score),
            "/v1/models": self._models,
        }
        self._door = Door(self._serve, access, self._turn_away)

    def serves(self, path: str) -> bool:
        """Tell whether a path is one of these routes, or under their prefixes and of no other."""
        if served_here(path) or under(path, jobs.PATH):
            return False
        return any(under(path, prefix) for prefix in PREFIXES) or self._find(path) is not None

    def _find(self, path: str) -> Route | None:
        path = path.removeprefix(_PREFIX)
        if path.startswith("/v1/models/"):
            return self._model
        if path.startswith("/v1/streams/"):
            return self._resume
        if _GENERATE.fullmatch(path):
            return self._generate
        return self._by_path.get(path)

    async def __call__(self, scope: Scope, receive: Receive, send_: Send) -> None:
        """Answer one request, or turn it away at the door."""
        await self._door(scope, receive, send_)

    async def _turn_away(
        self, error: InferbusError, scope: Scope, _receive: Receive, send_: Send
    ) -> None:
        await send(send_, self._refused(error, self._requests.new_id(), scope=scope))

    async def _serve(self, scope: Scope, receive: Receive, send_: Send) -> None:
        request_id = self._requests.new_id()
        begun = False

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send_(message)

        try:
            route = self._find(scope["path"])
            assert route is not None  # noqa: S101 -- the door's table has no other routes
            await route(scope, receive, watched, request_id)
        except Exception as error:  # noqa: BLE001 -- each request is answered in our own words
            if begun:
                _log.error("cut_off", request_id=ids.text(request_id), exc_info=error)
                return
            await send(send_, self._refused(error, request_id, scope=scope))

    def _refused(
        self, error: Exception, request_id: bytes, *, scope: Scope, safe: bool = False
    ) -> Answer:
        said, code = InferbusError(_BROKEN), ""
        headers = [(b"x-request-id", ids.text(request_id).encode())]
        if isinstance(error, EndedError):
            said, code = error.error, error.prediction.error_code
            headers += origin(error.prediction)
        elif isinstance(error, InferbusError):
            said = error
            self._metrics.rejected.labels(error.code).inc()
        else:
            _log.error("openai_failed", request_id=ids.text(request_id), exc_info=error)
        headers.append((b"x-inferbus-error-code", (code or said.code).encode()))
        # The SDK would else send again what may be running, which only a key makes safe.
        again = said.retryable or (safe and isinstance(said, errors.OutcomeUnknownError))
        headers.append((b"x-should-retry", b"true" if again else b"false"))
        if said.http_status == _UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(said, errors.MethodNotAllowedError):
            headers.append((b"allow", ", ".join(said.allowed).encode()))
        if (wait_s := retry_after_s(said)) is not None:
            headers.append((b"retry-after", b"%d" % wait_s))
        shape = _triton_error if _GENERATE.fullmatch(scope["path"]) else dialects.openai_error
        return as_json(said.http_status, headers, shape(said, code))

    async def _read(self, scope: Scope, receive: Receive) -> tuple[Sent, prompts.Body]:
        self._requests.admit()
        self._requests.enter(scope["state"]["principal"])
        head = read_head(scope["headers"])
        raw = await self._bodies.read(receive, head)
        return Sent(head, scope["path"].removeprefix(_PREFIX), raw), prompts.decode(raw)

    def _caller(self, scope: Scope, head: Head, model: str) -> Principal:
        """Return who asks, who may use a model that stands in the body."""
        headers = scope["headers"]
        peer = peer_of(scope)
        return self._access.check(
            head.authorization, head.host, peer, INFER, model, headers=headers
        )

    async def _text(
        self,
        kind: Kind,
        scope: Scope,
        receive: Receive,
        send_: Send,
        request_id: bytes,
    ) -> None:
        sent, body = await self._read(scope, receive)
        name, version = prompts.model_of(body)
        caller = self._caller(scope, sent.head, name)
        span, keep = f"POST {sent.path}", keeps(scope["headers"])

        def make(target: Target, call_id: bytes) -> Call:
            ask, dialect = kind.read(body, settings_of(target)), kind.dialect(call_id)
            return Call(call_id, caller, target, ask, dialect, sent.head, span, keep)

        if self._keyed.takes(sent.head):
            check_whole(body.get("stream"))
            asked = Asked(request_id, caller.tenant, name, version, sent)
            read = generating(self._generations, make)
            await self._once(scope, receive, send_, asked, read)
            return
        target = self._routes.resolve(name, version)
        await self._run(make(target, request_id), receive, send_)

    async def _generate(
        self, scope: Scope, receive: Receive, send_: Send, request_id: bytes
    ) -> None:
        found = _GENERATE.fullmatch(scope["path"])
        model, version, stream = found.groups() if found is not None else ("", "", "")
        sent, body = await self._read(scope, receive)
        span = f"POST /v2/models/{{model}}/generate{stream or ''}"
        keep = keeps(scope["headers"])
        caller: Principal = scope["state"]["principal"]

        def make(target: Target, call_id: bytes) -> Call:
            ask = prompts.triton(body, settings_of(target), stream=bool(stream))
            own_id = prompts.own_id(body)
            dialect = dialects.Triton(own_id)
            return Call(call_id, caller, target, ask, dialect, sent.head, span, keep, own_id)

        asked = Asked(request_id, caller.tenant, model, version or "", sent)
        if self._keyed.takes(sent.head):
            check_whole(stream)
            await self._once(scope, receive, send_, asked, generating(self._generations, make))
        else:
            target = self._routes.resolve(model, asked.version)
            await self._run(make(target, request_id), receive, send_)

    async def _run(self, call: Call, receive: Receive, send_: Send) -> None:
        if call.ask.generation.stream:
            await self._generations.stream(call, receive, send_)
            return
        answered = await self._generations.whole(call, receive)
        if answered is not None:
            await send(send_, generated(call, *answered))

    async def _once(
        self, scope: Scope, receive: Receive, send_: Send, asked: Asked, read: Read
    ) -> None:
        """Answer a request with a key, by whatever runs or ran for it."""
        refused = partial(self._refused, scope=scope)
        answer = await self._keyed.answer(asked, read, refused, receive)
        if answer is not None:
            await send(send_, answer)

    async def _vectors(
        self,
        read: Callable[[prompts.Body, Target], embeddings.Ask],
        scope: Scope,
        receive: Receive,
        send_: Send,
        request_id: bytes,
    ) -> None:
        sent, body = await self._read(scope, receive)
        name, version = prompts.model_of(body)
        caller = self._caller(scope, sent.head, name)
        if self._keyed.takes(sent.head):
            asked = Asked(request_id, caller.tenant, name, version, sent)
            once = embedding(self._requests, partial(read, body), caller, sent.head)
            await self._once(scope, receive, send_, asked, once)
            return
        target = self._routes.resolve(name, version)
        ask = read(body, target)
        vectors = await embeddings.run(
            self._requests,
            request_id,
            caller=caller,
            target=target,
            texts=ask.texts,
            head=sent.head,
        )
        said = ask.answer(request_id, vectors.raw, vectors.n_tokens)
        await send(send_, of_vectors(request_id, target, vectors.receipts, said))

    async def _models(
        self, scope: Scope, _receive: Receive, send_: Send, request_id: bytes
    ) -> None:
        caller: Principal = scope["state"]["principal"]
        data = []
        for model in self._routes.models:
            if not caller.sees(model):
                continue
            try:
                data.append(self._described(model, self._routes.resolve(model)))
            except InferbusError:
                continue  # not served yet, so not to be asked
        head: Headers = [(b"x-request-id", ids.text(request_id).encode())]
        await send(send_, as_json(200, head, {"object": "list", "data": data}))

    async def _model(self, scope: Scope, _receive: Receive, send_: Send, request_id: bytes) -> None:
        name = scope["path"].removeprefix(_PREFIX).removeprefix("/v1/models/")
        model, version = prompts.model_of({"model": name})
        target = self._routes.resolve(model, version)
        head: Headers = [(b"x-request-id", ids.text(request_id).encode())]
        await send(send_, as_json(200, head, self._described(name, target)))

    def _described(self, name: str, target: Target) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._routes.created_s(target),
            "owned_by": "inferbus",
        }

    async def _resume(self, scope: Scope, receive: Receive, send_: Send, _own_id: bytes) -> None:
        name = scope["path"].removeprefix(_PREFIX).removeprefix("/v1/streams/")
        last = dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1")
        caller: Principal = scope["state"]["principal"]
        self._requests.enter(caller)
        await self._resumer.resume(name, last, caller.tenant, receive, send_)


def before(openai: OpenAI, rest: Asgi) -> Asgi:
    """Return an app that answers these routes itself and leaves all others to `rest`."""

    async def app(scope: Scope, receive: Receive, send_: Send) -> None:
        await (openai if openai.serves(scope["path"]) else rest)(scope, receive, send_)

    return app


def _triton_error(error: InferbusError, _code: str = "") -> dict[str, Any]:
    return {"error": str(error)}
