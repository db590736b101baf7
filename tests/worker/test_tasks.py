"""Tasks: what they make of public inputs, and the bounds that they keep before they allocate."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from inferbus_schemas import manifest as manifests
from inferbus_worker import tasks
from inferbus_worker.tasks.base import RowsError, TaskError
from tests.support.sample_models import model_folder

if TYPE_CHECKING:
    from pathlib import Path


def manifest_of(folder: Path, **changes: Any) -> manifests.Manifest:
    raw = manifests.parse((folder / manifests.MANIFEST_NAME).read_bytes())
    fields = {name: getattr(raw, name) for name in raw.__struct_fields__}
    return manifests.Manifest(**(fields | changes))


def objects(*elements: bytes) -> Any:
    out = np.empty(len(elements), dtype=object)
    out[:] = elements
    return out


def png(size: tuple[int, int], mode: str = "L", fill: Any = 30) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, fill).save(out, "PNG")
    return out.getvalue()


def claims(width: int, height: int) -> bytes:
    """Return a tiny PNG that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture(scope="module")
def digits() -> tasks.Task:
    folder = model_folder("digits")
    return tasks.make(manifest_of(folder), folder)


@pytest.fixture(scope="module")
def minilm() -> tasks.Task:
    folder = model_folder("minilm")
    return tasks.make(manifest_of(folder), folder)


def test_an_image_becomes_the_values_that_the_forest_was_trained_on(digits: tasks.Task) -> None:
    feeds = digits.prepare({"image": objects(png((8, 8)), png((16, 24)))})
    assert feeds["pixels"].shape == (2, 64)
    assert feeds["pixels"].dtype == np.float32
    np.testing.assert_allclose(feeds["pixels"], 2.0)


def test_an_image_may_be_base64_text_or_a_colour_jpeg(digits: tasks.Task) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8), (30, 30, 30)).save(jpeg, "JPEG")
    feeds = digits.prepare({"image": objects(base64.b64encode(png((8, 8))), jpeg.getvalue())})
    np.testing.assert_allclose(feeds["pixels"], 2.0, atol=0.1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "PNG or JPEG"),
        (b"not an image", "PNG or JPEG"),
        (b"GIF89a" + bytes(40), "PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG or JPEG"),
        (png((8, 8))[:-30], "PNG or JPEG"),
        (claims(50_000, 50_000), "more than 4194304 pixels"),
        (claims(8, 8), "PNG or JPEG"),
    ],
)
def test_an_image_that_cannot_be_read_is_one_bad_row(
    digits: tasks.Task, data: bytes, says: str
) -> None:
    with pytest.raises(RowsError) as caught:
        digits.prepare({"image": objects(png((8, 8)), data)})
    assert list(caught.value.rows) == [1]
    assert says in caught.value.rows[1]


def test_texts_are_cut_and_padding_is_masked(minilm: tasks.Task) -> None:
    feeds = minilm.prepare({"text": objects(b"word " * 1000, b"ok")})
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    assert ids.shape == mask.shape == (2, 256)
    assert mask[0].sum() == 256
    assert mask[1].sum() == 3
    assert minilm.row_tokens == (256, 3)
    assert ids.dtype == mask.dtype == np.int64


def test_texts_are_bounded_and_must_be_utf8(minilm: tasks.Task) -> None:
    with pytest.raises(RowsError) as caught:
        minilm.prepare({"text": objects(b"fine", b"\xff\xfe", b"x" * (256 * 1024 + 1))})
    assert set(caught.value.rows) == {1, 2}
    assert "UTF-8" in caught.value.rows[1]
    assert "256 KiB" in caught.value.rows[2]


def test_settings_that_miss_something_say_what() -> None:
    folder = model_folder("digits")
    settings = {"image": {"graph_input": "pixels", "height": 8}}
    with pytest.raises(TaskError, match=r"task_settings\.image"):
        tasks.make(manifest_of(folder, task_settings=settings), folder)


def test_a_table_has_as_many_columns_as_names() -> None:
    folder = model_folder("breast-cancer")
    with pytest.raises(TaskError, match="features"):
        tasks.make(manifest_of(folder, task_settings={"features": ["one"]}), folder)
