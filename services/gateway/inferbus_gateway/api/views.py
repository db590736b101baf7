"""What clients may ask about models beside answers, in the words of the protocol and of Triton.

In: routing state and statistics. Out: records whose fields are those of the gRPC messages of the
same name; REST writes them as JSON, gRPC as messages.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from inferbus_gateway import VERSION, errors
from inferbus_gateway.hot.route import Routes, Target
from inferbus_gateway.hot.statistics import Figures, Statistics
from inferbus_schemas import manifest as manifests

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
]
"""Extensions of the protocol that work here; nothing else is advertised."""

_PLATFORMS = {
    "onnx": ("onnxruntime_onnx", "onnxruntime"),
    "llamacpp": ("llamacpp_gguf", "llamacpp"),
}
"""Triton's platform and backend of each engine."""


class ServerMetadata(BaseModel):
    """Name, version and extensions of this server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or output; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model as clients see it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(BaseModel):
    """An input or output; `dims` leave the rows out where the model has rows."""

    name: str
    data_type: str
    dims: list[int]


class DynamicBatching(BaseModel):
    """How long a row may wait for others."""

    preferred_batch_size: list[int] = []
    max_queue_delay_microseconds: int


class TransactionPolicy(BaseModel):
    """Each request has one answer."""

    decoupled: Literal[False] = False


class ModelConfig(BaseModel):
    """The part of Triton's model configuration that has a meaning here.

    `max_batch_size` is the rows that a batch closes with; it is 0 where the model has no rows, or
    an input that has nothing beside them.
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    dynamic_batching: DynamicBatching | None = None
    model_transaction_policy: TransactionPolicy = TransactionPolicy()


class StatisticDuration(BaseModel):
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0


class InferStatistics(BaseModel):
    """Requests by where their time went; there is no cache, and tensors need no preparing."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    cache_hit: StatisticDuration = StatisticDuration()
    cache_miss: StatisticDuration = StatisticDuration()


class InferBatchStatistics(BaseModel):
    """Executions of one size in rows."""

    batch_size: int
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration


class ModelStatistics(BaseModel):
    """What this gateway has answered of a version since it started.

    `inference_count` counts rows; `execution_count` what engines ran for them, once each;
    `success` is from a request's arrival to its record's, `queue` and `compute_infer` are the
    worker's, `compute_output` is the rest of the worker's time.
    """

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: list[InferBatchStatistics]


class AllStatistics(BaseModel):
    """The statistics of one version or of all."""

    model_stats: list[ModelStatistics]


class ModelIndex(BaseModel):
    """A registered version: `READY`, `LOADING` or `UNAVAILABLE`, and why."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str = ""


class Views:
    """Answers questions about this server and its models; each reads what is known now."""

    def __init__(self, routes: Routes, statistics: Statistics) -> None:
        self._routes = routes
        self._statistics = statistics

    def server(self) -> ServerMetadata:
        """Tell name, version and extensions of this server."""
        return ServerMetadata(name="inferbus", version=VERSION, extensions=EXTENSIONS)

    def model(self, model: str, version: str = "") -> ModelMetadata:
        """Describe a version, by number, alias or digest prefix.

        Raises:
            UnknownModelError, NoWorkerError: see `Routes.resolve`; so do the methods below.
        """
        target = self._routes.resolve(model, version)
        signature = target.manifest.signature
        return ModelMetadata(
            name=target.model,
            versions=[str(version) for version in self._routes.held(target.model)],
            platform=_platform(target)[0],
            inputs=[_tensor(spec) for spec in signature.inputs],
            outputs=[_tensor(spec) for spec in signature.outputs],
        )

    def ready(self, model: str, version: str = "") -> tuple[str, bool]:
        """Return the model's name and whether the version can answer."""
        target = self._routes.resolve(model, version)
        return target.model, self._routes.ready(target)

    def config(self, model: str, version: str = "") -> ModelConfig:
        """Describe a version as Triton's configuration does."""
        target = self._routes.resolve(model, version)
        signature, batching = target.manifest.signature, target.manifest.batching
        # Triton has no input of a batch without dimensions of its own, and its tools refuse one.
        has_rows = all(
            spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs)
        ) and all(len(spec.shape) > 1 for spec in signature.inputs)
        platform, backend = _platform(target)
        return ModelConfig(
            name=target.model,
            platform=platform,
            backend=backend,
            max_batch_size=batching.max_rows if has_rows else 0,
            input=[_config(spec, has_rows=has_rows) for spec in signature.inputs],
            output=[_config(spec, has_rows=has_rows) for spec in signature.outputs],
            dynamic_batching=DynamicBatching(
                max_queue_delay_microseconds=round(batching.max_wait_ms * 1000)
            )
            if has_rows
            else None,
        )

    def statistics(self, model: str = "", version: str = "") -> AllStatistics:
        """Return the figures of a version, or of all that this gateway knows where none is named.

        Raises:
            InvalidRequestError: a version without a model.
        """
        if not model:
            if version:
                raise errors.InvalidRequestError("name the model of that version too")
            return AllStatistics(
                model_stats=[
                    _statistics(*key, figures)
                    for key, figures in sorted(self._statistics.figures.items())
                ]
            )
        target = self._routes.resolve(model, version)
        key = (target.model, target.version)
        figures = self._statistics.figures.get(key) or Figures()
        return AllStatistics(model_stats=[_statistics(*key, figures)])

    def index(self, *, only_ready: bool) -> list[ModelIndex]:
        """List the registered versions and whether workers hold them."""
        found = []
        for model, version in self._routes.registered:
            state, reason = self._routes.state(model, version)
            if state == "READY" or not only_ready:
                found.append(
                    ModelIndex(name=model, version=str(version), state=state, reason=reason)
                )
        return found


def _platform(target: Target) -> tuple[str, str]:
    return _PLATFORMS[target.manifest.engine]


def _tensor(spec: manifests.TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))


def _config(spec: manifests.TensorSpec, *, has_rows: bool) -> TensorConfig:
    name = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = spec.shape[1:] if has_rows else spec.shape
    return TensorConfig(name=spec.name, data_type=f"TYPE_{name}", dims=list(dims))


def _statistics(model: str, version: int, figures: Figures) -> ModelStatistics:
    none = StatisticDuration()
    other_us = max(0, figures.worker_us - figures.queue_us - figures.engine_us)
    return ModelStatistics(
        name=model,
        version=str(version),
        last_inference=round(figures.last_s * 1e3),
        inference_count=figures.n_rows,
        execution_count=figures.n_executions,
        inference_stats=InferStatistics(
            success=_duration(figures.n_ok, figures.ok_s * 1e6),
            fail=_duration(figures.n_failed, figures.failed_s * 1e6),
            queue=_duration(figures.n_ok, figures.queue_us),
            compute_input=_duration(figures.n_ok, 0),
            compute_infer=_duration(figures.n_ok, figures.engine_us),
            compute_output=_duration(figures.n_ok, other_us),
        ),
        batch_stats=[
            InferBatchStatistics(
                batch_size=size,
                compute_input=none,
                compute_infer=_duration(*batch),
                compute_output=none,
            )
            for size, batch in sorted(figures.batches.items())
        ],
    )


def _duration(count: int, us: float) -> StatisticDuration:
    return StatisticDuration(count=count, ns=round(us * 1000))
