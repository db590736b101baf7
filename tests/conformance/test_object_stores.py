"""What the object store must do, in a folder and in a bucket of a server that others wrote."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from inferbus_gateway.control.jobs.fold import Fold
from inferbus_gateway.control.jobs.origins import Origins
from inferbus_gateway.control.jobs.orphans import Orphans
from inferbus_gateway.control.jobs.remote import Remote
from inferbus_gateway.errors import UriUnreadableError
from inferbus_kit.objects import Objects, open_store
from inferbus_registry.artifacts import repository
from inferbus_registry.artifacts.service import BlobService
from inferbus_registry.errors import DigestMismatchError
from inferbus_schemas import ids, jobs
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import FileEntry, Manifest, Signature, TensorSpec
from inferbus_worker.artifacts import Artifacts
from tests.support.s3_server import S3Server, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PART_BYTES = 8 << 20
"""A larger upload goes in parts."""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def aws(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return (tmp_path / "store").as_uri()
    server: S3Server = request.getfixturevalue("aws")
    return f"s3://{server.bucket()}/a/prefix"


@pytest.fixture
def objects(url: str) -> Objects:
    return Objects(open_store(url))


async def test_one_of_all_that_create_is_first(objects: Objects) -> None:
    bodies = [str(number).encode() for number in range(20)]
    first = await asyncio.gather(*(objects.create("a/b", body) for body in bodies))
    assert sum(first) == 1
    assert await objects.get("a/b") == bodies[first.index(True)]


async def test_objects_come_and_go(objects: Objects) -> None:
    assert await objects.get("a/b") is None
    assert not await objects.exists("a/b")
    await objects.put("a/b", b"one")
    await objects.put("a/b", b"two")
    await objects.put("a/c/d", b"three")
    await objects.put("ab", b"beside")
    assert await objects.get("a/b") == b"two"
    assert await objects.exists("a/c/d")
    await objects.delete_folder("a")
    await objects.delete_folder("never")
    await objects.delete("never")
    assert not await objects.exists("a/b")
    assert not await objects.exists("a/c/d")
    await objects.delete("ab")
    assert await objects.get("ab") is None


async def test_a_pushed_file_reaches_a_worker(url: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * (PART_BYTES // 256) + b"the rest"
    digest = hashlib.sha256(data).hexdigest()

    async def body() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1 << 20):
            yield data[at : at + (1 << 20)]

    blobs = repository.BlobRepository(*repository.open_store(url))
    service = BlobService(blobs, max_bytes=len(data), stall_s=10)
    assert await blobs.size_bytes(digest) is None
    assert await service.put(digest, len(data), body())
    assert not await service.put(digest, len(data), body())
    with pytest.raises(DigestMismatchError):
        await service.put("0" * 64, len(data), body())
    assert await blobs.size_bytes(digest) == len(data)
    assert await blobs.read(digest, PART_BYTES, 100) == b"the rest"
    await blobs.sweep()
    left = [one["path"] async for batch in obstore.list(open_store(url)) for one in batch]
    assert left == [repository.blob_path(digest)]

    spec = TensorSpec("x", "FP32", (-1,))
    entry = FileEntry("model.onnx", digest, len(data))
    manifest = Manifest("m", "tensor", "onnx", Signature((spec,), (spec,)), (entry,))
    folder = await Artifacts(open_store(url), tmp_path / "state").folder(manifest)
    assert (folder / "model.onnx").read_bytes() == data


async def test_uploads_of_no_job_go_and_those_of_one_stay(url: str) -> None:
    store, fold = open_store(url), Fold()
    objects = Objects(store)
    job = m.Job(id=ids.uuid7(1, 1), tenant="acme", n_chunks=1, input="uploads/mine")
    await objects.put("uploads/mine/0", b"x")
    await objects.put("uploads/nobodys/0", b"x")
    await objects.put(jobs.job_path(job.id), job.SerializeToString())
    now = datetime.now(UTC)
    assert await Orphans(store, fold).sweep(now - timedelta(hours=1)) == 0
    assert await Orphans(store, fold).sweep(now + timedelta(hours=1)) == 1
    assert await objects.exists("uploads/mine/0")
    assert not await objects.exists("uploads/nobodys/0")
    assert job.id in fold


async def test_the_input_of_a_job_in_a_bucket(aws: S3Server) -> None:
    bucket = aws.bucket()
    body = b'{"x": [1, 2, 3]}\n' * 50_000
    await obstore.put_async(from_url(f"s3://{bucket}"), "a b.jsonl", body)
    remote = Remote(Origins((f"s3://{bucket}",), ()))
    async with remote.open(f"s3://{bucket}/a%20b.jsonl") as found:
        assert b"".join([piece async for piece in found]) == body
    async with remote.open(f"s3://{bucket}/none") as found:
        with pytest.raises(UriUnreadableError):
            await anext(aiter(found))
