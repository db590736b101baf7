"""`/v1/embeddings`: texts in, vectors out, over any model of the task `text-embedding`.

In: a decoded body. Out: the body of the answer. Many texts become several requests of as many rows
as the model batches, so that no client's list decides what an engine must hold at once.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from dataclasses import dataclass
from typing import Any, Protocol

from inferbus_gateway.errors import (
    FailedError,
    InvalidRequestError,
    ParameterError,
    WrongTaskError,
)
from inferbus_gateway.hot.incoming import Head, timeout_s
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Requests, Waiter, failure
from inferbus_gateway.hot.route import Target
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_schemas.access import Principal

TASK = "text-embedding"
MAX_INPUTS = 2048
_KNOWN = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
_SPAN = "POST /v1/embeddings"


class Ask(Protocol):
    """What is made of the vectors of some texts."""

    @property
    def texts(self) -> list[bytes]: ...

    def answer(self, request_id: bytes, vectors: list[bytes], n_tokens: int) -> dict[str, Any]:
        """Return the body of the answer; `vectors` stand in the order of the texts."""
        ...


@dataclass(frozen=True, slots=True)
class Embed:
    """Texts, and whether vectors go out as base64."""

    model: str
    texts: list[bytes]
    base64: bool

    def answer(self, _request_id: bytes, vectors: list[bytes], n_tokens: int) -> dict[str, Any]:
        """Return the body of the answer."""
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector).decode()
                if self.base64
                else list(numbers(vector)),
            }
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(n_tokens)}


@dataclass(frozen=True, slots=True)
class Vectors:
    """FP32 vectors, little-endian, one per text, and the receipts of the records they stand in.

    `n_tokens`: of all texts together, as the engine counted them.
    """

    raw: list[bytes]
    receipts: list[str]
    n_tokens: int


def read(body: dict[str, Any], target: Target) -> Embed:
    """Check a body.

    Raises:
        ParameterError, WrongTaskError: it is refused.
    """
    check(body, target, _KNOWN)
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise ParameterError("encoding_format", "encoding_format is float or base64")
    size = target.manifest.signature.outputs[0].shape[-1]
    if body.get("dimensions") not in (None, size):
        raise ParameterError("dimensions", f"this model's vectors have {size} dimensions")
    said = body.get("input")
    texts = [said] if isinstance(said, str) else said
    if not isinstance(texts, list) or not 0 < len(texts) <= MAX_INPUTS:
        raise ParameterError("input", f"input is a text or a list of 1 to {MAX_INPUTS} texts")
    return Embed(str(body["model"]), [encoded(text, "input") for text in texts], form == "base64")


def check(body: dict[str, Any], target: Target, known: frozenset[str]) -> None:
    """Check that the model makes vectors and that every field is known.

    Raises:
        ParameterError, WrongTaskError: it is refused.
    """
    if target.manifest.task != TASK:
        raise WrongTaskError(f"model {target.model} does not make embeddings")
    for name in body:
        if name not in known:
            raise ParameterError(name[:64], "unknown parameter")


def encoded(text: Any, param: str) -> bytes:
    """Return a text as the model takes it.

    Raises:
        ParameterError: it is none, or empty.
    """
    if not isinstance(text, str) or not text:
        raise ParameterError(param, f"each {param} is a text, not token ids, and not empty")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ParameterError(param, f"{param} holds half of a surrogate pair") from None


def tensors_of(target: Target, texts: list[bytes]) -> bytes:
    """Return the serialised TensorSet of a request with these texts."""
    name, data = target.manifest.signature.inputs[0].name, tensors.join_bytes(texts)
    tensor = m.Tensor(name=name, datatype="BYTES", shape=[len(texts)], data=data)
    return m.TensorSet(tensors=[tensor]).SerializeToString()


@dataclass(frozen=True, slots=True)
class Part:
    """Texts that are one request on the bus."""

    request_id: bytes
    caller: Principal
    target: Target
    texts: list[bytes]
    head: Head


def open_part(
    requests: Requests, part: Part, waiter: Waiter, reply_partition: int | None = None
) -> Entry:
    """Put a part on the bus; its waiter is told how it ended."""
    return requests.open(
        part.request_id,
        part.target,
        tensors_of(part.target, part.texts),
        caller=part.caller,
        n_rows=len(part.texts),
        outputs=(),
        client_request_id="",
        timeout_s=timeout_s(part.head, None),
        waiter=waiter,
        traceparent=part.head.traceparent,
        span=_SPAN,
        reply_partition=reply_partition,
    )


async def run(
    requests: Requests,
    request_id: bytes,
    *,
    caller: Principal,
    target: Target,
    texts: list[bytes],
    head: Head,
) -> Vectors:
    """Ask the model for the vectors of texts.

    Raises:
        InvalidRequestError: they are more requests than the caller may ever send at once.
        InferbusError: a part was refused or ended otherwise than OK.
    """
    n_rows = target.manifest.batching.max_rows
    n_parts = -(-len(texts) // n_rows)
    if n_parts > 1:
        if n_parts > (most := requests.at_once(caller)):
            raise InvalidRequestError(
                f"{len(texts)} texts are {n_parts} requests to this model, and your limits allow "
                f"{most} at once; send at most {most * n_rows} texts"
            )
        # Each request on the bus counts; the first one did when the body was still unread. None
        # is sent before all have entered: who is refused and comes back would repeat them.
        requests.enter_parts(caller, n_parts - 1)
    parts: list[asyncio.Task[tuple[m.Prediction, str]]] = []
    for at in range(0, len(texts), n_rows):
        rows = texts[at : at + n_rows]
        waiter, future = requests.opener()
        part_id = request_id if at == 0 else requests.new_id()
        open_part(requests, Part(part_id, caller, target, rows, head), waiter)
        # Each part is settled, also where another one fails or is refused.
        parts.append(asyncio.create_task(_settled(requests, future)))
    answers = await asyncio.gather(*parts)
    raw = [vector for prediction, _ in answers for vector in vectors_of(prediction)]
    n_tokens = sum(prediction.input_tokens for prediction, _ in answers)
    return Vectors(raw, [receipt for _, receipt in answers], n_tokens)


def usage(n_tokens: int) -> dict[str, int]:
    """Return the token counts of texts that became vectors."""
    return {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def numbers(vector: bytes) -> tuple[float, ...]:
    """Return a vector's numbers."""
    return struct.unpack(f"<{len(vector) // 4}f", vector)


async def _settled(requests: Requests, ended: asyncio.Future[Entry]) -> tuple[m.Prediction, str]:
    entry = await ended
    return good(requests.settle(entry)), requests.receipt(entry)


def good(prediction: m.Prediction) -> m.Prediction:
    """Return a prediction that is OK.

    Raises:
        InferbusError: it is not.
    """
    if prediction.outcome != m.OUTCOME_OK:
        raise failure(prediction)
    return prediction


def vectors_of(prediction: m.Prediction) -> list[bytes]:
    """Return the vectors of a prediction.

    Raises:
        FailedError: its outputs are something else.
    """
    (tensor, *_) = m.TensorSet.FromString(prediction.outputs).tensors
    if tensor.datatype != "FP32" or len(tensor.shape) != 2:  # noqa: PLR2004 -- rows of vectors
        raise FailedError("the model's answer is no list of FP32 vectors; tell who deployed it")
    row_bytes = 4 * tensor.shape[1]
    return [tensor.data[at : at + row_bytes] for at in range(0, len(tensor.data), row_bytes)]
