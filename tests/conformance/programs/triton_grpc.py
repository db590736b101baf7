"""tritonclient over gRPC, streams included."""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
from arrays import ARRAYS, same
from bearer import Bearer
from halves import HALVES, right
from keys import HEAD, UNKNOWN, WRONG_HEAD
from tritonclient import grpc
from tritonclient.utils import InferenceServerException


def inputs() -> list[Any]:
    made = []
    for name, array in ARRAYS.items():
        one = grpc.InferInput(f"in-{name}", list(array.shape), name)
        one.set_data_from_numpy(array)
        made.append(one)
    return made


def refused(work: Any, status: str, *words: str) -> None:
    said = ""
    try:
        work()
    except InferenceServerException as error:
        said = f"{error.status()} {error}"
    assert said.startswith(f"StatusCode.{status} "), said
    assert all(word in said for word in words), said


def main(address: str) -> None:
    keepalive = grpc.KeepAliveOptions(keepalive_time_ms=10_000, keepalive_timeout_ms=5_000)
    client = grpc.InferenceServerClient(address, keepalive_options=keepalive)
    client.register_plugin(Bearer())
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("every-type")
    assert "statistics" in client.get_server_metadata().extensions
    meta = client.get_model_metadata("every-type", as_json=True)
    assert len(meta["inputs"]) == len(ARRAYS)
    config = client.get_model_config("every-type").config
    assert [one.name for one in config.input] == [one["name"] for one in meta["inputs"]]
    for packed in (None, "gzip", "deflate"):
        got = client.infer(
            "every-type",
            inputs(),
            request_id="mine",
            compression_algorithm=packed,
            client_timeout=20,
        )
        assert got.get_response().id == "mine"
        for name in ARRAYS:
            assert same(got.as_numpy(f"out-{name}"), name), name
    wanted = [grpc.InferRequestedOutput("out-INT64", class_count=1)]
    got = client.infer("every-type", inputs(), outputs=wanted)
    assert [one.name for one in got.get_response().outputs] == ["out-INT64"]
    assert list(got.as_numpy("out-INT64").flatten()) == [b"9223372036854775807:1", b"2:1"]
    rows = grpc.InferInput("x", list(HALVES.shape), "BF16")
    rows.set_data_from_numpy(HALVES)
    assert right(client.infer("bf16", [rows]))
    stream(client)
    with grpc.InferenceServerClient(address) as nobody:
        repository(client, nobody)
        keys(nobody)
    refused(lambda: client.infer("nobody", inputs()), "NOT_FOUND", "Request for unknown model")
    refused(lambda: client.infer("every-type", inputs()[1:]), "INVALID_ARGUMENT", "in-BOOL")
    refused(client.get_trace_settings, "UNIMPLEMENTED")
    sys.stdout.write("fine\n")


def stream(client: Any) -> None:
    said: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: said.put((result, error)))
    rows = grpc.InferInput("features", [1, 30], "FP32")
    for number in range(100):
        rows.set_data_from_numpy(np.full((1, 30), number, np.float32))
        client.async_stream_infer("breast-cancer", [rows], request_id=str(number))
    for number in range(100):
        result, error = said.get(timeout=30)
        assert error is None, error
        assert result.get_response().id == str(number)
        assert result.as_numpy("probabilities").shape == (1, 2)
    client.async_stream_infer("nobody", [rows])
    result, error = said.get(timeout=30)
    assert result is None
    assert "Request for unknown model" in str(error)
    client.async_stream_infer("breast-cancer", [rows], enable_empty_final_response=True)
    result, error = said.get(timeout=30)
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


def keys(client: Any) -> None:
    """By the headers of each call; the wrong one is refused where none is needed too."""
    rows = grpc.InferInput("features", [1, 30], "FP32")
    rows.set_data_from_numpy(np.ones((1, 30), np.float32))
    got = client.infer("breast-cancer", [rows], headers=HEAD)
    assert got.as_numpy("probabilities").shape == (1, 2)
    refused(
        lambda: client.infer("breast-cancer", [rows], headers=WRONG_HEAD),
        "UNAUTHENTICATED",
        UNKNOWN,
    )
    for head, words in ((HEAD, ""), (WRONG_HEAD, UNKNOWN)):
        said: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error, to=said: to.put((result, error)), headers=head)
        try:
            client.async_stream_infer("breast-cancer", [rows])
        except InferenceServerException:
            assert words, "only a call without a key may end before its first message"
        _, error = said.get(timeout=30)
        assert words in str(error) if words else error is None, (words, error)
        client.stop_stream()


def repository(client: Any, nobody: Any) -> None:
    stats = client.get_inference_statistics("every-type").model_stats[0]
    assert stats.inference_stats.success.count > 0
    assert {one.name for one in client.get_inference_statistics().model_stats} >= {"every-type"}
    index = {(one.name, one.state) for one in client.get_model_repository_index().models}
    assert ("minilm", "READY") in index
    refused(
        lambda: client.load_model("digits", config="{}"),
        "INVALID_ARGUMENT",
        "failed to load",
    )
    refused(lambda: nobody.unload_model("digits"), "UNAUTHENTICATED", "a key is needed")
    client.unload_model("digits")
    assert not client.is_model_ready("digits")
    assert not client.is_model_ready("no-such-model")
    client.load_model("digits")
    assert client.is_model_ready("digits")


main(sys.argv[1])
