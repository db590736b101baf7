"""Links of the pages: files that are there, headings that are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import clients, snippets

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return what a page's headings are called in an address, as GitHub calls them."""
    found = _HEADING.findall(page.read_text())
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    pages = [*snippets.pages(), *(clients.ROOT / "services").glob("*/README.md")]
    broken = []
    n_links = 0
    for page in pages:
        for target in _LINK.findall(page.read_text()):
            if "://" in target:
                continue
            n_links += 1
            name, _, heading = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists() or (heading and heading not in anchors(file)):
                broken.append(f"{page.name}: {target}")
    assert not broken
    assert n_links > 50
