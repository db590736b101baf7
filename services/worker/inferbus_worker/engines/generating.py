"""The engine process of a version that generates: many answers at once, each in its own thread.

In: frames of the worker, read by the main thread. Out: pieces as they come, and one `Done` per
`Run`, in the order in which they end.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from inferbus_schemas import generation, tensors
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_worker.engines import wire
from inferbus_worker.engines.llamacpp import LlamaEngine, PromptError
from inferbus_worker.engines.pieces import Piece

_AT_WORK_S = 0.5
"""Between two frames that say only that work goes on."""


class TextEngine(Protocol):
    """What turns prompts into text, so many at once; see `llamacpp`."""

    parallel: int

    def generate(
        self,
        prompt: str,
        said: m.Generation | None,
        choice: int,
        tell: Callable[[Piece], bool],
        tenant: str,
        *,
        of_row: bool,
    ) -> None: ...


def load(raw_manifest: bytes, folder: Path, threads: int) -> TextEngine:
    """Load a version from its folder.

    Raises:
        ManifestError, LoadError: it cannot be run; the message says why.
    """
    return LlamaEngine(manifests.parse(raw_manifest), folder, threads)


@dataclass(slots=True)
class _Answer:
    """One choice while it grows."""

    index: int
    parts: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str = ""
    n_tokens: int = 0
    n_prompt_tokens: int = 0
    first_ns: int = 0
    began: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a `Run` asks, `n` answers to each prompt; `abort` is set when it shall end."""

    number: int
    prompts: list[str]
    n: int
    said: m.Generation | None
    abort: threading.Event
    tenant: str
    of_row: bool


class Generations:
    """The answers that are being generated.

    Invariants: one `Done` per `Run`, after all of its pieces; frames of two threads never mix; an
    abort stops a generation at its next piece or sign of work.
    """

    def __init__(
        self, sock: socket.socket, engine: TextEngine, memory_bytes: Callable[[], int]
    ) -> None:
        self._sock = sock
        self._engine = engine
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._aborted: dict[int, threading.Event] = {}

    def serve(self, commands: Iterator[tuple[wire.Command, bytes]]) -> None:
        """Take commands until there are no more."""
        for command, body in commands:
            if isinstance(command, wire.Run):
                abort = self._aborted[command.number] = threading.Event()
                work = threading.Thread(target=self._run, args=(command, body, abort), daemon=True)
                work.start()
            # What is to be aborted may end in its thread just now.
            elif isinstance(command, wire.Abort) and (found := self._aborted.get(command.number)):
                found.set()

    def _send(self, said: wire.Said, buffers: list[bytes] | None = None) -> None:
        head = wire.frame(said, sum(map(len, buffers or ())))
        # The worker is gone where this fails, and so is this process in a moment.
        with self._lock, contextlib.suppress(OSError):
            self._sock.sendall(b"".join((head, *(buffers or ()))))

    def _run(self, run: wire.Run, body: bytes, abort: threading.Event) -> None:
        started_ns = time.perf_counter_ns()
        said = m.Generation.FromString(run.generation) if run.generation else None
        n = max(1, said.n if said is not None else 1)
        try:
            prompts = [element.decode() for element in tensors.split_bytes(body)]
        except ValueError:
            done = wire.Done(run.number, (), {0: "a prompt is not a UTF-8 text"}, "", 0, 0)
            self._end(done, [], started_ns)
            return
        asked = _Asked(run.number, prompts, n, said, abort, run.tenant, run.of_row)
        answers = [_Answer(index) for index in range(len(prompts) * n)]
        waiting = deque(answers)
        threads = [
            threading.Thread(target=self._choices, args=(asked, waiting), daemon=True)
            for _ in range(min(len(answers), self._engine.parallel) - 1)
        ]
        for thread in threads:
            thread.start()
        self._choices(asked, waiting)
        for thread in threads:
            thread.join()
        self._end(*_done(asked, answers, started_ns), started_ns)

    def _choices(self, asked: _Asked, waiting: deque[_Answer]) -> None:
        """Make answers while there are some to make."""
        while not asked.abort.is_set():
            try:
                answer = waiting.popleft()
            except IndexError:
                return
            self._choice(asked, answer)

    def _end(self, done: wire.Done, buffers: list[bytes], started_ns: int) -> None:
        del self._aborted[done.number]
        engine_us = (time.perf_counter_ns() - started_ns) // 1000
        said = msgspec.structs.replace(done, engine_us=engine_us, memory_bytes=self._memory_bytes())
        self._send(said, buffers)

    def _choice(self, asked: _Asked, answer: _Answer) -> None:
        stream = asked.said is not None and asked.said.stream
        told_s = 0.0

        def tell(piece: Piece) -> bool:
            nonlocal told_s
            _grow(answer, piece)
            first = not answer.began and (piece.held or piece.n_tokens > 0)
            answer.began |= first
            if asked.abort.is_set():
                return False
            now_s = time.monotonic()
            ends = piece.finish_reason
            if stream and piece.is_said:
                self._send(_tokens(asked.number, answer, piece))
            elif ends or first or now_s - told_s >= _AT_WORK_S:
                # That tokens come is what proves an engine that has no request to end.
                said = wire.Tokens(
                    asked.number,
                    answer.index,
                    n_tokens=piece.n_tokens,
                    finish_reason=ends,
                    began=first,
                )
                self._send(said)
            else:
                return True
            told_s = now_s
            return True

        at, choice = divmod(answer.index, asked.n)
        try:
            self._engine.generate(
                asked.prompts[at], asked.said, choice, tell, asked.tenant, of_row=asked.of_row
            )
        except Exception as error:  # noqa: BLE001 -- each answer says how it ended
            answer.error = error
            asked.abort.set()


