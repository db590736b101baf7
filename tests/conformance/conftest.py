"""One stack for all clients; what it serves stands in tests/support."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from inferbus_dev.stack import Stack
from tests.support import stacks
from tests.support.onnx_types import bf16_folder, every_type_folder, listed_types_folder


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A running stack with the sample models and those of every datatype."""
    folder: Path = tmp_path_factory.mktemp("types")
    async with stacks.running() as running:
        types = (
            every_type_folder(folder / "every"),
            listed_types_folder(folder / "listed"),
            bf16_folder(folder / "bf16"),
        )
        await stacks.push_all(running, ("breast-cancer", "digits", "minilm", "smollm2"), *types)
        yield running
