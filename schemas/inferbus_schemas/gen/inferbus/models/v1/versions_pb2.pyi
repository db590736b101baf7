from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ModelVersion(_message.Message):
    __slots__ = ("model", "version", "version_sha256", "manifest", "generation", "created_us")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_SHA256_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    version_sha256: bytes
    manifest: bytes
    generation: int
    created_us: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., version_sha256: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., generation: _Optional[int] = ..., created_us: _Optional[int] = ...) -> None: ...
