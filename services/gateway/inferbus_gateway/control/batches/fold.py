"""What `jobs.status` says of files and batches, folded; pure.

In: records in the order of their offsets, with their append times. Out: the files and batches of a
tenant, and how far each batch is, beside the progress of its job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inferbus_gateway.control.jobs.fold import Progress
from inferbus_schemas import messages as m

Status = Literal[
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "cancelling",
    "cancelled",
    "expired",
]

_ENDS: dict[int, Status] = {
    m.BATCH_END_COMPLETED: "completed",
    m.BATCH_END_FAILED: "failed",
    m.BATCH_END_CANCELLED: "cancelled",
    m.BATCH_END_EXPIRED: "expired",
}


@dataclass(slots=True)
class Known:
    """What is known of one batch; times are UTC milliseconds, 0 where there is none yet."""

    batch: m.Batch
    accepted_ms: int = 0
    cancelled_ms: int = 0
    ended: m.BatchEnded | None = None
    ended_ms: int = 0

    @property
    def expired(self) -> bool:
        """Whether it was cancelled because its time was over."""
        return self.cancelled_ms >= self.batch.expires_ms

    def status(self, job: Progress | None) -> Status:
        """Return how far it is.

        Args:
            job: the progress of the job that has its id; None while there is none.
        """
        if self.ended is not None:
            return _ENDS.get(self.ended.end, "failed")
        if self.cancelled_ms:
            return "finalizing" if self.expired else "cancelling"
        if job is None:
            return "validating"
        return "finalizing" if job.finished else "in_progress"


class BatchFold:
    """The files and batches.

    Invariants: the record of a batch comes before all others of it, so those of plain jobs are
    passed over; the first end of a batch is its end.
    """

    def __init__(self) -> None:
        self._files: dict[bytes, m.File] = {}
        self._batches: dict[bytes, Known] = {}

    def apply(self, said: m.JobStatus, append_ms: int) -> None:
        """Take a record."""
        part = said.WhichOneof("part")
        if part == "file":
            self._files[said.file.id] = said.file
        elif part == "batch":
            self._batches.setdefault(said.batch.id, Known(said.batch))
        elif part == "batch_ended" and (known := self._batches.get(said.batch_ended.batch)):
            if known.ended is None:
                known.ended, known.ended_ms = said.batch_ended, append_ms
        elif part == "job" and (known := self._batches.get(said.job.id)):
            known.accepted_ms = known.accepted_ms or append_ms
        elif part == "cancelled" and (known := self._batches.get(said.cancelled.job)):
            known.cancelled_ms = known.cancelled_ms or append_ms

    def forget_file(self, file_id: bytes) -> None:
        """Drop a file whose record was deleted."""
        self._files.pop(file_id, None)

    def forget_batch(self, batch_id: bytes) -> None:
        """Drop a batch whose record was deleted."""
        self._batches.pop(batch_id, None)

    def file(self, file_id: bytes) -> m.File | None:
        """Return a file, or None where there is no such file."""
        return self._files.get(file_id)

    def batch(self, batch_id: bytes) -> Known | None:
        """Return a batch, or None where there is no such batch."""
        return self._batches.get(batch_id)

    def files_of(self, tenant: str) -> list[m.File]:
        """Return a tenant's files, oldest first."""
        mine = [one for one in self._files.values() if one.tenant == tenant]
        return sorted(mine, key=lambda one: one.id)

    def batches_of(self, tenant: str) -> list[Known]:
        """Return a tenant's batches, oldest first."""
        mine = [one for one in self._batches.values() if one.batch.tenant == tenant]
        return sorted(mine, key=lambda one: one.batch.id)

    def open(self) -> list[Known]:
        """Return the batches that have not ended."""
        return [one for one in self._batches.values() if one.ended is None]

    def ended_before(self, unix_ms: int) -> list[m.Batch]:
        """Return the batches that ended before a time."""
        return [
            one.batch
            for one in self._batches.values()
            if one.ended is not None and one.ended_ms < unix_ms
        ]

    def files_past(self, now_ms: int) -> list[m.File]:
        """Return the files whose time is over."""
        return [one for one in self._files.values() if one.expires_ms < now_ms]
