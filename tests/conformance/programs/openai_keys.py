"""What the openai SDK raises by key: `... <base URL> <key> <reading one> <one of one request>`."""

from __future__ import annotations

import asyncio
import io
import sys

import openai
from openai_sdk import GREEDY, QUESTION, refused


def wrong(client: openai.OpenAI) -> None:
    for call in (
        client.models.list,
        lambda: client.chat.completions.create(messages=QUESTION, stream=True, **GREEDY),
        lambda: client.responses.create(model="smollm2", input="Hi"),
        lambda: client.files.create(file=io.BytesIO(b"x"), purpose="batch"),
        client.batches.list,
    ):
        error = refused(call, openai.AuthenticationError)
        assert (error.status_code, error.code) == (401, "unauthorized"), error
        assert error.request_id, error


def without_scope(client: openai.OpenAI) -> None:
    assert "smollm2" in [model.id for model in client.models.list()]
    for call in (
        lambda: client.chat.completions.create(messages=QUESTION, **GREEDY),
        lambda: client.embeddings.create(model="minilm", input="a cat"),
        lambda: client.files.create(file=io.BytesIO(b"x"), purpose="batch"),
    ):
        error = refused(call, openai.PermissionDeniedError)
        assert (error.status_code, error.code) == (403, "forbidden"), error


def of_one_request(client: openai.OpenAI) -> None:
    refused(lambda: client.models.retrieve("nobody"), openai.NotFoundError)
    assert client.embeddings.create(model="minilm", input="a cat").data
    for call in (
        lambda: client.embeddings.create(model="minilm", input="a cat"),
        lambda: client.chat.completions.create(messages=QUESTION, stream=True, **GREEDY),
    ):
        error = refused(call, openai.RateLimitError)
        assert (error.status_code, error.code) == (429, "rate_limited"), error
        assert int(error.response.headers["retry-after"]) > 0


async def awaited(url: str, keys: list[tuple[str, type[openai.APIStatusError]]]) -> None:
    for key, kind in keys:
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            said: object = None
            try:
                await client.chat.completions.create(messages=QUESTION, **GREEDY)
            except openai.APIStatusError as error:
                said = error
            assert type(said) is kind, said


def main() -> None:
    base, key, reads, one = sys.argv[1:]
    url = f"{base}/v1"
    unknown = f"{key[:-1]}{'B' if key.endswith('A') else 'A'}"
    for given, check in ((unknown, wrong), (reads, without_scope), (one, of_one_request)):
        check(openai.OpenAI(base_url=url, api_key=given, max_retries=0))
    kinds = (openai.AuthenticationError, openai.PermissionDeniedError, openai.RateLimitError)
    asyncio.run(awaited(url, list(zip((unknown, reads, one), kinds, strict=True))))
    sys.stdout.write("fine\n")


main()
