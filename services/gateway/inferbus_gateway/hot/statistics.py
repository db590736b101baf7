"""What this gateway has answered, by version: counts and times as Triton's statistics have them.

In: the end of each accepted request. Out: `Figures` of each version. Pure; flat sums, since every
request pays for them. An execution is counted by the request whose rows come first in its batch, so
that it is counted once at most, and not at all where rows of a job or a submission come first.
"""

from __future__ import annotations

from collections.abc import Mapping

from inferbus_schemas import messages as m

_MAX_SIZES = 256


class Figures:
    """The figures of one version.

    Invariants: `queue_us`, `engine_us` and `worker_us` (which holds both) sum over the `n_ok`
    requests; `batches` says for at most `_MAX_SIZES` sizes in rows how often a batch of that size
    ran and for how many microseconds; `last_s` is UTC, 0 before the first end.
    """

    __slots__ = (
        "batches",
        "engine_us",
        "failed_s",
        "last_s",
        "n_executions",
        "n_failed",
        "n_ok",
        "n_rows",
        "ok_s",
        "queue_us",
        "worker_us",
    )

    def __init__(self) -> None:
        self.n_ok = 0
        self.n_failed = 0
        self.ok_s = 0.0
        self.failed_s = 0.0
        self.queue_us = 0
        self.engine_us = 0
        self.worker_us = 0
        self.n_rows = 0
        self.n_executions = 0
        self.last_s = 0.0
        self.batches: dict[int, tuple[int, int]] = {}

    def ended(
        self, prediction: m.Prediction | None, n_rows: int, seconds: float, now_s: float
    ) -> None:
        """Count an accepted request that has ended.

        Args:
            prediction: its terminal record; None where no record came in time.
            n_rows: of the request.
            seconds: from its arrival to its end.
            now_s: UTC.
        """
        self.last_s = now_s
        if prediction is None or prediction.outcome != m.OUTCOME_OK:
            self.n_failed += 1
            self.failed_s += seconds
            return
        engine_us = prediction.engine_us
        self.n_ok += 1
        self.ok_s += seconds
        self.queue_us += prediction.queue_us
        self.engine_us += engine_us
        self.worker_us += prediction.latency_us
        self.n_rows += n_rows
        if prediction.batch_row == 0:
            self.n_executions += 1
            size = prediction.batch_size
            if size in self.batches or len(self.batches) < _MAX_SIZES:
                count, before_us = self.batches.get(size, (0, 0))
                self.batches[size] = (count + 1, before_us + engine_us)


class Statistics:
    """The figures of all versions that were asked for since this gateway started."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, int], Figures] = {}

    @property
    def figures(self) -> Mapping[tuple[str, int], Figures]:
        """The figures by model and version."""
        return self._figures

    def of(self, model: str, version: int) -> Figures:
        """Return the figures of a version, to be counted up."""
        return self._figures.setdefault((model, version), Figures())
