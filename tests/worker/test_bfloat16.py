"""BF16 through the engine `onnx`: rounding, pieces, other types beside it, refusals, goldens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from inferbus_schemas import manifest as manifests
from inferbus_schemas import tensors
from inferbus_schemas.manifest import Batching, Golden, JsonTensor, Signature, TensorSpec
from inferbus_worker.engines import bfloat16, golden, runner, wire
from inferbus_worker.engines.refusals import LoadError
from tests.support import onnx_types

if TYPE_CHECKING:
    from pathlib import Path

    from inferbus_worker.engines.runner import Runner

EVERY = np.arange(1 << 16, dtype=np.uint16)
KINDS = {
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "BOOL": TensorProto.BOOL,
    "INT64": TensorProto.INT64,
    "BYTES": TensorProto.STRING,
}


def loaded(folder: Path) -> Runner:
    return runner.load((folder / manifests.MANIFEST_NAME).read_bytes(), folder, 1)


def run(made: Runner, *given: tuple[str, str, tuple[int, ...], bytes]) -> dict[str, bytes]:
    heads = tuple(wire.TensorHead(*one[:3], len(one[3])) for one in given)
    done, buffers = made.run(wire.Run(1, heads), b"".join(one[3] for one in given))
    assert not done.error
    return {head.name: data for head, data in zip(done.outputs, buffers, strict=True)}


def casts(folder: Path, *pairs: tuple[str, str], said: str = "") -> Path:
    """Write a model that casts `i<number>` to `o<number>`; `said` is what it says of each."""
    numbered = list(enumerate(pairs))
    graph = helper.make_graph(
        [
            helper.make_node("Identity", [f"i{at}"], [f"o{at}"])
            if source == target
            else helper.make_node("Cast", [f"i{at}"], [f"o{at}"], to=KINDS[target])
            for at, (source, target) in numbered
        ],
        "casts",
        [helper.make_tensor_value_info(f"i{at}", KINDS[one[0]], ["n"]) for at, one in numbered],
        [helper.make_tensor_value_info(f"o{at}", KINDS[one[1]], ["n"]) for at, one in numbered],
    )
    signature = Signature(
        tuple(TensorSpec(f"i{at}", said or one[0], (-1,)) for at, one in numbered),  # type: ignore[arg-type]
        tuple(TensorSpec(f"o{at}", said or one[1], (-1,)) for at, one in numbered),  # type: ignore[arg-type]
    )
    return onnx_types.write(folder, "casts", graph, signature)


def test_numbers_are_rounded_as_another_library_rounds_them() -> None:
    dice = np.random.default_rng(1)
    some = dice.integers(0, 1 << 32, 200_000, np.uint32).view(np.float32)
    ties = (EVERY.astype(np.uint32) << 16 | 0x8000).view(np.float32)
    for given in (some, ties, np.array([np.inf, -np.inf, 3.4e38, -0.0, 1e-45], np.float32)):
        number = ~np.isnan(given)
        with np.errstate(over="ignore", invalid="ignore"):
            want = given.astype(ml_dtypes.bfloat16).view(np.uint16)
        found = bfloat16.bits(given)
        assert np.array_equal(found[number], want[number])
        assert np.isnan(bfloat16.floats(found[~number])).all()
    whole = bfloat16.floats(EVERY)
    assert np.array_equal(whole, EVERY.view(ml_dtypes.bfloat16).astype(np.float32), equal_nan=True)
    assert np.array_equal(whole, tensors.floats_of_bf16(EVERY.tobytes()), equal_nan=True)
    number = ~np.isnan(whole)
    assert np.array_equal(bfloat16.bits(whole)[number], EVERY[number])


@pytest.mark.parametrize("max_rows", [64, 1 << 12])
def test_rows_are_computed_and_rounded_alone_and_in_pieces(tmp_path: Path, max_rows: int) -> None:
    made = loaded(onnx_types.bf16_folder(tmp_path, batching=Batching(max_rows=max_rows)))
    finite = np.isfinite(bfloat16.floats(EVERY))
    given = EVERY[finite].view(ml_dtypes.bfloat16).reshape(-1, 2)
    found = run(made, ("x", "BF16", given.shape, given.tobytes()))
    assert found["same"] == given.tobytes()
    with np.errstate(over="ignore"):
        want = (given.astype(np.float32) * onnx_types.BF16_FACTOR).astype(ml_dtypes.bfloat16)
    assert found["y"] == want.tobytes()
    # 1.5 times an odd last bit needs one more: these are ties, and go to the even neighbour.
    assert run(made, ("x", "BF16", (1, 2), bytes.fromhex("813f833f")))["y"] == bytes.fromhex(
        "c23fc43f"
    )


def test_other_types_stand_beside_it(tmp_path: Path) -> None:
    half = np.array([1.5, -2], ml_dtypes.bfloat16).tobytes()
    pairs = [("BF16", "BF16"), ("BOOL", "BOOL"), ("FP32", "BF16"), ("BF16", "FP32")]
    made = loaded(casts(tmp_path / "out", *pairs, ("INT64", "INT64")))
    floats, numbers = np.array([1.5, -2], np.float32).tobytes(), np.array([3, -4]).tobytes()
    sent = [half, b"\1\0", floats, half, numbers]
    kinds = ["BF16", "BOOL", "FP32", "BF16", "INT64"]
    found = run(made, *((f"i{at}", kinds[at], (2,), one) for at, one in enumerate(sent)))
    assert list(found.values()) == [half, b"\1\0", half, floats, numbers]

    made = loaded(casts(tmp_path / "in", ("BF16", "FP32"), ("BYTES", "BYTES")))
    words = tensors.join_bytes(["é".encode(), b""])
    found = run(made, ("i0", "BF16", (2,), half), ("i1", "BYTES", (2,), words))
    assert list(found.values()) == [floats, words]


def test_floats_that_a_task_makes_are_rounded_for_the_graph(tmp_path: Path) -> None:
    made = loaded(onnx_types.bf16_folder(tmp_path))
    given = np.array([[1.01, 3], [-7.77, 0]], np.float32)
    for layout in (given, given[:, ::-1]):
        _, same = made._engine.run({"x": layout})
        assert np.array_equal(same, layout.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_what_cannot_be_served_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    words = casts(tmp_path / "words", ("BYTES", "BYTES"), ("FP32", "BF16"))
    with pytest.raises(LoadError, match="no BF16 where the graph takes strings"):
        loaded(words)
    with pytest.raises(LoadError, match=r"'i0': BF16 is said, the graph has tensor\(float\)"):
        loaded(casts(tmp_path / "said", ("FP32", "FP32"), said="BF16"))
    with pytest.raises(LoadError, match=r"'i0': FP32 is said, the graph has tensor\(bfloat16\)"):
        loaded(casts(tmp_path / "not", ("BF16", "BF16"), said="FP32"))


@pytest.mark.parametrize(("answer", "why"), [(1.515625, ""), (1.6, "'y' differs by 0.0859")])
def test_golden_samples_are_numbers(tmp_path: Path, answer: float, why: str) -> None:
    sample = Golden(
        inputs=(JsonTensor("x", "BF16", (1, 2), [1.0101, 2]),),
        outputs=(JsonTensor("y", "BF16", (1, 2), [answer, 3]),),
    )
    made = loaded(onnx_types.bf16_folder(tmp_path, golden=(sample,)))
    (spec, *_) = made._specs
    given = golden.inputs_of(sample, (TensorSpec("x", spec.datatype, (-1, 2)),))
    done, buffers = made.run(wire.Run(1, given.heads), given.buffers[0])
    said: Any = ""
    try:
        golden.check(sample, done, memoryview(b"".join(buffers)))
    except golden.GoldenError as error:
        said = str(error)
    assert (why in said) if why else not said
