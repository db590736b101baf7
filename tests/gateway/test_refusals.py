"""What the listener refuses is written as the routes under its path write errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferbus_gateway.api import refusals
from inferbus_gateway.errors.outcomes import BY_OUTCOME
from inferbus_guard import refusals as guard
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from tests.support import reconcile

ID = ids.uuid7(1, 1)
EVERY = [one for one in vars(guard).values() if isinstance(one, guard.Refusal)]
OPENAI = (b"/v1", b"/v1/chat/completions", b"/openai/v1/files?limit=1", b"/v1/%63hat/completions")
JOBS = (b"/v1/jobs", b"/v1/jobs?model=m", b"/v1/jobs/x/retry")
PLAIN = (b"", b"/", b"/v2/models/m/infer", b"/v1x", b"/openai", b"/\xff\x00%ff", b"x" * 40_000)


def refused(target: bytes, why: guard.Refusal) -> tuple[dict[str, str], Any]:
    counted: list[str] = []
    headers, body = refusals.of_listener(lambda: ID, counted.append)(target, why)
    assert counted == [why.code]
    said = {name.decode(): value.decode() for name, value in headers}
    assert len(said) == len(headers)
    assert int(said["content-length"]) == len(body)
    assert said["x-inferbus-error-code"] == why.code
    assert said["x-request-id"] == ids.text(ID)
    assert ("retry-after" in said) == (why.status == 503)
    return said, json.loads(body)


@pytest.mark.parametrize("why", EVERY, ids=lambda why: why.code)
def test_a_refusal_speaks_the_dialect_of_its_path(why: guard.Refusal) -> None:
    for target in OPENAI:
        said, body = refused(target, why)
        assert said["content-type"] == "application/json"
        kind = "invalid_request_error" if why.status < 500 else "server_error"
        want = {"message": why.error, "type": kind, "param": None, "code": why.code}
        assert body == {"error": want}, target
    for target in JOBS:
        said, body = refused(target, why)
        assert said["content-type"] == "application/problem+json"
        assert (body["status"], body["code"], body["detail"]) == (why.status, why.code, why.error)
    for target in PLAIN:
        said, body = refused(target, why)
        assert said["content-type"] == "application/json"
        assert body == {"error": why.error}, target


def test_there_are_refusals() -> None:
    assert {400, 408, 413, 431, 503} == {why.status for why in EVERY}


def test_the_checker_of_ledgers_knows_with_which_status_each_outcome_is_told() -> None:
    names = {m.Outcome.Name(one).removeprefix("OUTCOME_").lower(): one for one in BY_OUTCOME}
    assert set(names) == set(reconcile.AGREES)
    for name, outcome in names.items():
        assert BY_OUTCOME[outcome].http_status in reconcile.AGREES[name], name
