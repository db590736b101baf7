"""The `inferbus` command as a process, against a running registry."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.support import registry
from tests.support.command import NOWHERE, failed, inferbus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.registry import RegistryProcess


def test_push_show_alias_and_rollout(running: RegistryProcess, model: str, tmp_path: Path) -> None:
    at = {"INFERBUS_REGISTRY_URL": running.url}
    factor = float(secrets.randbelow(1 << 20))
    folder = registry.write_folder(tmp_path / "m", model, factor)
    pushed = inferbus("models", "push", str(folder), env=at)
    assert pushed.returncode == 0, pushed.stderr
    assert "bytes uploaded" in pushed.stdout
    assert f"{model} version 1 registered" in pushed.stdout
    again = inferbus("models", "push", str(folder), "--alias", "champion", env=at)
    assert "model.onnx: there already" in again.stdout
    assert "version 1 was registered before" in again.stdout
    assert f"{model} champion: wanted 1, serving nothing yet" in again.stdout

    registry.write_folder(tmp_path / "m", model, factor + 0.5)
    assert "version 2 registered" in inferbus("models", "push", str(folder), env=at).stdout
    listed = json.loads(inferbus("models", "list", "--json", env=at).stdout)
    assert {one["model"]: one["n_versions"] for one in listed}[model] == 2
    assert "champion -> 1 (serving nothing yet)" in inferbus("models", "show", model, env=at).stdout
    assert '"sha256"' in inferbus("models", "show", model, "2", env=at).stdout

    stale = inferbus("models", "alias", model, "champion", "2", "--expect", "2", env=at)
    assert failed(stale, "409 alias_conflict")
    assert failed(
        inferbus("models", "alias", model, "champion", "2", "--expect-new", env=at), "409"
    )
    moved = inferbus("models", "alias", model, "champion", "2", "--expect", "1", env=at)
    assert "wanted 2" in moved.stdout
    shown = inferbus("models", "rollout", model, env=at).stdout
    assert "champion: wanted 2, serving nothing yet (rolling)" in shown
    assert "pool default holds 1, 2; 1 must be ready" in shown


def test_waiting_ends_when_time_is_up(running: RegistryProcess, model: str, tmp_path: Path) -> None:
    folder = str(registry.write_folder(tmp_path, model))
    run = inferbus(
        "models", "push", folder, "--alias", "champion", "--wait", "--timeout-s", "1",
        "--registry", running.url,
    )  # fmt: skip
    assert failed(run, "Version 1 does not serve after 1 s")
    moved = inferbus(
        "models", "alias", model, "canary", "1", "--wait", "--timeout-s", "1",
        "--registry", running.url,
    )  # fmt: skip
    assert failed(moved, "Version 1 does not serve after 1 s")
    assert f"{model} canary: wanted 1" in moved.stdout


def test_a_manifest_may_leave_digests_out(
    running: RegistryProcess, model: str, tmp_path: Path
) -> None:
    folder = registry.write_folder(tmp_path, model)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"] = [{"path": "model.onnx"}]
    (folder / "manifest.json").write_text(json.dumps(raw))
    run = inferbus("models", "push", str(folder), "--registry", running.url)
    assert run.returncode == 0, run.stderr


def test_folders_that_are_wrong_are_one_sentence(tmp_path: Path, model: str) -> None:
    def push() -> subprocess.CompletedProcess[str]:
        return inferbus("models", "push", str(tmp_path), "--registry", NOWHERE)

    assert failed(push(), "no manifest.json")
    (tmp_path / "manifest.json").write_text("{")
    assert failed(push(), "cannot be read as JSON")
    registry.write_folder(tmp_path, model)
    (tmp_path / "model.onnx").write_bytes(b"other")
    assert failed(push(), "is not the file that manifest.json describes")
    (tmp_path / "model.onnx").unlink()
    assert failed(push(), "names model.onnx, which cannot be read")
    registry.write_folder(tmp_path, "Bad Name")
    assert failed(push(), "not a valid model name")
    raw = registry.manifest(model, b"x", files=[{"path": "../model.onnx"}])
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    assert failed(push(), "plain name without folders")


def test_a_refusal_of_the_registry_is_one_sentence(
    running: RegistryProcess, tmp_path: Path, model: str
) -> None:
    folder = registry.write_folder(tmp_path, model)
    (folder / "model.onnx").write_bytes(b"\x80\x04pickle")
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"] = [{"path": "model.onnx"}]
    (folder / "manifest.json").write_text(json.dumps(raw))
    run = inferbus("models", "push", str(folder), "--registry", running.url)
    assert failed(run, "(422 format_refused): model.onnx is not an ONNX model.")
    assert failed(inferbus("models", "show", "none", "--registry", running.url), "404")


BUSY_ONCE = """
CREATE SEQUENCE tries;
CREATE FUNCTION busy_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('tries') = 1 THEN
        RAISE EXCEPTION 'as if the lock were not free' USING ERRCODE = 'lock_not_available';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER busy_once BEFORE INSERT ON registry.versions
