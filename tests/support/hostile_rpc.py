"""Hostile gRPC calls from a seed, and what a server made of them; the twin of `hostile` for HTTP.

In: messages that are fine for models that are deployed. Out: calls as bytes - messages changed,
cut, doubled and invented, tensors that lie, bombs, odd metadata and deadlines, streams that are
left half open, and bytes that are no gRPC at all - and a tally of how they ended, with each one
that breaks a rule: INTERNAL, UNKNOWN, silence, or words that tell what they should not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from inferbus_gateway.gen import open_inference_pb2 as pb
from tests.support.hostile import LEAKS, SILENCE_S

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = f"{SERVICE}ModelInfer", f"{SERVICE}ModelStreamInfer"
_NAMED = tuple(
    f"{SERVICE}{name}"
    for name in (
        *("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
        *("RepositoryModelLoad", "RepositoryModelUnload"),
    )
)
_UNARY = (
    *(INFER, *_NAMED, f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", f"{SERVICE}ServerMetadata"),
    *("/grpc.health.v1.Health/Check", f"{SERVICE}NoSuchMethod", "/no.such/Service", "/"),
)
_STREAMS = (
    STREAM,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
_FORBIDDEN = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
_BROKEN = "something went wrong here"
_HALF_OPEN = 8
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_ROW = pb.ModelInferRequest(
    model_name="breast-cancer",
    id="x",
    inputs=[
        pb.ModelInferRequest.InferInputTensor(
            name="features",
            datatype="FP32",
            shape=[1, 30],
            contents=pb.InferTensorContents(fp32_contents=[0.5] * 30),
        )
    ],
    outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="label")],
)
_TEXT = pb.ModelInferRequest(
    model_name="minilm",
    inputs=[
        pb.ModelInferRequest.InferInputTensor(
            name="text",
            datatype="BYTES",
            shape=[1],
            contents=pb.InferTensorContents(bytes_contents=[b"a cat"]),
        )
    ],
)
VALID: tuple[pb.ModelInferRequest, ...] = (_ROW, _TEXT)
"""A message that is fine for each of two sample models."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """One thing to do to a server.

    `path` is empty where `messages` are bytes for a bare connection; a call of several messages is
    a stream, which is left open where `half_open`.
    """

    path: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout_s: float | None = None
    compression: grpc.Compression | None = None
    streams: bool = False
    half_open: bool = False


@dataclass(slots=True)
class Tally:
    """Calls by their status, and the worst: what was wrong, what was sent and what came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Calls that were made."""
        return sum(self.statuses.values()) + len(self.broken)


def calls(seed: int, valid: Sequence[pb.ModelInferRequest] = VALID) -> Iterator[Hostile]:
    """Yield hostile calls without end."""
    chance = random.Random(seed)
    kinds: tuple[Callable[[random.Random, pb.ModelInferRequest], Hostile], ...] = (
        *(_garbage, _changed, _changed, _lying, _lying, _lying, _mixed, _parameters),
        *(_not_utf8, _deep, _large, _headed, _hurried, _streamed, _streamed, _left_open, _bare),
    )
    while True:
        yield chance.choice(kinds)(chance, chance.choice(valid))


def _copy(valid: pb.ModelInferRequest) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest()
    made.CopyFrom(valid)
    return made


def _garbage(chance: random.Random, _valid: pb.ModelInferRequest) -> Hostile:
    """Send bytes that are no message to any method."""
    raw = chance.choice((b"", b"\xff" * 9, b"\x0a\xff\xff\xff\xff\x0f", chance.randbytes(300)))
    if chance.random() < 0.3:
        return Hostile(chance.choice(_STREAMS), (raw, raw), streams=True)
    return Hostile(chance.choice(_UNARY), (raw,))


def _changed(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Flip, cut, double and insert bytes of a message."""
    raw = bytearray(valid.SerializeToString())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw) or 1)
        what = chance.randrange(4)
        if what == 0 and raw:
            raw[at % len(raw)] ^= 1 << chance.randrange(8)
        elif what == 1:
            del raw[at:]
        elif what == 2:
            raw[at:at] = chance.randbytes(chance.choice((1, 4, 60)))
        else:
            raw += raw[at:]
    return Hostile(INFER, (bytes(raw),))


_SHAPES: tuple[tuple[int, ...], ...] = (
    *((1, 30), (-1, 30), (0, 30), (0,), (), (30,), (2**31, 30), (2**62, 2), (-(2**63), -1)),
    *((2**33, 2**31), (2**21, 2**21, 2**22), (1,) * 5000, (2**40, 0), (3, 10), (2**28 + 1,)),
)
_KINDS = ("FP32", "BYTES", "FP16", "BF16", "INT64", "BOOL", "", "FP999", "fp32", "\u202e" * 40)


