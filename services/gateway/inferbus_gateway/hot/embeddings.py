"""`/v1/embeddings`: texts in, vectors out, over any model of the task `text-embedding`.

In: a decoded body. Out: the body of the answer. Many texts become several requests of as many rows
as the model batches, so that no client's list decides what an engine must hold at once.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from dataclasses import dataclass
from typing import Any

from inferbus_gateway.errors import FailedError, ParameterError, WrongTaskError
from inferbus_gateway.hot.incoming import Head, timeout_s
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.requests import Requests, failure
from inferbus_gateway.hot.route import Target
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_schemas.access import Principal

TASK = "text-embedding"
MAX_INPUTS = 2048
_KNOWN = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
_SPAN = "POST /v1/embeddings"


@dataclass(frozen=True, slots=True)
class Ask:
    """Texts, and whether vectors go out as base64."""

    model: str
    texts: list[bytes]
    base64: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer's body and the receipts of the records that it was made from."""

    body: dict[str, Any]
    receipts: list[str]


def read(body: dict[str, Any], target: Target) -> Ask:
    """Check a body.

    Raises:
        ParameterError, WrongTaskError: it is refused.
    """
    if target.manifest.task != TASK:
        raise WrongTaskError(f"model {target.model} does not make embeddings")
    for name in body:
        if name not in _KNOWN:
            raise ParameterError(name[:64], "unknown parameter")
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
    return Ask(str(body["model"]), [_encoded(text) for text in texts], form == "base64")


def _encoded(text: Any) -> bytes:
    if not isinstance(text, str) or not text:
        raise ParameterError("input", "each input is a text that is not empty; tokens are not read")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ParameterError("input", "an input holds half of a surrogate pair") from None


async def run(
    requests: Requests,
    request_id: bytes,
    *,
    caller: Principal,
    target: Target,
    ask: Ask,
    head: Head,
) -> Answered:
    """Ask the model.

    Raises:
        InferbusError: a part was refused or ended otherwise than OK.
    """
    name = target.manifest.signature.inputs[0].name
    n_rows = target.manifest.batching.max_rows
    parts: list[asyncio.Task[tuple[m.Prediction, str]]] = []
    for at in range(0, len(ask.texts), n_rows):
        rows = ask.texts[at : at + n_rows]
        tensor = m.Tensor(
            name=name, datatype="BYTES", shape=[len(rows)], data=tensors.join_bytes(rows)
        )
        waiter, future = requests.opener()
        requests.open(
            request_id if at == 0 else requests.new_id(),
            target,
            m.TensorSet(tensors=[tensor]).SerializeToString(),
            caller=caller,
            n_rows=len(rows),
            outputs=(),
            client_request_id="",
            timeout_s=timeout_s(head, None),
            waiter=waiter,
            traceparent=head.traceparent,
            span=_SPAN,
        )
        # Each part is settled, also where another one fails or is refused.
        parts.append(asyncio.create_task(_settled(requests, future)))
    answers = await asyncio.gather(*parts)
    vectors = [vector for prediction, _ in answers for vector in _rows(prediction)]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector).decode()
            if ask.base64
            else list(struct.unpack(f"<{len(vector) // 4}f", vector)),
        }
        for index, vector in enumerate(vectors)
    ]
    # The engine does not count tokens; clients of the API want the numbers to be there.
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    body = {"object": "list", "data": data, "model": ask.model, "usage": usage}
    return Answered(body, [receipt for _, receipt in answers])


async def _settled(requests: Requests, ended: asyncio.Future[Entry]) -> tuple[m.Prediction, str]:
    entry = await ended
    prediction = requests.settle(entry)
    if prediction.outcome != m.OUTCOME_OK:
        raise failure(prediction)
    return prediction, requests.receipt(entry)


def _rows(prediction: m.Prediction) -> list[bytes]:
    (tensor, *_) = m.TensorSet.FromString(prediction.outputs).tensors
    if tensor.datatype != "FP32" or len(tensor.shape) != 2:  # noqa: PLR2004 -- rows of vectors
        raise FailedError("the model's answer is no list of FP32 vectors; tell who deployed it")
    row_bytes = 4 * tensor.shape[1]
    return [tensor.data[at : at + row_bytes] for at in range(0, len(tensor.data), row_bytes)]
