"""The registry describes itself, to programs and to people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support import docs_page

if TYPE_CHECKING:
    from tests.support.registry import RegistryProcess


@pytest.mark.parametrize(
    "path",
    [
        "models?after=%00",
        "keys?after=%00",
        "keys?tenant=%00",
        "models/%00",
        "keys/%00",
        "models/m%00/versions/1",
        "models/%00/rollout",
        "models/%00/events",
        "keys/%00/events",
    ],
)
def test_a_nul_is_no_name(running: RegistryProcess, path: str) -> None:
    with running.client as client:
        assert client.get(f"/{path}").status_code in {404, 422}


def test_the_surface_describes_itself(running: RegistryProcess) -> None:
    described = httpx.get(f"{running.url}/openapi.json", trust_env=False).json()
    assert "/v1/registry/models/{model}/aliases/{alias}" in described["paths"]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            told = operation["responses"]
            assert "422" not in told, (method, path)
            assert set(told["default"]["content"]) == {"application/problem+json"}
    docs_page.check(running.url)
