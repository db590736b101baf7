"""Real engine processes: golden samples, batched answers, bad rows, deaths, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inferbus_schemas import manifest as manifests
from inferbus_schemas import tensors
from inferbus_worker.engines import golden, wire
from inferbus_worker.engines.contract import EngineSpec
from inferbus_worker.engines.host import EngineHost
from inferbus_worker.engines.patience import Patience
from inferbus_worker.engines.process import Death, EngineProcess
from inferbus_worker.errors import EngineError
from tests.support import onnx_graphs
from tests.support.sample_models import model_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ENDLESS = 10**12


class Listener:
    """Keeps what an engine says."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, wire.Done, bytes]] = []
        self.down: list[list[Any]] = []
        self.deaths: list[asyncio.Future[Death]] = []
        self.n_up = 0
        self.failed = ""

    def on_up(self) -> None:
        self.n_up += 1

    def on_done(self, token: Any, done: wire.Done, body: memoryview) -> None:
        self.done.append((token, done, bytes(body)))

    def on_down(self, tokens: list[Any], death: asyncio.Future[Death]) -> None:
        self.down.append(tokens)
        self.deaths.append(death)

    def on_stopped(self, tokens: list[Any]) -> None:
        self.down.append(tokens)

    def on_failed(self, reason: str) -> None:
        self.failed = reason


@contextlib.asynccontextmanager
async def engine(folder: Path, scratch: Path) -> AsyncIterator[tuple[EngineHost, Listener]]:
    raw = (folder / manifests.MANIFEST_NAME).read_bytes()
    listener = Listener()
    spec = EngineSpec(manifests.parse(raw), raw, folder, scratch, 1, 0)
    host = EngineHost(spec, listener)
    try:
        await host.start()
        yield host, listener
    finally:
        await host.stop()


async def until(what: Any, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.005)


def submit_numbers(host: EngineHost, token: Any, *numbers: int) -> None:
    data = np.array(numbers, np.int64).tobytes()
    host.submit(token, [wire.TensorHead("n", "INT64", (len(numbers),), len(data))], [data])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["breast-cancer", "digits", "minilm"])
async def test_batched_answers_equal_single_ones_and_the_original_library(
    name: str, tmp_path: Path
) -> None:
    folder = model_folder(name)
    manifest = manifests.parse((folder / manifests.MANIFEST_NAME).read_bytes())
    samples = [golden.inputs_of(one, manifest.signature.inputs) for one in manifest.golden]
    async with engine(folder, tmp_path) as (host, listener):
        # `start` has held each golden sample, one by one, against the original library's answer.
        n = len(samples)
        data = b"".join(one.buffers[0] for one in samples)
        head = samples[0].heads[0]
        shape = (n, *head.shape[1:])
        host.submit("all", [wire.TensorHead(head.name, head.datatype, shape, len(data))], [data])
        await until(lambda: listener.done)
        _, done, body = listener.done[0]
    assert not done.error
    at = 0
    for out in done.outputs:
        rows = np.frombuffer(body[at : at + out.n_bytes], _dtype(out.datatype)).reshape(out.shape)
        at += out.n_bytes
        for index, sample in enumerate(manifest.golden):
            want = next(one for one in sample.outputs if one.name == out.name)
            np.testing.assert_allclose(rows[index], np.array(want.data), atol=sample.tolerance)


def _dtype(datatype: str) -> Any:
    return {"FP32": np.float32, "INT64": np.int64}[datatype]


async def test_bad_rows_are_named_each_with_its_own_sentence(tmp_path: Path) -> None:
    folder = model_folder("digits")
    manifest = manifests.parse((folder / manifests.MANIFEST_NAME).read_bytes())
    good = str(manifest.golden[0].inputs[0].data[0]).encode()
    data = tensors.join_bytes([good, b"no image", good, b"\x89PNG\r\n\x1a\nbroken"])
    async with engine(folder, tmp_path) as (host, listener):
        host.submit("x", [wire.TensorHead("image", "BYTES", (4,), len(data))], [data])
        await until(lambda: listener.done)
        _, done, _ = listener.done[0]
        assert sorted(done.bad_rows) == [1, 3]
        assert "PNG or JPEG" in done.bad_rows[1]
        await host.probe()


async def test_a_killed_engine_is_seen_at_once_and_comes_back(tmp_path: Path) -> None:
    folder = onnx_graphs.busy_folder(tmp_path / "busy")
    async with engine(folder, tmp_path) as (host, listener):
        submit_numbers(host, "endless", ENDLESS)
        submit_numbers(host, "next", 1)
        await asyncio.sleep(0.1)
        pid, up = host.pid, listener.n_up
        loop = asyncio.get_running_loop()
        os.kill(pid, signal.SIGKILL)
        killed_s = loop.time()
        await until(lambda: listener.down)
        assert loop.time() - killed_s < 0.25
        assert listener.down == [["endless", "next"]]
        assert not host.up
        await until(lambda: listener.n_up > up)
        assert host.pid != pid
        submit_numbers(host, "again", 21)
        await until(lambda: listener.done)
        token, done, body = listener.done[0]
        assert (token, done.error) == ("again", "")
        assert np.frombuffer(body, np.int64).tolist() == [42]
        assert host.n_restarts == 1


