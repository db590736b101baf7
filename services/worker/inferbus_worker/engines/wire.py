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
    """Run a batch; all tensors have as many rows.

    `generation` is a serialised `Generation`, where the version generates and the request says how;
    `tenant` is then whose prompt it is, and `of_row` says that it is of a job's row.
    """

    number: int
    inputs: tuple[TensorHead, ...]
    generation: bytes = b""
    tenant: str = ""
    of_row: bool = False


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """End a generation with what it has; its `Done` follows all the same."""

    number: int


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag="loaded"):
    """The answer to `Load`; `error` is empty where it went well."""

    error: str
    memory_bytes: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """The answer to `Run`: tensors, or rows that cannot be read, or a sentence why not.

    `generated` is a serialised `Generated` without what only the worker knows; `code` tells more
    of bad rows; `aborted` says that an `Abort` came in time; `row_tokens` are those of each row's
    inputs, where the task counts them.
    """

    number: int
    outputs: tuple[TensorHead, ...]
    bad_rows: dict[int, str]
    error: str
    engine_us: int
    memory_bytes: int
    generated: bytes = b""
    code: str = ""
    aborted: bool = False
    row_tokens: tuple[int, ...] = ()


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag="tokens"):
    """A piece of an answer that is being generated; without tokens it says only: I am at work.

    `prompt_tokens` are those of its prompt, once the engine knows; `began`: its prompt was read.
    """

    number: int
    choice: int = 0
    text: str = ""
    n_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: str = ""
    tool_calls: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    began: bool = False


Command = Load | Run | Abort
Said = Loaded | Done | Tokens

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_answers: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


def frame(header: Command | Said, n_body_bytes: int) -> bytes:
    """Return the start of a frame; `n_body_bytes` bytes of tensors must follow it."""
    head = _encoder.encode(header)
    return LENGTHS.pack(len(head), n_body_bytes) + head


def command(header: bytes) -> Command:
    """Decode what a worker says to its engine."""
    return _commands.decode(header)


def answer(header: bytes | memoryview) -> Said:
    """Decode what an engine says to its worker."""
    return _answers.decode(header)
