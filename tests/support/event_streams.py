"""Streams of text as a client reads them.

In: a route of a gateway. Out: what was heard by the time the stream ended, was cut, or was left.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx

STORY: dict[str, Any] = {
    "model": "smollm2",
    "prompt": "Once upon a time",
    "max_tokens": 60,
    "temperature": 0.8,
    "seed": 11,
    "stream": True,
}
"""A stream of some seconds; with more tokens of half a minute."""


@dataclass(slots=True)
class Heard:
    """What a client read of one stream."""

    request_id: str = ""
    places: list[str] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    done: bool = False
    error: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    cut: bool = False
    _place: str = ""

    @property
    def text(self) -> str:
        return self.texts.get(0, "")

    def line(self, line: str) -> None:
        if line.startswith("id: "):
            self._place = line.removeprefix("id: ")
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            self._data(json.loads(line.removeprefix("data: ")))
            if self._place:
                self.places.append(self._place)
            self._place = ""

    def _data(self, body: dict[str, Any]) -> None:
        self.error = body.get("error", self.error)
        self.usage = body.get("usage", self.usage)
        for choice in body.get("choices", ()):
            self._say(
                choice["index"],
                choice.get("text") or choice.get("delta", {}).get("content") or "",
            )
        if "text_output" in body:
            # Triton's; the last one says so itself.
            self._say(0, body["text_output"])
            self.done = bool(body.get("done"))
        # Events of `/v1/responses` are of a type and numbered.
        if kind := body.get("type"):
            self.numbers.append(body["sequence_number"])
            self.done = kind in {"response.completed", "response.incomplete"}
            if kind == "error":
                self.error = body
            if kind == "response.output_text.delta":
                self._say(0, body["delta"])

    def _say(self, choice: int, text: str) -> None:
        self.texts[choice] = self.texts.get(choice, "") + text


async def read(
    method: str, url: str, heard: Heard, *, stop_after: int | None = None, **said: Any
) -> Heard:
    """Read a stream to its end, or leave after so many events."""
    try:
        async with (
            httpx.AsyncClient(timeout=120, trust_env=False) as client,
            client.stream(method, url, **said) as answer,
        ):
            assert answer.status_code == 200, (await answer.aread()).decode()
            heard.request_id = answer.headers["x-request-id"]
            async for line in answer.aiter_lines():
                heard.line(line)
                if stop_after is not None and len(heard.places) >= stop_after:
                    break
    except httpx.HTTPError:
        heard.cut = True
    return heard


async def begun(heard: Heard, n_events: int) -> None:
    """Wait until a stream has given so many events."""
    async with asyncio.timeout(60):
        while len(heard.places) < n_events:  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.005)
