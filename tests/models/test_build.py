"""Building: once, whole, again when something changed; and the words of samples and errors."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inferbus_models import __main__ as command
from inferbus_models import build, minilm, recipes, samples, tensors
from inferbus_models import folder as folders
from inferbus_schemas.manifest import Golden
from tests.support.sample_models import model_folder

if TYPE_CHECKING:
    from pathlib import Path

NAME = "breast-cancer"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder of model folders that holds a breast-cancer which is up to date."""
    shutil.copytree(model_folder(NAME), tmp_path / NAME)
    return tmp_path


def test_up_to_date_folder_is_left_alone(out: Path) -> None:
    before = (out / NAME / "model.onnx").stat()
    built = build.ensure(NAME, out)
    after = (out / NAME / "model.onnx").stat()
    assert built.seconds == 0
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_damaged_file_is_built_again(out: Path) -> None:
    path = out / NAME / "model.onnx"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert build.ensure(NAME, out).seconds > 0
    assert path.read_bytes() == good


def test_folder_of_another_recipe_version_is_built_again(out: Path) -> None:
    record = out / NAME / "originals" / "recipe.json"
    record.write_text(json.dumps({**json.loads(record.read_bytes()), "fingerprint": "older"}))
    assert build.ensure(NAME, out).seconds > 0


def test_fingerprint_depends_on_package_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.RECIPES[NAME]
    before = build._fingerprint(recipe, 1)
    assert before != build._fingerprint(recipe, 2)
    monkeypatch.setattr(metadata, "version", lambda name: f"another {name}")
    assert before != build._fingerprint(recipe, 1)


def test_force_builds_the_same_bytes_again(out: Path) -> None:
    before = (out / NAME / "model.onnx").read_bytes()
    assert build.ensure(NAME, out, force=True).seconds > 0
    assert (out / NAME / "model.onnx").read_bytes() == before


def test_what_a_killed_build_left_is_cleared(out: Path) -> None:
    left = out / f".{NAME}.part"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    build.ensure(NAME, out, force=True)
    assert not left.exists()
    assert folders.is_whole(out / NAME)


def test_failed_build_leaves_the_old_folder(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_folder: Path, *, variant: int = 1) -> None:
        raise OSError(f"no room for variant {variant}")

    monkeypatch.setattr(recipes.module(NAME), "build", fail)
    with pytest.raises(OSError, match="no room"):
        build.ensure(NAME, out, force=True)
    assert folders.is_whole(out / NAME)


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = recipes.Recipe(
        name="ghost", module="ghost", variants=1, distributions=("inferbus-no-such-package",)
    )
    monkeypatch.setitem(recipes.RECIPES, "ghost", recipe)
    with pytest.raises(build.BuildError, match=r"ghost needs the package .*: run `make setup`"):
        build.ensure("ghost", tmp_path)


def test_unknown_variant_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["build", "digits", "--variant", "2", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: digits has no variant 2: choose from 1 to 1\n"


def test_command_says_what_is_there(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["build", NAME, "--out", str(out)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"[1 of 1] {NAME}: up to date, 33 kB, version ")


def test_command_prints_samples_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder("minilm")
    capsys.readouterr()
    assert command.main(["samples", "minilm", "--folder", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(minilm.SENTENCES)
    assert json.loads(lines[0])["inputs"][0]["data"] == [minilm.SENTENCES[0]]


def test_record_without_the_library_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = minilm.REFERENCE.read_bytes()
    assert command.main(["record", "minilm", "--python", str(tmp_path / "python")]) == 1
    assert "pip install sentence-transformers" in capsys.readouterr().err
    assert minilm.REFERENCE.read_bytes() == before


def test_record_refuses_other_weights(tmp_path: Path) -> None:
    before = minilm.REFERENCE.read_bytes()
    stranger = tmp_path / "python"
    said = json.dumps({"weights_sha256": "0" * 64, "vectors": []})
    stranger.write_text(f"#!/bin/sh\ncat > {tmp_path}/sentences\necho '{said}'\n")
    stranger.chmod(0o755)
    with pytest.raises(minilm.RecordError, match="another version"):
        minilm.record(stranger)
    assert json.loads((tmp_path / "sentences").read_bytes()) == list(minilm.SENTENCES)
    assert minilm.REFERENCE.read_bytes() == before


def test_record_writes_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = minilm.reference()
    said = {key: value for key, value in recorded.items() if key != "answers"}
    vectors = [answer["vector"] for answer in recorded["answers"]]
    (tmp_path / "said").write_text(json.dumps({**said, "vectors": vectors}))
    stranger = tmp_path / "python"
    stranger.write_text(f"#!/bin/sh\ncat > {tmp_path}/sentences\ncat {tmp_path}/said\n")
    stranger.chmod(0o755)
    copy = tmp_path / "reference.json"
    shutil.copyfile(minilm.REFERENCE, copy)
    monkeypatch.setattr(minilm, "REFERENCE", copy)
    assert minilm.record(stranger) == 0
    assert json.loads(copy.read_bytes()) == recorded


def test_float32_survives_json_with_few_digits() -> None:
    values = np.random.default_rng(7).normal(size=(50, 4)).astype(np.float32)
    tensor = tensors.numbers("x", values)
    assert (tensors.array(tensor) == values).all()
    assert max(len(str(number)) for number in tensor.data) < 16


def test_words_of_a_label_and_of_a_vector() -> None:
    label = [
        {"name": "label", "data": [0]},
        {"name": "probabilities", "data": [0.998, 0.002]},
    ]
    assert samples.words(label, ("malignant", "benign")) == "malignant (99.8 %)"
    assert samples.words(label) == "0 (99.8 %)"
    vector = [{"name": "embedding", "data": [0.5] * 384}]
    assert samples.words(vector) == (
        "embedding [+0.5000, +0.5000, +0.5000, +0.5000, ...] (384 numbers)"
    )


def test_difference_sees_a_wrong_a_missing_and_a_misshapen_answer() -> None:
    golden = Golden(
        inputs=(), outputs=(tensors.numbers("y", np.array([[1.0, 2.0]], dtype=np.float32)),)
    )
    sample = samples.of("m", golden, library="none", about="a row")
    assert samples.difference(sample, [{"name": "y", "shape": [1, 2], "data": [1.0, 2.5]}]) == 0.5
    assert samples.difference(sample, []) == float("inf")
    assert samples.difference(sample, [{"name": "y", "shape": [2], "data": [1.0, 2.0]}]) == float(
        "inf"
    )
    nan = samples.difference(sample, [{"name": "y", "shape": [1, 2], "data": [float("nan"), 2.0]}])
    assert not nan <= sample.tolerance
