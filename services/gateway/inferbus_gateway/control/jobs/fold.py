"""What `jobs.status` says of all jobs, folded; pure.

In: records in the order of their offsets, with their append times. Out: state, counts, progress
and the time that is left of each job; which jobs still need their commands; which versions must be
held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from inferbus_gateway.control.jobs.spent import Spent
from inferbus_schemas import ids
from inferbus_schemas import messages as m

State = Literal["queued", "running", "completed", "cancelling", "cancelled"]

_WINDOW_MS = 60_000
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; times are UTC milliseconds, 0 where there is none yet."""

    job: m.Job
    state: State
    n_ok: int
    n_failed: int
    n_cancelled: int
    n_chunks_done: int
    created_ms: int
    started_ms: int
    finished_ms: int
    rows_per_s: float
    left_s: float | None

    @property
    def n_done(self) -> int:
        """Rows that have their results."""
        return self.n_ok + self.n_failed + self.n_cancelled

    @property
    def finished(self) -> bool:
        """Whether every row has its result."""
        return self.state in {"completed", "cancelled"}


@dataclass(slots=True)
class _Folded:
    """What was read of one job; its parts may come in any order after a compaction."""

    job: m.Job | None = None
    job_ms: int = 0
    done: dict[int, m.ChunkStatus] = field(default_factory=dict)
    started_ms: int = 0
    finished_ms: int = 0
    n_ok: int = 0
    n_failed: int = 0
    n_cancelled: int = 0
    cancelled: bool = False
    unnamed: list[tuple[int, int]] = field(default_factory=list)
    lately: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def over(self) -> bool:
        return self.job is not None and len(self.done) >= self.job.n_chunks


