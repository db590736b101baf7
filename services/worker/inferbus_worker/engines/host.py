"""The engine of one resident version over all its lives: load, warm, prove, run, restart.

In: batches with a token each. Out: `on_done` per answered batch, `on_down` with the tokens of what
a dead process left unanswered, `on_up` when it can be given work, `on_failed` when it cannot go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from inferbus_kit.lifecycle import cancel, watched
from inferbus_worker.engines import golden, patience, wire
from inferbus_worker.engines.contract import EngineSpec, Listener
from inferbus_worker.engines.process import Answer, Death, EngineProcess
from inferbus_worker.errors import EngineError

_log = structlog.get_logger("engine")

_LOAD_TIMEOUT_S = 120.0
_QUICK_RESTARTS = 3
_MAX_RESTARTS = 8
_MAX_BACKOFF_S = 30.0


class _Call:
    """A batch of the host's own, awaited."""

    __slots__ = ("answer",)

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[wire.Done, memoryview]] = (
            asyncio.get_running_loop().create_future()
        )


class EngineHost:
    """One version's engine.

    Invariants: at most one process lives; `up` only after it has passed warm-up and golden
    samples; each token given to `submit` comes back exactly once, by `on_done`, `on_down`
    or `on_stopped`; a loop of its own that dies costs this version here, never the process.
    """

    def __init__(
        self,
        spec: EngineSpec,
        listener: Listener,
        on_tokens: Callable[[Any, wire.Tokens], None] | None = None,
    ) -> None:
        self._spec = spec
        self._listener = listener
        self._on_tokens = on_tokens
        self._process: EngineProcess | None = None
        self._open: dict[int, Any] = {}
        self._loaded: asyncio.Future[wire.Loaded] | None = None
        self._gone = asyncio.Event()
        self._death: asyncio.Future[Death] | None = None
        self._lost_reason = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._patience = patience.Patience(spec.manifest.engine)
        self._number = 0
        self._n_deaths = 0
        self._progress_s = 0.0
        self._stopping = False
        self.up = False
        self.memory_bytes = 0
        self.n_restarts = 0
        self.proven_s = 0.0

    @property
    def n_in_flight(self) -> int:
        """Batches that were submitted and not answered."""
        return len(self._open)

    @property
    def pid(self) -> int:
        """The present process's id, 0 where none lives."""
        return 0 if self._process is None else self._process.pid

    async def start(self) -> None:
        """Load, warm every batch size, run the golden samples; then mind the process.

        Raises:
            EngineError: it cannot be loaded, or does not say what it should.
        """
        try:
            await self._live(whole=True)
        except BaseException:
            await self._end_process()
            raise
        model = self._spec.manifest.model
        loops = {f"engine-mind:{model}": self._mind(), f"engine-watch:{model}": self._watch()}
        self._tasks = [
            watched(asyncio.create_task(loop, name=name), self._lost)
            for name, loop in loops.items()
        ]
        self._go_up()

    async def stop(self) -> None:
        """End the process; open batches come back by `on_stopped`."""
        self._stopping = True
        self.up = False
        for task in self._tasks:
            await cancel(task)
        tokens = [token for token in self._open.values() if not isinstance(token, _Call)]
        await self._end_process(keep=True)
        self._tell_death()
        self._process = None
        if tokens:
            self._listener.on_stopped(tokens)

    def submit(
        self,
        token: Any,
        heads: Sequence[wire.TensorHead],
        buffers: Sequence[bytes],
        said: bytes = b"",
        tenant: str = "",
        *,
        of_row: bool = False,
    ) -> None:
        """Give the engine a batch; the caller bounds how many it may hold.

        Args:
            token: comes back with the answer.
            heads: the inputs.
            buffers: their bytes, in the same order.
            said: a serialised `Generation`, for an engine that generates.
            tenant: whose prompt it is, for an engine that generates.
            of_row: it is a job's row, whose prompt may be read after those of requests.
        """
        assert self._process is not None  # noqa: S101 -- only while up
        if not self._open:
            self._progress_s = time.monotonic()
        self._number += 1
        self._open[self._number] = token
        self._process.send(wire.Run(self._number, tuple(heads), said, tenant, of_row), buffers)

    def abort(self, token: Any) -> None:
        """End a generation with what it has; its answer follows all the same."""
        for number, one in self._open.items():
            if one is token and self._process is not None:
                self._process.send(wire.Abort(number), ())

    async def probe(self) -> None:
        """Run one golden sample, or a warm-up batch where there is none, through the real path.

        Raises:
            EngineError: the answer is wrong, or none came in time.
        """
        if not self.up:
            raise EngineError("the engine is not up")
        try:
            await self._prove(self._spec.manifest.golden[:1], patience.STUCK_S)
        except golden.GoldenError as error:
            # It computes something else than it did: no life is better than a wrong answer.
            _log.error("engine_wrong", model=self._spec.manifest.model, reason=str(error))
            if self._process is not None:
                self._process.kill()
            raise EngineError(str(error)) from error

    async def _live(self, *, whole: bool) -> None:
        self._gone.clear()
        # Each life has its own callbacks: a late word of a dead process must not reach the next.
        process = EngineProcess(
            lambda answer, body: self._on_answer(process, answer, body),
            lambda: self._on_gone(process),
        )
        self._process = process
        self._loaded = asyncio.get_running_loop().create_future()
        await process.start(self._spec.scratch)
        load = wire.Load(
            self._spec.raw_manifest,
            str(self._spec.folder),
            self._spec.threads,
            self._spec.max_address_space_bytes,
        )
        process.send(load, ())
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_S):
                loaded = await self._loaded
        except TimeoutError as error:
            raise EngineError(f"the engine did not load it in {_LOAD_TIMEOUT_S:.0f} s") from error
        if loaded.error:
            raise EngineError(loaded.error)
        self.memory_bytes = loaded.memory_bytes
        manifest = self._spec.manifest
        try:
            if whole:
                for batch in golden.warm_up(manifest):
                    await self._call(batch, _LOAD_TIMEOUT_S)
            await self._prove(manifest.golden if whole else manifest.golden[:1], _LOAD_TIMEOUT_S)
        except golden.GoldenError as error:
            raise EngineError(str(error)) from error

    async def _prove(self, samples: tuple[Any, ...], timeout_s: float) -> None:
        manifest = self._spec.manifest
        for sample in samples:
            batch = golden.inputs_of(sample, manifest.signature.inputs)
            golden.check(sample, *await self._call(batch, timeout_s))
        if not samples:
            await self._call(golden.warm_up(manifest)[0], timeout_s)
        self.proven_s = time.monotonic()

    async def _call(self, batch: golden.Inputs, timeout_s: float) -> tuple[wire.Done, memoryview]:
        call = _Call()
        self.submit(call, batch.heads, batch.buffers)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.answer
        except TimeoutError as error:
            raise EngineError(f"the engine did not answer in {timeout_s:.0f} s") from error

    def _on_answer(self, process: EngineProcess, answer: Answer, body: memoryview) -> None:
        if process is not self._process:
            return
        self._progress_s = time.monotonic()
        if isinstance(answer, wire.Loaded):
            if self._loaded is not None and not self._loaded.done():
                self._loaded.set_result(answer)
            return
        if isinstance(answer, wire.Tokens):
            self._heard_tokens(self._open[answer.number], answer)
            return
        token = self._open.pop(answer.number)
        self.memory_bytes = answer.memory_bytes
        self._patience.took(answer.engine_us)
        if isinstance(token, _Call):
            if not token.answer.done():
                token.answer.set_result((answer, body))
            # A slot is free again, and only the listener knows what waits for it.
            if self.up:
                self._listener.on_up()
            return
        self._n_deaths = 0
        self.proven_s = self._progress_s
        self._listener.on_done(token, answer, body)

    def _heard_tokens(self, token: Any, piece: wire.Tokens) -> None:
        if piece.n_tokens:
            # They prove the engine as an answer does, which may take minutes to end.
            self.proven_s = self._progress_s
        if self._on_tokens is not None and not isinstance(token, _Call):
            self._on_tokens(token, piece)

    def _on_gone(self, process: EngineProcess) -> None:
        if process is not self._process:
            return
        was_up, self.up = self.up, False
        left = list(self._open.values())
        self._open.clear()
        died = EngineError("the engine process died")
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(died)
        for token in left:
            if isinstance(token, _Call) and not token.answer.done():
                token.answer.set_exception(died)
        self._gone.set()
        self._tell_death()
        self._death = asyncio.get_running_loop().create_future()
        tokens = [token for token in left if not isinstance(token, _Call)]
        if self._stopping or not was_up:
            return
        if self._lost_reason:
            # It was killed for the host's fault: no batch is suspected.
            self._listener.on_stopped(tokens)
            self._listener.on_failed(self._lost_reason)
        else:
            self._listener.on_down(tokens, self._death)

    def _tell_death(self) -> None:
        """Say how the last process ended to who waits for it."""
        if self._death is not None and not self._death.done():
            unknown = Death("an unknown cause", ())
            self._death.set_result(self._process.death() if self._process else unknown)

    def _lost(self, reason: str) -> None:
        """Give the version up: with a loop of the host dead nobody minds its process."""
        for task in self._tasks:
            task.cancel()
        self._tell_death()
        self._lost_reason = f"its engine's host failed: {reason}"
        if self._process is not None:
            self._process.kill()
        if not self.up and not self._stopping:
            self._listener.on_failed(self._lost_reason)

    def _go_up(self) -> None:
        if self._gone.is_set():
            # It died between its last proof and now; `_mind` brings it back.
            return
        self.up = True
        self._listener.on_up()

    async def _mind(self) -> None:
        """Bring the engine back each time it dies."""
        while True:
            await self._gone.wait()
            self.n_restarts += 1
            await self._end_process(keep=True)
            self._tell_death()
            if self._process is not None:
                death = self._process.death()
                _log.warning(
                    "engine_died",
                    model=self._spec.manifest.model,
                    how=death.how,
                    said=death.said[-5:],
                )
            if not await self._revive():
                return
            self._go_up()

    async def _revive(self) -> bool:
        while True:
            self._n_deaths += 1
            if self._n_deaths > _MAX_RESTARTS:
                self._listener.on_failed("its engine dies again and again")
                return False
            if self._n_deaths > _QUICK_RESTARTS:
                exponent = self._n_deaths - _QUICK_RESTARTS
                await asyncio.sleep(min(_MAX_BACKOFF_S, 0.25 * 2**exponent))
            try:
                await self._live(whole=False)
            except (EngineError, OSError) as error:
                _log.warning(
                    "engine_restart_failed", model=self._spec.manifest.model, error=str(error)
                )
                await self._end_process(keep=True)
            else:
                return True

    async def _watch(self) -> None:
        """Kill a process that has work and makes no progress; alive is not progress."""
        while True:
            await asyncio.sleep(1.0)
            if self.up and self._open and self._process is not None:
                silent_s = time.monotonic() - self._progress_s
                if silent_s > self._patience.silence_s:
                    _log.error(
                        "engine_stuck",
                        model=self._spec.manifest.model,
                        silent_s=round(silent_s, 1),
                    )
                    self._process.kill()

    async def _end_process(self, *, keep: bool = False) -> None:
        if self._process is not None:
            await self._process.stop()
            if not keep:
                self._process = None
