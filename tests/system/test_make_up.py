"""`make up` as a whole: real answers, an ordered stop, a second start, a killed launcher."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferbus_dev import first_key
from inferbus_dev.paths import cache_dir
from inferbus_schemas import access
from tests.dev import processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
N_SHOWN = 2
MODELS = {"breast-cancer", "digits", "minilm", "smollm2"}


def _four_free_ports() -> int:
    """Return a base whose four ports are free now."""
    for base in range(21000, 32000, 17):
        try:
            for port in range(base, base + 4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no four free ports in a row")


@contextmanager
def _up(state: Path, base: int, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the launcher until its status line; yield it and what it said."""
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "inferbus_dev", "up"),
            *("--state-dir", str(state), "--port-base", str(base), *flags),
        ],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = ""
    try:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            said += line
            if "rows logged" in line:
                break
        else:
            raise AssertionError(said)
        yield launcher, said
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=60)


def _shows_real_answers(said: str, models: Collection[str] = MODELS) -> None:
    assert said.count("differs by") == N_SHOWN * len(models), said
    for model in models:
        assert f"{model} version 1: " in said


def _push_another(folder: Path, stack: dict[str, Any]) -> None:
    """Let the model of the digits be one that takes no digits."""
    shutil.copytree(cache_dir(os.environ) / "models" / "breast-cancer", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "model": "digits"}))
    subprocess.run(
        [
            *(sys.executable, "-m", "inferbus_cli", "models", "push", str(folder)),
            *("--alias", "champion", "--registry", stack["registry"]),
        ],
        env={**os.environ, "INFERBUS_API_KEY": stack["api_key"]},
        timeout=60,
        check=True,
    )


def _answers(model: str) -> None:
    """Wait until a model that an earlier run registered is ready, and ask it."""
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30]}]}
    body["inputs"][0]["data"] = [1.0] * 30
    with httpx.Client(trust_env=False, timeout=35) as client:
        until_s = time.monotonic() + 60
        while client.get(f"{model}/ready").status_code != httpx.codes.OK:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        answer = client.post(f"{model}/infer", json=body)
    assert answer.status_code == httpx.codes.OK, answer.text


def _stack(state: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((state / "stack.json").read_text())
    return read


def _rotate_the_key(stack: dict[str, Any]) -> None:
    """End the key of the launcher, as who fears that it is known does."""
    key = stack["api_key"]
    one = f"{stack['registry']}/v1/registry/keys/{access.key_id(key)}"
    head = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{one}/rotate", json={"overlap_s": 0}, headers=head, trust_env=False)
    assert answer.status_code == 201, answer.text
    assert httpx.get(one, headers=head, trust_env=False).status_code == 401


def test_the_show_the_stop_and_what_is_left(tmp_path: Path) -> None:
    state, base = tmp_path / ".inferbus", _four_free_ports()
    with _up(state, base) as (launcher, said):
        _shows_real_answers(said)
        stack = _stack(state)
        roles = {each["role"] for each in stack["processes"]}
        servers = {"kafka", "postgres", "valkey"}
        assert servers | {"registry", "logger", "worker", "gateway"} <= roles
        assert stack["http"] == f"http://127.0.0.1:{base}"
        assert stack["registry"] == f"http://127.0.0.1:{base + 3}"
        assert (state / "stack.json").stat().st_mode & 0o777 == 0o600
        found = httpx.get(f"{stack['http']}/v2/models/digits", trust_env=False)
        assert found.json()["versions"] == ["1"]
        assert said.count(stack["api_key"]) == 1, "it is printed once"
        keys = f"{stack['registry']}/v1/registry/keys"
        assert httpx.get(keys, trust_env=False).status_code == 401
        head = {"authorization": f"Bearer {stack['api_key']}"}
        assert httpx.get(keys, headers=head, trust_env=False).status_code == 200
        _push_another(tmp_path / "digits", stack)
    assert launcher.returncode == 0
    assert not (state / "stack.json").exists()
    assert all(processes.gone(each["pid"]) for each in stack["processes"])

    with _up(state, base) as (launcher, said):
        _shows_real_answers(said, MODELS - {"digits"})
        assert "digits: champion is version 2, which is not the sample" in said
        assert "uploaded" not in said, "the models were still there"
        old = _stack(state)
        _rotate_the_key(old)
        left = [each["pid"] for each in old["processes"]]
        launcher.kill()
        launcher.wait(10)
    assert (state / "stack.json").exists()

    with _up(state, base, "--no-models") as (launcher, said):
        assert "sample models" not in said
        assert "Real inputs" not in said
        assert all(processes.gone(pid) for pid in left)
        assert first_key.MADE in " ".join(said.split())
        head = {"authorization": f"Bearer {_stack(state)['api_key']}"}
        assert httpx.get(keys, headers=head, trust_env=False).status_code == 200
        _answers(f"http://127.0.0.1:{base}/v2/models/breast-cancer")
    assert launcher.returncode == 0
