"""Draws progress: a live list of steps on a terminal, plain lines elsewhere.

In: the calls of `progress.Report`. Out: text.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inferbus_dev.progress import Report

PLAIN_INTERVAL_S = 2.0


@dataclass(slots=True)
class _Line:
    """One step on the screen. `ended` is 0 until it ends; `well` says how."""

    name: str
    began: float = 0.0
    ended: float = 0.0
    well: bool = True
    text: str = ""
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def update(self, text: str) -> None:
        """Say how far the step is."""
        self.text = text


class Screen:
    """Steps on a terminal, redrawn in place; used as a context.

    Invariants: every planned step has a line from the start, so what comes next is visible.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: dict[str, _Line] = {}
        self._live = Live(self, console=console, refresh_per_second=10, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def plan(self, steps: Sequence[str]) -> None:
        """Show the steps to come."""
        for name in steps:
            self._lines.setdefault(name, _Line(name))

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[_Line]:
        """Show a step under way."""
        line = self._lines.setdefault(name, _Line(name))
        line.began = time.monotonic()
        try:
            yield line
        except BaseException:
            line.well = False
            raise
        else:
            line.text = ""  # what it waited for has come
        finally:
            line.ended = time.monotonic()

    def note(self, text: str) -> None:
        """Print a line above the steps."""
        self._console.print(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = time.monotonic()
        table = Table.grid(padding=(0, 1))
        for line in list(self._lines.values()):
            style = "dim" if not line.began else ""
            took = f"{(line.ended or now) - line.began:.1f} s" if line.began else ""
            table.add_row(_mark(line), Text(line.name, style), Text(took, "cyan"), Text(line.text))
        yield Group(table)


class Lines:
    """Steps as plain lines, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def plan(self, steps: Sequence[str]) -> None:
        """Say what is to come."""
        self.note(f"to do: {', '.join(steps)}")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[_PlainStep]:
        """Say when a step begins and how long it took."""
        began = time.monotonic()
        self.note(f"{name} ...")
        try:
            yield _PlainStep(name, self)
        except BaseException:
            self.note(f"{name}: not done ({time.monotonic() - began:.1f} s)")
            raise
        self.note(f"{name}: done ({time.monotonic() - began:.1f} s)")

    def note(self, text: str) -> None:
        """Print a line."""
        with self._lock:
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)


@dataclass(slots=True)
class _PlainStep:
    """A step that says how far it is now and then."""

    name: str
    lines: Lines
    said_at: float = field(default_factory=time.monotonic)

    def update(self, text: str) -> None:
        """Say how far it is, but not more often than every `PLAIN_INTERVAL_S`."""
        now = time.monotonic()
        if now - self.said_at >= PLAIN_INTERVAL_S:
            self.said_at = now
            self.lines.note(f"{self.name}: {text}")


def report(console: Console) -> Screen | Lines:
    """Return what suits the console."""
    return Screen(console) if console.is_terminal else Lines(console)


def _mark(line: _Line) -> Text | Spinner:
    if not line.began:
        return Text("·", "dim")
    if not line.ended:
        return line.spinner
    return Text("✓", "green") if line.well else Text("✗", "red")


if TYPE_CHECKING:

    def _both_are_reports(screen: Screen, lines: Lines) -> tuple[Report, Report]:
        return screen, lines
