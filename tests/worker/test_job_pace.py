"""The pace of jobs: full alone, small and behind beside requests, never nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferbus_worker.jobs.pace import Pace, Requests

NONE = Requests(0, float("-inf"))


def lately(last_s: float, n_rows: int = 0) -> Requests:
    """Return the requests of a worker that had one at `last_s` and has `n_rows` open."""
    return Requests(n_rows, last_s)


def learnt(least: int, most: int, row_s: float) -> Pace:
    pace = Pace(least, most)
    for _ in range(200):
        pace.took(row_s)
    return pace


def test_alone_the_engine_is_kept_full() -> None:
    pace = learnt(1, 512, 0.0009)
    first = pace.room(0, NONE, 100.0)
    assert 45 <= first <= 55
    assert pace.room(first, NONE, 100.0) == first
    assert pace.room(2 * first, NONE, 100.0) == 0


def test_beside_requests_a_few_milliseconds_at_a_time() -> None:
    pace = learnt(1, 512, 0.0009)
    assert pace.room(0, lately(100.0, 3), 100.0) == 3  # none went for long: starved
    assert pace.room(0, lately(100.0, 3), 100.1) == 0  # a request waits
    assert pace.room(3, lately(100.0), 100.1) == 0  # rows are still out
    assert pace.room(0, lately(100.0), 100.02) == 0  # the rest of the machine has its turn
    assert pace.room(0, lately(100.0), 100.1) == 3
    assert pace.room(0, lately(100.0), 101.9) == 3  # none is open, but one was lately
    assert pace.room(0, lately(100.0), 103.0) > 40  # quiet again


def test_the_longer_a_turn_took_the_longer_the_rest() -> None:
    pace = learnt(1, 512, 0.0009)
    now_s = 100.0
    for turn_s, rest_s in ((0.001, 0.04), (0.02, 0.16), (0.03, 0.24), (0.2, 0.25), (9.0, 0.25)):
        assert pace.room(0, lately(now_s), now_s) == 3
        now_s += turn_s
        pace.ended(now_s)
        assert pace.room(0, lately(now_s), now_s + rest_s - 0.001) == 0
        assert pace.room(0, lately(now_s), now_s + rest_s + 0.001) == 3
        pace.ended(now_s + rest_s + 0.001)
        now_s += 1.0


def test_slow_rows_go_one_at_a_time_or_as_many_as_run_side_by_side() -> None:
    pace = learnt(3, 3, 5.0)
    assert pace.room(0, NONE, 100.0) == 3
    assert pace.room(2, NONE, 100.0) == 1
    assert pace.room(3, NONE, 100.0) == 0
    assert pace.room(0, lately(100.5, 1), 100.5) == 1
    assert pace.room(1, lately(100.5, 1), 101.0) == 0


def test_between_answers_of_requests_rows_rest_for_seconds() -> None:
    pace = Pace(7, 7)
    assert pace.room(0, Requests(1, 90.0, 90.0), 90.0) == 1, "what a row takes is not known yet"
    pace = learnt(7, 7, 2.0)
    assert pace.room(0, NONE, 100.0) == 7
    assert pace.room(1, Requests(1, 103.0, 103.0), 103.0) == 0
    pace.ended(104.0)
    assert pace.room(0, Requests(1, 113.9, 113.9), 113.9) == 0
    assert pace.room(0, Requests(1, 114.1, 114.1), 114.1) == 1
    assert pace.room(1, Requests(1, 125.0, 125.0), 125.0) == 0
    pace.ended(125.5)
    # Requests for other engines of the worker: as before.
    assert pace.room(0, Requests(1, 125.9, 123.0), 125.9) == 1
    pace.ended(126.0)
    assert pace.room(0, Requests(0, 126.0, 126.0), 128.1) == 7


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 2), st.floats(0.001, 1.0), st.floats(0, 10))
    )
)
def test_never_too_many_and_never_stuck(steps: list[tuple[int, int, float, float]]) -> None:
    pace = Pace(1, 64)
    now_s = 50.0
    for n_out, interactive, step_s, row_s in steps:
        now_s += step_s
        assert (
            0 <= pace.room(n_out, lately(now_s, interactive), now_s) <= max(0, 64 - min(n_out, 64))
        )
        pace.took(row_s)
        pace.ended(now_s + row_s / 100)
    assert pace.room(0, lately(now_s, 1), now_s + 1.0) >= 1
    assert pace.room(0, NONE, now_s + 10.0) >= 1
