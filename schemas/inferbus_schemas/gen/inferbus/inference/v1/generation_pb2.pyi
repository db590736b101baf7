from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PromptKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_KIND_UNSPECIFIED: _ClassVar[PromptKind]
    PROMPT_KIND_TEXT: _ClassVar[PromptKind]
    PROMPT_KIND_CHAT: _ClassVar[PromptKind]
    PROMPT_KIND_TOKENS: _ClassVar[PromptKind]

class Form(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORM_UNSPECIFIED: _ClassVar[Form]
    FORM_CHAT: _ClassVar[Form]
    FORM_TEXT: _ClassVar[Form]
    FORM_RESPONSES: _ClassVar[Form]
    FORM_GENERATE: _ClassVar[Form]
PROMPT_KIND_UNSPECIFIED: PromptKind
PROMPT_KIND_TEXT: PromptKind
PROMPT_KIND_CHAT: PromptKind
PROMPT_KIND_TOKENS: PromptKind
FORM_UNSPECIFIED: Form
FORM_CHAT: Form
FORM_TEXT: Form
FORM_RESPONSES: Form
FORM_GENERATE: Form

class Generation(_message.Message):
    __slots__ = ("prompt_kind", "max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "seed", "stop", "top_logprobs", "logit_bias", "json_schema", "tools", "tool_choice", "stream", "include_usage", "form", "one_call", "read_at")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    PROMPT_KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_USAGE_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    ONE_CALL_FIELD_NUMBER: _ClassVar[int]
    READ_AT_FIELD_NUMBER: _ClassVar[int]
    prompt_kind: PromptKind
    max_tokens: int
    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    top_logprobs: int
    logit_bias: _containers.ScalarMap[int, float]
    json_schema: str
    tools: str
    tool_choice: str
    stream: bool
    include_usage: bool
    form: Form
    one_call: bool
    read_at: str
    def __init__(self, prompt_kind: _Optional[_Union[PromptKind, str]] = ..., max_tokens: _Optional[int] = ..., n: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., top_logprobs: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., json_schema: _Optional[str] = ..., tools: _Optional[str] = ..., tool_choice: _Optional[str] = ..., stream: _Optional[bool] = ..., include_usage: _Optional[bool] = ..., form: _Optional[_Union[Form, str]] = ..., one_call: _Optional[bool] = ..., read_at: _Optional[str] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("finish_reason", "logprobs", "tool_calls")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    finish_reason: str
    logprobs: str
    tool_calls: str
    def __init__(self, finish_reason: _Optional[str] = ..., logprobs: _Optional[str] = ..., tool_calls: _Optional[str] = ...) -> None: ...

class Generated(_message.Message):
    __slots__ = ("run", "n_chunks", "prompt_tokens", "cached_tokens", "completion_tokens", "choices", "first_token_us", "form")
    RUN_FIELD_NUMBER: _ClassVar[int]
    N_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    run: int
    n_chunks: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    first_token_us: int
    form: Form
    def __init__(self, run: _Optional[int] = ..., n_chunks: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., first_token_us: _Optional[int] = ..., form: _Optional[_Union[Form, str]] = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("id", "attempt", "run", "seq", "choice", "text", "n_tokens", "token_ids", "logprobs", "tool_calls", "finish_reason", "tenant", "model", "version", "served_by", "prompt_kind", "include_usage", "form", "client_request_id", "prompt_tokens", "read_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_KIND_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_USAGE_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    READ_AT_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    attempt: int
    run: int
    seq: int
    choice: int
    text: str
    n_tokens: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: str
    tool_calls: str
    finish_reason: str
    tenant: str
    model: str
    version: int
    served_by: str
    prompt_kind: PromptKind
    include_usage: bool
    form: Form
    client_request_id: str
    prompt_tokens: int
    read_at: str
    def __init__(self, id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., run: _Optional[int] = ..., seq: _Optional[int] = ..., choice: _Optional[int] = ..., text: _Optional[str] = ..., n_tokens: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[str] = ..., tool_calls: _Optional[str] = ..., finish_reason: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., served_by: _Optional[str] = ..., prompt_kind: _Optional[_Union[PromptKind, str]] = ..., include_usage: _Optional[bool] = ..., form: _Optional[_Union[Form, str]] = ..., client_request_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., read_at: _Optional[str] = ...) -> None: ...

class Cancellation(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    reason: str
    def __init__(self, id: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...
