"""Which tests run in one worker of xdist: those of a file, and all that share a stack.

In: the ids of tests. Out: the name of each one's group, and a scheduler that keeps groups whole. A
stack with its models costs a minute and two gigabytes, so the files that ask the same one for
answers run where it is; none of them depends on another, and each runs alone just as well.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

_SHARING = ("tests/conformance",)
"""Folders whose tests share a stack."""


def group(nodeid: str) -> str:
    """Return the group of a test: its folder where that shares a stack, else its file."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in _SHARING if file.startswith(f"{folder}/")), file)


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """xdist's own by files, with larger groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
