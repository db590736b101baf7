"""What this gateway has answered, by version: counts and times as Triton's statistics have them.

In: the end of each accepted request. Out: `Figures` of each version. Pure; flat sums, since every
request pays for them. An execution is counted with the first answer that names its batch, whoever
else had rows in it, and with no further one; another gateway that had rows in it counts it too.
"""

from __future__ import annotations

from collections.abc import Mapping

from inferbus_schemas import messages as m

_MAX_SIZES = 1024
_REMEMBERED = 8192


class _Batches:
    """The batches that were counted lately.

    Invariants: of the last `_REMEMBERED` none is forgotten; at most twice as many are kept.
    """

    __slots__ = ("_before", "_seen")

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._before: set[bytes] = set()

    def new(self, batch_id: bytes) -> bool:
        """Tell whether a batch was not seen yet, and remember it; without an id it is new."""
        if not batch_id:
            return True
        if batch_id in self._seen or batch_id in self._before:
            return False
        if len(self._seen) >= _REMEMBERED:
            self._before, self._seen = self._seen, set()
        self._seen.add(batch_id)
        return True


class Figures:
    """The figures of one version.

    Invariants: `queue_us`, `engine_us` and `worker_us` (which holds both) sum over the `n_ok`
    requests; `n_executions` counts once each batch that one of those was in, and each piece of one
    that ran in pieces; `batches` says for the first `_MAX_SIZES` sizes in rows how often so many
    ran at once and for how many microseconds; `last_s` is UTC, 0 before the first end.
    """

    __slots__ = (
        "_counted",
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

    def __init__(self, counted: _Batches | None = None) -> None:
        self._counted = counted or _Batches()
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
        if self._counted.new(prediction.batch_id):
            if prediction.executions:
                for one in prediction.executions:
                    self._ran(one.rows, one.count, one.engine_us)
            else:
                self._ran(prediction.batch_size, 1, engine_us)

    def _ran(self, n_rows: int, count: int, engine_us: int) -> None:
        self.n_executions += count
        if n_rows in self.batches or len(self.batches) < _MAX_SIZES:
            before, before_us = self.batches.get(n_rows, (0, 0))
            self.batches[n_rows] = (before + count, before_us + engine_us)


class Statistics:
    """The figures of all versions that were asked for since this gateway started."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, int], Figures] = {}
        self._counted = _Batches()

    @property
    def figures(self) -> Mapping[tuple[str, int], Figures]:
        """The figures by model and version."""
        return self._figures

    def of(self, model: str, version: int) -> Figures:
        """Return the figures of a version, to be counted up."""
        return self._figures.setdefault((model, version), Figures(self._counted))
