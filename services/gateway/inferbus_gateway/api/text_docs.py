"""The OpenAPI description of the routes of text, which FastAPI does not serve.

In: the document of the other routes. Out: the same with these. What stands here is what
`hot.prompts` and `hot.embeddings` check; the shapes are those of the OpenAI API and of Triton.
Those of the answers stand in `answer_docs`.
"""

from __future__ import annotations

from typing import Any

from inferbus_gateway.api import answer_docs, header_docs
from inferbus_gateway.hot import embeddings, prompts, rerank
from inferbus_schemas import generation as limits

Body = dict[str, Any]

_PREFIXES = ("", "/openai")
_STREAM = "text/event-stream"
_NEVER, _ASKED, _ALWAYS = "never", "asked", "always"
_VECTORS = {"Embeddings", "Rerank", "Score"}
_GENERATING = [
    header_docs.IDEMPOTENCY_KEY,
    header_docs.GENERATION_TIMEOUT,
    header_docs.ON_DISCONNECT,
]
_OF_VECTORS = [header_docs.IDEMPOTENCY_KEY, header_docs.TIMEOUT]
_GREEDY = {"model": "smollm2", "temperature": 0}
_QUESTION = "What is the capital of France?"
_EXAMPLES: dict[str, Body] = {
    "Chat": {**_GREEDY, "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 16},
    "Text": {**_GREEDY, "prompt": "1, 2, 3, 4,", "max_tokens": 16},
    "Responses": {**_GREEDY, "input": _QUESTION, "max_output_tokens": 16},
    "Embeddings": {"model": "minilm", "input": ["a cat", "a dog"]},
    "Rerank": {"model": "minilm", "query": "a pet", "documents": ["a car", "a cat"]},
    "Score": {"model": "minilm", "text_1": "a pet", "text_2": ["a car", "a cat"]},
    "Generate": {"text_input": "1, 2, 3, 4,", "parameters": {"max_tokens": 6, "temperature": 0}},
}
"""What the sample models answer."""
FAILURES = (400, 401, 403, 404, 405, 408, 409, 410, 413, 415, 422, 429, 431, 499, 500, 503, 504)
"""How a request for inference may end beside 200."""


def describe(document: Body) -> None:
    """Add the routes to an OpenAPI document."""
    document["components"]["schemas"] |= {**_schemas(), **answer_docs.SCHEMAS}
    paths = document["paths"]
    for prefix in _PREFIXES:
        tag = prefix.strip("/")
        paths[f"{prefix}/v1/chat/completions"] = _post("Chat", "Chat completion", tag, _ASKED)
        paths[f"{prefix}/v1/completions"] = _post("Text", "Completion", tag, _ASKED)
        paths[f"{prefix}/v1/embeddings"] = _post("Embeddings", "Embeddings", tag, _NEVER)
        paths[f"{prefix}/v1/responses"] = _post("Responses", "Response", tag, _ASKED)
        paths[f"{prefix}/v1/rerank"] = _post("Rerank", "Documents by nearness", tag, _NEVER)
        paths[f"{prefix}/v1/score"] = _post("Score", "Nearness of pairs", tag, _NEVER)
        paths[f"{prefix}/v1/models"] = _get("Models", "Models that the key may see", tag)
        paths[f"{prefix}/v1/models/{{model}}"] = _get(
            "Model", "One model, or name:version", tag, "model"
        )
        paths[f"{prefix}/v1/streams/{{request_id}}"] = _get(
            "", "A stream from the header Last-Event-ID on", tag, "request_id"
        )
    for path, names in (
        ("/v2/models/{model}", ("model",)),
        ("/v2/models/{model}/versions/{version}", ("model", "version")),
    ):
        for route, stream in (("generate", _NEVER), ("generate_stream", _ALWAYS)):
            paths[f"{path}/{route}"] = _post(
                "Generate", route, path, stream, names=names, error="ErrorBody"
            )


def _content(schema: str) -> Body:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _answers(kind: str, error: str, stream: str) -> Body:
    good = {} if stream == _ALWAYS else _content(f"{kind}Answer")
    if stream != _NEVER:
        # No schema: validators disagree whether one is of the body or of each event.
        good[_STREAM] = {}
    failures = {
        str(status): {"description": "Refused or failed", "content": _content(error)}
        for status in FAILURES
    }
    return {"200": {"description": "The answer", "content": good}, **failures}


def _parameters(names: tuple[str, ...]) -> list[Body]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


def _operation_id(summary: str, tag: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in f"{tag}_{summary}").strip("_")


def _post(
    kind: str,
    summary: str,
    tag: str,
    stream: str,
    *,
    names: tuple[str, ...] = (),
    error: str = "OpenAIError",
) -> Body:
    headers = _OF_VECTORS if kind in _VECTORS else _GENERATING
    content = _content(f"{kind}Request")
    content["application/json"]["example"] = _EXAMPLES[kind]
    return {
        "post": {
            "tags": ["text"],
            "operationId": _operation_id(summary, tag),
            "summary": summary,
            "parameters": [*_parameters(names), *headers],
            "requestBody": {"required": True, "content": content},
            "responses": _answers(kind, error, stream),
        }
    }


def _get(kind: str, summary: str, tag: str, *names: str) -> Body:
    """Describe a route that answers JSON of a kind, or a stream where that has none."""
    headers, stream = ([], _NEVER) if kind else ([header_docs.LAST_EVENT_ID], _ALWAYS)
    return {
        "get": {
            "tags": ["text"],
            "operationId": _operation_id(summary, tag),
            "summary": summary,
            "parameters": [*_parameters(names), *headers],
            "responses": _answers(kind, "OpenAIError", stream),
        }
    }


def _number(least: float, most: float) -> Body:
    return {"type": "number", "minimum": least, "maximum": most}


def _whole(least: int, most: int | None = None) -> Body:
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def _texts(most: int) -> Body:
    one = {"type": "string", "minLength": 1}
    return {"oneOf": [one, {"type": "array", "items": one, "maxItems": most}]}


def _prompts() -> Body:
    texts = {"type": "string", "minLength": 1}
    ids = {"type": "array", "items": _whole(0), "minItems": 1}
    lists = [{"type": "array", "items": one, "minItems": 1} for one in (texts, ids)]
    return {"anyOf": [texts, ids, *(one | {"maxItems": limits.MAX_PROMPTS} for one in lists)]}


def _schemas() -> Body:
    sampling = {
        "max_tokens": _whole(1),
        "temperature": _number(0, 2),
        "top_p": _number(0, 1),
        "top_k": _whole(0),
        "min_p": _number(0, 1),
        "frequency_penalty": _number(-2, 2),
        "presence_penalty": _number(-2, 2),
        "seed": {"type": "integer"},
        "stop": _texts(limits.MAX_STOPS),
    }
    common = {
        "model": {"type": "string"},
        "n": _whole(1, limits.MAX_CHOICES),
        "logit_bias": {"type": "object", "maxProperties": limits.MAX_LOGIT_BIASES},
        "stream": {"type": "boolean"},
        "stream_options": {
            "type": "object",
            "properties": {"include_usage": {"type": "boolean"}},
        },
    }
    message = {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": sorted(prompts.ROLES)},
            "content": {"type": ["string", "array", "null"]},
        },
    }
    return {
        "ChatRequest": {
            "type": "object",
            "required": ["model", "messages"],
            "properties": {
                **common,
                **sampling,
                "messages": {
                    "type": "array",
                    "items": message,
                    "minItems": 1,
                    "maxItems": prompts.MAX_MESSAGES,
                },
                "max_completion_tokens": _whole(1),
                "logprobs": {"type": "boolean"},
                "top_logprobs": _whole(0, limits.MAX_LOGPROBS),
                "response_format": {"type": "object"},
                "tools": {"type": "array"},
                "tool_choice": {},
                "parallel_tool_calls": {"type": "boolean"},
            },
        },
        "TextRequest": {
            "type": "object",
            "required": ["model", "prompt"],
            "properties": {
                **common,
                **sampling,
                "prompt": _prompts(),
                "logprobs": _whole(0, limits.MAX_LOGPROBS),
            },
        },
        "EmbeddingsRequest": {
            "type": "object",
            "required": ["model", "input"],
            "properties": {
                "model": {"type": "string"},
                "input": _texts(embeddings.MAX_INPUTS),
                "encoding_format": {"enum": ["float", "base64"]},
                "dimensions": _whole(1),
            },
        },
        "ResponsesRequest": {
            "type": "object",
            "required": ["model", "input"],
            "properties": {
                "model": {"type": "string"},
                "input": {"type": ["string", "array"]},
                "instructions": {"type": "string"},
                "max_output_tokens": _whole(1),
                "temperature": _number(0, 2),
                "top_p": _number(0, 1),
                "text": {"type": "object"},
                "stream": {"type": "boolean"},
                "tools": {"type": "array"},
                "tool_choice": {},
                "parallel_tool_calls": {"type": "boolean"},
            },
        },
        "RerankRequest": {
            "type": "object",
            "required": ["model", "query", "documents"],
            "properties": {
                "model": {"type": "string"},
                "query": {"type": "string", "minLength": 1},
                "documents": {
                    "type": "array",
                    "items": {"type": ["string", "object"]},
                    "minItems": 1,
                    "maxItems": rerank.MAX_DOCUMENTS,
                },
                "top_n": _whole(1),
                "return_documents": {"type": "boolean"},
            },
        },
        "ScoreRequest": {
            "type": "object",
            "required": ["model", "text_1", "text_2"],
            "properties": {
                "model": {"type": "string"},
                "text_1": _texts(rerank.MAX_DOCUMENTS),
                "text_2": _texts(rerank.MAX_DOCUMENTS),
            },
        },
        "GenerateRequest": {
            "type": "object",
            "required": [limits.PROMPT],
            "properties": {
                limits.PROMPT: {"type": "string", "minLength": 1},
                "id": {"type": "string"},
                "parameters": {"type": "object", "properties": sampling},
            },
        },
        "OpenAIError": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": "string"},
                    },
                }
            },
        },
    }