class Fold:
    """The jobs.

    Invariants: a chunk that is DONE stays so and is counted once; a job that is cancelled or
    dispatched stays so; what is told twice changes nothing; `_open` holds exactly the jobs that
    have not ended, by tenant; `spent` has the tokens of each chunk once, under the tenant and
    under `tenant/principal`.
    """

    def __init__(self) -> None:
        self._jobs: dict[bytes, _Folded] = {}
        self._open: dict[str, set[bytes]] = {}
        self.spent = Spent()

    def apply(self, said: m.JobStatus, append_ms: int) -> None:
        """Take a record."""
        part = said.WhichOneof("part")
        if part == "job":
            self._apply_job(said.job, append_ms)
        elif part == "chunk":
            self._apply_chunk(said.chunk, append_ms)
        elif part == "cancelled":
            self._folded(said.cancelled.job).cancelled = True

    def forget(self, job_id: bytes) -> None:
        """Drop a job whose record was deleted."""
        folded = self._jobs.pop(job_id, None)
        if folded is not None and folded.job is not None:
            self._close(folded.job)

    def _folded(self, job_id: bytes) -> _Folded:
        return self._jobs.setdefault(job_id, _Folded())

    def _apply_job(self, job: m.Job, append_ms: int) -> None:
        folded = self._folded(job.id)
        if folded.job is None or job.dispatched or not folded.job.dispatched:
            folded.job, folded.job_ms = job, append_ms
            self._spend(folded)
            if not folded.over:
                self._open.setdefault(job.tenant, set()).add(job.id)

    def _close(self, job: m.Job) -> None:
        left = self._open.get(job.tenant, set())
        left.discard(job.id)
        if not left:
            self._open.pop(job.tenant, None)

    def _apply_chunk(self, chunk: m.ChunkStatus, append_ms: int) -> None:
        folded = self._folded(chunk.job)
        if not folded.started_ms:
            folded.started_ms = append_ms
        if chunk.state != m.CHUNK_STATE_DONE or chunk.chunk in folded.done:
            return
        folded.done[chunk.chunk] = chunk
        folded.n_ok += chunk.n_ok
        folded.n_failed += chunk.n_failed
        folded.n_cancelled += chunk.n_cancelled
        folded.finished_ms = max(folded.finished_ms, append_ms)
        folded.unnamed.append((chunk.n_tokens, append_ms))
        self._spend(folded)
        folded.lately.append((append_ms, chunk.n_ok + chunk.n_failed + chunk.n_cancelled))
        if folded.over and folded.job is not None:
            self._close(folded.job)

    def _spend(self, folded: _Folded) -> None:
        """Note whose the tokens of a job are, once its record says."""
        if (job := folded.job) is not None:
            for n_tokens, at_ms in folded.unnamed:
                self.spent.add(job.tenant, n_tokens, at_ms)
                self.spent.add(f"{job.tenant}/{job.principal}", n_tokens, at_ms)
            folded.unnamed.clear()

    def load(self, tenant: str) -> tuple[int, int]:
        """Return how many jobs of a tenant have not ended, and how many rows of them are left."""
        left = [self._jobs[job_id] for job_id in self._open.get(tenant, ())]
        n_rows = sum(
            one.job.n_rows - one.n_ok - one.n_failed - one.n_cancelled
            for one in left
            if one.job is not None
        )
        return len(left), n_rows

    def progress(self, job_id: bytes, now_ms: int) -> Progress | None:
        """Return how far a job is; None where there is no such job."""
        folded = self._jobs.get(job_id)
        if folded is None or folded.job is None:
            return None
        rate = rows_per_s(folded.lately, folded.started_ms, now_ms)
        n_left = folded.job.n_rows - folded.n_ok - folded.n_failed - folded.n_cancelled
        left_s = 0.0 if folded.over else (n_left / rate if rate else None)
        return Progress(
            job=folded.job,
            state=_state(folded),
            n_ok=folded.n_ok,
            n_failed=folded.n_failed,
            n_cancelled=folded.n_cancelled,
            n_chunks_done=len(folded.done),
            created_ms=ids.unix_ms(job_id),
            started_ms=folded.started_ms,
            finished_ms=folded.finished_ms if folded.over else 0,
            rows_per_s=_whole_rate(folded) if folded.over else rate,
            left_s=left_s,
        )

    def of_tenant(self, tenant: str, now_ms: int, before: bytes, limit: int) -> list[Progress]:
        """Return a tenant's jobs, newest first, those with lower ids than `before` (empty: all)."""
        found = [
            job_id
            for job_id, one in self._jobs.items()
            if one.job is not None and one.job.tenant == tenant and (not before or job_id < before)
        ]
        newest = sorted(found, reverse=True)[:limit]
        return [one for job_id in newest if (one := self.progress(job_id, now_ms)) is not None]

    def undispatched(self, now_ms: int, age_ms: int) -> list[m.Job]:
        """Return jobs whose commands may be missing and whose record is older than `age_ms`."""
        return [
            one.job
            for one in self._jobs.values()
            if one.job is not None and not one.job.dispatched and now_ms - one.job_ms > age_ms
        ]

    def older_than(self, unix_ms: int) -> list[tuple[m.Job, list[int]]]:
        """Return the jobs that ended and were made before a time, with their chunks.

        Those that another one continues, which is not among them, are left out: its results are
        theirs too.
        """
        old = {
            job_id: one
            for job_id, one in self._jobs.items()
            if one.job is not None and one.over and ids.unix_ms(job_id) < unix_ms
        }
        for job_id, one in self._jobs.items():
            kept = one.job if job_id not in old else None
            while kept is not None and (parent := old.pop(kept.parent, None)) is not None:
                kept = parent.job
        return [(one.job, sorted(one.done)) for one in old.values() if one.job is not None]

    def inputs(self) -> set[str]:
        """Return the folder of each job's input."""
        return {one.job.input for one in self._jobs.values() if one.job is not None}

    def versions(self) -> set[tuple[str, str, int]]:
        """Return pool, model and version of each job that has not ended."""
        return {
            (one.job.pool, one.job.model, one.job.version)
            for one in self._jobs.values()
            if one.job is not None and not one.over
        }

    def __contains__(self, job_id: bytes) -> bool:
        folded = self._jobs.get(job_id)
        return folded is not None and folded.job is not None


def rows_per_s(done: Iterable[tuple[int, int]], started_ms: int, now_ms: int) -> float:
    """Return the rate over the last minute, or since the start where that is less long ago.

    Args:
        done: time and rows of the chunks that ended lately, UTC milliseconds.
        started_ms: when the first chunk began.
        now_ms: the present.
    """
    since_ms = max(started_ms, now_ms - _WINDOW_MS)
    rows = sum(n_rows for at_ms, n_rows in done if at_ms > since_ms)
    return rows * 1000 / max(1, now_ms - since_ms)


def _whole_rate(folded: _Folded) -> float:
    """Return the rate of a job that is over, from its first chunk to its last."""
    took_ms = folded.finished_ms - folded.started_ms
    return (folded.n_ok + folded.n_failed) * 1000 / max(1, took_ms) if folded.started_ms else 0.0


def _state(folded: _Folded) -> State:
    if folded.over:
        return "cancelled" if folded.cancelled and folded.n_cancelled else "completed"
    if folded.cancelled:
        return "cancelling"
    return "running" if folded.started_ms else "queued"
