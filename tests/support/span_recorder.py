"""Tracing that keeps its spans in the place of exporting them."""

from __future__ import annotations

from typing import Any

from inferbus_telemetry.spans import Tracing


class SpanRecorder(Tracing):
    """Keeps spans: names and what was said of each, in order."""

    def __init__(self) -> None:
        super().__init__("test", "t1", "")
        self.on = True
        self.spans: list[tuple[str, dict[str, Any]]] = []

    def span(self, name: str, **said: Any) -> str:
        self.spans.append((name, said))
        return f"00-{'1' * 32}-{len(self.spans):016x}-01"
