"""One prediction of the log, with what proves its place.

In: a request id. Out: the row as JSON values: digests and ids as text, tensors decoded.
"""

from __future__ import annotations

import base64
import struct
import uuid
from typing import Any, Final

from google.protobuf.message import DecodeError

from inferbus_logger import database, rows
from inferbus_schemas import messages as m
from inferbus_schemas import tensors

_FORMATS: Final = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_MAX_LISTED: Final = 4096


async def get_prediction(postgres_url: str, topic: str, request_id: str) -> dict[str, Any] | None:
    """Return one row of the log, or None where no request of this id has ended.

    Args:
        postgres_url: the database of the log.
        topic: whose batches prove the row's place.
        request_id: as the gateway tells it in `x-request-id`.

    Raises:
        ValueError: not an id.
        StartupError: Postgres does not answer, or has no log.
    """
    wanted = uuid.UUID(request_id)
    connection = await database.open_for_command(postgres_url, "inferbus get")
    try:
        row = await connection.fetchrow(
            f"SELECT {', '.join(rows.COLUMNS)} FROM log.predictions WHERE request_id = $1",  # noqa: S608 -- names of columns
            wanted,
        )
        if row is None:
            return None
        batch = await connection.fetchrow(
            "SELECT base_offset, last_offset, sha256, prev, written_at FROM log.log_batches"
            " WHERE topic = $1 AND part = $2 AND era = $3 AND base_offset <= $4"
            " ORDER BY base_offset DESC LIMIT 1",
            topic,
            row["k_partition"],
            row["k_era"],
            row["k_offset"],
        )
    finally:
        await database.close(connection)
    found = {name: _json(value) for name, value in row.items()}
    for name in sorted(rows.PAYLOADS):
        if row[name] is not None:
            found[name] = _tensors(row[name])
    found["receipt"] = f"{row['k_partition']}:{row['k_offset']}"
    found["batch"] = {name: _json(value) for name, value in batch.items()} if batch else None
    return found


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _tensors(payload: bytes) -> Any:
    try:
        decoded = m.TensorSet.FromString(payload).tensors
    except DecodeError:
        return {"base64": base64.b64encode(payload).decode()}
    return [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            **_data(tensor),
        }
        for tensor in decoded
    ]


def _data(tensor: m.Tensor) -> dict[str, Any]:
    """Return the elements where they can be listed, else the bytes."""
    try:
        count = tensors.check(tensor)
        if count <= _MAX_LISTED and tensor.datatype == "BYTES":
            return {"data": [part.decode() for part in tensors.split_bytes(tensor.data)]}
        if count <= _MAX_LISTED and tensor.datatype == "BF16":
            return {"data": list(tensors.floats_of_bf16(tensor.data))}
        if count <= _MAX_LISTED and (code := _FORMATS.get(tensor.datatype)):
            return {"data": list(struct.unpack(f"<{count}{code}", tensor.data))}
    except (tensors.TensorError, UnicodeDecodeError):
        pass
    return {"base64": base64.b64encode(tensor.data).decode()}