async def test_an_engine_that_dies_at_its_last_proof_does_not_go_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = EngineHost._live

    async def live_and_die(host: EngineHost, *, whole: bool) -> None:
        await live(host, whole=whole)
        if whole:
            assert host._process is not None
            host._on_gone(host._process)

    monkeypatch.setattr(EngineHost, "_live", live_and_die)
    async with engine(onnx_graphs.busy_folder(tmp_path / "busy"), tmp_path) as (host, listener):
        assert not host.up
        assert listener.n_up == 0
        await until(lambda: host.up)
        submit_numbers(host, "first", 21)
        await until(lambda: listener.done)
        assert host.n_restarts == 1


async def test_alive_is_not_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferbus_worker.engines.patience.STUCK_S", 0.5)
    folder = onnx_graphs.busy_folder(tmp_path / "busy")
    async with engine(folder, tmp_path) as (host, listener):
        submit_numbers(host, "endless", ENDLESS)
        await until(lambda: listener.down, 5.0)
        assert listener.down == [["endless"]]
        await until(lambda: host.up)


async def test_how_an_engine_died_is_told_with_its_last_words(tmp_path: Path) -> None:
    async with engine(onnx_graphs.busy_folder(tmp_path / "busy"), tmp_path) as (host, listener):
        submit_numbers(host, "endless", ENDLESS)
        await asyncio.sleep(0.1)
        os.kill(host.pid, signal.SIGSEGV)
        await until(lambda: listener.deaths)
        death = await listener.deaths[0]
        assert death.how == f"signal {signal.SIGSEGV:d}"
        assert any("Segmentation fault" in line for line in death.said)
        assert any("onnx.py" in line for line in death.said)


async def test_a_death_is_told_where_the_host_is_stopped_at_once(tmp_path: Path) -> None:
    async with engine(onnx_graphs.busy_folder(tmp_path / "busy"), tmp_path) as (host, listener):
        submit_numbers(host, "endless", ENDLESS)
        os.kill(host.pid, signal.SIGKILL)
        await until(lambda: listener.deaths)
        await host.stop()
        assert listener.deaths[0].done()


@pytest.mark.parametrize("loop", ["mind", "watch"])
async def test_a_host_whose_own_loop_dies_gives_its_version_up(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(onnx_graphs.busy_folder(tmp_path / "busy"), tmp_path) as (host, listener):

        def fault(*_: object) -> None:
            raise RuntimeError("a fault of ours")

        submit_numbers(host, "endless", ENDLESS)
        if loop == "watch":
            monkeypatch.setattr(Patience, "silence_s", property(fault))
        else:
            monkeypatch.setattr(host, "_revive", fault)
        if loop == "mind":
            os.kill(host.pid, signal.SIGKILL)
        await until(lambda: listener.failed)
        assert listener.failed == f"its engine's host failed: task engine-{loop}:test failed"
        assert listener.down == [["endless"]]
        assert len(listener.deaths) == (loop == "mind")
        assert not host.up


async def test_an_engine_whose_words_nobody_reads_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fault(_process: EngineProcess) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(EngineProcess, "_read_log", fault)
    with pytest.raises(EngineError, match="died"):
        async with engine(onnx_graphs.busy_folder(tmp_path / "busy"), tmp_path):
            pass


async def test_an_engine_that_says_something_else_than_its_golden_sample_never_runs(
    tmp_path: Path,
) -> None:
    folder = onnx_graphs.busy_folder(tmp_path / "busy", wrong_golden=True)
    with pytest.raises(EngineError, match="differs from the golden sample"):
        async with engine(folder, tmp_path):
            pass


async def test_data_outside_the_file_is_refused(tmp_path: Path) -> None:
    folder = onnx_graphs.external_folder(tmp_path / "external")
    with pytest.raises(EngineError, match="other files"):
        async with engine(folder, tmp_path):
            pass


async def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    folder = onnx_graphs.busy_folder(tmp_path / "busy")
    (folder / "model.onnx").write_bytes(b"\x0f" * 64)
    with pytest.raises(EngineError):
        async with engine(folder, tmp_path):
            pass


async def test_an_input_that_the_graph_cannot_compute_is_an_error_and_no_death(
    tmp_path: Path,
) -> None:
    folder = onnx_graphs.busy_folder(tmp_path / "busy")
    async with engine(folder, tmp_path) as (host, listener):
        data = np.zeros(4, np.float32).tobytes()
        host.submit("bad", [wire.TensorHead("n", "FP32", (4,), len(data))], [data])
        await until(lambda: listener.done)
        assert listener.done[0][1].error
        await host.probe()
        assert host.n_restarts == 0


async def test_the_engine_ends_with_its_host(tmp_path: Path) -> None:
    async with engine(onnx_graphs.busy_folder(tmp_path / "busy"), tmp_path) as (host, _):
        pid = host.pid
        assert host.memory_bytes > 1 << 20
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
