"""What an engine's process says of a generation while it works; the engine is a list of pieces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from inferbus_schemas import tensors
from inferbus_worker.engines import wire
from inferbus_worker.engines.generating import Generations
from inferbus_worker.engines.pieces import Piece


class Engine:
    """Says its pieces; the first of them comes while a prompt is read."""

    parallel = 1

    def generate(
        self,
        _prompt: str,
        _said: Any,
        _choice: int,
        tell: Callable[[Piece], bool],
        _tenant: str,
        *,
        of_row: bool,  # noqa: ARG002
    ) -> None:
        for piece in (Piece(n_prompt_tokens=9), Piece(text="a", n_tokens=1)):
            assert tell(piece)
        assert tell(Piece(finish_reason="stop"))


def test_tokens_that_nobody_streams_are_told_as_signs_of_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They prove the engine, and say that its prompt was read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        body = tensors.join_bytes([b"hi"])
        run = wire.Run(7, (wire.TensorHead("prompt", "BYTES", (1,), len(body)),))
        said: list[Any] = []
        generations = Generations(theirs, Engine(), lambda: 0)
        monkeypatch.setattr(generations, "_send", lambda one, _buffers=None: said.append(one))
        generations._aborted[7] = abort = threading.Event()
        generations._run(run, body, abort)
    signs = [(one.began, one.n_tokens) for one in said if isinstance(one, wire.Tokens)]
    assert (True, 1) in signs
    assert isinstance(said[-1], wire.Done)
