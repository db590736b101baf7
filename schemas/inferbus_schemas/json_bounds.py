"""What JSON text may become in memory, told from its bytes before anything is made of them; pure.

In: text of a client. Out: nothing, or the error that it holds too much. Each list, object, string
and element of it becomes an object of Python that is 3 to 30 times as large; their number is that
of brackets, quotes and commas. Whoever decodes text of a client into objects asks here first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

MAX_DECODED_BYTES: Final = 32 << 20
"""The most that one body, line or record may become, beside the characters of its texts."""
SMALL_BYTES: Final = 16 << 10
"""Text that is not counted where each of its parts is bounded by what stands beside it."""
MAX_KEYS: Final = 1024
"""Of all objects of a text whose values are not decoded."""

_COSTS: Final = ((b"{", 192), (b"[", 96), (b'"', 40), (b",", 40))
"""At least what CPython takes for an object, a list, half a string, and an element in its place."""
_PARTS: Final = b"".join(part for part, _ in _COSTS)
_MOST_COSTLY: Final = max(cost for _, cost in _COSTS)
_PART_BYTES: Final = 64 << 10
_STRING: Final = re.compile(rb'"[^"]*"')


class TooManyPartsError(ValueError):
    """Text that would become too much; the message is for its sender."""


def check(text: bytes, most_bytes: int = MAX_DECODED_BYTES) -> None:
    """Check that text does not become more than `most_bytes`.

    Raises:
        TooManyPartsError: it does.
    """
    if len(text) * _MOST_COSTLY <= most_bytes:
        return
    if (len(text) - len(text.translate(None, _PARTS))) * _MOST_COSTLY <= most_bytes:
        return
    if _cost(text) <= most_bytes:
        return
    # What stands inside of strings becomes nothing more.
    n_bytes = 0
    for part in _emptied(text):
        n_bytes += _cost(part)
        if n_bytes > most_bytes:
            raise TooManyPartsError("the JSON holds too many lists, objects, texts or numbers")


def check_keys(text: bytes) -> None:
    """Check that the objects of a text have `MAX_KEYS` keys at most, all together.

    Raises:
        TooManyPartsError: they have more.
    """
    if len(text) <= SMALL_BYTES or text.count(b":") <= MAX_KEYS:
        return
    n_keys = 0
    for part in _emptied(text):
        n_keys += part.count(b":")
        if n_keys > MAX_KEYS:
            raise TooManyPartsError(f"the JSON has more than {MAX_KEYS} keys")


def n_elements(text: bytes, most: int) -> int:
    """Return how many elements lists have, nested or not; where over `most`, a number that is.

    Lists without any count as one.
    """
    n_commas = text.count(b",")
    if n_commas < most or b'"' not in text:
        return n_commas + 1
    n_commas = n_strings = 0
    for part in _emptied(text):
        n_commas += part.count(b",")
        n_strings += part.count(b'"') // 2
        if max(n_commas + 1, n_strings) > most:
            break
    return max(n_commas + 1, n_strings)


def _emptied(text: bytes) -> Iterator[bytes]:
    """Yield the text part by part, with all strings empty: a copy in one would need much itself."""
    if b"\\" in text:
        # Without escapes each quote opens or ends a string.
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    at = 0
    while at < len(text):
        end = at + _PART_BYTES
        if text.count(b'"', at, end) % 2:
            end = text.find(b'"', end) + 1 or len(text)
        yield _STRING.sub(b'""', text[at:end])
        at = end


def _cost(text: bytes) -> int:
    return sum(text.count(part) * cost for part, cost in _COSTS)
