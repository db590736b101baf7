"""One version's generations: requests to the engine's own scheduler at once, tokens as they come.

In: requests of a version that generates, what its engine says, cancellations. Out: token chunks for
those that stream, and one record per request, after its last chunk is acknowledged. There is no
batcher: the engine batches continuously, and only how much is in flight is bounded here.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from inferbus_schemas import generation, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Manifest, Signature, TensorSpec
from inferbus_worker.engines import wire
from inferbus_worker.hot.emit import Emitter, OkAnswer, Served, Used
from inferbus_worker.hot.generation_metrics import GenerationMetrics
from inferbus_worker.hot.runs import Run, staying
from inferbus_worker.hot.signature import InvalidInputError, SignatureCheck
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.tokens import TokenSender
from inferbus_worker.hot.work import Batch, Work

_log = structlog.get_logger("generate")

_FATAL_DEATHS = 2
_ROW_READS_S = 0.5
"""How long a row's prompt is read beside a request; its engine remembers what it has read."""


class Engine(Protocol):
    """What generates; see `engines.host`."""

    @property
    def up(self) -> bool: ...
    def submit(
        self,
        token: Any,
        heads: Sequence[wire.TensorHead],
        buffers: Sequence[bytes],
        said: bytes = b"",
        tenant: str = "",
        *,
        of_row: bool = False,
    ) -> None: ...
    def abort(self, token: Any) -> None: ...


