from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Alias(_message.Message):
    __slots__ = ("name", "wanted", "serving")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    name: str
    wanted: int
    serving: int
    def __init__(self, name: _Optional[str] = ..., wanted: _Optional[int] = ..., serving: _Optional[int] = ...) -> None: ...

class PoolVersions(_message.Message):
    __slots__ = ("pool", "versions", "min_ready")
    POOL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_READY_FIELD_NUMBER: _ClassVar[int]
    pool: str
    versions: _containers.RepeatedScalarFieldContainer[int]
    min_ready: int
    def __init__(self, pool: _Optional[str] = ..., versions: _Optional[_Iterable[int]] = ..., min_ready: _Optional[int] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("model", "generation", "aliases", "pools")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    model: str
    generation: int
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    pools: _containers.RepeatedCompositeFieldContainer[PoolVersions]
    def __init__(self, model: _Optional[str] = ..., generation: _Optional[int] = ..., aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ..., pools: _Optional[_Iterable[_Union[PoolVersions, _Mapping]]] = ...) -> None: ...
