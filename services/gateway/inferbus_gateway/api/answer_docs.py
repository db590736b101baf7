"""What the routes of text answer, as schemas of OpenAPI; how they write it stands in `hot`.

In: nothing. Out: a schema for each shape of a whole answer, by name. Every field is named that is
always there; clients may be told more.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_NULL: Schema = {"type": "null"}
_NUMBER: Schema = {"type": "number"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TIME_S: Schema = {"type": "integer", "minimum": 0, "description": "Seconds of Unix time"}
_ENDS: Schema = {"enum": ["stop", "length", "tool_calls"]}


def _object(fields: Schema, **sometimes: Schema) -> Schema:
    """Return an object that has each of `fields`, and maybe some others."""
    return {"type": "object", "required": [*fields], "properties": {**fields, **sometimes}}


def _is(value: str) -> Schema:
    return {"type": "string", "const": value}


def _id(prefix: str) -> Schema:
    return {"type": "string", "pattern": f"^{prefix}"}


def _some(one: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": one, "minItems": least}


def _or_null(one: Schema) -> Schema:
    return {"anyOf": [one, _NULL]}


_USAGE = _object(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
    }
)
_USAGE_OF_VECTORS = _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT})
_USAGE_OF_RESPONSES = _object(
    {
        "input_tokens": _COUNT,
        "input_tokens_details": _object({"cached_tokens": _COUNT, "cache_write_tokens": _COUNT}),
        "output_tokens": _COUNT,
        "output_tokens_details": _object({"reasoning_tokens": _COUNT}),
        "total_tokens": _COUNT,
    }
)
_FUNCTION = _object({"name": _TEXT, "arguments": _TEXT})
_CALL = _object({"id": _TEXT, "type": _is("function"), "function": _FUNCTION})
_MESSAGE = _object(
    {"role": _is("assistant"), "content": _TEXT_OR_NULL, "refusal": _NULL},
    tool_calls=_some(_CALL, 1),
)
_CHAT_TOKEN = _object({"token": _TEXT, "logprob": _NUMBER, "top_logprobs": _some(_object({}))})
_CHAT_CHOICE = _object(
    {
        "index": _COUNT,
        "message": _MESSAGE,
        "logprobs": _or_null(_object({"content": _some(_CHAT_TOKEN), "refusal": _NULL})),
        "finish_reason": _ENDS,
    }
)
_TEXT_LOGPROBS = _object(
    {
        "tokens": _some(_TEXT),
        "token_logprobs": _some(_NUMBER),
        "top_logprobs": _some({"type": "object", "additionalProperties": _NUMBER}),
        "text_offset": _some(_COUNT),
    }
)
_TEXT_CHOICE = _object(
    {
        "index": _COUNT,
        "text": _TEXT,
        "logprobs": _or_null(_TEXT_LOGPROBS),
        "finish_reason": _ENDS,
    }
)
_ITEM_STATUS: Schema = {"enum": ["completed", "incomplete"]}
_PART = _object({"type": _is("output_text"), "text": _TEXT, "annotations": _some(_object({}))})
_ITEM: Schema = {
    "oneOf": [
        _object(
            {
                "type": _is("message"),
                "id": _id("msg_"),
                "status": _ITEM_STATUS,
                "role": _is("assistant"),
                "content": _some(_PART, 1),
            }
        ),
        _object(
            {
                "type": _is("function_call"),
                "id": _id("fc_"),
                "status": _ITEM_STATUS,
                "call_id": _TEXT,
                "name": _TEXT,
                "arguments": _TEXT,
            }
        ),
    ]
}
_VECTOR: Schema = {"oneOf": [_some(_NUMBER, 1), {**_TEXT, "contentEncoding": "base64"}]}
_EMBEDDING = _object({"object": _is("embedding"), "index": _COUNT, "embedding": _VECTOR})
_RESULT = _object({"index": _COUNT, "relevance_score": _NUMBER}, document=_object({"text": _TEXT}))
_PAIR = _object({"object": _is("score"), "index": _COUNT, "score": _NUMBER})
_MODEL = _object({"id": _TEXT, "object": _is("model"), "created": _TIME_S, "owned_by": _TEXT})

SCHEMAS: Schema = {
    "ChatAnswer": _object(
        {
            "id": _id("chatcmpl-"),
            "object": _is("chat.completion"),
            "created": _TIME_S,
            "model": _TEXT,
            "choices": _some(_CHAT_CHOICE, 1),
            "usage": _USAGE,
        }
    ),
    "TextAnswer": _object(
        {
            "id": _id("cmpl-"),
            "object": _is("text_completion"),
            "created": _TIME_S,
            "model": _TEXT,
            "choices": _some(_TEXT_CHOICE, 1),
            "usage": _USAGE,
        }
    ),
    "ResponsesAnswer": _object(
        {
            "id": _id("resp_"),
            "object": _is("response"),
            "created_at": _TIME_S,
            "status": _ITEM_STATUS,
            "error": _NULL,
            "incomplete_details": _or_null(_object({"reason": _is("max_output_tokens")})),
            "instructions": _NULL,
            "metadata": _object({}),
            "model": _TEXT,
            "output": _some(_ITEM, 1),
            "parallel_tool_calls": _FLAG,
            "previous_response_id": _NULL,
            "store": _FLAG,
            "temperature": _NULL,
            "text": _object({"format": _object({"type": _TEXT})}),
            "tool_choice": _TEXT,
            "tools": _some(_object({})),
            "top_p": _NULL,
            "truncation": _is("disabled"),
            "usage": _USAGE_OF_RESPONSES,
        }
    ),
    "EmbeddingsAnswer": _object(
        {
            "object": _is("list"),
            "data": _some(_EMBEDDING, 1),
            "model": _TEXT,
            "usage": _USAGE_OF_VECTORS,
        }
    ),
    "RerankAnswer": _object(
        {
            "id": _id("rerank-"),
            "model": _TEXT,
            "results": _some(_RESULT, 1),
            "usage": _USAGE_OF_VECTORS,
        }
    ),
    "ScoreAnswer": _object(
        {
            "id": _id("score-"),
            "object": _is("list"),
            "created": _TIME_S,
            "model": _TEXT,
            "data": _some(_PAIR, 1),
            "usage": _USAGE_OF_VECTORS,
        }
    ),
    "GenerateAnswer": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "text_output": {"oneOf": [_TEXT, _some(_TEXT, 2)]},
        },
        id=_TEXT,
    ),
    "ModelAnswer": _MODEL,
    "ModelsAnswer": _object({"object": _is("list"), "data": _some(_MODEL)}),
}
