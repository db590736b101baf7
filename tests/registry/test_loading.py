"""Load and unload of a running registry: aliases go and come back."""

from __future__ import annotations

import secrets

import httpx

from inferbus_registry import events
from tests.support.registry import RegistryProcess


def test_unloading_takes_the_aliases_away_and_loading_gives_them_back(
    running: RegistryProcess,
) -> None:
    model = f"m-{secrets.token_hex(4)}"
    with running.client as client:

        def wanted(answer: httpx.Response) -> dict[str, int]:
            assert answer.status_code == 200, answer.text
            said = answer.json()
            assert said["aliases"] == client.get(f"/models/{model}").json()["aliases"]
            return {one["name"]: one["wanted"] for one in said["aliases"]}

        for verb in ("load", "unload"):
            refused = client.post(f"/models/{model}/{verb}")
            assert (refused.status_code, refused.json()["code"]) == (404, "model_not_found")
        for factor in (1.0, 2.0):
            running.push(model, factor)
        first = client.post(f"/models/{model}/load")
        assert wanted(first) == {"champion": 2}
        again = client.post(f"/models/{model}/load")
        assert again.json() == first.json(), "what is loaded stays as it is"
        for alias in ("champion", "next"):
            client.put(f"/models/{model}/aliases/{alias}", json={"version": 1}).raise_for_status()
        gone = client.post(f"/models/{model}/unload")
        assert wanted(gone) == {}
        assert gone.json()["generation"] > first.json()["generation"]
        assert client.post(f"/models/{model}/unload").json() == gone.json()
        back = client.post(f"/models/{model}/load")
        assert wanted(back) == {"champion": 1, "next": 1}
        rollout = client.get(f"/models/{model}/rollout").json()
        assert rollout["pools"][0]["versions"] == [1, 2], "no gateway has let go of 2 yet"
        found = client.get(f"/models/{model}/events").json()["events"]
        history = [events.Event(**one) for one in found]
        assert [one.what for one in history].count("alias_removed") == 2
        folded = {name: one["wanted"] for name, one in events.fold(history).items()}
        assert folded == wanted(back)
