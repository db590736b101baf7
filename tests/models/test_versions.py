"""Each sample model: the same bytes on each build, a manifest that parses, the right answers."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from inferbus_models import build, minilm, recipes, samples, tensors
from inferbus_models import folder as folders
from inferbus_schemas import manifest as manifests
from inferbus_schemas.manifest import JsonTensor
from tests.models.graphs import Graph
from tests.support.sample_models import model_folder

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

MODELS = sorted(recipes.RECIPES)
GRAPHS = [name for name in MODELS if name != "smollm2"]
"""Those that are ONNX; the one that is not is run in tests/worker/test_generation_engine.py."""


@functools.cache
def graph(name: str, variant: int = 1) -> Graph:
    return Graph(model_folder(name, variant=variant))


@pytest.fixture(scope="session")
def breast_cancer() -> ModuleType:
    """The recipe with its libraries, which take seconds that only who runs these tests pays."""
    return importlib.import_module("inferbus_models.breast_cancer")


@pytest.fixture(scope="session")
def digits() -> ModuleType:
    """The recipe with its libraries, likewise."""
    return importlib.import_module("inferbus_models.digits")


@pytest.fixture(scope="session")
def built_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models built once more, far from the cache."""
    out = tmp_path_factory.mktemp("models")
    for name in MODELS:
        build.ensure(name, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_builds_give_the_same_bytes(name: str, built_again: Path) -> None:
    first = folders.read_manifest(model_folder(name))
    second = folders.read_manifest(built_again / name)
    assert first == second
    assert manifests.version_sha256(first) == manifests.version_sha256(second)


@pytest.mark.parametrize("name", MODELS)
def test_folder_holds_exactly_what_the_manifest_names(name: str) -> None:
    folder = model_folder(name)
    manifest = manifests.parse((folder / "manifest.json").read_bytes())
    assert folders.is_whole(folder)
    assert manifest.model == name
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "originals",
        *(file.path for file in manifest.files),
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_gives_the_public_outputs(name: str) -> None:
    signature = graph(name).manifest.signature
    expected = {(spec.name, len(spec.shape)) for spec in signature.outputs}
    assert expected == {(o.name, len(o.shape)) for o in graph(name).session.get_outputs()}


@pytest.mark.parametrize("name", GRAPHS)
def test_golden_answers_hold(name: str) -> None:
    goldens = graph(name).manifest.golden
    assert 3 <= len(goldens) <= 8
    for golden in goldens:
        outputs = graph(name).answer(golden.inputs)
        for expected in golden.outputs:
            wanted = tensors.array(expected)
            assert outputs[expected.name].dtype == wanted.dtype
            assert outputs[expected.name].shape == wanted.shape
            assert np.abs(outputs[expected.name] - wanted).max() <= golden.tolerance


@pytest.mark.parametrize("name", GRAPHS)
def test_samples_agree_with_the_graph(name: str) -> None:
    for sample in samples.load(model_folder(name)):
        answer = _as_json(
            graph(name).answer(tuple(msgspec.convert(one, JsonTensor) for one in sample.inputs))
        )
        assert samples.difference(sample, answer) <= sample.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_saved_samples_are_what_the_original_library_says(name: str) -> None:
    folder = model_folder(name)
    assert samples.load(folder) == samples.ask(name, folder)


def test_breast_cancer_equals_xgboost_on_every_test_row(breast_cancer: ModuleType) -> None:
    rows = breast_cancer.split().test
    expected = breast_cancer.original(model_folder("breast-cancer")).predict_proba(rows)
    outputs = graph("breast-cancer").run({"features": rows})
    assert np.abs(outputs["probabilities"] - expected).max() < 1e-6
    assert (outputs["label"] == expected.argmax(axis=1)).all()


def test_breast_cancer_is_worth_serving(breast_cancer: ModuleType) -> None:
    data = breast_cancer.split()
    assert (
        graph("breast-cancer").run({"features": data.test})["label"] == data.test_labels
    ).mean() > 0.95


def test_second_variant_can_be_told_from_the_first_by_any_answer(breast_cancer: ModuleType) -> None:
    rows = breast_cancer.split().test
    first = graph("breast-cancer").run({"features": rows})["probabilities"]
    second = graph("breast-cancer", 2).run({"features": rows})["probabilities"]
    assert np.abs(first - second).max(axis=1).min() > 1e-3
    manifest = graph("breast-cancer", 2).manifest
    assert manifest.model == "breast-cancer"
    assert manifest.signature == graph("breast-cancer").manifest.signature
    assert manifests.version_sha256(manifest) != manifests.version_sha256(
        graph("breast-cancer").manifest
    )


@pytest.mark.slow
def test_digits_equals_sklearn_on_every_test_image(digits: ModuleType) -> None:
    data = digits.split()
    expected = digits.original(data).predict_proba(data.test)
    images = tensors.images("image", [digits.png(row) for row in data.test])
    outputs = graph("digits").answer((images,))
    assert np.abs(outputs["probabilities"] - expected).max() < 1e-5
    assert (outputs["label"] == data.test_labels).mean() > 0.96


def test_digits_images_decode_to_the_floats_that_sklearn_has(digits: ModuleType) -> None:
    data = digits.split()
    images = tensors.images("image", [digits.png(row) for row in data.train])
    assert (graph("digits").feed((images,))["pixels"] == data.train).all()


def test_minilm_agrees_with_the_recorded_vectors_in_one_batch() -> None:
    answers = minilm.reference()["answers"]
    texts = tensors.texts("text", [answer["text"] for answer in answers])
    outputs = graph("minilm").answer((texts,))
    assert np.abs(outputs["embedding"] - [answer["vector"] for answer in answers]).max() < 1e-6


def test_minilm_reference_was_recorded_from_the_weights_that_are_served() -> None:
    recorded = minilm.reference()
    assert recorded["weights_sha256"] == folders.sha256_of(minilm.shipped("model.safetensors"))
    assert tuple(answer["text"] for answer in recorded["answers"]) == minilm.SENTENCES
    lengths = np.linalg.norm([answer["vector"] for answer in recorded["answers"]], axis=1)
    assert np.abs(lengths - 1).max() < 1e-6


def test_minilm_reference_has_a_sentence_that_is_cut() -> None:
    feed = graph("minilm").feed((tensors.texts("text", list(minilm.SENTENCES)),))
    assert feed["attention_mask"].sum(axis=1).max() == 256
    longer = [*minilm.SENTENCES[-1:], minilm.SENTENCES[-1] + " And much more."]
    one, other = graph("minilm").answer((tensors.texts("text", longer),))["embedding"]
    assert np.abs(one - other).max() == 0


def test_minilm_takes_a_text_without_words() -> None:
    vector = graph("minilm").answer((tensors.texts("text", [""]),))["embedding"]
    assert abs(np.linalg.norm(vector) - 1) < 1e-6


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_trees_answer_to_the_bit_whatever_the_batch(
    rows: int, breast_cancer: ModuleType, digits: ModuleType
) -> None:
    for name, feed in (
        ("breast-cancer", {"features": breast_cancer.split().test}),
        ("digits", {"pixels": digits.split().test}),
    ):
        for output in ("label", "probabilities"):
            whole = graph(name).run(feed)[output]
            assert (_in_batches(graph(name), feed, rows, output) == whole).all()


def test_minilm_answers_within_tolerance_whatever_the_batch_and_padding() -> None:
    texts = list(minilm.SENTENCES)
    whole = graph("minilm").answer((tensors.texts("text", texts),))["embedding"]
    for row, text in zip(whole, texts, strict=True):
        alone = graph("minilm").answer((tensors.texts("text", [text]),))["embedding"]
        assert np.abs(alone[0] - row).max() < 1e-6


def _in_batches(one: Graph, feed: dict[str, NDArray[Any]], rows: int, output: str) -> NDArray[Any]:
    ((name, values),) = feed.items()
    parts = [
        one.run({name: values[start : start + rows]})[output]
        for start in range(0, len(values), rows)
    ]
    return np.concatenate(parts)


def _as_json(outputs: dict[str, NDArray[Any]]) -> list[samples.JsonObject]:
    return [
        {"name": name, "shape": list(values.shape), "data": values.ravel().tolist()}
        for name, values in outputs.items()
    ]
