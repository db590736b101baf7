"""Files and batches by the openai SDK: `... <base URL> <key> <key of another tenant>`."""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import openai

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES = "/v1/embeddings", "/v1/responses"
CITIES = ("France", "Italy", "Spain", "Japan")
WORDS = ("a cat", "a dog", "a car")


def line(name: str, url: str, body: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body, **other}


def chat(country: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": f"What is the capital of {country}?"}],
        "temperature": 0,
        "max_tokens": 12,
        **more,
    }


def upload(client: openai.OpenAI, lines: list[Any]) -> openai.types.FileObject:
    text = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    return client.files.create(file=("in.jsonl", io.BytesIO(text.encode())), purpose="batch")


def ended(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        batch = client.batches.retrieve(batch.id)
        if batch.status in {"completed", "failed", "cancelled", "expired"}:
            return batch
        time.sleep(0.2)
    raise AssertionError(batch)


def run(client: openai.OpenAI, url: str, lines: list[Any]) -> openai.types.Batch:
    batch = client.batches.create(
        input_file_id=upload(client, lines).id,
        endpoint=url,
        completion_window="24h",
        metadata={"by": "conformance"},
    )
    assert batch.status in {"validating", "in_progress"}, batch
    return ended(client, batch)


def rows(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    found = [json.loads(one) for one in client.files.content(file_id).text.splitlines()]
    assert len({one["id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    """Check that a row's body is what the endpoint itself answers, but for what each has own."""
    assert got["error"] is None
    assert got["response"]["status_code"] == 200
    assert got["response"]["request_id"]
    body = got["response"]["body"]
    assert set(body) == set(want)
    for one in (body, want):
        for key in ("id", "created", "created_at"):
            one.pop(key, None)
        one.get("usage", {}).pop("prompt_tokens_details", None)
        one.get("usage", {}).pop("input_tokens_details", None)
        for item in one.get("output", ()):
            item.pop("id")
    assert body == want, (body, want)


def asked(client: openai.OpenAI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return client.post(path.removeprefix("/v1"), cast_to=dict[str, Any], body=body)


def files(client: openai.OpenAI, other: openai.OpenAI) -> None:
    text = json.dumps(line("a", CHAT, chat("France"))).encode()
    made = client.files.create(
        file=("questions ü.jsonl", io.BytesIO(text)),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (made.object, made.purpose, made.status) == ("file", "batch", "processed")
    assert (made.bytes, made.filename) == (len(text), "questions ü.jsonl")
    assert abs(made.expires_at - made.created_at - 7200) < 60
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == text
    large = b"x" * 9_000_001
    big = client.files.create(file=("big", io.BytesIO(large)), purpose="batch")
    assert client.files.content(big.id).read() == large
    assert [one.id for one in client.files.list(limit=1)][:2] == [big.id, made.id]
    assert made.id in [one.id for one in client.files.list(order="asc", purpose="batch")]
    assert made.id not in [one.id for one in client.files.list(purpose="batch_output")]
    for call in (
        lambda: other.files.retrieve(made.id),
        lambda: other.files.content(made.id),
        lambda: other.files.delete(made.id),
        lambda: other.batches.create(input_file_id=made.id, endpoint=CHAT, completion_window="24h"),
        lambda: client.files.retrieve("file-nobody"),
        lambda: client.batches.retrieve("batch_nobody"),
        lambda: client.batches.cancel("batch_nobody"),
    ):
        refused(call, openai.NotFoundError)
    assert list(other.files.list()) == []
    assert client.files.delete(made.id).deleted
    assert client.files.delete(big.id).deleted
    refused(lambda: client.files.retrieve(made.id), openai.NotFoundError)
    wrong = refused(
        lambda: client.files.create(file=io.BytesIO(b"x"), purpose="vision"),
        openai.BadRequestError,
    )
    assert (wrong.param, wrong.code) == ("purpose", "invalid_parameter")


def refused(call: Any, kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(kind)


def chats(client: openai.OpenAI, other: openai.OpenAI) -> None:
    lines = [line(country, CHAT, chat(country)) for country in CITIES]
    lines.append(line("seeded", CHAT, chat("Peru", temperature=1.0, seed=7, n=2)))
    lines.append(line("bad", CHAT, chat("Chad", temperature=9)))
    lines.append(line("streamed", CHAT, chat("Chad", stream=True)))
    lines.append(line("long", CHAT, chat("word " * 3000)))
    batch = run(client, CHAT, lines)
    assert batch.status == "completed", batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (8, 5, 3)
    assert (batch.metadata, batch.endpoint, batch.model) == (
        {"by": "conformance"},
        CHAT,
        "smollm2",
    )
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.usage.output_tokens > 0
    good = rows(client, batch.output_file_id)
    assert list(good) == [*CITIES, "seeded"]
    for one in lines[:5]:
        same(good[one["custom_id"]], asked(client, CHAT, one["body"]))
    bad = rows(client, batch.error_file_id)
    assert list(bad) == ["bad", "streamed", "long"]
    for name, want in (("bad", "temperature"), ("streamed", "stream"), ("long", None)):
        response = bad[name]["response"]
        assert response["status_code"] == 400
        assert response["body"]["error"]["param"] == want
        assert bad[name]["error"] is None
    asks = refused(
        lambda: client.chat.completions.create(**lines[5]["body"]), openai.BadRequestError
    )
    assert bad["bad"]["response"]["body"]["error"] == asks.body
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.bytes) == (
        "batch_output",
        len(client.files.content(output.id).read()),
    )
    refused(lambda: other.batches.retrieve(batch.id), openai.NotFoundError)
    refused(lambda: other.batches.cancel(batch.id), openai.NotFoundError)
    refused(lambda: other.files.content(output.id), openai.NotFoundError)
    assert list(other.batches.list()) == []


def others(client: openai.OpenAI) -> None:
    prompts = {"model": "smollm2", "prompt": "1, 2, 3,", "temperature": 0, "max_tokens": 6}
    reply = {"model": "smollm2", "input": "Hi", "temperature": 0, "max_output_tokens": 6}
    several = {**prompts, "prompt": ["1, 2, 3,", "a, b, c,"], "n": 2}
    ids = {**prompts, "prompt": [504, 3575, 282]}
    vectors = [{"model": "minilm", "input": word} for word in WORDS]
    vectors.append({"model": "minilm", "input": list(WORDS), "encoding_format": "base64"})
    for url, bodies in (
        (TEXT, [prompts, several, ids]),
        (RESPONSES, [reply]),
        (EMBEDDINGS, vectors),
    ):
        lines = [line(str(at), url, body) for at, body in enumerate(bodies)]
        batch = run(client, url, lines)
        assert (batch.status, batch.error_file_id) == ("completed", None), batch
        good = rows(client, batch.output_file_id)
        for one in lines:
            want = asked(client, url, one["body"])
            if url == EMBEDDINGS:
                near(good[one["custom_id"]]["response"]["body"], want)
            else:
                same(good[one["custom_id"]], want)


def near(got: dict[str, Any], want: dict[str, Any]) -> None:
    """Compare vectors, whose last bits depend on what else was in their batch."""
    assert len(got["data"]) == len(want["data"])
    for one, other in zip(got.pop("data"), want.pop("data"), strict=True):
        a, b = one.pop("embedding"), other.pop("embedding")
        assert type(a) is type(b)
        if isinstance(a, list):
            assert max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-5
        else:
            assert len(a) == len(b)
        assert one == other
    assert got == want


def unfit(client: openai.OpenAI) -> None:
    """Inputs that cannot be run at all say why, line by line."""
    fine = line("a", CHAT, chat("France"))
    for lines, want in (
        ([fine, fine], [("duplicate_custom_id", 2)]),
        ([fine, "{", {"custom_id": 5}], [("invalid_json_line", 2), (MISSING, 3)]),
        ([fine, {**fine, "custom_id": "b", "method": "GET"}], [("invalid_method", 2)]),
        ([fine, line("b", EMBEDDINGS, {})], [("invalid_url", 2)]),
        ([fine, line("b", CHAT, chat("Italy") | {"model": "x"})], [("mismatched_model", 2)]),
        ([line("b", CHAT, chat("Italy") | {"model": "nobody"})], [("model_not_found", 1)]),
        ([line("b", CHAT, {}), "{"], [(MISSING, 1), ("invalid_json_line", 2)]),
        ([], [("empty_file", None)]),
    ):
        batch = run(client, CHAT, lines)
        assert (batch.status, batch.output_file_id) == ("failed", None), batch
        assert batch.failed_at is not None
        found = [(one.code, one.line) for one in batch.errors.data]
        assert found == want, (found, want)
    for body, param in (
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
    ):
        args = {"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h", **body}
        error = refused(lambda args=args: client.batches.create(**args), openai.BadRequestError)
        assert error.param == param


MISSING = "missing_required_parameter"


def cancelled(client: openai.OpenAI) -> None:
    lines = [line(str(at), CHAT, chat("France", max_tokens=60)) for at in range(80)]
    made = client.batches.create(
        input_file_id=upload(client, lines).id, endpoint=CHAT, completion_window="24h"
    )
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = ended(client, made)
    assert batch.status == "cancelled"
    assert batch.cancelling_at <= batch.cancelled_at
    names = list(rows(client, batch.output_file_id)) if batch.output_file_id else []
    undone = rows(client, batch.error_file_id)
    assert sorted([*names, *undone]) == sorted(one["custom_id"] for one in lines)
    assert {(one["response"], one["error"]["code"]) for one in undone.values()} == {
        (None, "batch_cancelled")
    }
    listed = [one.id for one in client.batches.list(limit=2)]
    assert listed[0] == batch.id
    assert len(set(listed)) == len(listed) > 5


def main() -> None:
    for prefix in ("/v1", "/openai/v1"):
        client, other = (
            openai.OpenAI(base_url=sys.argv[1] + prefix, api_key=key, max_retries=0)
            for key in sys.argv[2:4]
        )
        files(client, other)
        if prefix == "/v1":
            chats(client, other)
            others(client)
            unfit(client)
            cancelled(client)
    sys.stdout.write("fine\n")


if __name__ == "__main__":
    main()
