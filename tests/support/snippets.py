"""What the pages tell a reader to type, and a reader who does.

In: Markdown with fenced blocks; where a stack runs. Out: the blocks in their order, each with the
reason why it is not run where the line before it gives one (`<!-- not run: ... -->`), and how each
ended that a reader ran in one folder and one shell, from the top of the page to its end.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import clients

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_INSTALLED = re.compile(r"# pip install (.+)")
_EXPECTED = re.compile(r"(?:print\(.*\)  # |^ *# )(?:\.\.\. )?(.*)$", re.MULTILINE)
_ENVIRONMENTS = {"tritonclient": "triton", "kserve": "kserve"}
"""Packages that are in an environment of their own; all others are in that of the tests."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `line` is that of its fence, `not_run` the reason, if it has one."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(clients.ROOT)}:{self.line}"

    @property
    def environment(self) -> str:
        """The environment whose Python or programs it needs; empty: that of the tests."""
        if self.language == "sh":
            return "perf" if "\nperf_analyzer " in f"\n{self.text}" else ""
        installed = " ".join(self.installed)
        return next((_ENVIRONMENTS[one] for one in _ENVIRONMENTS if one in installed), "")

    @property
    def installed(self) -> list[str]:
        """What it says is to be installed."""
        return [one for line in _INSTALLED.findall(self.text) for one in line.split()]

    @property
    def expected(self) -> list[str]:
        """What it is said to print: what stands behind `print(...)  # `, or below it as `# ...`."""
        return [found for found in _EXPECTED.findall(self.text) if not _is_install(found)]


def _is_install(comment: str) -> bool:
    return comment.startswith("pip install ")


def pages() -> list[Path]:
    """Return every page that is read by users."""
    return [clients.ROOT / "README.md", *sorted((clients.ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    found, lines = [], page.read_text().splitlines()
    opened = 0
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if not opened:
            opened = number
            continue
        before = lines[opened - 2] if opened > 1 else ""
        reason = _NOT_RUN.fullmatch(before)
        text = "".join(f"{one}\n" for one in lines[opened : number - 1])
        language = lines[opened - 1].removeprefix("```")
        found.append(Block(page, opened, language, text, reason[1] if reason else ""))
        opened = 0
    assert not opened, f"{page}:{opened}: a block that does not end"
    return found


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody in a checkout whose stack is up, with a terminal.

    Invariants: variables of the shell live from block to block; a request that is refused is a
    failure, also where the page's `curl` would not say so.
    """

    folder: Path
    addresses: Mapping[str, str]
    """What the pages call an address, and what it is here."""

    def settle(self, state: Path) -> None:
        """Lay out the folder as a checkout's; `state` is that of the stack."""
        (self.folder / ".venv").symlink_to(clients.ROOT / ".venv")
        (self.folder / ".inferbus").symlink_to(state)
        (self.folder / ".curlrc").write_text("fail-with-body\nshow-error\n")
        (self.folder / ".variables").touch()

    async def run(self, block: Block) -> clients.Done:
        """Do what a block says."""
        text = block.text
        for said, here in self.addresses.items():
            text = text.replace(said, here)
        home = clients.environment(block.environment) if block.environment else None
        if block.language == "python":
            (self.folder / "snippet.py").write_text(text)
            python = home / "bin" / "python" if home else Path(sys.executable)
            return await clients.call(python, "snippet.py", folder=self.folder)
        env = {"CURL_HOME": str(self.folder)} | (clients.path_of(home) if home else {})
        own = "".join(f"{name}={shlex.quote(value)}\n" for name, value in env.items())
        script = f"set -aeu -o pipefail\n. ./.variables\n{own}{text}export -p > .variables\n"
        return await clients.call("bash", "-c", script, folder=self.folder)
