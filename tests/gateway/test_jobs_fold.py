"""The fold of `jobs.status`: the same whatever the order and however often a record comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway.control.jobs.fold import Fold, rows_per_s
from inferbus_schemas import ids
from inferbus_schemas import messages as m

ID = ids.uuid7(1_000_000, 1)
N_CHUNKS = 4


N_TOKENS = 700


def job(*, dispatched: bool = False, job_id: bytes = ID, tenant: str = "acme") -> m.JobStatus:
    return m.JobStatus(
        job=m.Job(
            id=job_id,
            tenant=tenant,
            model="digits",
            version=2,
            pool="default",
            n_rows=40,
            n_chunks=N_CHUNKS,
            dispatched=dispatched,
            principal="nightly",
        )
    )


def chunk(number: int, *, done: bool, cancelled: int = 0) -> m.JobStatus:
    said = m.ChunkStatus(job=ID, chunk=number, state=m.CHUNK_STATE_RUNNING, worker="w")
    if done:
        said.state, said.n_tokens = m.CHUNK_STATE_DONE, N_TOKENS
        said.n_ok, said.n_failed, said.n_cancelled = 9 - cancelled, 1, cancelled
    return m.JobStatus(chunk=said)


CANCELLED = m.JobStatus(cancelled=m.JobCancelled(job=ID))
ALL = [job(), job(dispatched=True)]
ALL += [chunk(number, done=done) for number in range(N_CHUNKS) for done in (False, True)]


def folded(records: list[m.JobStatus]) -> Fold:
    fold = Fold()
    for at, record in enumerate(records):
        fold.apply(record, 1_000_100 + at)
    return fold


@given(st.permutations(ALL), st.lists(st.sampled_from(ALL), max_size=10))
def test_order_and_doubles_do_not_matter(
    records: list[m.JobStatus], again: list[m.JobStatus]
) -> None:
    fold = folded([*records, *again])
    found = fold.progress(ID, 1_002_000)
    assert found is not None
    assert (found.state, found.n_ok, found.n_failed, found.n_chunks_done) == ("completed", 36, 4, 4)
    assert found.job.dispatched
    assert (found.left_s, found.n_done, found.finished) == (0.0, 40, True)
    for who in ("acme", "acme/nightly"):
        # 2,800 tokens take 28 minutes at 100 a minute, and one minute of them is free.
        assert fold.spent.wait_s(who, 100, 960_000) == 27 * 60
    assert fold.spent.wait_s("acme/other", 100, 960_000) == 0
    assert fold.load("acme") == (0, 0)
    assert not fold.versions()
    assert not fold.undispatched(10**9, 0)


@given(st.permutations([*ALL[:2], *ALL[2:-2]]))
def test_the_load_of_a_tenant_is_what_is_left(records: list[m.JobStatus]) -> None:
    fold = folded(records)
    other = ids.uuid7(1_000_001, 2)
    fold.apply(job(job_id=other), 1_003_000)
    fold.apply(job(job_id=ids.uuid7(1_000_002, 3), tenant="globex"), 1_003_000)
    assert fold.load("acme") == (2, 10 + 40)
    fold.forget(other)
    assert fold.load("acme") == (1, 10)
    fold.apply(ALL[-1], 1_004_000)
    assert fold.load("acme") == (0, 0)
    assert fold.load("globex") == (1, 40)
    assert fold.load("nobody") == (0, 0)


def test_a_job_from_its_acceptance_to_its_end() -> None:
    fold = Fold()
    assert fold.progress(ID, 0) is None
    fold.apply(job(), 1_000_000)
    found = fold.progress(ID, 1_000_500)
    assert found is not None
    assert (found.state, found.left_s, found.started_ms) == ("queued", None, 0)
    assert fold.versions() == {("default", "digits", 2)}
    assert fold.undispatched(1_005_000, 10_000) == []
    assert [one.id for one in fold.undispatched(1_010_001, 10_000)] == [ID]

    fold.apply(job(dispatched=True), 1_000_500)
    fold.apply(chunk(0, done=False), 1_001_000)
    fold.apply(chunk(0, done=True), 1_006_000)
    found = fold.progress(ID, 1_011_000)
    assert found is not None
    assert (found.state, found.rows_per_s, found.left_s) == ("running", 1.0, 30.0)

    fold.apply(CANCELLED, 1_012_000)
    found = fold.progress(ID, 1_012_000)
    assert found is not None
    assert found.state == "cancelling"
    for number in range(1, N_CHUNKS):
        fold.apply(chunk(number, done=True, cancelled=9), 1_013_000)
    found = fold.progress(ID, 1_020_000)
    assert found is not None
    assert (found.state, found.n_cancelled, found.finished_ms) == ("cancelled", 27, 1_013_000)
    assert found.rows_per_s == round(found.n_ok + found.n_failed) / 12, "of the whole job"
    assert [one.id for one, chunks in fold.older_than(1_000_001) if chunks == [0, 1, 2, 3]] == [ID]
    assert not fold.older_than(1_000_000)
    fold.forget(ID)
    assert ID not in fold


def test_a_job_is_kept_as_long_as_one_that_continues_it() -> None:
    """Its results are those of the rows that were not tried again."""

    def made(at_ms: int, parent: bytes = b"") -> bytes:
        job_id = ids.uuid7(at_ms, len(made_ids))
        made_ids.append(job_id)
        fold.apply(m.JobStatus(job=m.Job(id=job_id, n_chunks=1, parent=parent)), at_ms)
        done = m.ChunkStatus(job=job_id, state=m.CHUNK_STATE_DONE)
        fold.apply(m.JobStatus(chunk=done), at_ms)
        return job_id

    made_ids: list[bytes] = []
    fold = Fold()
    root, other = made(1000), made(1000)
    second = made(2000, root)
    made(2000, root)
    last = made(9000, second)
    unfinished = m.Job(id=ids.uuid7(2000, 99), n_chunks=1, parent=other)
    fold.apply(m.JobStatus(job=unfinished), 2000)

    def old(before_ms: int) -> set[bytes]:
        return {job.id for job, _ in fold.older_than(before_ms)}

    assert old(5000) == {made_ids[3]}, "another retry of the same job is nobody's parent"
    assert old(9001) == {root, second, made_ids[3], last}
    done = m.ChunkStatus(job=unfinished.id, state=m.CHUNK_STATE_DONE)
    fold.apply(m.JobStatus(chunk=done), 2000)
    assert old(9001) == {*made_ids, unfinished.id}


def test_cancelled_too_late_is_completed() -> None:
    found = folded([*ALL, CANCELLED]).progress(ID, 2_000_000)
    assert found is not None
    assert found.state == "completed"


def test_jobs_are_listed_by_tenant_newest_first() -> None:
    made = [ids.uuid7(1_000_000 + at, at) for at in range(5)]
    fold = folded(
        [job(job_id=one, tenant="acme" if at else "other") for at, one in enumerate(made)]
    )
    listed = [one.job.id for one in fold.of_tenant("acme", 0, b"", 3)]
    assert listed == [made[4], made[3], made[2]]
    assert [one.job.id for one in fold.of_tenant("acme", 0, made[2], 3)] == [made[1]]


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 512))),
    st.integers(0, 200_000),
    st.integers(0, 200_000),
)
def test_the_rate_is_of_the_last_minute(
    done: list[tuple[int, int]], started_ms: int, now_ms: int
) -> None:
    rate = rows_per_s(done, started_ms, now_ms)
    since_ms = max(started_ms, now_ms - 60_000)
    assert rate >= 0
    assert bool(rate) == any(at_ms > since_ms for at_ms, _ in done)