def _grow(answer: _Answer, piece: Piece) -> None:
    if piece.n_tokens and not answer.first_ns:
        answer.first_ns = time.perf_counter_ns()
    answer.parts.append(piece.text)
    answer.logprobs += piece.logprobs
    answer.n_tokens += piece.n_tokens
    answer.n_prompt_tokens = piece.n_prompt_tokens or answer.n_prompt_tokens
    answer.finish_reason = piece.finish_reason or answer.finish_reason
    answer.usage = piece.usage or answer.usage
    for delta in piece.tool_calls:
        call = answer.calls.setdefault(int(delta.get("index", 0)), {"function": {"arguments": ""}})
        function = delta.get("function") or {}
        call |= {key: delta[key] for key in ("id", "type") if delta.get(key)}
        if function.get("name"):
            call["function"]["name"] = function["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


def _tokens(number: int, answer: _Answer, piece: Piece) -> wire.Tokens:
    return wire.Tokens(
        number,
        answer.index,
        piece.text,
        piece.n_tokens,
        piece.token_ids,
        _json(piece.logprobs),
        _json(piece.tool_calls),
        piece.finish_reason,
        answer.n_prompt_tokens,
    )


def _json(values: list[Any]) -> str:
    return msgspec.json.encode(values).decode() if values else ""


def _done(asked: _Asked, answers: list[_Answer], started_ns: int) -> tuple[wire.Done, list[bytes]]:
    number = asked.number
    for answer in answers:
        if isinstance(answer.error, PromptError):
            where = f"prompt {answer.index // asked.n}: " if len(asked.prompts) > 1 else ""
            bad = {0: f"{where}{answer.error}"}
            return wire.Done(number, (), bad, "", 0, 0, code=answer.error.code), []
        if answer.error is not None:
            return wire.Done(number, (), {}, str(answer.error) or "it failed", 0, 0), []
    firsts_ns = [answer.first_ns for answer in answers if answer.first_ns]
    data = tensors.join_bytes("".join(answer.parts).encode() for answer in answers)
    head = wire.TensorHead(generation.TEXT, "BYTES", (len(answers),), len(data))
    generated = m.Generated(
        prompt_tokens=_of_prompts(
            asked.n,
            [answer.usage.get("prompt_tokens", answer.n_prompt_tokens) for answer in answers],
        ),
        cached_tokens=_of_prompts(
            asked.n,
            [
                (answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                for answer in answers
            ],
        ),
        completion_tokens=sum(
            answer.usage.get("completion_tokens", answer.n_tokens) for answer in answers
        ),
        choices=[
            m.Choice(
                finish_reason=answer.finish_reason or "cancelled",
                logprobs=_json(answer.logprobs),
                tool_calls=_json([answer.calls[index] for index in sorted(answer.calls)]),
            )
            for answer in answers
        ],
        first_token_us=(min(firsts_ns) - started_ns) // 1000 if firsts_ns else 0,
    )
    done = wire.Done(
        number,
        (head,),
        {},
        "",
        0,
        0,
        generated=generated.SerializeToString(),
        aborted=asked.abort.is_set() and not all(answer.finish_reason for answer in answers),
    )
    return done, [data]


def _of_prompts(n: int, counts: list[int]) -> int:
    """Return what prompts count together, from what each of their `n` answers says of its own."""
    return sum(max(counts[at : at + n]) for at in range(0, len(counts), n))
