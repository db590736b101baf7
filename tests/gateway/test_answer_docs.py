"""What the routes of text answer fits what the OpenAPI document says of it; less does not fit."""

from __future__ import annotations

import json
import struct
from typing import Any

import jsonschema
import pytest

from inferbus_gateway.api import answer_docs, text_docs
from inferbus_gateway.hot import dialects, embeddings, rerank, responses
from tests.gateway.test_responses import whole
from tests.gateway.test_token_stream import REQUEST_ID

LOGPROBS = json.dumps(
    [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]
)
CALLS = json.dumps(
    [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
)
VECTORS = [struct.pack("<2f", 1, 0), struct.pack("<2f", 0, 1)]

said = whole("a")
said.generated.choices[0].logprobs = LOGPROBS
called, cut = whole("", "tool_calls", CALLS), whole("a", "length")
embed = embeddings.Embed("m", [b"a", b"b"], base64=False)
packed = embeddings.Embed("m", [b"a", b"b"], base64=True)
ranked = rerank.Rerank("m", [b"a", b"b"], 1, ["b"])
bare = rerank.Rerank("m", [b"a", b"b"], 1, None)
scored = rerank.Score("m", [b"a", b"b"], 1)

ANSWERS: list[tuple[str, dict[str, Any]]] = [
    *(("ChatAnswer", dialects.Chat(REQUEST_ID).answer(one)) for one in (said, called, cut)),
    *(("TextAnswer", dialects.Text(REQUEST_ID).answer(one)) for one in (said, cut)),
    *(
        ("ResponsesAnswer", responses.Responses(REQUEST_ID).answer(one))
        for one in (said, called, cut)
    ),
    *(("GenerateAnswer", dialects.Triton(name).answer(said)) for name in ("", "mine")),
    *(("EmbeddingsAnswer", one.answer(REQUEST_ID, VECTORS, 2)) for one in (embed, packed)),
    *(("RerankAnswer", one.answer(REQUEST_ID, VECTORS, 2)) for one in (ranked, bare)),
    ("ScoreAnswer", scored.answer(REQUEST_ID, VECTORS, 2)),
]


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
def test_what_is_answered_is_what_is_described(name: str, answer: dict[str, Any]) -> None:
    schema = answer_docs.SCHEMAS[name]
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    check.validate(answer)
    assert answer.keys() <= schema["properties"].keys()
    for field in schema["required"]:
        assert not check.is_valid({key: answer[key] for key in answer if key != field}), field


def test_each_answer_but_those_of_models_is_made_here() -> None:
    made = {name for name, _ in ANSWERS}
    assert made == answer_docs.SCHEMAS.keys() - {"ModelAnswer", "ModelsAnswer"}


def test_each_example_is_a_body_of_its_route() -> None:
    document: dict[str, Any] = {"components": {"schemas": {}}, "paths": {}}
    text_docs.describe(document)
    posts = {path: verbs["post"] for path, verbs in document["paths"].items() if "post" in verbs}
    assert len(posts) == 16
    for path, operation in posts.items():
        body = operation["requestBody"]["content"]["application/json"]
        name = body["schema"]["$ref"].rpartition("/")[2]
        check = jsonschema.Draft202012Validator(document["components"]["schemas"][name])
        assert check.is_valid(body["example"]), path
