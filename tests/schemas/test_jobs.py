"""Ids of rows and keys of records, as every gateway and worker derives them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_schemas import ids, jobs

job_ids = st.builds(ids.uuid7, st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 80) - 1))


@given(job_ids, st.integers(0, 10_000_000), st.integers(0, 10_000_000))
def test_a_row_has_one_id_of_its_jobs_time(job_id: bytes, one: int, other: int) -> None:
    found = jobs.row_id(job_id, one)
    assert found == jobs.row_id(job_id, one)
    assert ids.is_uuid7(found)
    assert ids.unix_ms(found) == ids.unix_ms(job_id)
    assert (found == jobs.row_id(job_id, other)) == (one == other)
    assert 0 <= jobs.row_partition(found, 16) < 16


def test_the_rule_of_row_ids_is_fixed() -> None:
    """Predictions that were written by it are in logs."""
    job_id = bytes.fromhex("01a218ed6c2b7123b887755a3d43693b")
    digest = hashlib.sha256(job_id + (5).to_bytes(8, "big")).digest()
    want = ids.uuid7(0x01A218ED6C2B, int.from_bytes(digest[:10], "big"))
    assert jobs.row_id(job_id, 5) == want
    assert jobs.row_partition(bytes(range(16)), 16) == 0xCECEE288 % 16


@given(job_ids)
def test_an_id_reads_back(job_id: bytes) -> None:
    assert jobs.parse_id(jobs.job_key(job_id)) == job_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "01a218ed-6c2b-7123-b887-755a3d43693",
        "01A218ED-6C2B-7123-B887-755A3D43693B",
        "01a218ed6c2b7123b887755a3d43693b",
        "{01a218ed-6c2b-7123-b887-755a3d43693b}",
        "01a218ed-6c2b-4123-b887-755a3d43693b",
        "../../etc/passwd",
    ],
)
def test_what_is_no_id_is_none(text: str) -> None:
    assert jobs.parse_id(text) is None


def test_keys_and_paths_of_one_job_differ() -> None:
    job_id = ids.uuid7(1, 1)
    found = [
        jobs.job_key(job_id),
        jobs.chunk_key(job_id, 1),
        jobs.cancelled_key(job_id),
        jobs.job_path(job_id),
        jobs.cancel_path(job_id),
        jobs.results_path(job_id, 1),
        jobs.done_path(job_id, 1),
        jobs.attempt_path(job_id, 1, 1),
        jobs.attempt_path(job_id, 1, 2),
    ]
    assert len(set(found)) == len(found)
