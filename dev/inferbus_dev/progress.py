"""What a user sees while the stack starts and stops.

In: steps with a name, a running text and an end. Out: lines on a terminal or in a file. The stack
knows `Report` alone; `terminal.py` draws it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager


class Step(Protocol):
    """One step under way."""

    def update(self, text: str) -> None:
        """Say how far it is; may be called from any thread."""


class Report(Protocol):
    """Where progress goes."""

    def plan(self, steps: Sequence[str]) -> None:
        """Name the steps to come, in their order."""

    def step(self, name: str) -> AbstractContextManager[Step]:
        """Begin a step; it ends with the context, well or not."""

    def note(self, text: str) -> None:
        """Say something that is no step."""


class _SilentStep:
    def update(self, text: str) -> None:
        """Say nothing."""


class Silent:
    """A report for tests: says nothing."""

    def plan(self, steps: Sequence[str]) -> None:
        """Say nothing."""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:  # noqa: ARG002 -- the protocol's form
        """Run the step."""
        yield _SilentStep()

    def note(self, text: str) -> None:
        """Say nothing."""
