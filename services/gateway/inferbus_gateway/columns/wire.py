"""What the gateway and its process for Parquet say to one another; pure.

In: bytes of a pipe. Out: parts, each a letter, a length and so many bytes: rows one way or the
other, an end, or why there is none. What to do comes as JSON among the arguments.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import msgspec

from inferbus_schemas.manifest import TensorSpec

ROWS, END, REFUSED, TOO_LARGE = b"r", b".", b"!", b"+"
"""Rows: a `Chunk` of those that were read, `ChunkResults` of those to be written."""
HEAD = struct.Struct("<cI")
NO_MEMORY = 3
"""How a process exits whose results do not fit into what it may use."""


class Reading(msgspec.Struct, frozen=True):
    """A file to read: inputs of the signature, and bounds."""

    inputs: tuple[TensorSpec, ...]
    max_rows: int
    max_row_bytes: int


class Writing(msgspec.Struct, frozen=True):
    """A file to write: outputs of the signature."""

    outputs: tuple[TensorSpec, ...]


def part(kind: bytes, body: bytes = b"") -> bytes:
    """Return a part."""
    return HEAD.pack(kind, len(body)) + body


def read(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Return the next part's letter and body.

    Raises:
        EOFError: the other side is gone.
    """
    kind, length = HEAD.unpack(_exactly(stream, HEAD.size))
    return kind, _exactly(stream, length)


def _exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    found = stream.read(n_bytes)
    if len(found) < n_bytes:
        raise EOFError
    return found