class Generator:
    """The hot side of one resident version that generates.

    Invariants: each request that was added leaves with exactly one call of the emitter, after all
    of its chunks are acknowledged, or goes back to its keeper; chunks of a run are numbered without
    a hole; a stream of which a chunk left is never run again; at most `parallel` choices are in the
    engine, or one request. Of the rows of jobs one at a time has its prompt read, and of those that
    a request finds here one stays at most.
    """

    def __init__(
        self,
        manifest: Manifest,
        served: Served,
        *,
        parallel: int,
        instance: str,
        emitter: Emitter,
        tokens: TokenSender,
        metrics: GenerationMetrics,
        spans: Spans,
    ) -> None:
        self._emitter = emitter
        self._tokens = tokens
        self._metrics = metrics
        self._spans = spans
        self._instance = instance
        self._parallel = parallel
        several = TensorSpec(generation.PROMPT, "BYTES", (-1,))
        self._check = SignatureCheck(manifest.signature)
        self._check_several = SignatureCheck(Signature((several,), manifest.signature.outputs))
        self._waiting: deque[Work] = deque()
        self._runs: dict[int, Run] = {}
        self._n_choices = 0
        self._asked_s = float("-inf")
        self._engine: Engine | None = None
        self.served = served
        self.failed_reason = ""
        # One slot is left to requests.
        self.job_rows = (max(1, parallel - 1),) * 2

    def attach(self, engine: Engine) -> None:
        """Use this engine; once, before the first request."""
        self._engine = engine

    @property
    def oldest_s(self) -> float | None:
        """Arrival of the request that waits longest."""
        return min((one.arrived_s for one in self._waiting), default=None)

    @property
    def asked_s(self) -> float:
        """When a request, no row of a job, was here last: now where one waits or runs."""
        if self._asked():
            self._asked_s = time.monotonic()
        return self._asked_s

    def _asked(self) -> bool:
        """Tell whether a request, no row of a job, waits or runs."""
        works = (*self._waiting, *(run.work for run in self._runs.values()))
        return any(work.keeper is None for work in works)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._runs

    def add(self, work: Work) -> bool:
        """Take a request; tell whether it waits for its engine now. `pump` must follow."""
        if self.failed_reason:
            self._emitter.attempt_failed(work, "engine_lost", self.failed_reason, self.served)
            return False
        request = work.request
        # Who only asks by the signature has one prompt.
        check = self._check_several if request.HasField("generation") else self._check
        try:
            n_prompts, _, work.shapes, work.data = check.take(request.tensors, request.outputs)
        except InvalidInputError as error:
            self._invalid(work, "invalid_input", str(error))
            return False
        if excess := generation.excess(request.generation, n_prompts):
            self._invalid(work, "invalid_input", excess)
            return False
        work.rows = n_prompts * max(1, request.generation.n)
        work.n_bytes = len(request.tensors)
        if work.keeper is None:
            self._asked_s = work.arrived_s
            self._make_way()
        self._waiting.append(work)
        return True

    def _make_way(self, began_s: float = float("inf")) -> None:
        """Send rows of jobs back to their keepers, but one, and none that began to run later."""
        running = [
            run for run in self._runs.values() if run.work.keeper is not None and not run.yields
        ]
        waiting = [work for work in self._waiting if work.keeper is not None]
        stays = staying(running, waiting)
        for run in running:
            if run.work is not stays and run.batch.started_s <= began_s:
                run.yields = True
                self._abort(run)
        # The first of them is the first of its keeper again.
        for work in reversed(waiting):
            if work is not stays:
                self._waiting.remove(work)
                _send_back(work)

    def _invalid(self, work: Work, code: str, message: str) -> None:
        self._emitter.ended(work, m.OUTCOME_INVALID_INPUT, code, message, self.served)

    def pump(self, now_s: float) -> None:
        """Give the engine what it can take."""
        engine = self._engine
        if engine is None or not engine.up:
            return
        at = 0
        while at < len(self._waiting):
            work = self._waiting[at]
            if self._runs and self._n_choices + work.rows > self._parallel:
                return
            if work.keeper is not None and self._row_reads():
                at += 1  # The requests behind it need not wait.
                continue
            del self._waiting[at]
            if work.deadline_s <= now_s:
                self._emitter.expired(work, self.served)
            else:
                self._start(engine, work, now_s)

    def _row_reads(self) -> bool:
        """Tell whether a row's prompt is being read: an engine hears of no abort before its turn.

        Prompts are read one after another anyway.
        """
        return any(run.work.keeper is not None and not run.began for run in self._runs.values())

    def _start(self, engine: Engine, work: Work, now_s: float) -> None:
        request = work.request
        batch = Batch([work], work.rows, os.urandom(16), now_s, time.time_ns())
        run = Run(work, secrets.randbits(64), request.generation.stream, batch)
        run.n_running = work.rows
        self._runs[run.run] = run
        self._n_choices += work.rows
        (data,) = work.data
        head = wire.TensorHead(generation.PROMPT, "BYTES", work.shapes[0], len(data))
        said = request.generation.SerializeToString() if request.HasField("generation") else b""
        self._metrics.queue_seconds.observe(now_s - work.arrived_s)
        of_row = work.keeper is not None
        engine.submit(run, [head], [data], said, request.tenant, of_row=of_row)

    def tick(self, now_s: float) -> None:
        """End what has expired, waiting or running; called a few times a second."""
        for work in [one for one in self._waiting if one.deadline_s <= now_s]:
            self._waiting.remove(work)
            self._emitter.expired(work, self.served)
        for run in list(self._runs.values()):
            if run.work.deadline_s <= now_s and not run.expired:
                run.expired = True
                self._abort(run)
        if self._engine is not None and self._engine.up and self._asked():
            self._make_way(now_s - _ROW_READS_S)
        self.pump(now_s)

    def cancel(self, request_id: bytes) -> bool:
        """End a request with what it has; tell whether it is here."""
        running = [one for one in self._runs.values() if one.work.request.id == request_id]
        for run in running:
            run.cancelled = True
            self._abort(run)
        waiting = [one for one in self._waiting if one.request.id == request_id]
        for work in waiting:
            self._waiting.remove(work)
            self._emitter.cancelled(work, self.served)
        return bool(running or waiting)

    def _abort(self, run: Run) -> None:
        if self._engine is not None and run.done is None:
            self._engine.abort(run)

    # What the engine says.

    def on_up(self) -> None:
        self.pump(time.monotonic())

    def on_tokens(self, run: Run, piece: wire.Tokens) -> None:
        """Send a piece on; where a choice ends, its place in the engine is free."""
        if not run.began and (piece.began or piece.n_tokens or piece.finish_reason):
            run.began = True
            self.pump(time.monotonic())
        if run.stream and (piece.n_tokens or piece.tool_calls or piece.finish_reason):
            self._send(run, piece)
        if piece.finish_reason and run.n_running:
            run.n_running -= 1
            self._n_choices -= 1
            self.pump(time.monotonic())

    def _send(self, run: Run, piece: wire.Tokens) -> None:
        request = run.work.request
        prompt = piece.choice // max(1, request.generation.n)
        known = run.prompt_tokens.get(prompt)
        run.prompt_tokens[prompt] = max(known or 0, piece.prompt_tokens)
        run.sent_tokens += piece.n_tokens
        chunk = m.TokenChunk(
            id=request.id,
            attempt=request.attempt,
            run=run.run,
            seq=run.n_chunks,
            choice=piece.choice,
            text=piece.text,
            n_tokens=piece.n_tokens,
            token_ids=piece.token_ids,
            logprobs=piece.logprobs,
            tool_calls=piece.tool_calls,
            finish_reason=piece.finish_reason,
            tenant=request.tenant,
            model=request.model,
            version=request.version,
            served_by=self._instance,
            prompt_kind=request.generation.prompt_kind,
            include_usage=request.generation.include_usage,
            form=request.generation.form,
            client_request_id=request.client_request_id,
            prompt_tokens=piece.prompt_tokens if known is None else 0,
            read_at=request.generation.read_at,
        )
        run.n_chunks += 1
        run.n_unacknowledged += 1
        self._tokens.put(run.work, chunk, lambda: self._acknowledged(run))

    def _acknowledged(self, run: Run) -> None:
        run.n_unacknowledged -= 1
        if run.n_unacknowledged == 0 and run.done is not None:
            self._finish(run, *run.done)

    def on_done(self, run: Run, done: wire.Done, body: memoryview) -> None:
        self._leave_engine(run)
        run.batch.engine_us = done.engine_us
        run.done = (done, bytes(body))
        if run.n_unacknowledged == 0:
            self._finish(run, *run.done)
        self.pump(time.monotonic())

    def _leave_engine(self, run: Run) -> None:
        self._n_choices -= run.n_running
        run.n_running = 0

    def _finish(self, run: Run, done: wire.Done, body: bytes) -> None:
        """Write the record of a run whose chunks are all acknowledged."""
        work = run.work
        del self._runs[run.run]
        if done.bad_rows:
            self._invalid(work, done.code or "invalid_input", done.bad_rows[0])
        elif done.error:
            _log.warning("generation_failed", model=work.request.model, error=done.error)
            message = "the model cannot go on from this prompt"
            self._failed(run, "engine_error", message)
        elif run.yields and done.aborted and not (run.expired or run.cancelled):
            _send_back(work)
        elif run.expired and done.aborted:
            used = Used(generation.usage(self._generated(run, done)))
            self._emitter.expired(work, self.served, used)
        else:
            self._answer(run, done, body)

    def _generated(self, run: Run, done: wire.Done) -> m.Generated:
        """Return what the engine says of a run, counted."""
        generated = m.Generated.FromString(done.generated)
        generated.run, generated.n_chunks = run.run, run.n_chunks
        generated.form = run.work.request.generation.form
        self._metrics.prompt_tokens.inc(generated.prompt_tokens)
        self._metrics.completion_tokens.inc(generated.completion_tokens)
        self._metrics.engine_seconds.observe(done.engine_us / 1e6)
        if generated.first_token_us:
            self._metrics.first_token_seconds.observe(generated.first_token_us / 1e6)
        return generated

    def _answer(self, run: Run, done: wire.Done, body: bytes) -> None:
        (head,) = done.outputs
        request = run.work.request
        tensor = m.Tensor(name=head.name, datatype=head.datatype, shape=head.shape, data=body)
        answer = OkAnswer(
            0,
            m.TensorSet(tensors=[tensor]).SerializeToString(),
            tensors.output_sha256([tensor]),
            self._spans.answered(run.batch).get(id(run.work), request.traceparent),
            generated=self._generated(run, done),
            cancelled=run.cancelled and done.aborted,
        )
        self._emitter.ok(run.work, run.batch, self.served, answer)

    def on_down(self, runs: list[Run], *_death: Any) -> None:
        """Run again what a dead process left, but no stream that has begun: two runs differ."""
        for run in reversed(runs):
            self._leave_engine(run)
            del self._runs[run.run]
            run.work.n_alone_deaths += 1
            if run.cancelled and not run.n_chunks:
                self._emitter.cancelled(run.work, self.served)
            elif run.n_chunks or run.work.n_alone_deaths >= _FATAL_DEATHS:
                self._failed(run, "engine_lost", "the model's engine died while it answered")
            elif run.yields:
                _send_back(run.work)
            else:
                self._waiting.appendleft(run.work)

    def _failed(self, run: Run, code: str, message: str) -> None:
        """Write that a run failed; what left of it has cost its tokens."""
        used = Used()
        if run.n_chunks:
            used = Used(
                m.Generated(
                    run=run.run,
                    n_chunks=run.n_chunks,
                    prompt_tokens=sum(run.prompt_tokens.values()),
                    completion_tokens=run.sent_tokens,
                    form=run.work.request.generation.form,
                )
            )
        outcome = m.OUTCOME_FAILED
        self._emitter.ended(run.work, outcome, code, message, self.served, used=used)

    def on_stopped(self, runs: list[Run]) -> None:
        """Queue again, or end, what ran when the engine was stopped on purpose."""
        self.on_down(runs)

    def on_failed(self, reason: str) -> None:
        """Give everything back: the engine will not come again."""
        self.give_up(f"the model's engine is lost: {reason}")

    def give_up(self, reason: str) -> None:
        """End all attempts that wait here, and those that come."""
        self.failed_reason = reason
        waiting, self._waiting = list(self._waiting), deque()
        for work in waiting:
            self._emitter.attempt_failed(work, "engine_lost", reason, self.served)


def _send_back(work: Work) -> None:
    if work.keeper is not None:
        work.keeper.again(work)
