"""Start, stop and signals of a process, seen from outside."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

from inferbus_kit.lifecycle import cancel

SCRIPT = """
import asyncio, gc, sys, weakref
from inferbus_kit.errors import StartupError
from inferbus_kit.lifecycle import run_process

def say(text):
    print(text, flush=True)

async def build(lifecycle):
    mode = sys.argv[1]
    async def slow_stop():
        say("stop b")
        await asyncio.sleep(60 if mode == "stuck" else 0)
    async def start_b():
        if mode == "refuse":
            raise StartupError("port 1 cannot be bound; choose another")
        if mode == "hang":
            say("hanging")
            await asyncio.sleep(60)
        say("start b")
    async def broken():
        await asyncio.sleep(0.05)
        raise ValueError("boom")
    async def start_a():
        say("start a")
    async def stop_a():
        say("stop a")
    lifecycle.add("a", start=start_a, stop=stop_a)
    lifecycle.add("b", start=start_b, stop=slow_stop, stop_timeout_s=30 if mode == "stuck" else 1)
    async def collect():
        class Knot:
            pass
        while not gc.get_freeze_count():
            await asyncio.sleep(0.01)
        knot = Knot()
        knot.itself, gone = knot, weakref.ref(knot)
        del knot
        gc.collect()
        say(f"young {gc.get_threshold()[0]} frozen {gc.get_freeze_count()} gone {gone() is None}")
    if mode == "collect":
        lifecycle.spawn("collect", collect())
    if mode == "task":
        lifecycle.spawn("broken", broken())
    lifecycle.add("c", start=lambda: asyncio.sleep(0, say("ready")))

run_process("test", build)
"""


def _run(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if text in line:
            return lines
    raise AssertionError(f"{text!r} never came: {lines}")


def test_stages_stop_in_reverse_on_sigterm() -> None:
    process = _run("plain")
    _until(process, "ready")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    said = [line for line in out.splitlines() if line.startswith("stop")]
    assert said == ["stop b", "stop a"]
    assert process.returncode == 0


def test_once_started_what_stands_is_frozen_and_later_cycles_are_still_collected() -> None:
    process = _run("collect")
    said = _until(process, "young")[-1].split()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert said[1] == "20000"
    assert int(said[3]) > 1000
    assert said[-1] == "True"


def test_a_second_signal_exits_now() -> None:
    process = _run("stuck")
    _until(process, "ready")
    process.send_signal(signal.SIGTERM)
    _until(process, "stop b")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stop a" not in out, "the rest of an orderly stop"


def test_a_signal_during_start_stops_what_was_started() -> None:
    process = _run("hang")
    _until(process, "hanging")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert "stop a" in out
    assert "ready" not in out


def test_a_failed_start_is_one_sentence() -> None:
    process = _run("refuse")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert err.strip() == "inferbus test: port 1 cannot be bound; choose another"
    assert "stop a" in out


def test_a_failed_task_ends_the_process_in_order() -> None:
    process = _run("task")
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "boom" in out
    assert "stop a" in out


async def test_who_waits_for_a_cancelled_task_may_be_cancelled_too() -> None:
    may_end = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await may_end.wait()

    task = asyncio.create_task(slow())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(cancel(task))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting], timeout=5)
    assert waiting.cancelled()
    may_end.set()
    await cancel(task)
    assert task.cancelled()


async def test_an_error_of_a_cancelled_task_is_dropped() -> None:
    async def faulty() -> None:
        raise ZeroDivisionError

    task = asyncio.create_task(faulty())
    await asyncio.sleep(0)
    await cancel(task)
    await cancel(None)
    assert isinstance(task.exception(), ZeroDivisionError)
