"""How long an engine may be silent: never less than the least, more for what is slow."""

from __future__ import annotations

from inferbus_worker.engines import patience


def test_the_least_holds_until_batches_are_slow() -> None:
    made = patience.Patience("onnx")
    assert made.silence_s == patience.STUCK_S
    for _ in range(100):
        made.took(1000)
    assert made.silence_s == patience.STUCK_S
    made.took(4_000_000)
    made.took(4_000_000)
    assert made.silence_s == 20.0


def test_what_was_slow_long_ago_is_forgotten() -> None:
    made = patience.Patience("onnx")
    for _ in range(300):
        made.took(60_000_000)
    assert made.silence_s == 300.0
    for _ in range(256):
        made.took(1)
    assert made.silence_s == patience.STUCK_S


def test_a_generation_says_nothing_about_the_next() -> None:
    made = patience.Patience("llamacpp")
    made.took(600_000_000)
    assert made.silence_s == 30.0
