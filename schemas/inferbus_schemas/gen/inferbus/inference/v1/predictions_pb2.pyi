from inferbus_schemas.gen.inferbus.inference.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_OK: _ClassVar[Outcome]
    OUTCOME_INVALID_INPUT: _ClassVar[Outcome]
    OUTCOME_POISON: _ClassVar[Outcome]
    OUTCOME_EXPIRED: _ClassVar[Outcome]
    OUTCOME_DEADLINE_EXCEEDED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
    OUTCOME_OUTPUT_TOO_LARGE: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_ATTEMPT_FAILED: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_OK: Outcome
OUTCOME_INVALID_INPUT: Outcome
OUTCOME_POISON: Outcome
OUTCOME_EXPIRED: Outcome
OUTCOME_DEADLINE_EXCEEDED: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_OUTPUT_TOO_LARGE: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_ATTEMPT_FAILED: Outcome

class Executions(_message.Message):
    __slots__ = ("rows", "count", "engine_us")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_US_FIELD_NUMBER: _ClassVar[int]
    rows: int
    count: int
    engine_us: int
    def __init__(self, rows: _Optional[int] = ..., count: _Optional[int] = ..., engine_us: _Optional[int] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("id", "attempt", "outcome", "tenant", "model", "version", "version_sha256", "outputs", "output_sha256", "inputs", "input_sha256", "error_code", "error_message", "served_by", "degraded", "client_request_id", "batch_id", "batch_row", "batch_size", "queue_us", "engine_us", "latency_us", "traceparent", "generated", "input_tokens", "executions")
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_SHA256_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROW_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    ENGINE_US_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    attempt: int
    outcome: Outcome
    tenant: str
    model: str
    version: int
    version_sha256: bytes
    outputs: bytes
    output_sha256: bytes
    inputs: bytes
    input_sha256: bytes
    error_code: str
    error_message: str
    served_by: str
    degraded: bool
    client_request_id: str
    batch_id: bytes
    batch_row: int
    batch_size: int
    queue_us: int
    engine_us: int
    latency_us: int
    traceparent: str
    generated: _generation_pb2.Generated
    input_tokens: int
    executions: _containers.RepeatedCompositeFieldContainer[Executions]
    def __init__(self, id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., version_sha256: _Optional[bytes] = ..., outputs: _Optional[bytes] = ..., output_sha256: _Optional[bytes] = ..., inputs: _Optional[bytes] = ..., input_sha256: _Optional[bytes] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., served_by: _Optional[str] = ..., degraded: _Optional[bool] = ..., client_request_id: _Optional[str] = ..., batch_id: _Optional[bytes] = ..., batch_row: _Optional[int] = ..., batch_size: _Optional[int] = ..., queue_us: _Optional[int] = ..., engine_us: _Optional[int] = ..., latency_us: _Optional[int] = ..., traceparent: _Optional[str] = ..., generated: _Optional[_Union[_generation_pb2.Generated, _Mapping]] = ..., input_tokens: _Optional[int] = ..., executions: _Optional[_Iterable[_Union[Executions, _Mapping]]] = ...) -> None: ...
