"""What jobs are made of beside their messages: ids of rows, paths of objects, keys; pure.

In: a job's id. Out: names that every gateway and worker derives alike, so that whatever runs twice
writes the same thing to the same place.
"""

from __future__ import annotations

import hashlib
import zlib
from uuid import UUID

from inferbus_schemas import ids

MAX_ATTEMPTS = 3
"""A chunk that was begun this often and did not end is a dead letter."""
MAX_CHUNK_ROWS = 256
MAX_CHUNK_BYTES = 1 << 20
"""Of inputs; a single larger row is a chunk of its own."""


def row_id(job_id: bytes, number: int) -> bytes:
    """Return the request id of a row: the same whenever and wherever it runs."""
    digest = hashlib.sha256(job_id + number.to_bytes(8, "big")).digest()
    return ids.uuid7(ids.unix_ms(job_id), int.from_bytes(digest[:10], "big"))


def row_partition(request_id: bytes, n_partitions: int) -> int:
    """Return the partition of `inference.predictions` that a row's record goes to."""
    return zlib.crc32(request_id) % n_partitions


def chunk_partition(job_id: bytes, chunk: int, n_partitions: int) -> int:
    """Return the partition of `jobs.chunks` that a chunk's command goes to."""
    return (zlib.crc32(job_id) + chunk) % n_partitions


def job_key(job_id: bytes) -> str:
    """Return the key of a job's own record in `jobs.status`."""
    return ids.text(job_id)


def chunk_key(job_id: bytes, chunk: int) -> str:
    """Return the key of a chunk's record in `jobs.status`."""
    return f"{ids.text(job_id)}/{chunk}"


def parse_id(text: str) -> bytes | None:
    """Return the id that a text writes, or None where it writes none."""
    try:
        found = UUID(text).bytes
    except ValueError:
        return None
    return found if ids.is_uuid7(found) and ids.text(found) == text else None


def cancelled_key(job_id: bytes) -> str:
    """Return the key of the record in `jobs.status` that says that a job is cancelled."""
    return f"{ids.text(job_id)}/cancelled"


def input_path(folder: str, chunk: int) -> str:
    """Return where the rows of a chunk are; `folder` is the job's `input`."""
    return f"{folder}/{chunk:08d}"


def job_folder(job_id: bytes) -> str:
    """Return the folder of what a job wrote."""
    return f"jobs/{ids.text(job_id)}"


def job_path(job_id: bytes) -> str:
    """Return where an accepted job stands, whole."""
    return f"{job_folder(job_id)}/job"


def cancel_path(job_id: bytes) -> str:
    """Return the object whose presence says that a job is cancelled."""
    return f"{job_folder(job_id)}/cancelled"


def key_path(tenant: str, key_sha256: bytes) -> str:
    """Return the object that names the job which a submission key stands for."""
    return f"job-keys/{tenant}/{key_sha256.hex()}"


def results_path(job_id: bytes, chunk: int) -> str:
    """Return where the answers of a chunk are, once they all are."""
    return f"{job_folder(job_id)}/results/{chunk:08d}"


def done_path(job_id: bytes, chunk: int) -> str:
    """Return the object whose presence says that nothing is left to do for a chunk."""
    return f"{job_folder(job_id)}/done/{chunk:08d}"


def attempt_path(job_id: bytes, chunk: int, attempt: int) -> str:
    """Return the object that says that an attempt (from 1) was begun, and by which life."""
    return f"{job_folder(job_id)}/attempts/{chunk:08d}/{attempt}"
