"""No GGUF file gets in whose head promises what the file does not hold."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferbus_registry import errors
from inferbus_registry.versions import gguf_files
from tests.support.sample_models import model_folder


async def check(data: bytes, page_bytes: int | None = None) -> None:
    async def read(_sha256: str, start: int, length: int) -> bytes:
        return data[start : start + min(length, page_bytes or length)]

    await gguf_files.check_head(read, "0" * 64, len(data), "model.gguf")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(n_tensors: int = 1, n_pairs: int = 2, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_pairs)


PAIRS = (
    text("general.name")
    + struct.pack("<I", 8)
    + text("tiny")
    + text("tokens")
    + struct.pack("<IIQ", 9, 8, 2)
    + text("a")
    + text("b")
)


def tensor(offset: int = 0, n_dimensions: int = 1, size: int = 4) -> bytes:
    return (
        text("w")
        + struct.pack("<I", n_dimensions)
        + struct.pack("<Q", size) * n_dimensions
        + struct.pack("<IQ", 0, offset)
    )


WHOLE = head() + PAIRS + tensor() + bytes(16)


async def test_a_small_file_and_the_real_one_get_in() -> None:
    await check(WHOLE)
    await check((model_folder("smollm2") / "model.gguf").read_bytes())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        head(magic=b"GGML") + PAIRS + tensor() + bytes(16),
        head(version=1) + PAIRS + tensor() + bytes(16),
        head(n_tensors=0) + PAIRS + bytes(16),
        head(n_tensors=1 << 40) + PAIRS + tensor() + bytes(16),
        head(n_pairs=1 << 40) + PAIRS + tensor() + bytes(16),
        head() + struct.pack("<Q", 1 << 62),
        head() + text("k") + struct.pack("<IIQ", 9, 8, 1 << 60),
        head() + text("k") + struct.pack("<IIQ", 9, 9, 1),
        head() + text("k") + struct.pack("<I", 99),
        head() + PAIRS + tensor(offset=1 << 62) + bytes(16),
        head() + PAIRS + tensor(n_dimensions=5) + bytes(16),
        head() + PAIRS + tensor(size=1 << 63) + bytes(16),
        head() + PAIRS + tensor(),
    ],
)
async def test_what_is_not_whole_is_refused(data: bytes) -> None:
    with pytest.raises(errors.FormatRefusedError):
        await check(data)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(WHOLE) - 17), page=st.sampled_from([None, 64, 7]))
async def test_a_file_that_is_cut_anywhere_is_refused(cut: int, page: int | None) -> None:
    with pytest.raises(errors.FormatRefusedError):
        await check(WHOLE[:cut], page)
