"""Lines of a batch's input against its endpoint and its model; pure.

In: a line of JSON, `{"custom_id", "method", "url", "body"}`. Out: a row of the batch's job; where
its body is refused as the endpoint itself would refuse it, the row keeps that answer. What makes
the whole input unfit, such as a name given twice, is noted as an error of the batch.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from inferbus_gateway.errors import InferbusError, ParameterError
from inferbus_gateway.hot import dialects, embeddings, kinds
from inferbus_gateway.hot.route import Target
from inferbus_schemas import json_bounds
from inferbus_schemas import messages as m

MAX_LINES = 50_000
"""As the OpenAI API has it."""
_MAX_CUSTOM_ID = 512
_MAX_ERRORS = 100
_MISSING = "missing_required_parameter"


class LineReader:
    """Reads the lines of one batch; without a `target` it finds only what is wrong with them.

    Invariants: a line is a row, or an error in `errors`, never both; of a batch with errors not
    all lines need be read; every row asks `model`.
    """

    def __init__(
        self, endpoint: str, model: str, target: Target | None, max_tensor_bytes: int
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._target = target
        self._max_tensor_bytes = max_tensor_bytes
        self._seen: set[bytes] = set()
        self._n_lines = 0
        self.errors: list[m.BatchError] = []

    @property
    def hopeless(self) -> bool:
        """Whether enough is known of what is wrong."""
        return len(self.errors) >= _MAX_ERRORS or self._n_lines > MAX_LINES

    def read(self, line: bytes | None) -> m.Row | None:
        """Return the row of the next line; None where the batch cannot be."""
        self._n_lines += 1
        try:
            fields = self._fields(line)
        except _WrongError as wrong:
            error = m.BatchError(code=wrong.code, message=str(wrong), param=wrong.param)
            error.line = self._n_lines
            self.errors.append(error)
            return None
        row = m.Row(number=self._n_lines - 1, client_request_id=fields["custom_id"])
        row.form.model = self._model
        if self._target is None:
            return row
        try:
            self._ask(row, fields["body"], self._target)
        except InferbusError as error:
            row.refused = str(error) or error.code
            row.form.status = error.http_status
            row.form.error = msgspec.json.encode(dialects.openai_error(error))
        return row

    def _ask(self, row: m.Row, body: dict[str, Any], target: Target) -> None:
        """Put what a body asks into its row.

        Raises:
            InferbusError: as the endpoint itself refuses it.
        """
        if self._endpoint == kinds.EMBEDDINGS:
            asked = embeddings.read(body, target)
            most = target.manifest.batching.max_rows
            if len(asked.texts) > most:
                raise ParameterError("input", f"a line of a batch has at most {most} inputs")
            row.form.base64 = asked.base64
            row.tensors = embeddings.tensors_of(target, asked.texts)
        else:
            ask = kinds.KINDS[self._endpoint].read(body, kinds.settings_of(target))
            if ask.generation.stream:
                raise ParameterError("stream", "a line of a batch cannot be streamed")
            row.tensors = ask.tensors()
            row.generation.CopyFrom(ask.generation)
        if len(row.tensors) > self._max_tensor_bytes:
            row.ClearField("tensors")
            raise ParameterError("", f"a body has at most {self._max_tensor_bytes} bytes")

    def _fields(self, line: bytes | None) -> dict[str, Any]:
        """Return the fields of a line.

        Raises:
            _WrongError: the batch cannot be.
        """
        if self._n_lines > MAX_LINES:
            raise _WrongError("too_many_lines", f"a batch has at most {MAX_LINES} lines", "")
        if line is None:
            raise _WrongError("invalid_json_line", "this line is too long", "")
        said = _object(line)
        self._name(said.get("custom_id"))
        if said.get("method") != "POST":
            raise _WrongError("invalid_method", "method must be POST", "method")
        if said.get("url") != self._endpoint:
            why = f"url must be the endpoint of the batch, {self._endpoint}"
            raise _WrongError("invalid_url", why, "url")
        body = said.get("body")
        if not isinstance(body, dict):
            raise _WrongError(_MISSING, "body must be an object", "body")
        if not body.get("model"):
            raise _WrongError(_MISSING, "body.model must name a model", "body.model")
        if body["model"] != self._model:
            why = "each line of a batch asks the same model"
            raise _WrongError("mismatched_model", why, "body.model")
        return said

    def _name(self, name: Any) -> None:
        """Check the name of a line.

        Raises:
            _WrongError: it is none, or that of an earlier line.
        """
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_CUSTOM_ID or not _encodable(name):
            why = f"custom_id must be a text of 1 to {_MAX_CUSTOM_ID} characters"
            raise _WrongError(_MISSING, why, "custom_id")
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        if digest in self._seen:
            why = "the custom_id of this line is that of an earlier one"
            raise _WrongError("duplicate_custom_id", why, "custom_id")
        self._seen.add(digest)


class _WrongError(Exception):
    """A line for which its batch cannot be; as the fields of a `BatchError` say."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def _object(line: bytes) -> dict[str, Any]:
    """Return the object that a line is.

    Raises:
        _WrongError: it is none, or would become too much.
    """
    try:
        json_bounds.check(line)
        said = msgspec.json.decode(line)
    except json_bounds.TooManyPartsError as error:
        raise _WrongError("invalid_json_line", str(error), "") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        said = None
    if not isinstance(said, dict):
        raise _WrongError("invalid_json_line", "this line is no JSON object", "")
    return said


def model_of(line: bytes | None) -> str:
    """Return the model that a line asks; empty where it says none."""
    try:
        body = _object(line or b"").get("body")
    except _WrongError:
        return ""
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) and _encodable(model) else ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
