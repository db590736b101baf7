"""The Open Inference Protocol as an OpenAPI document that others wrote, ready for requests.

In: the document that MLServer ships, from the environment of its lock. Out: the same one without
what is not the protocol's, with the rules that it leaves to prose. Nothing of it is kept here.

What is changed, and why:

- `infer_stream` and MLServer's form of `generate` are its own; `generate` is described as the
  protocol's text of it has it.
- `bytes` is no type of JSON, and `enums` is no place for schemas: the document means a list, and a
  schema.
- "A failed request must be indicated by an HTTP error status; the body must contain the error
  object": the document lists a few statuses only, and `error` as optional.
- Examples: bodies that a deployed model must answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ENUM = "#/components/enums/Datatype"
_REFUSAL = {
    "type": "object",
    "properties": {"error": {"type": "string", "minLength": 1}},
    "required": ["error"],
}
_TEXT_ANSWER = {
    "type": "object",
    "properties": {
        "text_output": {"type": "string"},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
    },
    "required": ["text_output", "model_name"],
}
_TEXT_QUESTION = {
    "type": "object",
    "properties": {
        "text_input": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {
                "temperature": {"type": "number", "minimum": 0, "maximum": 2},
                "top_p": {"type": "number", "minimum": 0, "maximum": 1},
                "max_tokens": {"type": "integer", "minimum": 0, "maximum": 4},
                "stop": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            },
        },
    },
    "required": ["text_input"],
}


def shipped(environment: Path) -> dict[str, Any]:
    """Return the document as it is in the environment of the lock `schemathesis`."""
    (path,) = environment.glob("lib/python*/site-packages/mlserver/rest/openapi/dataplane.json")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def ready(document: dict[str, Any], infer: Any, generate: Any) -> dict[str, Any]:
    """Return the document for a server of this protocol.

    Args:
        document: as it is shipped.
        infer: a body that the model of the infer routes answers.
        generate: the same of the generate routes.
    """
    enums = document["components"].pop("enums")
    made: dict[str, Any] = json.loads(
        json.dumps(document).replace(_ENUM, "#/components/schemas/Datatype")
    )
    schemas = made["components"]["schemas"]
    schemas |= enums | {"Refusal": _REFUSAL, "TensorData": {"type": "array", "items": {}}}
    made["paths"] = {
        path: operations
        for path, operations in made["paths"].items()
        if not path.endswith(("infer_stream", "generate_stream"))
    }
    refusal = {"description": "", "content": _json({"$ref": "#/components/schemas/Refusal"})}
    for path, operations in made["paths"].items():
        for method in operations.keys() & {"get", "post"}:
            operation = operations[method]
            good = operation["responses"]["200"]
            if path.endswith("/generate"):
                operation["requestBody"] = {"required": True, "content": _json(_TEXT_QUESTION)}
                good["content"] = _json(_TEXT_ANSWER)
            if method == "post":
                example = generate if path.endswith("/generate") else infer
                operation["requestBody"]["content"]["application/json"]["example"] = example
            operation["responses"] = {"200": good, "default": refusal}
    return made


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
