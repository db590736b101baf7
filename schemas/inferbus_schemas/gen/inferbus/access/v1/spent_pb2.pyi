from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class TokensSpent(_message.Message):
    __slots__ = ("tenant", "minute", "n_tokens", "worker", "life")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MINUTE_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    minute: int
    n_tokens: int
    worker: str
    life: int
    def __init__(self, tenant: _Optional[str] = ..., minute: _Optional[int] = ..., n_tokens: _Optional[int] = ..., worker: _Optional[str] = ..., life: _Optional[int] = ...) -> None: ...
