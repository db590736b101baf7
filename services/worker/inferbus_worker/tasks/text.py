"""The task `text-embedding`: texts in, token ids and masks out.

As `task_settings["text"]` says: open `tokenizer`, forget the padding and truncation that it was
saved with, truncate to `max_tokens`, pad to the longest of the batch, feed ids and mask as
`graph_inputs` names them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from inferbus_schemas.manifest import Manifest
from inferbus_worker.tasks.base import Array, RowsError, TaskError, read_settings

_MAX_TEXT_BYTES = 256 << 10


class GraphInputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the graph calls its inputs; an empty name: the graph has no such input."""

    input_ids: str
    attention_mask: str = ""
    token_type_ids: str = ""


class TextSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`task_settings["text"]` of a manifest."""

    tokenizer: str
    max_tokens: int
    graph_inputs: GraphInputs


class TextTask:
    """Tokenises texts.

    Invariants: a text of more than 256 KiB is refused before it is tokenised; no row has more than
    `max_tokens` tokens; padding is masked, and is no token of a row.
    """

    row_tokens: tuple[int, ...] = ()

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._settings = read_settings(manifest.task_settings, "text", TextSettings)
        inputs = manifest.signature.inputs
        if len(inputs) != 1 or inputs[0].datatype != "BYTES" or len(inputs[0].shape) != 1:
            raise TaskError("a text model takes one BYTES input of one dimension")
        if self._settings.tokenizer not in {entry.path for entry in manifest.files}:
            raise TaskError("task_settings.text.tokenizer must name a file of the version")
        self._input = inputs[0].name
        self._tokenizer = Tokenizer.from_file(str(folder / self._settings.tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._settings.max_tokens)
        self._tokenizer.enable_padding()

    def prepare(self, inputs: dict[str, Array]) -> dict[str, Array]:
        encoded = self._tokenizer.encode_batch(_texts(inputs[self._input]))
        self.row_tokens = tuple(sum(one.attention_mask) for one in encoded)
        names = self._settings.graph_inputs
        feeds = {names.input_ids: np.array([one.ids for one in encoded], dtype=np.int64)}
        if names.attention_mask:
            masks = [one.attention_mask for one in encoded]
            feeds[names.attention_mask] = np.array(masks, dtype=np.int64)
        if names.token_type_ids:
            feeds[names.token_type_ids] = np.array([one.type_ids for one in encoded], np.int64)
        return feeds


def _texts(elements: Array) -> list[str]:
    bad: dict[int, str] = {}
    out: list[str] = []
    for row, element in enumerate(elements):
        if len(element) > _MAX_TEXT_BYTES:
            bad[row] = f"the text has more than {_MAX_TEXT_BYTES >> 10} KiB"
            continue
        try:
            out.append(element.decode())
        except UnicodeDecodeError:
            bad[row] = "the text is not valid UTF-8"
    if bad:
        raise RowsError(bad)
    return out
