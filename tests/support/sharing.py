"""Which tests run in one worker of xdist: those of a file, and all that share a stack.

In: the path of a test. Out: the name of its group. A stack with its models costs a minute and two
gigabytes, so the files that ask the same one for answers run where it is; none of them depends on
another, and each runs alone just as well.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SHARING = ("tests/conformance",)
"""Folders whose tests share a stack."""


def group(path: Path) -> str:
    """Return the group of a test: its folder where that shares a stack, else its file."""
    name = path.relative_to(ROOT).as_posix()
    return next((folder for folder in _SHARING if name.startswith(f"{folder}/")), name)
