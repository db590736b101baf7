"""What `make up` shows of the sample models, and of those that are a user's now."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from rich.console import Console

from inferbus_dev import show
from inferbus_dev.errors import DISK_FULL, LauncherError

if TYPE_CHECKING:
    from inferbus_dev.stack import Stack

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


class _Stack:
    http = registry = "http://inferbus"


def _fleet(**holding: Any) -> dict[str, Any]:
    return {"workers": [{"versions": [{"reason": "", **holding}]}]}


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        (_fleet(readiness="failed", reason="m is not kept: No space left on device"), DISK_FULL),
        (_fleet(readiness="failed", reason="it has no weights"), "served: it has no weights"),
        (_fleet(readiness="loading"), "m is not ready, and no worker says why: see their logs"),
        ({"detail": "there is no such model"}, "no worker says why"),
    ],
)
async def test_a_model_that_does_not_serve_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, rollout: dict[str, Any], told: str
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/ready"):
            return httpx.Response(400)
        return httpx.Response(200, json=rollout)

    patience_s = 60.0 if told == DISK_FULL else 0.0  # on a full disk waiting is in vain
    monkeypatch.setattr(show, "_SERVES_WITHIN_S", patience_s)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(LauncherError) as caught:
            await show._serves(client, cast("Stack", _Stack()), "m")
    assert told in str(caught.value)
