"""Every way to ask the sample models over HTTP that takes a body, as something to break.

In: the id of a file for batches. Out: for each route, and each form of its body, one that is fine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_ROW = {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}
_TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a cat"]}
_SAID = [{"role": "user", "content": "Hi"}]
_SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"enum": ["x", "y"]},
        "b": {"type": "array", "items": {"$ref": "#/$defs/c"}},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"c": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}},
}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": _SCHEMA},
}
_SHORT = {"model": "smollm2", "max_tokens": 1, "temperature": 0}
_ROWS = b"".join(
    json.dumps(row).encode() + b"\n"
    for row in ({"features": _ROW["data"]}, {"id": "x", "inputs": [_ROW]})
)
PARTS = (
    *(b"[]", b"{}", b'{"":{}}', b'{"a":0}', b'{"a":[]}', b"[1]", b"[999]", b"999", b"1e9", b"5"),
    *(b'"ab"', b'"a"', '"\u0100"'.encode(), '"\U0001f600"'.encode()),
)
"""Of JSON, each many times as large in memory as on the wire."""
JSON, _JSON_LINES = "application/json", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Shape:
    """A route, and a body that is fine for it: JSON, or bytes of another `kind`."""

    path: str
    body: Any
    kind: str = JSON

    @property
    def raw(self) -> bytes:
        """The body on the wire."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    @property
    def generates(self) -> bool:
        """Whether an answer takes its time: text."""
        return b"smollm2" in self.raw or "smollm2" in self.path


def many(part: bytes, n_bytes: int) -> bytes:
    """Return a list of about `n_bytes` that holds a part as often as they allow."""
    return b"[" + b",".join([part] * (n_bytes // (len(part) + 1))) + b"]"


def _form(boundary: str) -> bytes:
    """Return a file of one line for batches, as a form."""
    head = 'content-disposition: form-data; name="'
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "minilm"},
    }
    parts = (
        f'{head}purpose"\r\n\r\nbatch',
        f'{head}file"; filename="a.jsonl"\r\ncontent-type: {_JSON_LINES}\r\n\r\n{json.dumps(line)}',
    )
    text = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts)
    return f"{text}--{boundary}--\r\n".encode()


def shapes(file: str) -> tuple[Shape, ...]:
    """Return a shape for each way to ask the sample models; `file` is one of batches, or none."""
    chat, text = "/v1/chat/completions", "/v1/completions"
    wants = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": _SCHEMA}}
    return (
        Shape(
            "/v2/models/breast-cancer/infer",
            {
                "id": "x",
                "parameters": {"timeout": 0},
                "inputs": [_ROW],
                "outputs": [{"name": "label", "parameters": {"classification": 1}}],
            },
        ),
        Shape("/v2/models/minilm/infer", {"inputs": [_TEXT]}),
        Shape(
            "/v2/models/smollm2/generate",
            {"text_input": "Hi", "parameters": {"max_tokens": 1, "temperature": 0}},
        ),
        Shape("/v2/models/smollm2/generate_stream", {"text_input": "Hi", "max_tokens": 2}),
        Shape("/v1/embeddings", {"model": "minilm", "input": ["a"], "encoding_format": "base64"}),
        Shape(
            "/v1/rerank",
            {
                "model": "minilm",
                "query": "a",
                "documents": ["b", {"text": "c"}],
                "top_n": 1,
                "return_documents": True,
            },
        ),
        Shape("/openai/v1/score", {"model": "minilm", "text_1": ["a"], "text_2": ["b", "c"]}),
        Shape(text, {**_SHORT, "prompt": ["Hi", "Ho"], "n": 1}),
        Shape(text, {**_SHORT, "prompt": [[504, 5], [6]], "stream": True, "seed": 1}),
        Shape(
            chat,
            {
                **_SHORT,
                "messages": _SAID,
                "stop": ["x"],
                "logprobs": True,
                "top_logprobs": 2,
                "logit_bias": {"5": 1},
                "response_format": {"type": "text"},
            },
        ),
        Shape(
            chat,
            {
                **_SHORT,
                "messages": _SAID,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        Shape(chat, {**_SHORT, "messages": _SAID, "max_tokens": 4, "response_format": wants}),
        Shape(
            chat,
            {
                **_SHORT,
                "messages": [
                    *_SAID,
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "t",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "t", "content": "1"},
                ],
                "tools": [_TOOL],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
        ),
        Shape(
            "/v1/responses",
            {
                "model": "smollm2",
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                    {"type": "function_call", "call_id": "t", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "t", "output": "1"},
                ],
                "tools": [{"type": "function", **_TOOL["function"]}],
                "tool_choice": "auto",
                "parallel_tool_calls": True,
                "instructions": "Be short.",
                "max_output_tokens": 1,
                "stream": True,
                "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA}},
            },
        ),
        Shape("/v1/jobs?model=breast-cancer", _ROWS, _JSON_LINES),
        Shape(
            "/v1/jobs",
            {
                "model": "breast-cancer",
                "version": "1",
                "client_job_id": "x",
                "input": {"uri": "https://127.0.0.1/rows.parquet", "format": "parquet"},
            },
        ),
        Shape("/v1/files", _form("b"), "multipart/form-data; boundary=b"),
        Shape(
            "/v1/batches",
            {
                "input_file_id": file,
                "endpoint": "/v1/embeddings",
                "completion_window": "24h",
                "metadata": {"a": "b"},
                "output_expires_after": {"anchor": "created_at", "seconds": 7200},
            },
        ),
        Shape("/v2/repository/index", {"ready": True}),
    )
