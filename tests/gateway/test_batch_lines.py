"""Lines of batches, forms of uploads, the fold of files and batches; without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from inferbus_gateway import errors
from inferbus_gateway.control.batches import answers, files, keeper
from inferbus_gateway.control.batches.fold import BatchFold
from inferbus_gateway.control.batches.lines import MAX_LINES, LineReader, model_of
from inferbus_gateway.control.batches.upload import Form
from inferbus_gateway.hot import kinds
from inferbus_gateway.hot.route import Target
from inferbus_models import smollm2
from inferbus_schemas import batches, ids
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from tests.support.sample_models import model_folder

MODEL = smollm2.NAME
BATCH = ids.uuid7(1_700_000_000_000, 7)


def target() -> Target:
    raw = (model_folder(MODEL) / manifests.MANIFEST_NAME).read_bytes()
    return Target(MODEL, 1, "default", bytes(32), manifests.parse(raw), b"1")


def reader(url: str = kinds.CHAT) -> LineReader:
    return LineReader(url, MODEL, target(), 1 << 20)


def line(name: str, **more: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}
    said = {"custom_id": name, "method": "POST", "url": kinds.CHAT, "body": body}
    return json.dumps(said).encode()


@pytest.mark.slow
def test_a_line_is_a_row_or_an_error_of_the_batch() -> None:
    lines = reader()
    row = lines.read(line("a", temperature=0.5))
    assert row is not None
    assert (row.number, row.client_request_id, row.refused) == (0, "a", "")
    assert row.generation.temperature == 0.5
    refused = lines.read(line("b", temperature=5))
    assert refused is not None
    assert (refused.form.status, refused.tensors) == (400, b"")
    assert json.loads(refused.form.error)["error"]["param"] == "temperature"
    said = m.Prediction(id=BATCH, outcome=m.OUTCOME_INVALID_INPUT)
    told = answers.line(kinds.CHAT, refused, said, expired=False)
    assert not told.good
    assert json.loads(told.raw)["response"]["body"] == json.loads(refused.form.error)
    hostile: list[bytes | None] = [
        *(None, b"\xff", b"[]", b"[" * 5000, b'{"custom_id": "\\ud800"}', b"{}"),
        *(line("a"), line(""), line("x" * 513), line("c", model="other"), line("d", model=None)),
    ]
    for one in hostile:
        assert lines.read(one) is None
    assert [error.line for error in lines.errors] == list(range(3, 3 + len(hostile)))


@pytest.mark.slow
def test_a_batch_has_so_many_lines() -> None:
    lines = reader()
    for _ in range(MAX_LINES):
        lines._n_lines += 1  # as if they had been read
    assert lines.read(line("z")) is None
    assert lines.hopeless
    assert [error.code for error in lines.errors] == ["too_many_lines"]


def test_a_row_that_was_not_run_says_why() -> None:
    row = m.Row(client_request_id="x")
    said = m.Prediction(id=BATCH, outcome=m.OUTCOME_CANCELLED)
    for expired, want in ((True, "batch_expired"), (False, "batch_cancelled")):
        told = json.loads(answers.line(kinds.CHAT, row, said, expired=expired).raw)
        assert (told["response"], told["error"]["code"]) == (None, want)


@pytest.mark.parametrize(
    ("raw", "want"),
    [(b"", ""), (b"{", ""), (b"[]", ""), (b'{"body": {"model": 5}}', ""), (line("a"), MODEL)],
)
def test_the_model_of_a_line(raw: bytes, want: str) -> None:
    assert model_of(raw) == want


def form(*parts: tuple[str, bytes]) -> bytes:
    out = b""
    for head, body in parts:
        out += b"--b\r\ncontent-disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), body)
    return out + b"--b--\r\n"


async def parsed(raw: bytes, size: int) -> tuple[Form, bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(raw), size):
            yield raw[at : at + size]

    made = Form("multipart/form-data; boundary=b")
    return made, b"".join([data async for data in made.file(pieces())])


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_form_is_read_however_it_is_cut(size: int) -> None:
    body = b"one\r\n--c\r\ntwo\r\n-" * 5
    raw = form(("name=purpose", b"batch"), ('name="file"; filename="../a/b\\c.jsonl"', body))
    made, data = await parsed(raw, size)
    assert (made.fields, made.filename, data) == ({"purpose": "batch"}, "c.jsonl", body)
    other, data = await parsed(form(('name="file"', body), ("name=purpose", b"x")), size)
    assert (other.fields, data) == ({"purpose": "x"}, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nothing",
        form(("name=purpose", b"batch")),
        form(('name="file"', b"x"))[:-6],
        form(('name="file"', b"x"), ('name="file"', b"y")),
        form(("name=purpose", b"x" * 5000), ('name="file"', b"x")),
        form(("name=purpose", b"\xff"), ('name="file"', b"x")),
        form(*[(f"name=f{at}", b"x") for at in range(20)], ('name="file"', b"x")),
        b"--b\r\n" + b"x: y\r\n" * 50 + b"\r\n\r\n--b--\r\n",
        form(*[("name=same", b"x" * 700)] * 300, ('name="file"', b"x")),
        b"--b\r\nx: " + b"y" * 9000 + b"\r\n\r\n\r\n--b--\r\n",
    ],
)
async def test_what_is_no_form_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.ParameterError):
        await parsed(raw, 700)


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_what_is_sent_as_no_form_is_refused(kind: str) -> None:
    with pytest.raises(errors.UnsupportedMediaTypeError):
        Form(kind)


def test_the_fold_of_a_batch() -> None:
    fold = BatchFold()
    fold.apply(m.JobStatus(job=m.Job(id=BATCH)), 1)
    assert fold.batch(BATCH) is None, "a plain job is none"
    batch = m.Batch(id=BATCH, tenant="acme", expires_ms=1000)
    fold.apply(m.JobStatus(batch=batch), 10)
    known = fold.batch(BATCH)
    assert known is not None
    assert known.status(None) == "validating"
    fold.apply(m.JobStatus(job=m.Job(id=BATCH)), 20)
    fold.apply(m.JobStatus(job=m.Job(id=BATCH, dispatched=True)), 30)
    assert known.accepted_ms == 20
    fold.apply(m.JobStatus(cancelled=m.JobCancelled(job=BATCH)), 500)
    assert (known.expired, known.status(None)) == (False, "cancelling")
    first = m.BatchEnded(batch=BATCH, end=m.BATCH_END_CANCELLED)
    fold.apply(m.JobStatus(batch_ended=first), 600)
    fold.apply(m.JobStatus(batch_ended=m.BatchEnded(batch=BATCH, end=m.BATCH_END_COMPLETED)), 700)
    assert (known.status(None), known.ended_ms) == ("cancelled", 600)
    assert fold.open() == []
    assert (fold.batches_of("acme"), fold.batches_of("other")) == ([known], [])
    late = BatchFold()
    late.apply(m.JobStatus(batch=batch), 10)
    late.apply(m.JobStatus(cancelled=m.JobCancelled(job=BATCH)), 1000)
    assert [one.status(None) for one in late.open()] == ["finalizing"]


def test_names_and_keys() -> None:
    assert batches.parse_file(batches.file_name(BATCH)) == BATCH
    assert batches.parse_batch(batches.batch_name(BATCH)) == BATCH
    for name in ("", "file-", "file-../x", f"file-{'A' * 32}", batches.batch_name(BATCH) + "\n"):
        assert batches.parse_file(name) is None
        assert batches.parse_batch(name) is None
    assert batches.file_of(batches.file_key(BATCH).encode()) == BATCH
    assert batches.batch_of(batches.batch_key(BATCH).encode()) == BATCH
    assert batches.batch_of(batches.ended_key(BATCH).encode()) is None
    assert batches.output_id(BATCH, "output") != batches.output_id(BATCH, "error")
    assert ids.is_uuid7(batches.output_id(BATCH, "output"))


async def test_an_error_that_nobody_foresaw_ends_the_batch() -> None:
    fold, said = BatchFold(), list[str]()

    async def say(key: str, _status: m.JobStatus) -> None:
        said.append(key)

    def resolve(*_asked: str) -> Target:
        raise TypeError("nobody foresaw it")

    around: Any = SimpleNamespace(
        fold=fold,
        job_fold=SimpleNamespace(progress=lambda *_: None),
        routes=SimpleNamespace(resolve=resolve),
        dispatcher=SimpleNamespace(say=say),
    )
    now = files.now_ms()
    made = m.Batch(id=BATCH, tenant="acme", model=MODEL, expires_ms=now + 60_000)
    fold.apply(m.JobStatus(batch=made), now)
    keeping = keeper.Keeper(around)
    (known,) = fold.open()
    keeping._look(known)
    await asyncio.gather(*keeping._working.values())
    assert known.ended is not None
    assert known.status(None) == "failed"
    assert [one.code for one in known.ended.errors] == ["internal_error"]
    assert said == [batches.ended_key(BATCH)]
    assert list(fold.open()) == []
