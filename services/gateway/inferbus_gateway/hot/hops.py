"""Where the time of a request went, hop by hop.

In: an ended entry, its record and when it was parsed. Out: the text of `x-inferbus-timing`; a
sample of it goes to the metrics.
"""

from __future__ import annotations

import time

from inferbus_gateway.hot.pending import Entry
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import messages as m

_SAMPLE_EVERY = 8
_TIMING = "parse=%d,produce=%d,queue=%d,engine=%d,reply=%d,respond=%d"
_HOPS = ("parse", "produce", "queue", "engine", "reply", "respond")
_US = 1e6


class Hops:
    """Splits times; every eighth is observed."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._hops = [metrics.hop_seconds.labels(name) for name in _HOPS]
        self._n_answers = 0

    def timing(self, entry: Entry, prediction: m.Prediction, parsed_s: float) -> str:
        """Split the time until now by hop, in microseconds.

        The worker's clock is another one, so `reply` is what the other hops leave over of the
        time between the hand-over and the record's arrival here.
        """
        frame, waiter, end_s = entry.frame, entry.waiter, time.monotonic()
        away_us = (waiter.read_s - parsed_s) * _US
        bus_us = max(0.0, away_us - prediction.latency_us)
        acked_s = frame.acked_s if frame is not None else 0.0
        produce_us = min(bus_us, max(0.0, (acked_s - parsed_s) * _US)) if acked_s else bus_us / 2
        hops_us = (
            (parsed_s - waiter.start_s) * _US,
            produce_us,
            prediction.queue_us,
            prediction.engine_us,
            away_us - produce_us - prediction.queue_us - prediction.engine_us,
            (end_s - waiter.read_s) * _US,
        )
        self._n_answers += 1
        if self._n_answers % _SAMPLE_EVERY == 0:
            for hop, value in zip(self._hops, hops_us, strict=True):
                hop.observe(value / _US)
        return _TIMING % hops_us
