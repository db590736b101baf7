from inferbus_schemas.gen.inferbus.inference.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Submission(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SubmittedRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[SubmittedRequest, _Mapping]]] = ...) -> None: ...

class SubmittedRequest(_message.Message):
    __slots__ = ("model", "version", "client_request_id", "inputs", "outputs", "timeout_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    client_request_id: str
    inputs: _tensors_pb2.TensorSet
    outputs: _containers.RepeatedScalarFieldContainer[str]
    timeout_ms: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., client_request_id: _Optional[str] = ..., inputs: _Optional[_Union[_tensors_pb2.TensorSet, _Mapping]] = ..., outputs: _Optional[_Iterable[str]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...
