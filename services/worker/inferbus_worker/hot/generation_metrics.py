"""The metrics of what one version generates.

In: the worker's metrics, a model and its version. Out: counters of tokens and histograms in seconds
with their labels looked up once, since every request and token pays for them.
"""

from __future__ import annotations

from inferbus_kit.metrics import WorkerMetrics


class GenerationMetrics:
    """The metrics of one version, with their labels looked up once."""

    def __init__(self, metrics: WorkerMetrics, model: str, version: int) -> None:
        labels = (model, str(version))
        self.prompt_tokens = metrics.tokens.labels(*labels, "prompt")
        self.completion_tokens = metrics.tokens.labels(*labels, "completion")
        self.first_token_seconds = metrics.first_token_seconds.labels(*labels)
        self.queue_seconds = metrics.queue_seconds.labels(*labels)
        self.engine_seconds = metrics.engine_seconds.labels(*labels)
