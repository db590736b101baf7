"""Requests out of a record that a tenant's program wrote: read, named, pinned; pure.

In: the bytes of a record of `inference.submissions.<tenant>` and where it stands. Out: requests for
the bus whose ids any gateway would make from the same record, or the error that a record tells.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from inferbus_gateway import errors
from inferbus_gateway.hot import submission_json
from inferbus_gateway.hot.fit import MAX_ID_CHARACTERS
from inferbus_gateway.hot.route import Routes
from inferbus_kit.consume import Record
from inferbus_kit.errors import InferbusError
from inferbus_schemas import envelope, ids, json_bounds, names
from inferbus_schemas import messages as m

MAX_AGE_MS = 600_000
"""A record older than this is dead when it is read; no request may take longer either."""
MAX_REQUESTS = 1000
"""Requests of one record."""
MAX_JSON_BYTES = 1 << 20
"""Of JSON; whoever writes more at once writes Protobuf, which takes less of everything."""
_JSON = b"application/json"
_PROTOBUF = {b"", b"application/protobuf", b"application/x-protobuf"}
_ENTROPY_BYTES = 10
_SAMPLED = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01")


class UnreadableSubmissionError(ValueError):
    """A record that is no submission; the message is for its writer, in a dead letter."""


@dataclass(slots=True)
class Submitted:
    """One request of a record: what goes on the bus, what was written, rows, and the deadline.

    `said` is None once the request is pinned or refused: it keeps the whole record in memory.
    """

    request: m.Request
    said: m.SubmittedRequest | None
    n_rows: int
    deadline_ms: int
    refusal: InferbusError | None = None

    def left_ms(self, now_ms: float) -> int:
        """Return how much of its time is left; 0 or less where none is."""
        return int(self.deadline_ms - now_ms)


def is_json(record: Record) -> bool:
    """Tell whether a record's content type says JSON."""
    return _kind(record) == _JSON


def read(record: Record, now_ms: float) -> m.Submission:
    """Return what a record submits, as Protobuf or as Protobuf's JSON by its content type.

    Raises:
        UnreadableSubmissionError: it cannot be read, is empty or has waited too long.
    """
    if now_ms - record.timestamp > MAX_AGE_MS:
        raise UnreadableSubmissionError(
            "it is older than ten minutes; nobody waits for it any more"
        )
    kind, value = _kind(record), record.value or b""
    if kind != _JSON and kind not in _PROTOBUF:
        raise UnreadableSubmissionError(
            "content-type must be application/protobuf or application/json"
        )
    if kind == _JSON and len(value) > MAX_JSON_BYTES:
        raise UnreadableSubmissionError("JSON may have 1 MiB at most; write Protobuf")
    try:
        if kind == _JSON:
            json_bounds.check(value)
            said = submission_json.parse(value)
        else:
            said = m.Submission.FromString(value)
    except json_bounds.TooManyPartsError as error:
        raise UnreadableSubmissionError(f"{error}; write Protobuf") from error
    except (DecodeError, ValueError, RecursionError) as error:
        raise UnreadableSubmissionError(f"it is no Submission: {str(error)[:200]}") from error
    if not 0 < len(said.requests) <= MAX_REQUESTS:
        raise UnreadableSubmissionError(f"it must hold 1 to {MAX_REQUESTS} requests")
    return said


def _kind(record: Record) -> bytes:
    said = dict(record.headers).get("content-type") or b""
    return said.partition(b";")[0].strip().lower()


def request_id(record: Record, index: int) -> bytes:
    """Return the id of a record's request: UUIDv7 of append time and place, the same each time."""
    place = f"{record.topic}\x1f{record.partition}\x1f{record.offset}\x1f{index}"
    digest = hashlib.sha256(place.encode()).digest()
    return ids.uuid7(record.timestamp, int.from_bytes(digest[:_ENTROPY_BYTES], "big"))


def reply_partition(id_bytes: bytes, n_partitions: int) -> int:
    """Return where the request's records stand, for its whole life, whoever places it."""
    return zlib.crc32(id_bytes) % n_partitions


@dataclass(frozen=True, slots=True)
class Place:
    """What requests of one gateway need to know beside their record."""

    tenant: str
    n_reply_partitions: int
    max_tensor_bytes: int
    max_rows: int


def requests(said: m.Submission, record: Record, place: Place) -> list[Submitted]:
    """Return the requests of a record; `pin` comes next."""
    traceparent = envelope.traceparent(record.headers)
    if not _SAMPLED.fullmatch(traceparent):
        traceparent = ""
    out = []
    for index, one in enumerate(said.requests):
        id_bytes = request_id(record, index)
        request = m.Request(
            id=id_bytes,
            tenant=place.tenant,
            reply_partition=reply_partition(id_bytes, place.n_reply_partitions),
            attempt=1,
            criticality=1,
            client_request_id=one.client_request_id[:MAX_ID_CHARACTERS],
            traceparent=traceparent,
            tensors=one.inputs.SerializeToString(),
        )
        deadline_ms = record.timestamp + min(one.timeout_ms or MAX_AGE_MS, MAX_AGE_MS)
        out.append(Submitted(request, one, _rows(one.inputs), deadline_ms))
    return out


def pin(one: Submitted, routes: Routes, place: Place) -> str:
    """Pin a request to a version; return its pool.

    Raises:
        NoWorkerError: its model has never been served yet; it has to wait.
        InferbusError: it cannot run; the message is for its writer.
    """
    said, request = one.said, one.request
    if said is None:
        raise ValueError("the request is pinned already")
    if len(said.client_request_id) > MAX_ID_CHARACTERS:
        raise errors.InvalidRequestError(
            f"client_request_id may have {MAX_ID_CHARACTERS} characters at most"
        )
    if len(request.tensors) > place.max_tensor_bytes:
        raise errors.too_large(place.max_tensor_bytes)
    try:
        # What is no name may stand neither in a record nor in a label.
        request.model = names.check_model(said.model)
    except names.InvalidNameError as refusal:
        raise errors.InvalidRequestError(str(refusal)) from None
    target = routes.resolve(said.model, said.version)
    first = target.manifest.signature.inputs[0]
    if one.n_rows > place.max_rows and first.shape[:1] == (-1,):
        raise errors.TooManyRowsError(first.name, one.n_rows, place.max_rows)
    known = {spec.name for spec in target.manifest.signature.outputs}
    if not known.issuperset(said.outputs) or len(set(said.outputs)) != len(said.outputs):
        raise errors.InvalidRequestError("outputs must be names of the model's outputs, each once")
    request.version = target.version
    request.owes_tokens = target.counts_tokens
    request.outputs.extend(said.outputs)
    one.said = None
    return target.pool


def _rows(inputs: m.TensorSet) -> int:
    """Return how many rows a request says it has, never more than its bytes can be."""
    first = inputs.tensors[0] if inputs.tensors else None
    if first is None or not first.shape:
        return 1
    return min(max(1, first.shape[0]), len(first.data) + 1)
