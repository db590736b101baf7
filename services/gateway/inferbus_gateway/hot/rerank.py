"""`/v1/rerank` and `/v1/score`: how near texts are, over any model of embeddings; pure.

In: a decoded body, then the vectors of its texts. Out: the body of the answer. A score is the
cosine of two vectors, from -1 to 1; the routes have the shapes that vLLM, Jina and Cohere share.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from operator import mul
from typing import Any

from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot import embeddings
from inferbus_gateway.hot.route import Target
from inferbus_schemas import ids

MAX_DOCUMENTS = 512
"""Each costs about 15 us of the event loop beside its vector."""
_RERANK = frozenset({"model", "query", "documents", "top_n", "return_documents"})
_SCORE = frozenset({"model", "text_1", "text_2"})


@dataclass(frozen=True, slots=True)
class Rerank:
    """A query, and documents to order by their nearness to it."""

    model: str
    texts: list[bytes]
    """The query, then the documents."""
    top_n: int
    documents: list[str] | None
    """As they are to be returned; None: not at all."""

    def answer(self, request_id: bytes, vectors: list[bytes], n_tokens: int) -> dict[str, Any]:
        """Return the body of the answer: nearest first, equal ones in their order."""
        query, *others = [embeddings.numbers(vector) for vector in vectors]
        scores = [cosine(query, other) for other in others]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: self.top_n]
        results = []
        for index in order:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if self.documents is not None:
                result["document"] = {"text": self.documents[index]}
            results.append(result)
        return {
            "id": f"rerank-{ids.text(request_id)}",
            "model": self.model,
            "results": results,
            "usage": embeddings.usage(n_tokens),
        }


@dataclass(frozen=True, slots=True)
class Score:
    """Pairs of texts: one or many on the left, many on the right."""

    model: str
    texts: list[bytes]
    n_left: int

    def answer(self, request_id: bytes, vectors: list[bytes], n_tokens: int) -> dict[str, Any]:
        """Return the body of the answer, in the order of the pairs."""
        numbers = [embeddings.numbers(vector) for vector in vectors]
        left, right = numbers[: self.n_left], numbers[self.n_left :]
        data = [
            {"object": "score", "index": index, "score": cosine(left[index % self.n_left], other)}
            for index, other in enumerate(right)
        ]
        return {
            "id": f"score-{ids.text(request_id)}",
            "object": "list",
            "created": ids.unix_ms(request_id) // 1000,
            "model": self.model,
            "data": data,
            "usage": embeddings.usage(n_tokens),
        }


def read_rerank(body: dict[str, Any], target: Target) -> Rerank:
    """Check a body of `/v1/rerank`.

    Raises:
        ParameterError, WrongTaskError: it is refused.
    """
    embeddings.check(body, target, _RERANK)
    documents = body.get("documents")
    if not isinstance(documents, list) or not 0 < len(documents) <= MAX_DOCUMENTS:
        raise ParameterError("documents", f"documents is a list of 1 to {MAX_DOCUMENTS} texts")
    plain: list[Any] = [one.get("text") if isinstance(one, dict) else one for one in documents]
    texts = [embeddings.encoded(one, "documents") for one in plain]
    top_n = body.get("top_n", len(texts))
    if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
        raise ParameterError("top_n", "top_n is a whole number from 1")
    wanted = body.get("return_documents", True)
    if not isinstance(wanted, bool):
        raise ParameterError("return_documents", "return_documents is true or false")
    query = embeddings.encoded(body.get("query"), "query")
    return Rerank(str(body["model"]), [query, *texts], top_n, plain if wanted else None)


def read_score(body: dict[str, Any], target: Target) -> Score:
    """Check a body of `/v1/score`.

    Raises:
        ParameterError, WrongTaskError: it is refused.
    """
    embeddings.check(body, target, _SCORE)
    sides = []
    for param in ("text_1", "text_2"):
        said = body.get(param)
        several = said if isinstance(said, list) else [said]
        if not 0 < len(several) <= MAX_DOCUMENTS:
            raise ParameterError(param, f"{param} is a text or a list of 1 to {MAX_DOCUMENTS}")
        sides.append([embeddings.encoded(one, param) for one in several])
    left, right = sides
    if len(left) not in {1, len(right)}:
        raise ParameterError("text_1", "text_1 is one text, or as many as text_2")
    return Score(str(body["model"]), left + right, len(left))


def cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the cosine of two vectors; 0 where one of them has no length."""
    lengths = sqrt(sum(map(mul, one, one)) * sum(map(mul, other, other)))
    return sum(map(mul, one, other)) / lengths if lengths else 0.0
