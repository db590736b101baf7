from inferbus_schemas.gen.inferbus.inference.v1 import generation_pb2 as _generation_pb2
from inferbus_schemas.gen.inferbus.inference.v1 import predictions_pb2 as _predictions_pb2
from inferbus_schemas.gen.inferbus.jobs.v1 import batches_pb2 as _batches_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChunkState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHUNK_STATE_UNSPECIFIED: _ClassVar[ChunkState]
    CHUNK_STATE_RUNNING: _ClassVar[ChunkState]
    CHUNK_STATE_DONE: _ClassVar[ChunkState]
CHUNK_STATE_UNSPECIFIED: ChunkState
CHUNK_STATE_RUNNING: ChunkState
CHUNK_STATE_DONE: ChunkState

class Job(_message.Message):
    __slots__ = ("id", "tenant", "model", "version", "pool", "n_rows", "n_chunks", "n_refused", "input", "input_sha256", "n_partitions", "parent", "dispatched", "client_job_id", "principal", "key_sha256", "traceparent")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    N_ROWS_FIELD_NUMBER: _ClassVar[int]
    N_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    N_REFUSED_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    N_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    DISPATCHED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_JOB_ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    tenant: str
    model: str
    version: int
    pool: str
    n_rows: int
    n_chunks: int
    n_refused: int
    input: str
    input_sha256: bytes
    n_partitions: int
    parent: bytes
    dispatched: bool
    client_job_id: str
    principal: str
    key_sha256: bytes
    traceparent: str
    def __init__(self, id: _Optional[bytes] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., pool: _Optional[str] = ..., n_rows: _Optional[int] = ..., n_chunks: _Optional[int] = ..., n_refused: _Optional[int] = ..., input: _Optional[str] = ..., input_sha256: _Optional[bytes] = ..., n_partitions: _Optional[int] = ..., parent: _Optional[bytes] = ..., dispatched: _Optional[bool] = ..., client_job_id: _Optional[str] = ..., principal: _Optional[str] = ..., key_sha256: _Optional[bytes] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    def __init__(self, rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("number", "tensors", "outputs", "client_request_id", "refused", "generation", "form")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    number: int
    tensors: bytes
    outputs: _containers.RepeatedScalarFieldContainer[str]
    client_request_id: str
    refused: str
    generation: _generation_pb2.Generation
    form: _batches_pb2.RowForm
    def __init__(self, number: _Optional[int] = ..., tensors: _Optional[bytes] = ..., outputs: _Optional[_Iterable[str]] = ..., client_request_id: _Optional[str] = ..., refused: _Optional[str] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ..., form: _Optional[_Union[_batches_pb2.RowForm, _Mapping]] = ...) -> None: ...

class ChunkResults(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RowResult]
    def __init__(self, rows: _Optional[_Iterable[_Union[RowResult, _Mapping]]] = ...) -> None: ...

class RowResult(_message.Message):
    __slots__ = ("number", "prediction")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    number: int
    prediction: _predictions_pb2.Prediction
    def __init__(self, number: _Optional[int] = ..., prediction: _Optional[_Union[_predictions_pb2.Prediction, _Mapping]] = ...) -> None: ...

class ChunkCommand(_message.Message):
    __slots__ = ("job", "chunk")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    job: Job
    chunk: int
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., chunk: _Optional[int] = ...) -> None: ...

class JobCancelled(_message.Message):
    __slots__ = ("job", "principal")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    principal: str
    def __init__(self, job: _Optional[bytes] = ..., principal: _Optional[str] = ...) -> None: ...

class ChunkStatus(_message.Message):
    __slots__ = ("job", "chunk", "state", "n_ok", "n_failed", "n_cancelled", "attempts", "worker", "n_tokens")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    N_OK_FIELD_NUMBER: _ClassVar[int]
    N_FAILED_FIELD_NUMBER: _ClassVar[int]
    N_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    chunk: int
    state: ChunkState
    n_ok: int
    n_failed: int
    n_cancelled: int
    attempts: int
    worker: str
    n_tokens: int
    def __init__(self, job: _Optional[bytes] = ..., chunk: _Optional[int] = ..., state: _Optional[_Union[ChunkState, str]] = ..., n_ok: _Optional[int] = ..., n_failed: _Optional[int] = ..., n_cancelled: _Optional[int] = ..., attempts: _Optional[int] = ..., worker: _Optional[str] = ..., n_tokens: _Optional[int] = ...) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("job", "chunk", "cancelled", "file", "batch", "batch_ended")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_ENDED_FIELD_NUMBER: _ClassVar[int]
    job: Job
    chunk: ChunkStatus
    cancelled: JobCancelled
    file: _batches_pb2.File
    batch: _batches_pb2.Batch
    batch_ended: _batches_pb2.BatchEnded
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., chunk: _Optional[_Union[ChunkStatus, _Mapping]] = ..., cancelled: _Optional[_Union[JobCancelled, _Mapping]] = ..., file: _Optional[_Union[_batches_pb2.File, _Mapping]] = ..., batch: _Optional[_Union[_batches_pb2.Batch, _Mapping]] = ..., batch_ended: _Optional[_Union[_batches_pb2.BatchEnded, _Mapping]] = ...) -> None: ...
