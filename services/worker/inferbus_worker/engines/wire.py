"""Frames between a worker and its engine process: a msgpack header, then raw tensor bytes.

In: a header object and buffers. Out: bytes on a Unix socket, and back. A frame is two little-endian
lengths (header uint32, body uint64), the header, the body. Both ends are ours and of one release,
so headers carry no version.
"""

from __future__ import annotations

import struct

import msgspec

LENGTHS = struct.Struct("<IQ")
MAX_HEADER_BYTES = 16 << 20


class TensorHead(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of a frame; its bytes stand in the body, in the order of the heads."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    n_bytes: int


class Load(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """Load the version: its files lie in `folder`."""

    manifest: bytes
    folder: str
    threads: int
    max_address_space_bytes: int


class Run(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """Run a batch; all tensors have as many rows."""

    number: int
    inputs: tuple[TensorHead, ...]


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag="loaded"):
    """The answer to `Load`; `error` is empty where it went well."""

    error: str
    memory_bytes: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """The answer to `Run`: tensors, or rows that cannot be read, or a sentence why not."""

    number: int
    outputs: tuple[TensorHead, ...]
    bad_rows: dict[int, str]
    error: str
    engine_us: int
    memory_bytes: int


_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Load | Run] = msgspec.msgpack.Decoder(Load | Run)
_answers: msgspec.msgpack.Decoder[Loaded | Done] = msgspec.msgpack.Decoder(Loaded | Done)


def frame(header: Load | Run | Loaded | Done, n_body_bytes: int) -> bytes:
    """Return the start of a frame; `n_body_bytes` bytes of tensors must follow it."""
    head = _encoder.encode(header)
    return LENGTHS.pack(len(head), n_body_bytes) + head


def command(header: bytes) -> Load | Run:
    """Decode what a worker says to its engine."""
    return _commands.decode(header)


def answer(header: bytes | memoryview) -> Loaded | Done:
    """Decode what an engine says to its worker."""
    return _answers.decode(header)
