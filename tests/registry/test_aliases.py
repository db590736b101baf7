"""Aliases of a running registry: moved by compare-and-set, told of, listed."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from inferbus_registry import events
from tests.support.registry import (
    ADMIN,
    RegistryProcess,
    is_problem,
)


def test_an_alias_moves_by_compare_and_set(
    client: httpx.Client, running: RegistryProcess, model: str
) -> None:
    for factor in (1.0, 2.0, 3.0):
        running.push(model, factor)

    def put(**wish: Any) -> httpx.Response:
        return client.put(f"/models/{model}/aliases/champion", json=wish)

    assert is_problem(put(version=1, expect=1), 409, "alias_conflict")
    first = put(version=1, expect=None)
    assert first.status_code == 200
    assert first.json() == {
        "model": model,
        "alias": "champion",
        "wanted": 1,
        "serving": 0,
        "generation": first.json()["generation"],
    }
    assert is_problem(put(version=2, expect=None), 409, "alias_conflict")
    assert put(version=2, expect=3).json()["wanted"] == 1
    assert put(version=2, expect=1).json()["generation"] > first.json()["generation"]
    assert put(version=2).json() == put(version=2, expect=2).json()
    assert is_problem(put(version=9), 404, "version_not_found")
    for bad in (0, -1, "1", 1.5, True, None, 1 << 40):
        assert is_problem(put(version=bad), 422, "invalid_request")
    assert is_problem(put(version=1, expected=1), 422, "invalid_request")


def test_of_two_moves_at_once_one_wins(running: RegistryProcess, model: str) -> None:
    for factor in (1.0, 2.0, 3.0):
        running.push(model, factor, alias="champion" if factor == 1.0 else None)

    def move(version: int) -> int:
        with running.client as client:
            wish = {"version": version, "expect": 1}
            return client.put(f"/models/{model}/aliases/champion", json=wish).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(move, (2, 3))) == [200, 409]


def test_every_change_is_one_event_and_state_is_their_fold(
    client: httpx.Client, running: RegistryProcess, model: str
) -> None:
    running.push(model, 1.0)
    running.push(model, 1.0, alias="champion")
    running.push(model, 2.0, alias="challenger")
    head = {"x-request-id": "move-1"}
    client.put(f"/models/{model}/aliases/champion", json={"version": 2}, headers=head)
    client.put(f"/models/{model}/aliases/champion", json={"version": 2})
    client.put(f"/models/{model}/aliases/champion", json={"version": 7})
    found = client.get(f"/models/{model}/events").json()["events"]
    assert [event["what"] for event in found] == [
        "version_registered",
        "alias_moved",
        "version_registered",
        "alias_moved",
        "alias_moved",
    ]
    last = found[-1]
    assert (last["who"], last["request_id"]) == (ADMIN, "move-1")
    assert last["before"] == {"alias": "champion", "wanted": 1, "serving": 0}
    assert last["after"] == {"alias": "champion", "wanted": 2, "serving": 0}
    folded = events.fold(events.Event(**event) for event in found)
    now = client.get(f"/models/{model}").json()["aliases"]
    assert folded == {
        one["name"]: {"wanted": one["wanted"], "serving": one["serving"]} for one in now
    }
    page = client.get(f"/models/{model}/events", params={"after": found[1]["id"], "limit": 2})
    assert page.json()["events"] == found[2:4]


def test_models_are_listed_in_pages(client: httpx.Client, running: RegistryProcess) -> None:
    prefix = f"p{secrets.token_hex(3)}"
    for n in range(3):
        running.push(f"{prefix}-{n}")
    first = client.get("/models", params={"after": prefix, "limit": 2}).json()["models"]
    assert [one["model"] for one in first] == [f"{prefix}-0", f"{prefix}-1"]
    rest = client.get("/models", params={"after": first[-1]["model"], "limit": 1}).json()["models"]
    assert [one["model"] for one in rest] == [f"{prefix}-2"]
