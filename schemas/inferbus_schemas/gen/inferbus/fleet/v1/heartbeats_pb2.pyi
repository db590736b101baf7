from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_JOINING: _ClassVar[State]
    STATE_ACTIVE: _ClassVar[State]
    STATE_DRAINING: _ClassVar[State]
    STATE_RELEASED: _ClassVar[State]

class Readiness(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    READINESS_UNSPECIFIED: _ClassVar[Readiness]
    READINESS_LOADING: _ClassVar[Readiness]
    READINESS_READY: _ClassVar[Readiness]
    READINESS_FAILED: _ClassVar[Readiness]
STATE_UNSPECIFIED: State
STATE_JOINING: State
STATE_ACTIVE: State
STATE_DRAINING: State
STATE_RELEASED: State
READINESS_UNSPECIFIED: Readiness
READINESS_LOADING: Readiness
READINESS_READY: Readiness
READINESS_FAILED: Readiness

class Resident(_message.Message):
    __slots__ = ("model", "version", "readiness", "generation", "memory_bytes", "reason")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READINESS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    readiness: Readiness
    generation: int
    memory_bytes: int
    reason: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., readiness: _Optional[_Union[Readiness, str]] = ..., generation: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class GatewayModel(_message.Message):
    __slots__ = ("model", "generation", "pinned", "in_flight")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    model: str
    generation: int
    pinned: _containers.RepeatedScalarFieldContainer[int]
    in_flight: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., generation: _Optional[int] = ..., pinned: _Optional[_Iterable[int]] = ..., in_flight: _Optional[_Iterable[int]] = ...) -> None: ...

class WorkerBeat(_message.Message):
    __slots__ = ("pool", "inbox", "epoch", "end_offset", "residents", "generation_applied", "backlog_rows", "queue_age_ms", "memory_bytes", "rows_per_s")
    POOL_FIELD_NUMBER: _ClassVar[int]
    INBOX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    RESIDENTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_APPLIED_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    pool: str
    inbox: int
    epoch: int
    end_offset: int
    residents: _containers.RepeatedCompositeFieldContainer[Resident]
    generation_applied: int
    backlog_rows: int
    queue_age_ms: int
    memory_bytes: int
    rows_per_s: float
    def __init__(self, pool: _Optional[str] = ..., inbox: _Optional[int] = ..., epoch: _Optional[int] = ..., end_offset: _Optional[int] = ..., residents: _Optional[_Iterable[_Union[Resident, _Mapping]]] = ..., generation_applied: _Optional[int] = ..., backlog_rows: _Optional[int] = ..., queue_age_ms: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., rows_per_s: _Optional[float] = ...) -> None: ...

class JobVersion(_message.Message):
    __slots__ = ("pool", "model", "version")
    POOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    pool: str
    model: str
    version: int
    def __init__(self, pool: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class KeyUse(_message.Message):
    __slots__ = ("id", "used_us")
    ID_FIELD_NUMBER: _ClassVar[int]
    USED_US_FIELD_NUMBER: _ClassVar[int]
    id: str
    used_us: int
    def __init__(self, id: _Optional[str] = ..., used_us: _Optional[int] = ...) -> None: ...

class GatewayBeat(_message.Message):
    __slots__ = ("reply_partition", "models", "in_flight", "generation_read", "job_versions", "key_uses")
    REPLY_PARTITION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_READ_FIELD_NUMBER: _ClassVar[int]
    JOB_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    KEY_USES_FIELD_NUMBER: _ClassVar[int]
    reply_partition: int
    models: _containers.RepeatedCompositeFieldContainer[GatewayModel]
    in_flight: int
    generation_read: int
    job_versions: _containers.RepeatedCompositeFieldContainer[JobVersion]
    key_uses: _containers.RepeatedCompositeFieldContainer[KeyUse]
    def __init__(self, reply_partition: _Optional[int] = ..., models: _Optional[_Iterable[_Union[GatewayModel, _Mapping]]] = ..., in_flight: _Optional[int] = ..., generation_read: _Optional[int] = ..., job_versions: _Optional[_Iterable[_Union[JobVersion, _Mapping]]] = ..., key_uses: _Optional[_Iterable[_Union[KeyUse, _Mapping]]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("instance", "state", "worker", "gateway", "life", "inferbus_version")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    INFERBUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    instance: str
    state: State
    worker: WorkerBeat
    gateway: GatewayBeat
    life: int
    inferbus_version: str
    def __init__(self, instance: _Optional[str] = ..., state: _Optional[_Union[State, str]] = ..., worker: _Optional[_Union[WorkerBeat, _Mapping]] = ..., gateway: _Optional[_Union[GatewayBeat, _Mapping]] = ..., life: _Optional[int] = ..., inferbus_version: _Optional[str] = ...) -> None: ...
