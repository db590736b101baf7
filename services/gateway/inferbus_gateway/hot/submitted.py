"""Requests out of a record that a tenant's program wrote: read, named, pinned; pure.

In: the bytes of a record of `inference.submissions.<tenant>` and where it stands. Out: requests for
the bus whose ids any gateway would make from the same record, or the error that a record tells.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from inferbus_gateway import errors
from inferbus_gateway.hot.fit import MAX_ID_CHARACTERS
from inferbus_gateway.hot.route import Routes
from inferbus_kit.consume import Record
from inferbus_kit.errors import InferbusError
from inferbus_schemas import envelope, ids, names
from inferbus_schemas import messages as m

MAX_AGE_MS = 600_000
"""A record older than this is dead when it is read; no request may take longer either."""
MAX_REQUESTS = 1000
"""Requests of one record."""
_JSON = b"application/json"
_PROTOBUF = {b"", b"application/protobuf", b"application/x-protobuf"}
_ENTROPY_BYTES = 10
_SAMPLED = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01")


class UnreadableSubmissionError(ValueError):
    """A record that is no submission; the message is for its writer, in a dead letter."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """One request of a record; `error` says why it cannot be placed."""

    request: m.Request
    pool: str
    n_rows: int
    deadline_ms: int
    error: InferbusError | None

    def left_ms(self, now_ms: float) -> int:
        """Return how much of its time is left; 0 or less where none is."""
        return int(self.deadline_ms - now_ms)


def read(record: Record, now_ms: float) -> m.Submission:
    """Return what a record submits, as Protobuf or as Protobuf's JSON by its content type.

    Raises:
        UnreadableSubmissionError: it cannot be read, is empty or has waited too long.
    """
    if now_ms - record.timestamp > MAX_AGE_MS:
        raise UnreadableSubmissionError(
            "it is older than ten minutes; nobody waits for it any more"
        )
    kind = dict(record.headers).get("content-type", b"").partition(b";")[0].strip().lower()
    value = record.value or b""
    try:
        if kind == _JSON:
            said: m.Submission = json_format.Parse(value, m.Submission(), max_recursion_depth=20)
        elif kind in _PROTOBUF:
            said = m.Submission.FromString(value)
        else:
            raise UnreadableSubmissionError(
                "content-type must be application/protobuf or application/json"
            )
    except (DecodeError, json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableSubmissionError(f"it is no Submission: {str(error)[:200]}") from error
    if not 0 < len(said.requests) <= MAX_REQUESTS:
        raise UnreadableSubmissionError(f"it must hold 1 to {MAX_REQUESTS} requests")
    return said


def request_id(record: Record, index: int) -> bytes:
    """Return the id of a record's request: UUIDv7 of append time and place, the same each time."""
    place = f"{record.topic}\x1f{record.partition}\x1f{record.offset}\x1f{index}"
    digest = hashlib.sha256(place.encode()).digest()
    return ids.uuid7(record.timestamp, int.from_bytes(digest[:_ENTROPY_BYTES], "big"))


def reply_partition(id_bytes: bytes, n_partitions: int) -> int:
    """Return where the request's records stand, for its whole life, whoever places it."""
    return zlib.crc32(id_bytes) % n_partitions


def requests(
    said: m.Submission,
    record: Record,
    tenant: str,
    routes: Routes,
    *,
    n_partitions: int,
    max_tensor_bytes: int,
) -> list[Submitted]:
    """Return the requests of a record, pinned now.

    Raises:
        NoWorkerError: a model of it has never been served yet; the record has to wait.
    """
    traceparent = envelope.traceparent(record.headers)
    if not _SAMPLED.fullmatch(traceparent):
        traceparent = ""
    return [
        _one(
            one,
            m.Request(
                id=(id_bytes := request_id(record, index)),
                tenant=tenant,
                reply_partition=reply_partition(id_bytes, n_partitions),
                attempt=1,
                criticality=1,
                client_request_id=one.client_request_id[:MAX_ID_CHARACTERS],
                outputs=one.outputs,
                traceparent=traceparent,
                tensors=one.inputs.SerializeToString(),
            ),
            record.timestamp + min(one.timeout_ms or MAX_AGE_MS, MAX_AGE_MS),
            routes,
            max_tensor_bytes,
        )
        for index, one in enumerate(said.requests)
    ]


def _one(
    one: m.SubmittedRequest,
    request: m.Request,
    deadline_ms: int,
    routes: Routes,
    max_tensor_bytes: int,
) -> Submitted:
    tensors = one.inputs.tensors
    n_rows = tensors[0].shape[0] if tensors and tensors[0].shape else 1
    error: InferbusError | None = None
    pool = ""
    try:
        if len(one.client_request_id) > MAX_ID_CHARACTERS:
            raise errors.InvalidRequestError(
                f"client_request_id may have {MAX_ID_CHARACTERS} characters at most"
            )
        if len(request.tensors) > max_tensor_bytes:
            raise errors.too_large(max_tensor_bytes)
        # What is no name may stand neither in a record nor in a label.
        request.model = names.check_model(one.model)
        target = routes.resolve(one.model, one.version)
        request.version, pool = target.version, target.pool
    except errors.NoWorkerError:
        raise
    except names.InvalidNameError as refusal:
        error = errors.InvalidRequestError(str(refusal))
    except InferbusError as refusal:
        error = refusal
    return Submitted(request, pool, max(1, n_rows), deadline_ms, error)
