"""What README and docs tell a reader to type, typed: every `sh` and `python` block, in order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inferbus_dev.stack import Stack
from tests.support import clients, snippets
from tests.support.sample_models import model_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EVERY = [block for page in snippets.pages() for block in snippets.blocks(page)]
RUN = [block for block in EVERY if block.language in {"sh", "python"} and not block.not_run]
PAGES = sorted({block.page for block in RUN})


def missing(block: snippets.Block) -> str:
    """Return what this machine lacks for a block."""
    if block.environment == "perf":
        return clients.NO_PERF
    if block.environment == "kserve":
        return clients.NO_KSERVE
    if "kcat " in block.text:
        return clients.NO_KCAT
    if "promtool " in block.text:
        return clients.NO_PROMTOOL
    return ""


def what_a_reader_has(folder: Path) -> None:
    """Write the files that pages speak of and do not make: rows, and models of one's own."""
    features = [float(number) for number in range(30)]
    (folder / "rows.jsonl").write_text(json.dumps({"features": features}) + "\n")
    kind = pa.list_(pa.float32(), 30)
    pq.write_table(pa.table({"features": pa.array([features], kind)}), folder / "rows.parquet")
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": "A" * 160}
    request = {"model": "breast-cancer", "inputs": {"tensors": [tensor]}}
    (folder / "submissions.jsonl").write_text(json.dumps({"requests": [request]}) + "\n")
    for variant, name in ((1, "folder"), (2, "better")):
        own = folder / "path" / "to" / name
        shutil.copytree(model_folder("breast-cancer", variant=variant), own)
        manifest: dict[str, Any] = json.loads((own / "manifest.json").read_text())
        (own / "manifest.json").write_text(json.dumps({**manifest, "model": "my-model"}))


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_a_page_says_what_works(
    stack: Stack, page: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    addresses = {
        "127.0.0.1:8080": stack.http.removeprefix("http://"),
        "127.0.0.1:8081": stack.grpc,
        "127.0.0.1:8082": stack.metrics["gateway-0"].removeprefix("http://"),
    }
    reader = snippets.Reader(tmp_path, addresses)
    reader.settle(stack.logs.parent)
    what_a_reader_has(tmp_path)
    for block in (one for one in RUN if one.page == page):
        with subtests.test(str(block)):
            if reason := missing(block):
                pytest.skip(reason)
            done = await reader.run(block)
            assert done.code == 0, f"{block}: {done.out[-1000:]}{done.err[-2000:]}"
            assert block.language == "sh" or done.out
            for text in block.expected:
                assert text in done.out, block


def test_the_load_generator_is_the_one_that_pages_say() -> None:
    (block,) = [block for block in RUN if block.environment == "perf"]
    assert set(block.installed) == clients.wanted("perf")


def test_every_block_is_run_or_says_why_not() -> None:
    assert {block.language for block in EVERY} <= {"", "sh", "python", "json"}
    assert sum(block.language == "python" for block in RUN) >= 15
    for block in EVERY:
        if block.not_run:
            assert block.language in {"sh", "python"}, block
        if block.language == "json":
            for text in [block.text] if block.text.startswith("{\n") else block.text.splitlines():
                json.loads(text)
