"""The task `image-classification`: encoded images in, the pixels that the graph wants out.

In this order, as `task_settings["image"]` says: decode (at most `max_pixels`, looked at before
memory is taken), convert to the Pillow mode `mode`, resize to `width` by `height` with the Pillow
filter `resample`, multiply by `scale` in float64 and round to float32, lay out as `layout`, feed as
`graph_input`. Layouts: NF (one row of values per image), NHWC, NCHW.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Literal

import msgspec
import numpy as np
from PIL import Image, UnidentifiedImageError

from inferbus_schemas.manifest import Manifest
from inferbus_worker.tasks.base import Array, RowsError, TaskError, read_settings

_FORMATS = ("PNG", "JPEG")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_UNREADABLE = "the image is not a whole PNG or JPEG file"


class ImageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`task_settings["image"]` of a manifest."""

    graph_input: str
    height: int
    width: int
    max_pixels: int
    mode: Literal["L", "RGB"]
    resample: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
    scale: float
    layout: Literal["NF", "NHWC", "NCHW"]


class ImageTask:
    """Decodes and scales images.

    Invariants: no image of more than `max_pixels` is decoded; only PNG and JPEG are.
    """

    row_tokens: tuple[int, ...] = ()

    def __init__(self, manifest: Manifest) -> None:
        self._settings = read_settings(manifest.task_settings, "image", ImageSettings)
        inputs = manifest.signature.inputs
        if len(inputs) != 1 or inputs[0].datatype != "BYTES" or len(inputs[0].shape) != 1:
            raise TaskError("an image model takes one BYTES input of one dimension")
        self._input = inputs[0].name
        # Pillow's own bomb check only warns below twice its limit; ours decides before decoding.
        Image.MAX_IMAGE_PIXELS = None

    def prepare(self, inputs: dict[str, Array]) -> dict[str, Array]:
        bad: dict[int, str] = {}
        images: list[Array] = []
        for row, element in enumerate(inputs[self._input]):
            try:
                images.append(self._pixels(element))
            except ValueError as error:
                bad[row] = str(error)
        if bad:
            raise RowsError(bad)
        return {self._settings.graph_input: np.stack(images)}

    def _pixels(self, element: bytes) -> Array:
        settings = self._settings
        image = _decode(_file_bytes(element), settings.max_pixels, settings.mode)
        if image.size != (settings.width, settings.height):
            image = image.resize((settings.width, settings.height), _FILTERS[settings.resample])
        values = (np.asarray(image, dtype=np.float64) * settings.scale).astype(np.float32)
        if settings.layout == "NF":
            return values.ravel()
        cube = values.reshape(settings.height, settings.width, -1)
        return cube if settings.layout == "NHWC" else np.ascontiguousarray(cube.transpose(2, 0, 1))


def _file_bytes(element: bytes) -> bytes:
    """Return the file; JSON has no bytes, so a client that speaks it sends base64 text."""
    if element.startswith(_MAGIC):
        return element
    try:
        return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(_UNREADABLE) from None


def _decode(data: bytes, max_pixels: int, mode: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"the image has more than {max_pixels} pixels")
            return image.convert(mode)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(_UNREADABLE) from None
