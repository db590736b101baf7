"""Bytes of an upload cut into lines; pure, in bounded memory.

In: pieces as they arrive. Out: lines without their ends, and a mark in the place of one that is
too long. Lines of white space alone are none.
"""

from __future__ import annotations

from collections.abc import Iterator

_BOM = b"\xef\xbb\xbf"


class Lines:
    """Cuts one upload.

    Invariants: holds at most `max_bytes` and one piece; each line comes out once, in order, as its
    bytes, or as None where it has more than `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._too_long = False
        self._fresh = True

    def feed(self, piece: bytes) -> Iterator[bytes | None]:
        """Take a piece; yield the lines that end in it."""
        *whole, rest = piece.split(b"\n")
        for part in whole:
            self._hold(part)
            yield from self._take()
        self._hold(rest)

    def end(self) -> Iterator[bytes | None]:
        """Yield the last line, where it has no end of its own."""
        yield from self._take()

    def _hold(self, part: bytes) -> None:
        if self._held_bytes + len(part) > self._max_bytes:
            self._held.clear()
            self._held_bytes, self._too_long = 0, True
        elif part and not self._too_long:
            self._held.append(part)
            self._held_bytes += len(part)

    def _take(self) -> Iterator[bytes | None]:
        line = b"".join(self._held)
        too_long = self._too_long
        self._held.clear()
        self._held_bytes, self._too_long = 0, False
        if self._fresh:
            line, self._fresh = line.removeprefix(_BOM), False
        if too_long:
            yield None
        elif line := line.strip():
            yield line
