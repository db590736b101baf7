"""Pieces of an answer as they come, read for calls of tools; pure.

In: pieces as the engine makes them. Out: pieces as the worker passes them on, in which calls are
deltas of the OpenAI API and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from inferbus_worker.engines.call_text import CallsReader
from inferbus_worker.engines.calls import CallReader


@dataclass(slots=True)
class Piece:
    """What one call back brought; all of it may be empty: then it only says that work goes on."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: list[Any] = field(default_factory=list)
    tool_calls: list[Any] = field(default_factory=list)
    finish_reason: str = ""
    n_tokens: int = 0
    n_prompt_tokens: int = 0
    usage: dict[str, Any] | None = None
    held: bool = False
    """A token came, and is kept back until it is known what it belongs to."""

    @property
    def is_said(self) -> bool:
        """Whether it is a part of the answer, and not only news of the work on it."""
        return bool(self.text or self.n_tokens or self.tool_calls or self.finish_reason)


class Reader(Protocol):
    """Reads the pieces of one answer; `over` says that what follows is not wanted."""

    over: bool

    def take(self, piece: Piece) -> list[Piece]:
        """Take a piece; return what is to be passed on."""
        ...

    def end(self) -> list[Piece]:
        """Return what is left when nothing follows."""
        ...


class Text:
    """Reads an answer that is text, or whose calls the engine itself tells."""

    over = False

    def take(self, piece: Piece) -> list[Piece]:
        return [piece]

    def end(self) -> list[Piece]:
        return []


class DemandedCall:
    """Reads an answer that a grammar makes a call."""

    over = False

    def __init__(self, call_id: str) -> None:
        self._reader = CallReader(call_id)

    def take(self, piece: Piece) -> list[Piece]:
        piece.tool_calls, piece.text = self._reader.feed(piece.text), ""
        if piece.finish_reason == "stop":
            piece.finish_reason = "tool_calls"
        return [piece]

    def end(self) -> list[Piece]:
        return []


class OfferedCalls:
    """Reads an answer that may be calls.

    Invariants: what was held back comes out as one piece; each call is a piece of its own, so that
    a stream may be resumed between two; after the calls the answer is over.
    """

    def __init__(
        self, names: Collection[str], new_id: Callable[[], str], *, one_call: bool
    ) -> None:
        self._reader = CallsReader(names)
        self._new_id = new_id
        self._one_call = one_call
        self._held = Piece()
        self.over = False

    def take(self, piece: Piece) -> list[Piece]:
        if not piece.is_said:
            return [piece]
        if self.over:
            return []
        self._hold(piece)
        text = self._reader.feed(piece.text)
        if self._reader.calls:
            return self._calls()
        if piece.finish_reason:
            text += self._reader.end()
        # Held back, the answer goes on all the same.
        return [self._let_go(text)] if text or piece.finish_reason else [Piece(held=True)]

    def end(self) -> list[Piece]:
        return [self._let_go(text)] if (text := self._reader.end()) else []

    def _hold(self, piece: Piece) -> None:
        held = self._held
        held.token_ids += piece.token_ids
        held.logprobs += piece.logprobs
        held.n_tokens += piece.n_tokens
        held.finish_reason = piece.finish_reason

    def _let_go(self, text: str) -> Piece:
        held, self._held = self._held, Piece()
        held.text = text
        return held

    def _calls(self) -> list[Piece]:
        self.over = True
        made = self._reader.calls[: 1 if self._one_call else None]
        deltas = [
            {
                "index": index,
                "id": self._new_id(),
                "type": "function",
                "function": {"name": one.name, "arguments": bytes(one.arguments).decode()},
            }
            for index, one in enumerate(made)
        ]
        first = self._let_go("")
        first.tool_calls, first.finish_reason = [deltas[0]], ""
        more = [Piece(tool_calls=[delta]) for delta in deltas[1:]]
        return [first, *more, Piece(finish_reason="tool_calls")]
