from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BatchEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_END_UNSPECIFIED: _ClassVar[BatchEnd]
    BATCH_END_COMPLETED: _ClassVar[BatchEnd]
    BATCH_END_FAILED: _ClassVar[BatchEnd]
    BATCH_END_CANCELLED: _ClassVar[BatchEnd]
    BATCH_END_EXPIRED: _ClassVar[BatchEnd]
BATCH_END_UNSPECIFIED: BatchEnd
BATCH_END_COMPLETED: BatchEnd
BATCH_END_FAILED: BatchEnd
BATCH_END_CANCELLED: BatchEnd
BATCH_END_EXPIRED: BatchEnd

class File(_message.Message):
    __slots__ = ("id", "tenant", "filename", "purpose", "n_bytes", "n_pieces", "expires_ms", "principal")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    N_PIECES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    tenant: str
    filename: str
    purpose: str
    n_bytes: int
    n_pieces: int
    expires_ms: int
    principal: str
    def __init__(self, id: _Optional[bytes] = ..., tenant: _Optional[str] = ..., filename: _Optional[str] = ..., purpose: _Optional[str] = ..., n_bytes: _Optional[int] = ..., n_pieces: _Optional[int] = ..., expires_ms: _Optional[int] = ..., principal: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("id", "tenant", "endpoint", "input_file", "model", "expires_ms", "metadata", "outputs_kept_ms", "principal", "traceparent")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FILE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_KEPT_MS_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    tenant: str
    endpoint: str
    input_file: bytes
    model: str
    expires_ms: int
    metadata: _containers.ScalarMap[str, str]
    outputs_kept_ms: int
    principal: str
    traceparent: str
    def __init__(self, id: _Optional[bytes] = ..., tenant: _Optional[str] = ..., endpoint: _Optional[str] = ..., input_file: _Optional[bytes] = ..., model: _Optional[str] = ..., expires_ms: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., outputs_kept_ms: _Optional[int] = ..., principal: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class BatchError(_message.Message):
    __slots__ = ("code", "message", "param", "line")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    param: str
    line: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., param: _Optional[str] = ..., line: _Optional[int] = ...) -> None: ...

class BatchEnded(_message.Message):
    __slots__ = ("batch", "end", "errors", "output_file", "error_file", "n_rows", "n_ok", "prompt_tokens", "cached_tokens", "completion_tokens")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FILE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FILE_FIELD_NUMBER: _ClassVar[int]
    N_ROWS_FIELD_NUMBER: _ClassVar[int]
    N_OK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    batch: bytes
    end: BatchEnd
    errors: _containers.RepeatedCompositeFieldContainer[BatchError]
    output_file: bytes
    error_file: bytes
    n_rows: int
    n_ok: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    def __init__(self, batch: _Optional[bytes] = ..., end: _Optional[_Union[BatchEnd, str]] = ..., errors: _Optional[_Iterable[_Union[BatchError, _Mapping]]] = ..., output_file: _Optional[bytes] = ..., error_file: _Optional[bytes] = ..., n_rows: _Optional[int] = ..., n_ok: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class RowForm(_message.Message):
    __slots__ = ("model", "base64", "status", "error")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE64_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    model: str
    base64: bool
    status: int
    error: bytes
    def __init__(self, model: _Optional[str] = ..., base64: _Optional[bool] = ..., status: _Optional[int] = ..., error: _Optional[bytes] = ...) -> None: ...
