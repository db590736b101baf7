from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Limits(_message.Message):
    __slots__ = ("requests_per_s", "burst", "tokens_per_min")
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MIN_FIELD_NUMBER: _ClassVar[int]
    requests_per_s: float
    burst: int
    tokens_per_min: int
    def __init__(self, requests_per_s: _Optional[float] = ..., burst: _Optional[int] = ..., tokens_per_min: _Optional[int] = ...) -> None: ...

class AccessKey(_message.Message):
    __slots__ = ("id", "sha256", "tenant", "scopes", "limits", "expires_us", "revoked", "generation", "created_us")
    ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_US_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    id: str
    sha256: bytes
    tenant: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    expires_us: int
    revoked: bool
    generation: int
    created_us: int
    def __init__(self, id: _Optional[str] = ..., sha256: _Optional[bytes] = ..., tenant: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., expires_us: _Optional[int] = ..., revoked: _Optional[bool] = ..., generation: _Optional[int] = ..., created_us: _Optional[int] = ...) -> None: ...
