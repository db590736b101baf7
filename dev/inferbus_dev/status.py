"""The status line of `make up`.

In: the Prometheus metrics of all services and the state of their processes. Out: one line: requests
a second, latency, batch size, lag, rows in the log, and who is being restarted.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from inferbus_dev import loopback
from inferbus_dev.supervisor import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inferbus_dev.supervisor import Member

WINDOW_S = 5.0
# The samples that the line is made of; inferbus_kit.metrics defines them, a test compares.
REQUESTS = "inferbus_requests_total"
LATENCY = "inferbus_request_seconds"
BATCH_ROWS = "inferbus_batch_rows"
LAG = "inferbus_log_lag_records"
ROWS = "inferbus_log_stored_rows"
_BETWEEN = " · "


@dataclass(frozen=True, slots=True)
class Reading:
    """All services' counts at one moment, summed over models, versions and processes.

    Invariant: `latency` maps each bucket's upper bound in seconds to the count at or below it.
    """

    at_s: float
    requests: float = 0.0
    latency: Mapping[float, float] = field(default_factory=dict)
    batches: float = 0.0
    batch_rows: float = 0.0
    lag: float = 0.0
    rows: float = 0.0


async def read(ports: Iterable[int]) -> Reading:
    """Ask every service for its metrics; one that does not answer counts as nothing."""
    at_s = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*(loopback.get(port, "/metrics") for port in ports))
    return add(at_s, [one.body for one in answers if one and one.status == loopback.OK])


def add(at_s: float, pages: Iterable[str]) -> Reading:
    """Sum the metrics pages of several processes."""
    sums: defaultdict[str, float] = defaultdict(float)
    latency: defaultdict[float, float] = defaultdict(float)
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == f"{LATENCY}_bucket":
                    latency[float(sample.labels["le"])] += sample.value
                else:
                    sums[sample.name] += sample.value
    return Reading(
        at_s=at_s,
        requests=sums[REQUESTS],
        latency=dict(latency),
        batches=sums[f"{BATCH_ROWS}_count"],
        batch_rows=sums[f"{BATCH_ROWS}_sum"],
        lag=sums[LAG],
        rows=sums[ROWS],
    )


def quantile_s(earlier: Reading, later: Reading, share: float) -> float | None:
    """Return a quantile of the latencies between two readings, None when there were none.

    Linear inside a bucket, as Prometheus' histogram_quantile; the lower bound of the last bucket
    where the quantile lies beyond all finite ones.
    """
    counts = [
        (bound, count - earlier.latency.get(bound, 0.0))
        for bound, count in sorted(later.latency.items())
    ]
    if not counts or counts[-1][1] <= 0:
        return None
    wanted = share * counts[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            if math.isinf(bound) or count == below:
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower


class Window:
    """The readings of the last seconds.

    Invariants: the oldest reading is at most `WINDOW_S` older than the newest, or the one before;
    rows in the log never become fewer, also while nobody counts them.
    """

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()
        self._rows = 0.0

    def line(
        self,
        now: Reading,
        members: Iterable[Member],
        width: int | None = None,
        hint: str = "",
    ) -> str:
        """Add a reading and return the line.

        Args:
            now: the reading.
            members: whose troubles to tell.
            width: columns that there are; what matters least is left out to keep to them.
            hint: what to say at the end where there is room.
        """
        readings = self._readings
        if readings and now.requests < readings[-1].requests:
            readings.clear()  # a process was restarted and counts from zero
        readings.append(now)
        while len(readings) > 2 and now.at_s - readings[1].at_s >= WINDOW_S:  # noqa: PLR2004 -- both ends
            readings.popleft()
        self._rows = max(self._rows, now.rows)
        fields = [
            *_traffic(readings[0], now),
            _Field(4, f"lag {now.lag:,.0f}"),
            _Field(3, f"{self._rows:,.0f} rows logged"),
            *(_Field(0, said) for said in _troubles(members)),
        ]
        return _fitted([*fields, _Field(6, hint)] if hint else fields, width)


class _Field(NamedTuple):
    """A part of the line; the one with the highest rank is left out first."""

    rank: int
    text: str


def _fitted(fields: list[_Field], width: int | None) -> str:
    """Return the fields in their order, without those for which there is no room."""
    kept = list(fields)
    while width is not None and len(kept) > 1 and len(_joined(kept)) > width:
        kept.remove(max(kept, key=lambda one: one.rank))
    line = _joined(kept)
    return line if width is None or len(line) <= width else f"{line[: max(0, width - 1)]}…"


def _joined(fields: Iterable[_Field]) -> str:
    return _BETWEEN.join(one.text for one in fields)


def _traffic(then: Reading, now: Reading) -> list[_Field]:
    elapsed_s = now.at_s - then.at_s
    rate = (now.requests - then.requests) / elapsed_s if elapsed_s > 0 else 0.0
    p50, p99 = (quantile_s(then, now, share) for share in (0.5, 0.99))
    batches = now.batches - then.batches
    rows = (now.batch_rows - then.batch_rows) / batches if batches > 0 else None
    return [
        _Field(1, f"{rate:,.0f} req/s"),
        _Field(2, f"p50 {_ms(p50)} p99 {_ms(p99)}"),
        _Field(5, f"batch {rows:.1f}" if rows is not None else "batch -"),
    ]


def _troubles(members: Iterable[Member]) -> list[str]:
    said = []
    for member in members:
        times = f" ({member.restarts} restarts)" if member.restarts else ""
        if member.state is State.BACKOFF:
            said.append(f"{member.name} ended with {member.last_exit}, restarting{times}")
        elif member.state is not State.READY:
            said.append(f"{member.name} {member.state}{times}")
    return said


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1_000:.1f} ms"
