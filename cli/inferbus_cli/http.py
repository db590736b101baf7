"""Requests to our own services; trouble becomes a sentence.

In: a service's URL. Out: answers that are good, or a `CommandError` with what the service said.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from inferbus_cli import places
from inferbus_cli.errors import CommandError

_TIMEOUT = httpx.Timeout(30.0, connect=3.0)
_PATIENCE_S = 60.0
"""How long a change of ours comes back while changes of others hold the lock of all changes."""
_LONGEST_WAIT_S = 10.0
_BUSY = "busy"


class Service:
    """One of our HTTP services.

    Invariants: `call` returns only answers below 400 or those in `accept`; it sends again only what
    was refused as `busy`, which changed nothing; nothing goes through a proxy of the environment.
    """

    def __init__(self, name: str, url: str, option: str, key: str) -> None:
        self._name = name
        self._url = url
        self._option = option
        self._key = key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(
                base_url=url, headers=headers, timeout=_TIMEOUT, trust_env=False
            )
        except UnicodeEncodeError as error:
            raise CommandError("INFERBUS_API_KEY is no key and no token: correct it.") from error

    def __enter__(self) -> Self:
        """Return this service; its connections close at exit."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        accept: frozenset[int] = frozenset(),
    ) -> httpx.Response:
        """Send a request and return its answer.

        Raises:
            CommandError: nobody answers, or the answer is an error that `accept` does not name.
        """
        options: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s}
        if json is not None:
            options["json"] = json
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            with self._trouble():
                answer = self._client.request(
                    method, path, content=content, headers=dict(headers or {}), **options
                )
            wait_s = _busy_s(answer)
            # What streams its body has none to send again.
            streams = content is not None and not isinstance(content, bytes)
            if not wait_s or streams or time.monotonic() + wait_s > until_s:
                break
            sys.stderr.write(f"The {self._name} is busy; again in {wait_s:.0f} s.\n")
            time.sleep(wait_s)
        if answer.status_code >= httpx.codes.BAD_REQUEST and answer.status_code not in accept:
            raise CommandError(self._refusal(answer))
        return answer

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the body of an address as it comes.

        Raises:
            CommandError: as `call`.
        """
        with self._trouble(), self._client.stream("GET", path) as answer:
            if answer.status_code >= httpx.codes.BAD_REQUEST:
                answer.read()
                raise CommandError(self._refusal(answer))
            yield from answer.iter_bytes()

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Turn what goes wrong on the way into a sentence."""
        try:
            yield
        except httpx.ConnectError as error:
            raise CommandError(
                f"The {self._name} at {self._url} does not answer: start the stack with "
                f"`make up`, or name another address with {self._option}."
            ) from error
        except httpx.TimeoutException as error:
            raise CommandError(
                f"The {self._name} at {self._url} took too long to answer; try again."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(
                f"The {self._name} at {self._url} broke the connection off; try again."
            ) from error

    def get(self, path: str) -> Any:
        """Return the JSON of an address."""
        return body(self.call("GET", path))

    def _refusal(self, answer: httpx.Response) -> str:
        said = _problem(answer)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            how = "it does not take that of" if self._key else "set"
            return f"The {self._name} wants a key or token: {how} INFERBUS_API_KEY."
        detail = said.get("detail") or said.get("error") or answer.reason_phrase
        code = said.get("code")
        mark = f"{answer.status_code} {code}" if code else str(answer.status_code)
        return f"The {self._name} refuses ({mark}): {detail}"


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """Return the members of an error's document; a body that is none has none."""
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _busy_s(answer: httpx.Response) -> float:
    """Return after how long a refusal asks to come back, or 0 where it does not."""
    if (
        answer.status_code != httpx.codes.SERVICE_UNAVAILABLE
        or _problem(answer).get("code") != _BUSY
    ):
        return 0.0
    asked = answer.headers.get("retry-after", "")
    wait_s = float(asked) if asked.isdecimal() else 0.0
    return min(max(1.0, wait_s), _LONGEST_WAIT_S)


def registry(url: str) -> Service:
    """Return the registry at a URL."""
    key = places.api_key("registry", url)
    return Service("registry", url, "--registry or INFERBUS_REGISTRY_URL", key)


def gateway(url: str) -> Service:
    """Return the gateway at a URL."""
    return Service("gateway", url, "--gateway or INFERBUS_GATEWAY_URL", places.api_key("http", url))


def body(answer: httpx.Response) -> Any:
    """Return an answer's JSON.

    Raises:
        CommandError: it has none, so that something else listens there.
    """
    try:
        return answer.json()
    except ValueError as error:
        raise CommandError(
            f"What answers at {answer.url} is no part of Inferbus; check the address."
        ) from error
