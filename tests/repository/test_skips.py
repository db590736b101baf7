"""A skip that nobody has foreseen fails CI; one for what the machine lacks is told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import clients, skips


def report(outcome: Any, longrepr: Any, **more: Any) -> pytest.TestReport:
    where = ("tests/x.py", 1, "test_x")
    return pytest.TestReport("tests/x.py::test_x", where, {}, outcome, longrepr, "call", **more)


def skipped(reason: str) -> pytest.TestReport:
    return report("skipped", ("tests/x.py", 1, f"Skipped: {reason}"))


def test_skips_are_counted_by_reason() -> None:
    stats: dict[str, list[object]] = {
        "passed": [report("passed", None)],
        "failed": [report("failed", "assert False")],
        "skipped": [skipped("no kcat"), skipped("no kcat")],
        "subtests skipped": [skipped("no promtool")],
        "xfailed": [report("skipped", "it is so", wasxfail="known")],
        "warnings": [object()],
    }
    assert skips.reasons(stats) == {"no kcat": 2, "no promtool": 1}


def test_only_what_the_machine_lacks_is_an_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LACKING", frozenset({"no kcat"}))
    assert skips.without_excuse(["no kcat"]) == set()
    assert skips.without_excuse(["no kcat", "todo"]) == {"todo"}
