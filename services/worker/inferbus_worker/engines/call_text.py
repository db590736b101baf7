"""Calls that a model makes of itself, read from the text of its answer as it grows; pure.

In: the names of the functions that it may call, then text in pieces. Out: the calls, where the
answer begins with `<tool_call>[{"name": ..., "arguments": {...}}, ...]</tool_call>`; else its text.
A grammar reads character by character, so that text is held back only while it may become calls.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import TypeAlias

import msgspec

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_SPACES = " \t\r\n"
_DIGITS = "0123456789"
_MAX_DEPTH = 32
"""Of arguments; deeper ones are no call of ours."""

_Step: TypeAlias = Generator[None, str, str]
"""Reads on from a character that was read, and asks for more; returns the first behind its part."""


class _NoCallError(ValueError):
    """What was read can be the beginning of no call."""


class Call(msgspec.Struct, frozen=True):
    """One call; its arguments are a JSON object as the model wrote it."""

    name: str
    arguments: msgspec.Raw


class CallsReader:
    """The calls of an answer, or its text.

    Invariants: what comes out depends on the whole text and never on how it was cut; with calls no
    text comes out, also of what follows them; without, all of the text does, in its order; what is
    held back is always the beginning of an answer with calls.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._grammar = _answer([_encoded(name) for name in names])
        next(self._grammar)
        self._held = ""
        self._is_text = False
        self.calls: list[Call] = []

    def feed(self, text: str) -> str:
        """Take a piece of text; return what is sure to be no call."""
        if self.calls:
            return ""
        self._held += text
        if not self._is_text:
            self._read(text)
        return self.end() if self._is_text else ""

    def end(self) -> str:
        """Return what was held back: no more will follow it."""
        text, self._held = self._held, ""
        return text

    def _read(self, text: str) -> None:
        for at, one in enumerate(text):
            try:
                self._grammar.send(one)
            except _NoCallError:
                self._is_text = True
                return
            except StopIteration:
                whole = self._held[: len(self._held) - len(text) + at + 1]
                self._take(whole.strip(_SPACES)[len(OPEN) : -len(CLOSE)])
                return

    def _take(self, raw: str) -> None:
        try:
            self.calls = msgspec.json.decode(raw, type=list[Call])
        except (msgspec.DecodeError, UnicodeEncodeError):
            # Half of a surrogate pair, which the grammar does not see.
            self._is_text = True
        else:
            self._held = ""


def _encoded(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _answer(names: list[str]) -> Generator[None, str, None]:
    """Read a list of calls; `names` as JSON writes them."""
    at = yield from _spaces((yield))
    at = yield from _spaces((yield from _word(at, [OPEN])))
    at = yield from _past(at, "[")
    at = yield from _call(at, names)
    while at == ",":
        at = yield from _call((yield from _past(at, ",")), names)
    at = yield from _past(at, "]")
    yield from _word(at, [CLOSE], last=True)


def _call(at: str, names: list[str]) -> _Step:
    at = yield from _past(at, "{")
    at = yield from _spaces((yield from _word(at, ['"name"'])))
    at = yield from _past(at, ":")
    at = yield from _spaces((yield from _word(at, names)))
    at = yield from _past(at, ",")
    at = yield from _spaces((yield from _word(at, ['"arguments"'])))
    at = yield from _past(at, ":")
    if at != "{":
        raise _NoCallError
    at = yield from _spaces((yield from _object(1)))
    return (yield from _past(at, "}"))


def _spaces(at: str) -> _Step:
    while at in _SPACES:
        at = yield
    return at


def _past(at: str, want: str) -> _Step:
    """Read one character and the spaces behind it."""
    if at != want:
        raise _NoCallError
    return (yield from _spaces((yield)))


def _word(at: str, words: list[str], *, last: bool = False) -> _Step:
    """Read one of some words, of which none begins another; behind the last one nothing is read."""
    read = at
    while read not in words:
        if not any(word.startswith(read) for word in words):
            raise _NoCallError
        read += yield
    return "" if last else (yield)


def _value(at: str, depth: int) -> _Step:
    if at == '"':
        return (yield from _string())
    if at in "{[":
        if depth > _MAX_DEPTH:
            raise _NoCallError
        return (yield from (_object(depth) if at == "{" else _array(depth)))
    if at in "tfn":
        return (yield from _word(at, ["true", "false", "null"]))
    return (yield from _number(at))


def _object(depth: int) -> _Step:
    at = yield from _spaces((yield))
    if at == "}":
        return (yield)
    while True:
        if at != '"':
            raise _NoCallError
        at = yield from _spaces((yield from _string()))
        at = yield from _past(at, ":")
        at = yield from _spaces((yield from _value(at, depth + 1)))
        if at == "}":
            return (yield)
        at = yield from _past(at, ",")


def _array(depth: int) -> _Step:
    at = yield from _spaces((yield))
    if at == "]":
        return (yield)
    while True:
        at = yield from _spaces((yield from _value(at, depth + 1)))
        if at == "]":
            return (yield)
        at = yield from _past(at, ",")


def _string() -> _Step:
    while (at := (yield)) != '"':
        if at < " ":
            raise _NoCallError
        if at == "\\":
            yield from _escaped((yield))
    return (yield)


def _escaped(at: str) -> Generator[None, str, None]:
    if at == "u":
        for _ in range(4):
            if (yield) not in "0123456789abcdefABCDEF":
                raise _NoCallError
    elif at not in '"\\/bfnrt':
        raise _NoCallError


def _number(at: str) -> _Step:
    if at == "-":
        at = yield
    at = (yield) if at == "0" else (yield from _digits(at))
    if at == ".":
        at = yield from _digits((yield))
    if at in "eE":
        at = yield
        at = yield from _digits((yield) if at in "+-" else at)
    return at


def _digits(at: str) -> _Step:
    if at not in _DIGITS:
        raise _NoCallError
    while at in _DIGITS:
        at = yield
    return at
