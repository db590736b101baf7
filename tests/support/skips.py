"""Skipped tests, told apart: for what this machine lacks, or for another reason.

In: pytest's reports by category. Out: each reason and how many tests it kept from running.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

from tests.support import clients, small_disk


def reasons(stats: Mapping[str, Iterable[object]]) -> Counter[str]:
    """Return why tests, parts of tests and files were skipped; expected failures are none."""
    found = Counter[str]()
    for reports in stats.values():
        for report in reports:
            if not isinstance(report, pytest.TestReport | pytest.CollectReport):
                continue
            if report.skipped and not hasattr(report, "wasxfail"):
                said = report.longrepr
                reason = said[2] if isinstance(said, tuple | list) else str(said)
                found[reason.removeprefix("Skipped: ")] += 1
    return found


def without_excuse(found: Iterable[str]) -> set[str]:
    """Return the reasons that are not of what this machine lacks."""
    return set(found) - clients.LACKING - {small_disk.NO_SMALL_DISK}
