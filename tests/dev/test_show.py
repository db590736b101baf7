"""What `make up` shows of the sample models, and of those that are a user's now."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from inferbus_dev import show

SAMPLE = "a" * 64


def _model(wanted: int) -> dict[str, Any]:
    return {
        "aliases": [{"name": "canary", "wanted": 9}, {"name": "champion", "wanted": wanted}],
        "versions": [
            {"version": 1, "version_sha256": SAMPLE},
            {"version": 2, "version_sha256": "b" * 64},
        ],
    }


@pytest.mark.parametrize(
    ("found", "theirs"),
    [(None, 0), (_model(1), 0), (_model(2), 2), ({"aliases": [], "versions": []}, 0)],
)
def test_what_a_user_made_the_default_is_not_compared_with_the_sample(
    found: dict[str, Any] | None, theirs: int
) -> None:
    assert show.other_version(found, SAMPLE) == theirs


def test_a_terminal_of_80_columns_shows_all() -> None:
    one = show.Shown(
        model="minilm",
        asked="a sentence",
        answered="384 numbers: 0.0123, -0.0441, 0.0120, 0.0332 ...",
        library="sentence-transformers 5.1.0 (recorded)",
        said="384 numbers: 0.0124, -0.0441, 0.0120, 0.0332 ...",
        difference=1.3e-7,
        within=True,
        version="1",
        receipt="12:1034567",
        latency_ms=821.5,
    )
    page = io.StringIO()
    show.show_answers([one], Console(width=80, file=page))
    said = page.getvalue()
    assert "receipt 12:1034567, 821.5 ms" in said
    assert "differs by 1.3e-07 at most" in said
    words = " ".join(said.split())
    assert all(word in words for word in one.answered.split() + one.library.split())
