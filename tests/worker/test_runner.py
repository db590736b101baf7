"""Batches of more rows than a version computes at once, in this process: pieces, sums, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inferbus_schemas import manifest as manifests
from inferbus_schemas import tensors
from inferbus_worker.engines import golden, runner, wire
from tests.support.sample_models import model_folder

if TYPE_CHECKING:
    from inferbus_worker.engines.runner import Runner

ROWS = 300


def loaded(name: str) -> tuple[Runner, manifests.Manifest, list[int]]:
    """Return a version, its manifest, and where it notes how many rows its graph was fed."""
    folder = model_folder(name)
    raw = (folder / manifests.MANIFEST_NAME).read_bytes()
    made = runner.load(raw, folder, 1)
    fed: list[int] = []
    run = made._engine.run

    def counted(feeds: dict[str, Any]) -> list[Any]:
        fed.append(len(next(iter(feeds.values()))))
        return run(feeds)

    made._engine.run = counted  # type: ignore[method-assign]
    return made, manifests.parse(raw), fed


def outputs_of(done: wire.Done, buffers: list[bytes]) -> list[Any]:
    assert not done.error
    kinds = {"FP32": np.float32, "INT64": np.int64}
    return [
        np.frombuffer(data, kinds[head.datatype]).reshape(head.shape)
        for head, data in zip(done.outputs, buffers, strict=True)
    ]


@pytest.mark.parametrize(("name", "n_rows"), [("breast-cancer", ROWS), ("minilm", 40)])
def test_a_large_request_is_computed_in_pieces_and_answers_the_same(name: str, n_rows: int) -> None:
    made, manifest, fed = loaded(name)
    samples = [golden.inputs_of(one, manifest.signature.inputs) for one in manifest.golden]
    # Long texts take their time.
    samples = sorted(samples, key=lambda one: len(one.buffers[0]))[:3]
    head = samples[0].heads[0]
    data = b"".join(samples[at % 3].buffers[0] for at in range(n_rows))
    large = wire.TensorHead(head.name, head.datatype, (n_rows, *head.shape[1:]), len(data))
    done, buffers = made.run(wire.Run(1, (large,)), data)
    found = outputs_of(done, buffers)
    most = manifest.batching.max_rows
    assert sum(fed) == n_rows
    assert max(fed) == most
    assert {len(each) for each in found} == {n_rows}
    assert len(done.row_tokens) in {0, n_rows}
    alone = [made.run(wire.Run(2, tuple(one.heads)), one.buffers[0]) for one in samples]
    for at in (0, most - 1, most, n_rows - 1):
        want = outputs_of(*alone[at % 3])
        for mine, its in zip(found, want, strict=True):
            np.testing.assert_allclose(mine[at], its[0], atol=manifest.golden[0].tolerance)
        assert done.row_tokens[at : at + 1] == alone[at % 3][0].row_tokens


def test_bad_rows_of_all_pieces_are_named_by_their_place_in_the_request() -> None:
    made, manifest, fed = loaded("minilm")
    texts = [b"a cat"] * ROWS
    for bad in (20, ROWS - 1):
        texts[bad] = b"\xff"
    data = tensors.join_bytes(texts)
    name = manifest.signature.inputs[0].name
    done, buffers = made.run(
        wire.Run(1, (wire.TensorHead(name, "BYTES", (ROWS,), len(data)),)), data
    )
    assert sorted(done.bad_rows) == [20, ROWS - 1]
    assert not buffers
    assert fed == [manifest.batching.max_rows]


def test_rows_that_may_depend_on_each_other_stay_together() -> None:
    made, manifest, _ = loaded("breast-cancer")
    assert made._max_rows == manifest.batching.max_rows
    open_ = manifests.TensorSpec("words", "FP32", (-1, -1))
    signature = manifests.Signature(manifest.signature.inputs, (open_,))
    changed = manifests.Manifest(
        model="m", task="tensor", engine="onnx", signature=signature, files=manifest.files
    )
    assert runner.Runner(made._task, made._engine, changed)._max_rows == 0
