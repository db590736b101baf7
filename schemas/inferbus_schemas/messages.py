"""The messages of the bus, under one short name: `from inferbus_schemas import messages as m`."""

from inferbus_schemas.gen.inferbus.access.v1.keys_pb2 import AccessKey, Limits
from inferbus_schemas.gen.inferbus.fleet.v1.heartbeats_pb2 import (
    READINESS_FAILED,
    READINESS_LOADING,
    READINESS_READY,
    STATE_ACTIVE,
    STATE_DRAINING,
    STATE_JOINING,
    STATE_RELEASED,
    GatewayBeat,
    GatewayModel,
    Heartbeat,
    JobVersion,
    Readiness,
    Resident,
    State,
    WorkerBeat,
)
from inferbus_schemas.gen.inferbus.inference.v1.generation_pb2 import (
    PROMPT_KIND_CHAT,
    PROMPT_KIND_TEXT,
    Cancellation,
    Choice,
    Generated,
    Generation,
    PromptKind,
    TokenChunk,
)
from inferbus_schemas.gen.inferbus.inference.v1.predictions_pb2 import (
    OUTCOME_ATTEMPT_FAILED,
    OUTCOME_CANCELLED,
    OUTCOME_DEADLINE_EXCEEDED,
    OUTCOME_EXPIRED,
    OUTCOME_FAILED,
    OUTCOME_INVALID_INPUT,
    OUTCOME_OK,
    OUTCOME_OUTPUT_TOO_LARGE,
    OUTCOME_POISON,
    OUTCOME_UNSPECIFIED,
    Outcome,
    Prediction,
)
from inferbus_schemas.gen.inferbus.inference.v1.requests_pb2 import Request, RequestFrame
from inferbus_schemas.gen.inferbus.inference.v1.submissions_pb2 import (
    Submission,
    SubmittedRequest,
)
from inferbus_schemas.gen.inferbus.inference.v1.tensors_pb2 import Tensor, TensorSet
from inferbus_schemas.gen.inferbus.jobs.v1.jobs_pb2 import (
    CHUNK_STATE_DONE,
    CHUNK_STATE_RUNNING,
    Chunk,
    ChunkCommand,
    ChunkResults,
    ChunkState,
    ChunkStatus,
    Job,
    JobCancelled,
    JobStatus,
    Row,
    RowResult,
)
from inferbus_schemas.gen.inferbus.models.v1.deployments_pb2 import (
    Alias,
    Deployment,
    PoolVersions,
)
from inferbus_schemas.gen.inferbus.models.v1.versions_pb2 import ModelVersion

__all__ = [
    "CHUNK_STATE_DONE",
    "CHUNK_STATE_RUNNING",
    "OUTCOME_ATTEMPT_FAILED",
    "OUTCOME_CANCELLED",
    "OUTCOME_DEADLINE_EXCEEDED",
    "OUTCOME_EXPIRED",
    "OUTCOME_FAILED",
    "OUTCOME_INVALID_INPUT",
    "OUTCOME_OK",
    "OUTCOME_OUTPUT_TOO_LARGE",
    "OUTCOME_POISON",
    "OUTCOME_UNSPECIFIED",
    "PROMPT_KIND_CHAT",
    "PROMPT_KIND_TEXT",
    "READINESS_FAILED",
    "READINESS_LOADING",
    "READINESS_READY",
    "STATE_ACTIVE",
    "STATE_DRAINING",
    "STATE_JOINING",
    "STATE_RELEASED",
    "AccessKey",
    "Alias",
    "Cancellation",
    "Choice",
    "Chunk",
    "ChunkCommand",
    "ChunkResults",
    "ChunkState",
    "ChunkStatus",
    "Deployment",
    "GatewayBeat",
    "GatewayModel",
    "Generated",
    "Generation",
    "Heartbeat",
    "Job",
    "JobCancelled",
    "JobStatus",
    "JobVersion",
    "Limits",
    "ModelVersion",
    "Outcome",
    "PoolVersions",
    "Prediction",
    "PromptKind",
    "Readiness",
    "Request",
    "RequestFrame",
    "Resident",
    "Row",
    "RowResult",
    "State",
    "Submission",
    "SubmittedRequest",
    "Tensor",
    "TensorSet",
    "TokenChunk",
    "WorkerBeat",
    "outcome_name",
]


def outcome_name(outcome: int) -> str:
    """Return the outcome as the log and metrics write it: `ok`, `attempt_failed`, `unknown_42`."""
    try:
        return Outcome.Name(outcome).removeprefix("OUTCOME_").lower()
    except ValueError:
        return f"unknown_{outcome}"
