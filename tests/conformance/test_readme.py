"""The README's snippets, as they stand there, against a running stack."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from inferbus_dev.stack import Stack
from tests.support import clients

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]

TEXT = (clients.ROOT / "README.md").read_text()
SECTION = TEXT[TEXT.index("## Ask a model") : TEXT.index("## Deploy a model of your own")]
SNIPPETS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
CURL = next(one for one in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL) if "curl" in one)


def here(stack: Stack, text: str) -> str:
    """Return a snippet with the addresses of this stack."""
    assert "127.0.0.1:808" in text
    http = stack.http.removeprefix("http://")
    text = text.replace(".inferbus/stack.json", str(stack.logs.parent / "stack.json"))
    return text.replace("127.0.0.1:8080", http).replace("127.0.0.1:8081", stack.grpc)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
async def test_a_snippet_runs(stack: Stack, number: int, tmp_path: Path) -> None:
    text = SNIPPETS[number]
    wanted = re.search(r"# pip install \"?(\w+)", text)
    assert wanted is not None, "a snippet names the package that it needs"
    name = {"tritonclient": "triton"}.get(wanted[1], wanted[1])
    if name == "kserve" and sys.version_info >= (3, 14):
        pytest.skip("kserve is for Python 3.13 at most")
    program = tmp_path / "snippet.py"
    program.write_text(here(stack, text))
    own = name == "openai"  # it stands in the lock of the tests themselves
    python = Path(sys.executable) if own else clients.environment(name) / "bin" / "python"
    done = await clients.call(python, program)
    assert done.code == 0, done.err[-2000:]
    assert done.out
    shown = re.search(r"print\(.*\)  # (.*)", text)
    assert shown is None or done.out.strip() == shown[1]


async def test_curl_runs(stack: Stack) -> None:
    done = await clients.call(*shlex.split(here(stack, CURL)))
    assert (done.code, '"embedding"' in done.out) == (0, True), done.out
