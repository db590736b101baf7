"""The REST surface of a running registry: push, and every refusal."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.support.registry import (
    ADMIN_KEY,
    RegistryProcess,
    is_problem,
    manifest,
    onnx_bytes,
    sha256,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def staged(running: RegistryProcess) -> list[str]:
    return [str(path) for path in (running.objects / "staging").glob("*")]


def test_a_version_goes_in_and_comes_out(running: RegistryProcess, model: str) -> None:
    data = onnx_bytes(2.0) + secrets.token_bytes(0)
    digest = sha256(data)
    with running.client as client:
        first = client.put(f"/blobs/{digest}", content=data)
        again = client.put(f"/blobs/{digest}", content=data)
        assert again.json() == {"sha256": digest, "created": False}
        assert first.status_code in {200, 201}
        assert again.status_code == 200
        assert client.head(f"/blobs/{digest}").headers["content-length"] == str(len(data))
        pushed = client.post(f"/models/{model}/versions", json=manifest(model, data))
        assert pushed.status_code == 201
        assert pushed.json()["version"] == 1
        shown = client.get(f"/models/{model}/versions/1").json()
        assert shown["version_sha256"] == pushed.json()["version_sha256"]
        assert shown["manifest"]["files"][0]["sha256"] == digest
    stored = running.objects / "cas" / "sha256" / digest[:2] / digest
    assert stored.read_bytes() == data
    assert staged(running) == []


def test_the_same_bytes_are_the_same_version(running: RegistryProcess, model: str) -> None:
    assert running.push(model, 1.0)["created"]
    assert running.push(model, 1.0) == {
        **running.push(model, 1.0),
        "version": 1,
        "created": False,
    }
    assert running.push(model, 2.0)["version"] == 2


def test_what_is_no_part_of_the_identity_does_not_make_a_version(
    client: httpx.Client, running: RegistryProcess, model: str
) -> None:
    running.push(model)
    other = manifest(model, onnx_bytes(), description="new words", batching={"max_rows": 8})
    answer = client.post(f"/models/{model}/versions", json=other)
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    kept = client.get(f"/models/{model}/versions/1").json()["manifest"]
    assert kept.get("description", "") == ""


def test_identical_pushes_at_once_are_one_version(running: RegistryProcess, model: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: running.push(model, 3.0), range(8)))
    assert {answer["version"] for answer in answers} == {1}
    assert sum(answer["created"] for answer in answers) == 1


def test_different_pushes_at_once_leave_no_hole(running: RegistryProcess, model: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: running.push(model, float(n)), range(8)))
    assert sorted(answer["version"] for answer in answers) == list(range(1, 9))


def test_uploads_of_one_file_at_once(running: RegistryProcess) -> None:
    data = secrets.token_bytes(1 << 20)

    def put(_: int) -> int:
        with running.client as client:
            return client.put(f"/blobs/{sha256(data)}", content=data).status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(put, range(6)))
    assert statuses[-1] == 201
    assert statuses.count(201) == 1
    assert staged(running) == []


def test_a_wrong_digest_stores_nothing(client: httpx.Client, running: RegistryProcess) -> None:
    wrong = sha256(secrets.token_bytes(8))
    assert is_problem(client.put(f"/blobs/{wrong}", content=b"other"), 422, "digest_mismatch")
    assert client.head(f"/blobs/{wrong}").status_code == 404
    assert staged(running) == []


def test_what_the_listener_refuses_is_a_problem_document_too(client: httpx.Client) -> None:
    answer = client.get("/models", headers={f"x-{number}": "1" for number in range(101)})
    assert is_problem(answer, 431, "headers_too_large")


def test_a_stored_digest_does_not_excuse_wrong_bytes(client: httpx.Client) -> None:
    data = secrets.token_bytes(100)
    client.put(f"/blobs/{sha256(data)}", content=data)
    answer = client.put(f"/blobs/{sha256(data)}", content=b"other")
    assert is_problem(answer, 422, "digest_mismatch")


def test_too_large_is_refused_before_it_is_read(running: RegistryProcess) -> None:
    with half_an_upload(running, 301 << 20, sent=0) as sock:
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too_large" in answer


@pytest.mark.slow
def test_a_large_upload_is_not_held_in_memory(running: RegistryProcess) -> None:
    block = secrets.token_bytes(1 << 20)
    digest = hashlib.sha256(block * 256).hexdigest()
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    peak = before

    def blocks() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(256):
            yield block
            peak = max(peak, process.memory_info().rss)

    with running.client as client:
        assert client.put(f"/blobs/{digest}", content=blocks()).status_code == 201
    assert peak - before < 80 << 20


@pytest.mark.slow
def test_an_endless_upload_is_cut_at_the_limit(running: RegistryProcess) -> None:
    block = bytes(1 << 20)

    def endless() -> Iterator[bytes]:
        while True:
            yield block

    # A client that only sends may see the cut before it sees the answer.
    with running.client as client, contextlib.suppress(httpx.TransportError):
        answer = client.put(f"/blobs/{'1' * 64}", content=endless())
        assert is_problem(answer, 413, "too_large")
    assert staged(running) == []


def half_an_upload(
    running: RegistryProcess, length: int = 1 << 20, sent: int | None = None
) -> socket.socket:
    """Return a connection on which half of a body was sent, or `sent` bytes of it."""
    host, port = running.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    head = f"PUT /v1/registry/blobs/{'2' * 64} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}"
    head += f"\r\nauthorization: Bearer {ADMIN_KEY}"
    sock.sendall(f"{head}\r\n\r\n".encode() + bytes(length // 2 if sent is None else sent))
    return sock


def test_an_upload_that_stands_still_is_ended(running: RegistryProcess) -> None:
    with half_an_upload(running) as sock:
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert staged(running) == []


def test_a_cut_upload_leaves_nothing(running: RegistryProcess) -> None:
    sock = half_an_upload(running, 32 << 20)
    deadline = time.monotonic() + 5
    while not staged(running) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert staged(running)
    sock.close()
    while staged(running) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert staged(running) == []


def test_missing_files_are_named(client: httpx.Client, model: str) -> None:
    data = secrets.token_bytes(10)
    answer = client.post(f"/models/{model}/versions", json=manifest(model, data))
    assert is_problem(answer, 422, "blobs_missing")
    assert answer.json()["missing"] == [sha256(data)]
    assert client.get(f"/models/{model}").status_code == 404


def test_a_wrong_size_is_refused(running: RegistryProcess, model: str) -> None:
    running.push(model)
    wrong = manifest(model, onnx_bytes())
    wrong["files"][0]["size_bytes"] += 1
    wrong["files"][0]["path"] = "other.onnx"
    with running.client as client:
        answer = client.post(f"/models/{model}/versions", json=wrong)
    assert is_problem(answer, 422, "invalid_manifest")


@pytest.mark.parametrize("name", ["model.pkl", "weights.pt", "m.joblib", "m.ckpt", "m.h5", "a.py"])
def test_formats_that_run_code_are_refused(client: httpx.Client, model: str, name: str) -> None:
    bad = manifest(model, b"x")
    bad["files"][0]["path"] = name
    assert is_problem(client.post(f"/models/{model}/versions", json=bad), 422, "invalid_manifest")


@pytest.mark.parametrize(
    "path", ["../model.onnx", "/etc/model.onnx", "a/b.onnx", "a\\b.onnx", ".onnx", "a\x00.onnx"]
)
def test_paths_stay_in_the_folder(client: httpx.Client, model: str, path: str) -> None:
    bad = manifest(model, b"x")
    bad["files"][0]["path"] = path
    assert is_problem(client.post(f"/models/{model}/versions", json=bad), 422, "invalid_manifest")


def test_a_pickle_under_another_name_is_refused(client: httpx.Client, model: str) -> None:
    pickled = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"
    client.put(f"/blobs/{sha256(pickled)}", content=pickled).raise_for_status()
    answer = client.post(f"/models/{model}/versions", json=manifest(model, pickled))
    assert is_problem(answer, 422, "format_refused")


BAD_NAMES = [
    "Upper", "a b", "-a", "x" * 64, "stats", "a..b", "a;b", "${jndi:ldap}", "a%0d%0ab", "%2e%2e",
    "\u202eabc", "a%00", "'or'1'='1",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_everywhere(
    client: httpx.Client, running: RegistryProcess, model: str, name: str
) -> None:
    running.push(model)
    body = manifest("x", onnx_bytes()) | {"model": name}
    for answer in (
        client.get(f"/models/{name}"),
        client.get(f"/models/{name}/rollout"),
        client.get(f"/models/{name}/events"),
        client.get(f"/models/{name}/versions/1"),
        client.put(f"/models/{name}/aliases/champion", json={"version": 1}),
        client.put(f"/models/{model}/aliases/{name}", json={"version": 1}),
        client.post(f"/models/{name}/versions", json=body),
    ):
        if name == "stats" and answer.request.method == "PUT" and answer.is_success:
            continue  # a good name for an alias
        code = answer.json()["code"]
        assert is_problem(answer, 422, code)
        assert code in {"invalid_request", "invalid_manifest"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'{"model": 1}', 422),
        (b"[" * 60_000, 422),
        (b'{"a":' * 12_000, 422),
        (b"\xff\xfe", 422),
        (b'{"model": "\\ud800"}', 422),
        (b'{"version": 1e400}', 422),
        (b" " * (5 << 20), 413),
    ],
    ids=["empty", "cut", "list", "null", "type", "deep", "deeper", "bytes", "lone", "inf", "big"],
)
def test_bad_bodies_are_refused(client: httpx.Client, model: str, body: bytes, status: int) -> None:
    answer = client.post(f"/models/{model}/versions", content=body)
    assert is_problem(answer, status, answer.json()["code"])
    alias = client.put(f"/models/{model}/aliases/champion", content=body)
    assert is_problem(alias, status, {422: "invalid_request", 413: "too_large"}[status])


def test_nothing_is_at_other_addresses(client: httpx.Client, model: str) -> None:
    answers = [client.get(path) for path in ("/nope", "/models/a/b/c", "//", "/models/")]
    bodies = []
    for answer in answers:
        assert is_problem(answer, 404, "not_found")
        bodies.append({k: v for k, v in answer.json().items() if k != "request_id"})
    assert all(body == bodies[0] for body in bodies)
    assert is_problem(client.delete("/models"), 405, "method_not_allowed")
    assert is_problem(client.get(f"/models/{model}"), 404, "model_not_found")
    assert is_problem(client.get(f"/models/{model}/rollout"), 404, "model_not_found")
    assert is_problem(client.get(f"/models/{model}/versions/1"), 404, "version_not_found")
    assert is_problem(client.get(f"/models/{model}/versions/{1 << 70}"), 404, "version_not_found")
    assert is_problem(client.get(f"/models/{model}/versions/x"), 422, "invalid_request")


def test_answers_carry_headers_of_caution(client: httpx.Client) -> None:
    answer = client.get("/models", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert policy == "default-src 'none'; frame-ancestors 'none'"
    odd = client.get("/models", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"] != "a b\tc"
    assert "access-control-allow-origin" not in odd.headers
    assert "server" not in odd.headers
