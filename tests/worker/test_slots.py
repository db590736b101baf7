"""Slots of an engine: whose they were, which one is taken, and what of it may be used again."""

from __future__ import annotations

import contextlib
import threading

from hypothesis import given
from hypothesis import strategies as st

from inferbus_worker.engines.slots import Slots, _n_alike


def ask(slots: Slots, tenant: str, prompt: str) -> tuple[int, bool]:
    with slots.held(tenant, prompt) as held:
        held.read = True
        return held.number, held.theirs


def test_a_tenant_goes_on_where_it_was_and_another_begins_anew() -> None:
    slots = Slots(3)
    first, theirs = ask(slots, "a", "once upon a time")
    assert not theirs
    assert ask(slots, "a", "once upon a time there was") == (first, True)
    other, theirs = ask(slots, "b", "once upon a time there was")
    assert (other != first, theirs) == (True, False)
    assert ask(slots, "a", "once upon a time there was") == (first, True)


def test_of_its_own_a_tenant_gets_the_one_that_begins_most_alike() -> None:
    slots = Slots(2)
    fox_asked, bears_asked = "a long story of a fox", "a long story of bears"
    with slots.held("a", fox_asked) as one, slots.held("a", bears_asked) as other:
        one.read = other.read = True
    fox, bears = 0, 1
    assert ask(slots, "a", "a long story of bears and more") == (bears, True)
    assert ask(slots, "a", "a long story of a fox and more") == (fox, True)
    assert ask(slots, "a", "nothing of all that") == (bears, True), "the older one"


def test_where_all_are_others_the_oldest_is_read_anew() -> None:
    slots = Slots(2)
    taken = [ask(slots, name, name * 50)[0] for name in "ab"]
    assert ask(slots, "c", "a" * 50) == (taken[0], False)
    assert ask(slots, "a", "a" * 50) == (taken[1], False)


def test_a_prompt_that_was_not_read_makes_no_slot_its_tenants() -> None:
    slots = Slots(1)
    ask(slots, "a", "x" * 50)
    with slots.held("b", "x" * 50):
        pass
    assert ask(slots, "b", "x" * 50) == (0, False)
    with contextlib.suppress(RuntimeError), slots.held("b", "x" * 50):
        raise RuntimeError
    assert ask(slots, "b", "x" * 50) == (0, False)


def test_a_jobs_row_stands_behind_requests_whatever_else_is_free() -> None:
    """The engine reads prompts in the order of its slots: no request waits for a row's."""
    slots = Slots(3)
    for _ in range(4):  # so that each was somebody's
        ask(slots, "a", "a long story")
        with slots.held("a", "a long story", of_row=True) as row:
            row.read = True
            assert row.number == 2
            with slots.held("b", "b") as first, slots.held("a", "a long story") as second:
                assert {first.number, second.number} == {0, 1}
    with slots.held("a", "x", of_row=True) as last, slots.held("a", "y", of_row=True) as row:
        assert (last.number, row.number) == (2, 1)
        assert ask(slots, "b", "z")[0] == 0


def test_a_slot_is_held_by_one_and_the_next_waits_for_it() -> None:
    slots = Slots(1)
    got: list[tuple[int, bool]] = []
    with contextlib.ExitStack() as held:
        held.enter_context(slots.held("a", "x"))
        waiting = threading.Thread(target=lambda: got.append(ask(slots, "b", "x")))
        waiting.start()
        waiting.join(0.1)
        assert not got
    waiting.join(10)
    assert got == [(0, False)]


@given(st.text("ab", max_size=30), st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_how_far_two_texts_are_alike(start: str, one: str, other: str) -> None:
    n = _n_alike(start + one, start + other)
    assert n >= len(start)
    assert (start + one)[:n] == (start + other)[:n]
    assert (start + one)[n : n + 1] != (start + other)[n : n + 1] or not (start + one)[n:]