FOR EACH ROW EXECUTE FUNCTION busy_once();
"""


@pytest.mark.slow
def test_a_push_comes_back_to_a_busy_registry(
    running: RegistryProcess, database: str, tmp_path: Path, model: str
) -> None:
    asyncio.run(done_in(database, BUSY_ONCE))
    folder = registry.write_folder(tmp_path, model)
    run = inferbus("models", "push", str(folder), "--registry", running.url)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "The registry is busy; again in 2 s.\n"
    assert f"{model} version 1 registered" in run.stdout
    asyncio.run(done_in(database, "DROP FUNCTION busy_once CASCADE"))


async def done_in(database: str, statements: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "list"],
        ["models", "rollout", "m"],
        ["models", "alias", "m", "champion", "1"],
        ["predict", "m", "--input", "x=[1]"],
    ],
    ids=" ".join,
)
def test_a_service_that_is_away_is_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    run = inferbus(
        *arguments,
        cwd=tmp_path,
        env={"INFERBUS_REGISTRY_URL": NOWHERE, "INFERBUS_GATEWAY_URL": NOWHERE},
    )
    assert failed(run, "does not answer: start the stack with `make up`")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        (["models", "push"], "requires"),
        (["models", "alias", "m", "champion", "two"], "two"),
        (["topics", "tail", "x", "--count", "many"], "many"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], said: str) -> None:
    assert failed(inferbus(*arguments), said, code=2)


def test_addresses_come_from_flags_then_environment_then_stack(
    running: RegistryProcess, tmp_path: Path
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / ".inferbus").mkdir()
    stack = tmp_path / ".inferbus" / "stack.json"
    stack.write_text(json.dumps({"registry": running.url, "api_key": registry.ADMIN_KEY}))
    no_key = {"INFERBUS_API_KEY": ""}
    assert inferbus("models", "list", cwd=below, env=no_key).returncode == 0
    wrong = {"INFERBUS_API_KEY": "mlk_wrong"}
    assert failed(inferbus("models", "list", cwd=below, env=wrong), "it does not take that of")
    stack.write_text(json.dumps({"registry": NOWHERE, "api_key": registry.ADMIN_KEY}))
    elsewhere = inferbus("models", "list", "--registry", running.url, cwd=below, env=no_key)
    assert failed(elsewhere, "wants a key or token: set INFERBUS_API_KEY")
    stack.write_text(json.dumps({"registry": running.url}))
    assert failed(
        inferbus("models", "list", cwd=below, env={"INFERBUS_REGISTRY_URL": NOWHERE}), NOWHERE
    )
    flagged = inferbus(
        "models",
        "list",
        "--registry",
        running.url,
        cwd=below,
        env={"INFERBUS_REGISTRY_URL": NOWHERE},
    )
    assert flagged.returncode == 0
    assert failed(inferbus("models", "list", "--registry", "not a url"), "is not a URL")
    stack.write_text("{")
    assert failed(inferbus("models", "list", cwd=below), "damaged")


def test_keys_are_made_listed_rotated_and_revoked(running: RegistryProcess) -> None:
    at = {"INFERBUS_REGISTRY_URL": running.url}
    made = inferbus(
        "keys", "create", "ci", "--scope", "models:read", "--scope", "infer:digits",
        "--tenant", "acme", "--rate", "5", "--burst", "10", "--tokens-per-min", "9000",
        "--expires", "90d", env=at,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    key_id = key.split("_")[1]
    assert f"{key_id} for tenant acme, until" in made.stderr
    assert key not in made.stderr
    assert inferbus("models", "list", env={**at, "INFERBUS_API_KEY": key}).returncode == 0
    listed = inferbus("keys", "list", "--tenant", "acme", env=at)
    assert f"{key_id}  acme" in listed.stdout
    assert "models:read  5/s, 10 at once  9,000 tokens/min" in listed.stdout
    assert key not in listed.stdout
    rotated = inferbus("keys", "rotate", key_id, "--overlap", "0s", env=at)
    second = rotated.stdout.strip()
    assert second != key
    assert failed(inferbus("models", "list", env={**at, "INFERBUS_API_KEY": key}), "wants a key")
    assert inferbus("models", "list", env={**at, "INFERBUS_API_KEY": second}).returncode == 0
    revoked = inferbus("keys", "revoke", second, env=at)
    assert "revoked" in revoked.stdout
    assert failed(inferbus("models", "list", env={**at, "INFERBUS_API_KEY": second}), "wants")
    assert failed(inferbus("keys", "rotate", second.split("_")[1], env=at), "409 key_ended")
    assert failed(inferbus("keys", "revoke", "0" * 16, env=at), "404 key_not_found")
    assert failed(inferbus("keys", "create", "x", "--scope", "root", env=at), "not a scope")
    assert failed(
        inferbus("keys", "create", "x", "--scope", "admin", "--burst", "1", env=at), "rate"
    )
    assert failed(inferbus("keys", "rotate", key_id, "--overlap", "soon", env=at), "span of time")


def test_the_log_needs_a_database(tmp_path: Path) -> None:
    assert failed(inferbus("audit", "verify", cwd=tmp_path), "Nothing says where Postgres is")
    away = {"INFERBUS_POSTGRES_URL": "postgresql://x@127.0.0.1:1/x"}
    assert failed(inferbus("predictions", "get", "x", cwd=tmp_path, env=away), "")


@pytest.mark.slow
def test_help_comes_at_once() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        assert "models" in inferbus("--help").stdout
        return time.perf_counter() - started

    # 0.35 s on an idle machine; the bound is loose, since tests share two cores.
    assert min(seconds() for _ in range(5)) < 2.0


class Gateway(BaseHTTPRequestHandler):
    """What the Open Inference Protocol says a server answers, for one model that doubles."""

    seen: dict[str, Any] = {}  # noqa: RUF012 -- the handler has no other place

    def do_GET(self) -> None:
        self._answer({"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]})

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        asked = json.loads(self.rfile.read(length))["inputs"][0]
        type(self).seen = asked
        output = {**asked, "name": "y", "data": [2 * value for value in asked["data"]]}
        self._answer({"model_name": "m", "outputs": [output]})

    def _answer(self, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(raw)))
        self.send_header("x-inferbus-model-version", "3")
        self.send_header("x-inferbus-receipt", "7:42")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_predict(gateway: str, tmp_path: Path) -> None:
    run = inferbus("predict", "m", "--input", "x=[1,2,3,4]", "--gateway", gateway)
    assert run.returncode == 0, run.stderr
    assert "y FP32 [2, 2]: 2, 4, 6, 8" in run.stdout
    assert "version 3" in run.stdout
    assert "receipt 7:42" in run.stdout
    (tmp_path / "x.json").write_text("[[5, 6]]")
    raw = inferbus(
        "predict", "m", "--input", f"x=@{tmp_path}/x.json", "--raw", "--gateway", gateway
    )
    assert json.loads(raw.stdout)["outputs"][0]["data"] == [10, 12]
    assert Gateway.seen["shape"] == [1, 2]
    for bad, said in (
        ("x", "is not NAME=JSON"),
        ("z=[1]", "no input 'z'"),
        ("x=[[1],[1,2]]", "differ in length"),
        ("x=[1,[2]]", "mixes lists and values"),
        ("x={", "is not JSON"),
        ("x=@/nowhere", "cannot be read"),
    ):
        assert failed(inferbus("predict", "m", "--input", bad, "--gateway", gateway), said)
    assert failed(inferbus("predict", "m", "--gateway", gateway), "takes x (FP32 [-1, 2])")
