from inferbus_schemas.gen.inferbus.inference.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestFrame(_message.Message):
    __slots__ = ("gateway", "requests")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    requests: _containers.RepeatedCompositeFieldContainer[Request]
    def __init__(self, gateway: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[Request, _Mapping]]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "tenant", "model", "version", "reply_partition", "ttl_ms", "attempt", "may_retry", "criticality", "client_request_id", "outputs", "traceparent", "tensors", "generation", "owes_tokens")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLY_PARTITION_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MAY_RETRY_FIELD_NUMBER: _ClassVar[int]
    CRITICALITY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OWES_TOKENS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    tenant: str
    model: str
    version: int
    reply_partition: int
    ttl_ms: int
    attempt: int
    may_retry: bool
    criticality: int
    client_request_id: str
    outputs: _containers.RepeatedScalarFieldContainer[str]
    traceparent: str
    tensors: bytes
    generation: _generation_pb2.Generation
    owes_tokens: bool
    def __init__(self, id: _Optional[bytes] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., reply_partition: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., attempt: _Optional[int] = ..., may_retry: _Optional[bool] = ..., criticality: _Optional[int] = ..., client_request_id: _Optional[str] = ..., outputs: _Optional[_Iterable[str]] = ..., traceparent: _Optional[str] = ..., tensors: _Optional[bytes] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ..., owes_tokens: _Optional[bool] = ...) -> None: ...