def _lying(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Lie about the lengths, shapes, types and number of raw tensors."""
    made = _copy(valid)
    for one in made.inputs:
        one.ClearField("contents")
        one.shape[:] = chance.choice(_SHAPES)
        if chance.random() < 0.5:
            one.datatype = chance.choice(_KINDS)
    sizes = (0, 1, 4, 119, 120, 121, 240, 70_000)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 200))):
        data = chance.randbytes(chance.choice(sizes))
        lengths = (b"", struct.pack("<I", len(data)), b"\xff" * 4)
        made.raw_input_contents.append(chance.choice(lengths) + data)
    return Hostile(INFER, (made.SerializeToString(),))


def _mixed(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Give raw and typed contents at once, several types at once, or many tensors."""
    made = _copy(valid)
    for one in made.inputs:
        contents = one.contents
        for _ in range(chance.randint(1, 3)):
            what = chance.randrange(5)
            if what == 0:
                made.raw_input_contents.append(chance.randbytes(120))
            elif what == 1:
                contents.int64_contents.extend([-(2**63), 2**63 - 1])
            elif what == 2:
                contents.bytes_contents.append(chance.randbytes(chance.choice((0, 5, 9000))))
            elif what == 3:
                contents.fp32_contents.extend([float("nan"), float("-inf")] * 40)
            else:
                contents.bool_contents.extend([True] * chance.choice((1, 30)))
    for _ in range(chance.choice((0, 0, 1, 300))):
        made.inputs.append(made.inputs[0])
        made.outputs.add(name=chance.choice(("label", "", "no", "x" * 5000)))
    return Hostile(INFER, (made.SerializeToString(),))


def _parameters(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Give parameters of wrong types and values, on all levels, and very many of them."""
    made = _copy(valid)
    values = (
        *(pb.InferParameter(int64_param=one) for one in (-1, 0, 2**63 - 1, -(2**63))),
        *(pb.InferParameter(string_param=one) for one in ("", "x" * 9000, "\x00", "1")),
        *(pb.InferParameter(double_param=one) for one in (float("nan"), 1e308)),
        *(pb.InferParameter(uint64_param=2**64 - 1), pb.InferParameter(bool_param=True)),
        pb.InferParameter(),
    )
    known = ("timeout", "classification", "shared_memory_region", "priority", "sequence_id", "")
    places = [made.parameters, made.inputs[0].parameters]
    places += [one.parameters for one in made.outputs]
    for _ in range(chance.choice((1, 2, 5, 2000))):
        name = chance.choice((*known, f"p{chance.randrange(5000)}"))
        chance.choice(places)[name].CopyFrom(chance.choice(values))
    made.id = chance.choice(("x", "y" * 257, "\x00\r\n", "\U0001f600" * 64))
    return Hostile(INFER, (made.SerializeToString(),))


def _not_utf8(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Put bytes that are no text, and odd text, where names stand."""
    made = _copy(valid)
    mark = "@@@@@@@@"
    place = chance.randrange(5)
    if place == 0:
        made.model_name = mark
    elif place == 1:
        made.model_version = mark
    elif place == 2:
        made.inputs[0].name = mark
    elif place == 3:
        made.inputs[0].datatype = mark
    else:
        made.outputs.add(name=mark)
    text = chance.choice((b"\xff" * 8, b"\xed\xa0\x80ABCDE", b"../../..", b"\x00" * 8, b"%s%n{0}x"))
    raw = made.SerializeToString().replace(mark.encode(), text)
    if chance.random() < 0.3:
        return Hostile(chance.choice(_NAMED), (b"\x0a\x08" + text,))
    return Hostile(INFER, (raw,))


def _deep(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Nest what no field knows, as deep as it goes, ended or not."""
    depth = chance.choice((50, 99, 101, 10_000, 200_000))
    opened, closed = b"\xa3\x06", b"\xa4\x06"
    nested = opened * depth + (closed * depth if chance.random() < 0.5 else b"")
    return Hostile(chance.choice((INFER, INFER, _UNARY[1])), (valid.SerializeToString() + nested,))


def _large(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Send more than may be sent, or what unpacks to more."""
    made = _copy(valid)
    size = chance.choice((3 << 20, 4 << 20, (4 << 20) + (64 << 10), 5 << 20, 12 << 20))
    made.inputs[0].ClearField("contents")
    made.inputs[0].shape[:] = [size // 120, 30]
    made.raw_input_contents.append(bytes(size))
    packed = chance.choice((None, grpc.Compression.Gzip, grpc.Compression.Deflate))
    method = chance.choice((INFER, INFER, f"{SERVICE}ModelReady"))
    return Hostile(method, (made.SerializeToString(),), compression=packed)


def _headed(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Send metadata that is wrong, large or many."""
    odd: tuple[tuple[str, str | bytes], ...] = (
        *(("authorization", one) for one in ("Bearer", "Bearer mlk_a_b", "x" * 4000, "Basic eDp4")),
        ("authorization", f"Bearer ey{'A' * 300}.e30.{'A' * 86}"),
        *(("traceparent", one) for one in ("00-0-0-0", "x" * 3000, "")),
        ("x-bin", chance.randbytes(chance.choice((0, 500)))),
        *(("grpc-previous-rpc-attempts", one) for one in ("-1", "999999999999")),
        *(("x-request-id", one) for one in ("1", "y" * 2000)),
        ("x" * 200, "y"),
    )
    picked = tuple(chance.choice(odd) for _ in range(chance.choice((1, 1, 2, 3, 8))))
    return Hostile(chance.choice((INFER, *_UNARY)), (valid.SerializeToString(),), metadata=picked)


def _hurried(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Leave no time, or next to none."""
    timeout_s = chance.choice((0.0, 0.0001, 0.001, 0.003, 0.01))
    return Hostile(INFER, (valid.SerializeToString(),), timeout_s=timeout_s)


def _streamed(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Mix good and bad messages in a stream, up to more than its window."""
    kinds = (_changed, _lying, _mixed, _not_utf8, _garbage)
    messages = [
        raw
        for _ in range(chance.choice((1, 3, 40)))
        for raw in (chance.choice(kinds)(chance, valid).messages[0], valid.SerializeToString())
    ]
    return Hostile(STREAM, tuple(messages), streams=True)


def _left_open(chance: random.Random, valid: pb.ModelInferRequest) -> Hostile:
    """Open a stream, hear one answer and go on saying nothing."""
    path = chance.choice((*_STREAMS, STREAM, "/grpc.health.v1.Health/Watch"))
    messages = (b"",) if path != STREAM else (valid.SerializeToString(),)
    return Hostile(path, messages, streams=True, half_open=True)


def _bare(chance: random.Random, _valid: pb.ModelInferRequest) -> Hostile:
    """Send what is no gRPC, or its beginning and no more."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    starts = (
        *(b"", preface[:9], preface, preface + settings, b"GET / HTTP/1.1\r\n\r\n"),
        preface + settings + b"\xff\xff\xff\x01\x05\x00\x00\x00\x01",
        preface + settings + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff" * 3,
        preface + settings + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" * 50,
    )
    return Hostile("", (chance.choice(starts) + chance.randbytes(chance.choice((0, 0, 9, 2000))),))


async def throw(address: str, hostile: Iterator[Hostile], n: int, tally: Tally) -> None:
    """Make `n` calls over one channel, one after another."""
    left_open: list[grpc.aio.Call] = []
    # A channel of its own: others of this process would share the connection.
    options: list[tuple[str, Any]] = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        for _ in range(n):
            one = next(hostile)
            try:
                async with asyncio.timeout(SILENCE_S):
                    if not one.path:
                        await _bare_connection(address, one.messages[0])
                        tally.statuses["no gRPC"] += 1
                    else:
                        await _call(channel, one, tally, left_open)
            except TimeoutError:
                tally.broken.append(("silence", _told(one), ""))
            while len(left_open) > _HALF_OPEN:
                left_open.pop(0).cancel()
        for call in left_open:
            call.cancel()


async def _bare_connection(address: str, data: bytes) -> None:
    """Send bytes, and go when the server has, or has nothing to say."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(data)
        async with asyncio.timeout(0.05):
            await reader.read(1 << 16)
    writer.close()


async def _call(
    channel: grpc.aio.Channel, one: Hostile, tally: Tally, left_open: list[grpc.aio.Call]
) -> None:
    said: list[bytes] = []
    status, details = "OK", ""
    more: Any = {"metadata": one.metadata, "timeout": one.timeout_s, "compression": one.compression}
    try:
        if not one.streams:
            ask: Any = channel.unary_unary(one.path)
            said.append(await ask(one.messages[0], **more))
        elif one.half_open:
            half: Any = channel.stream_stream(one.path)
            call = half(**more)
            left_open.append(call)
            for message in one.messages:
                await call.write(message)
            said.append(await call.read())
        else:
            open_stream: Any = channel.stream_stream(one.path)
            said += [each async for each in open_stream(iter(one.messages), **more)]
    except grpc.aio.AioRpcError as error:
        status, details = error.code().name, error.details() or ""
        if of_its_sending(error):
            status, details = "SENDING", ""
    wrong = _wrong(one, status, details, said)
    if wrong:
        tally.broken.append((wrong, _told(one), f"{details[:300]} {said[:1]!r:.300}"))
    else:
        tally.statuses[status] += 1


def of_its_sending(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether it is the client's own word, where the answer comes while it still sends."""
    return "SendMessageOperation" in str(error.debug_error_string())


def _wrong(one: Hostile, status: str, details: str, said: list[bytes]) -> str:
    """Return which rule an end breaks; empty where it breaks none."""
    if status in _FORBIDDEN:
        return status
    text = details.encode() + b"".join(each for each in said if isinstance(each, bytes))
    if found := LEAKS.search(text):
        return f"tells {found[0]!r}"
    if _BROKEN.encode() in text:
        return "an error that is not foreseen"
    if one.path == STREAM and not one.half_open and status == "OK":
        return "" if len(said) == len(one.messages) else "not one answer for each message"
    return ""


def _told(one: Hostile) -> str:
    raw = b" | ".join(one.messages)
    return f"{one.path} {one.metadata!r:.200} {one.timeout_s} {len(raw)} bytes {raw[:300]!r}"
