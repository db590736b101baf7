"""What is open of submissions: frames that are filled, rows, tenants that are left unread."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from inferbus_gateway import errors
from inferbus_gateway.hot import submission_work, submitted
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Signature, TensorSpec


def test_a_frame_holds_what_it_says_it_holds() -> None:
    lease: Any = None
    draft = submission_work.Draft(lease)
    place = submitted.Place("t", 16, 4 << 20, 4096)
    record: Any = SimpleNamespace(topic="t", partition=0, offset=0, timestamp=1, headers=())
    one = m.SubmittedRequest(client_request_id="x" * 256)
    said = m.Submission(requests=[one] * 2000)
    for made in submitted.requests(said, record, place):
        if not draft.takes(made):
            break
        draft.add(None, made)  # type: ignore[arg-type]
    assert len(draft.members) == 64
    frame = m.RequestFrame(requests=[made.request for _, made in draft.members])
    assert draft.n_bytes <= frame.ByteSize() <= draft.n_bytes + 8 * 64
    big = m.Tensor(name="x", datatype="FP32", shape=[2**62], data=bytes(600_000))
    said = m.Submission(requests=[m.SubmittedRequest(inputs=m.TensorSet(tensors=[big]))] * 2)
    draft = submission_work.Draft(lease)
    first, second = submitted.requests(said, record, place)
    assert draft.takes(first)
    draft.add(None, first)  # type: ignore[arg-type]
    assert not draft.takes(second)
    assert first.n_rows <= 600_001, "a shape is only a word until a worker has checked it"


@pytest.mark.parametrize("over", [0, 1])
def test_a_frame_holds_768_kib(over: int) -> None:
    lease: Any = None
    draft = submission_work.Draft(lease)

    def made(n_bytes: int) -> submitted.Submitted:
        """Return a request that is so many bytes in a frame."""
        request = m.Request(tensors=bytes(n_bytes))
        request.tensors = bytes(n_bytes - (request.ByteSize() - n_bytes))
        assert request.ByteSize() == n_bytes
        return submitted.Submitted(request, None, 1, 1)

    first = made(300_000)
    assert draft.takes(first)
    draft.add(None, first)  # type: ignore[arg-type]
    assert draft.takes(made(786_432 - 300_000 + over)) == (not over)


@pytest.mark.parametrize(("rows", "refused"), [(-1, True), (5, False)])
def test_a_request_has_no_more_rows_than_the_gateway_says(rows: int, refused: bool) -> None:  # noqa: FBT001
    place = submitted.Place("t", 16, 4 << 20, 4)
    record: Any = SimpleNamespace(topic="t", partition=0, offset=0, timestamp=1, headers=())
    five = m.Tensor(name="x", datatype="UINT8", shape=[5], data=bytes(5))
    said = m.Submission(
        requests=[m.SubmittedRequest(model="m", inputs=m.TensorSet(tensors=[five]))]
    )
    (one,) = submitted.requests(said, record, place)
    signature = Signature((TensorSpec("x", "UINT8", (rows,)),), ())
    manifest = SimpleNamespace(signature=signature)
    target = SimpleNamespace(manifest=manifest, version=1, pool="default", counts_tokens=True)
    routes: Any = SimpleNamespace(resolve=lambda _model, _version: target)
    if not refused:
        assert submitted.pin(one, routes, place) == "default"
        assert one.request.owes_tokens
        return
    with pytest.raises(errors.TooManyRowsError, match="5 rows are more than the 4") as caught:
        submitted.pin(one, routes, place)
    assert (caught.value.code, caught.value.http_status) == ("too_many_rows", 413)


def test_partitions_are_left_unread_by_tenant_and_of_no_other() -> None:
    places = [TopicPartition(topic, number) for topic in ("a", "b", "c") for number in range(2)]
    parts = {place: submission_work.Partition(0) for place in places}
    assert submission_work.crowded(parts, places) == set()
    parts[places[0]].open_bytes = submission_work.MAX_TENANT_BYTES - 1
    assert submission_work.crowded(parts, places) == set()
    parts[places[1]].open_bytes = 1
    assert submission_work.crowded(parts, places) == set(places[:2])
    assert submission_work.crowded(parts, places[1:]) == {places[1]}, "only what is ours"
    for place in places[:4]:
        parts[place].open_bytes = submission_work.MAX_OPEN_BYTES
    assert submission_work.crowded(parts, places) == set(places[:4]), "not the third's"


@pytest.mark.parametrize(("n_tenants", "share"), [(1, 16), (4, 16), (8, 8), (64, 1), (200, 1)])
def test_a_tenants_share_of_what_is_read_ahead(n_tenants: int, share: int) -> None:
    places = [TopicPartition(f"t{number}", 0) for number in range(n_tenants)]
    parts = {places[0]: submission_work.Partition(0)}
    parts[places[0]].open_bytes = (share << 20) - 1
    assert submission_work.crowded(parts, places) == set()
    parts[places[0]].open_bytes += 1
    assert submission_work.crowded(parts, places) == {places[0]}


def test_an_allowance_is_so_many_a_second_and_as_many_at_once() -> None:
    allowance = submission_work.Allowance(10)
    assert [allowance.take(5.0) for _ in range(11)] == [True] * 10 + [False]
    assert [allowance.take(5.25) for _ in range(3)] == [True] * 2 + [False]
    assert [allowance.take(99.0) for _ in range(11)] == [True] * 10 + [False]
    assert not allowance.take(98.0), "a clock that goes back gives nothing"
