"""What files and batches of the OpenAI API are made of beside their messages; pure.

In: ids. Out: their names on the wire, the paths of their objects and the keys of their records in
`jobs.status`, which every gateway derives alike. A batch's rows are those of the job with its id.
"""

from __future__ import annotations

import hashlib
import re

from inferbus_schemas import ids

_FILE = re.compile(r"file-([0-9a-f]{32})")
_BATCH = re.compile(r"batch_([0-9a-f]{32})")
_FILE_KEY = re.compile(rb"file/([0-9a-f]{32})")
_BATCH_KEY = re.compile(rb"batch/([0-9a-f]{32})")


def file_name(file_id: bytes) -> str:
    """Return the id of a file as clients see it."""
    return f"file-{file_id.hex()}"


def batch_name(batch_id: bytes) -> str:
    """Return the id of a batch as clients see it."""
    return f"batch_{batch_id.hex()}"


def parse_file(name: str) -> bytes | None:
    """Return the id that a client's name of a file writes, or None where it writes none."""
    found = _FILE.fullmatch(name)
    return None if found is None else bytes.fromhex(found[1])


def parse_batch(name: str) -> bytes | None:
    """Return the id that a client's name of a batch writes, or None where it writes none."""
    found = _BATCH.fullmatch(name)
    return None if found is None else bytes.fromhex(found[1])


def output_id(batch_id: bytes, kind: str) -> bytes:
    """Return the id of a file that a batch writes: the same, whichever gateway writes it."""
    digest = hashlib.sha256(batch_id + kind.encode()).digest()
    return ids.uuid7(ids.unix_ms(batch_id), int.from_bytes(digest[:10], "big"))


def file_folder(file_id: bytes) -> str:
    """Return the folder of a file's objects."""
    return f"files/{file_id.hex()}"


def file_path(file_id: bytes) -> str:
    """Return where the description of a file stands, once the file is whole."""
    return f"{file_folder(file_id)}/file"


def piece_path(file_id: bytes, number: int) -> str:
    """Return where a piece of a file is."""
    return f"{file_folder(file_id)}/pieces/{number:08d}"


def batch_path(batch_id: bytes) -> str:
    """Return where an accepted batch stands."""
    return f"batches/{batch_id.hex()}"


def file_key(file_id: bytes) -> str:
    """Return the key of a file's record."""
    return f"file/{file_id.hex()}"


def batch_key(batch_id: bytes) -> str:
    """Return the key of a batch's record."""
    return f"batch/{batch_id.hex()}"


def ended_key(batch_id: bytes) -> str:
    """Return the key of the record that says how a batch ended."""
    return f"{batch_key(batch_id)}/ended"


def file_of(key: bytes) -> bytes | None:
    """Return the file whose record has this key, or None where it is no file's."""
    found = _FILE_KEY.fullmatch(key)
    return None if found is None else bytes.fromhex(found[1].decode())


def batch_of(key: bytes) -> bytes | None:
    """Return the batch whose record has this key, or None where it is no batch's."""
    found = _BATCH_KEY.fullmatch(key)
    return None if found is None else bytes.fromhex(found[1].decode())
