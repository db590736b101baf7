"""Offsets of records whose work ends out of order; pure.

In: offsets as they are read and as they are done. Out: the offset up to which all are done.
"""

from __future__ import annotations

from collections import deque


class ContiguousOffsets:
    """The contiguous prefix of finished records of one partition.

    Invariants: `committable` never moves back; it never passes a record that was read and is not
    done; offsets must be read in increasing order (gaps are allowed: a log may have holes).
    """

    __slots__ = ("_committable", "_done", "_open")

    def __init__(self, start: int) -> None:
        self._committable = start
        self._open: deque[int] = deque()
        self._done: set[int] = set()

    @property
    def committable(self) -> int:
        """The next offset to read after a restart: everything below it is done."""
        return self._committable

    @property
    def n_open(self) -> int:
        """Records that were read and are not below `committable`."""
        return len(self._open)

    def read(self, offset: int) -> None:
        """Note a record that was read.

        Raises:
            ValueError: the offset is not above all that were read before.
        """
        if offset < (self._open[-1] + 1 if self._open else self._committable):
            raise ValueError("offsets must be read in increasing order")
        self._open.append(offset)

    def done(self, offset: int) -> bool:
        """Note that a record is done; tell whether `committable` moved. Twice is harmless."""
        if not self._open or offset < self._open[0]:
            return False
        self._done.add(offset)
        before = self._committable
        while self._open and self._open[0] in self._done:
            head = self._open.popleft()
            self._done.remove(head)
            self._committable = head + 1
        return self._committable != before
