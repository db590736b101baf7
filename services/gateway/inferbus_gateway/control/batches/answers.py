"""Results of a batch's rows as lines of its output files; pure.

In: a row as it was read, and the record that ended it. Out: a line of JSON, with the very body that
the endpoint itself answers such a request with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from inferbus_gateway.hot import dialects, embeddings, kinds
from inferbus_gateway.hot.generations import ended
from inferbus_kit.errors import InferbusError
from inferbus_schemas import ids
from inferbus_schemas import messages as m

_encode = msgspec.json.Encoder().encode
_UNDONE = {
    "batch_expired": "the completion window of the batch was over before this request had run",
    "batch_cancelled": "the batch was cancelled before this request had run",
}


class Line(NamedTuple):
    """A line of an output file; `good` ones are those of the output, others of the errors."""

    good: bool
    raw: bytes


def line(endpoint: str, row: m.Row, said: m.Prediction, *, expired: bool) -> Line:
    """Return the line of a row.

    Args:
        endpoint: of the batch.
        row: as it was read.
        said: how it ended.
        expired: whether rows that were not run are so because time was over.
    """
    if said.outcome == m.OUTCOME_CANCELLED and not said.outputs:
        code = "batch_expired" if expired else "batch_cancelled"
        return _line(row, said, None, {"code": code, "message": _UNDONE[code]})
    status, body = _answer(endpoint, row, said)
    response = {"status_code": status, "request_id": ids.text(said.id), "body": body}
    return _line(row, said, response, None)


def _line(
    row: m.Row, said: m.Prediction, response: dict[str, Any] | None, error: dict[str, str] | None
) -> Line:
    fields = {
        "id": f"batch_req_{said.id.hex()}",
        "custom_id": row.client_request_id,
        "response": response,
        "error": error,
    }
    good = response is not None and response["status_code"] == 200  # noqa: PLR2004 -- as HTTP has it
    return Line(good, _encode(fields) + b"\n")


def _answer(endpoint: str, row: m.Row, said: m.Prediction) -> tuple[int, Any]:
    """Return status and body of the answer to a row."""
    if row.refused:
        return row.form.status, msgspec.Raw(row.form.error)
    if (why := ended(said)) is not None:
        return why.http_status, dialects.openai_error(why, said.error_code)
    try:
        if endpoint == kinds.EMBEDDINGS:
            form = embeddings.Embed(row.form.model, [], row.form.base64)
            return 200, form.answer(said.id, embeddings.vectors_of(said), said.input_tokens)
        return 200, kinds.KINDS[endpoint].dialect(said.id).answer(said)
    except InferbusError as error:
        return error.http_status, dialects.openai_error(error)
