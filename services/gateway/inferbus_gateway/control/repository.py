"""Triton's model repository: load and unload as changes of desired state, which the registry owns.

In: the name of a registered model. Out: the model serves, or serves no more, as far as this gateway
sees. The registry is asked by HTTP with what the caller presented, so that it alone says who may;
it may be away, and nothing of the data plane waits for it.

Loading gives a model its aliases back, those that it had when it was unloaded, or `champion` on the
newest version where it never had one. Unloading takes all aliases away; the versions stay
registered. Both end when the fleet has followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import quote

import httpx
import structlog

from inferbus_gateway import errors
from inferbus_gateway.hot.route import Routes
from inferbus_schemas import names

_log = structlog.get_logger("repository")

_ASK_S = 10.0
_FOLLOW_S = 120.0
_LOOK_S = 0.05


class ModelRepository:
    """Loads and unloads models.

    Invariants: a call that returns has seen its end in this gateway's own routing state; one that
    raises may still come to that end.
    """

    def __init__(self, routes: Routes, registry_url: str, follow_s: float = _FOLLOW_S) -> None:
        self._routes = routes
        self._registry_url = registry_url
        self._follow_s = follow_s

    async def load(
        self, model: str, authorization: str, parameters: frozenset[str] = frozenset()
    ) -> None:
        """Have the fleet serve a model; return when a worker holds what its aliases mean.

        Args:
            model: a registered model.
            authorization: what the caller presented, empty for nothing.
            parameters: the names of what came with the call.

        Raises:
            InvalidRequestError: a configuration or files came along, or the name is not valid.
            UnauthorizedError, ForbiddenError: the registry does not let the caller.
            UnknownModelError: the registry knows no such model, or no version of it.
            RegistryUnavailableError: the registry does not answer.
            LoadFailedError: no worker can load it.
            DeadlineExceededError: it takes longer than clients wait.
        """
        if parameters:
            raise errors.InvalidRequestError(
                f"failed to load {_shown(model)}: this server takes neither configuration nor "
                f"files; push a version to the registry and load it without parameters"
            )
        generation = await self._change(model, "load", authorization)
        await self._followed(model, "load", lambda: self._serves(model, generation))

    async def unload(self, model: str, authorization: str) -> None:
        """Have the fleet serve a model no more; return when no alias of it is left here.

        Raises:
            UnauthorizedError, ForbiddenError, InvalidRequestError, UnknownModelError,
                RegistryUnavailableError, DeadlineExceededError: as `load`.
        """
        generation = await self._change(model, "unload", authorization)
        await self._followed(model, "unload", lambda: self._routes.generation(model) >= generation)

    async def _change(self, model: str, verb: str, authorization: str) -> int:
        """Ask the registry; return the generation of the desired state that says so."""
        try:
            names.check_model(model)
        except names.InvalidNameError as error:
            raise errors.InvalidRequestError(f"failed to {verb}: {error}") from None
        url = f"{self._registry_url}/v1/registry/models/{quote(model)}/{verb}"
        headers = {"authorization": authorization} if authorization else {}
        try:
            async with httpx.AsyncClient(timeout=_ASK_S, trust_env=False) as http:
                answer = await http.post(url, headers=headers)
        except httpx.HTTPError as error:
            _log.warning("registry_away", error=repr(error))
            raise errors.RegistryUnavailableError(
                f"failed to {verb} {model}: the registry does not answer; what is loaded serves on"
            ) from None
        if answer.status_code == httpx.codes.OK:
            return int(answer.json()["generation"])
        _log.warning("registry_refused", status=answer.status_code, verb=verb, model=model)
        raise _refusal(answer.status_code, f"failed to {verb} {model}")

    def _serves(self, model: str, generation: int) -> bool:
        """Tell whether workers hold all that the model's aliases want."""
        if self._routes.generation(model) < generation:
            return False
        ready = True
        for version in self._routes.wanted(model):
            state, reason = self._routes.state(model, version)
            if state == "UNAVAILABLE":
                raise errors.LoadFailedError(f"failed to load {model}: version {version}: {reason}")
            ready = ready and state == "READY"
        return ready

    async def _followed(self, model: str, verb: str, done: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(self._follow_s):
                while not done():  # noqa: ASYNC110 -- routing state tells nobody of its changes
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise errors.DeadlineExceededError(
                f"failed to {verb} {model} in time; it goes on, ask the repository's index"
            ) from None


def _refusal(status: int, what: str) -> errors.InferbusError:
    """Return what a caller is told where the registry does not do it."""
    if status == httpx.codes.UNAUTHORIZED:
        return errors.UnauthorizedError(f"{what}: send a key or token that may deploy")
    if status == httpx.codes.FORBIDDEN:
        return errors.ForbiddenError(f"{what}: the key or token has not the scope deploy")
    if status == httpx.codes.NOT_FOUND:
        return errors.UnknownModelError(
            f"Request for unknown model: {what}, no version of it is registered"
        )
    return errors.RegistryUnavailableError(
        f"{what}: the registry cannot change it now; try again shortly"
    )


def _shown(model: str) -> str:
    return repr(model[:64])
