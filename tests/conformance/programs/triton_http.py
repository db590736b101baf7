"""tritonclient over HTTP, used as its users use it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from arrays import ARRAYS, same
from bearer import Bearer
from halves import HALVES, right
from keys import HEAD, UNKNOWN, WRONG_HEAD
from tritonclient import http
from tritonclient.utils import InferenceServerException


def inputs(*, binary: bool) -> list[Any]:
    made = []
    for name, array in ARRAYS.items():
        one = http.InferInput(f"in-{name}", list(array.shape), name)
        one.set_data_from_numpy(array, binary_data=binary or name == "FP16")
        made.append(one)
    return made


def outputs(*, binary: bool) -> list[Any]:
    return [
        http.InferRequestedOutput(f"out-{name}", binary_data=binary or name == "FP16")
        for name in ARRAYS
    ]


def refused(work: Any, *words: str) -> None:
    said = ""
    try:
        work()
    except InferenceServerException as error:
        said = str(error)
    assert said, f"this was not refused: {words}"
    assert all(word in said for word in words), said


def main(address: str) -> None:
    client, nobody = (http.InferenceServerClient(address) for _ in range(2))
    client.register_plugin(Bearer())
    assert client.is_server_live()
    assert client.is_server_ready()
    server = client.get_server_metadata()
    assert server["name"] == "inferbus"
    for model in ("every-type", "bf16", "breast-cancer", "minilm"):
        assert client.is_model_ready(model)
        assert client.is_model_ready(model, "1")
        meta, config = client.get_model_metadata(model), client.get_model_config(model)
        assert [one["name"] for one in meta["inputs"]] == [one["name"] for one in config["input"]]
        for shown, told in zip(meta["inputs"], config["input"], strict=True):
            rows = [-1] if config["max_batch_size"] else []
            assert shown["shape"] == [*rows, *told["dims"]], (shown, told)
    every_way(client)
    bf16(client)
    classes(client)
    figures_and_repository(client, nobody)
    keys(nobody)
    refused(lambda: client.infer("nobody", inputs(binary=True)), "Request for unknown model")
    refused(lambda: client.infer("every-type", inputs(binary=True)[1:]), "in-BOOL")
    sys.stdout.write("fine\n")


def every_way(client: Any) -> None:
    before = client.get_inference_statistics("every-type")["model_stats"][0]
    asked = 0
    for sent in (True, False):
        for wanted in (None, outputs(binary=True), outputs(binary=False)):
            for packed in (None, "gzip", "deflate"):
                got = client.infer(
                    "every-type",
                    inputs(binary=sent),
                    outputs=wanted,
                    request_id="mine",
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                    timeout=20_000_000,
                    parameters={"mine": "ignored"},
                )
                asked += 1
                assert got.get_response()["id"] == "mine"
                assert got.get_response()["model_version"] == "1"
                for name in ARRAYS:
                    assert same(got.as_numpy(f"out-{name}"), name), (name, sent, packed)
    pending = [client.async_infer("every-type", inputs(binary=True)) for _ in range(8)]
    assert all(same(one.get_result().as_numpy("out-INT64"), "INT64") for one in pending)
    after = client.get_inference_statistics("every-type")["model_stats"][0]
    rows = after["inference_count"] - before["inference_count"]
    assert rows == 2 * (asked + 8), (rows, asked)
    assert after["execution_count"] > before["execution_count"]
    times = after["inference_stats"]
    assert times["success"]["ns"] > times["compute_infer"]["ns"] > 0


def bf16(client: Any) -> None:
    rows = http.InferInput("x", list(HALVES.shape), "BF16")
    rows.set_data_from_numpy(HALVES)
    assert right(client.infer("bf16", [rows]))
    pending = [client.async_infer("bf16", [rows]) for _ in range(8)]
    assert all(right(one.get_result()) for one in pending)
    text = [http.InferRequestedOutput("y", binary_data=False)]
    refused(lambda: client.infer("bf16", [rows], outputs=text), "BF16 has no JSON form")


def classes(client: Any) -> None:
    rows = http.InferInput("features", [2, 30], "FP32")
    rows.set_data_from_numpy(np.ones((2, 30), np.float32))
    plain = client.infer("breast-cancer", [rows]).as_numpy("probabilities")
    wanted = http.InferRequestedOutput("probabilities", class_count=2)
    got = client.infer("breast-cancer", [rows], outputs=[wanted]).as_numpy("probabilities")
    assert got.shape == (2, 2)
    for row, values in zip(got, plain, strict=True):
        value, index, label = row[0].decode().split(":")
        assert int(index) == values.argmax()
        assert abs(float(value) - values.max()) < 1e-5
        assert label in {"malignant", "benign"}


def keys(client: Any) -> None:
    """By the headers of each call; the wrong one is refused where none is needed too."""
    rows = http.InferInput("features", [1, 30], "FP32")
    rows.set_data_from_numpy(np.ones((1, 30), np.float32))
    # It adds to the headers that it is given.
    assert client.infer("breast-cancer", [rows], headers=dict(HEAD)).get_output("label")
    refused(
        lambda: client.infer("breast-cancer", [rows], headers=dict(WRONG_HEAD)), "[401]", UNKNOWN
    )
    pending = client.async_infer("breast-cancer", [rows], headers=dict(WRONG_HEAD))
    refused(pending.get_result, "[401]", UNKNOWN)
    assert not client.is_model_ready("breast-cancer", headers=WRONG_HEAD)


def figures_and_repository(client: Any, nobody: Any) -> None:
    listed = client.get_inference_statistics()["model_stats"]
    assert {"every-type", "breast-cancer"} <= {one["name"] for one in listed}
    index = client.get_model_repository_index()
    assert {"name": "minilm", "version": "1", "state": "READY", "reason": ""} in index
    refused(lambda: client.load_model("minilm", config="{}"), "failed to load")
    refused(lambda: client.load_model("nobody"), "Request for unknown model")
    refused(lambda: nobody.unload_model("digits"), "[401]", "a key is needed")
    client.unload_model("digits")
    assert not client.is_model_ready("digits")
    client.load_model("digits")
    assert client.is_model_ready("digits")


main(sys.argv[1])
