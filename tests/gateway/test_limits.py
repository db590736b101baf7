"""Limits: the pure count against a reference model, with any order of answers and none."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inferbus_gateway import errors
from inferbus_gateway.hot.limits import LEASE_S, Ask, Limits, Part, Quota
from inferbus_schemas import access
from inferbus_schemas import messages as m
from tests.support.gcra import Gcra

ALONE = Part(1.0, shared=False)
ONE = Part(1.0, shared=True)


def caller(rate: float, burst: int, name: str = "key:1", tenant: str = "acme") -> access.Principal:
    limits = m.Limits(requests_per_s=rate, burst=burst)
    return access.principal(tenant, name, ["infer:*"], limits=limits)


class Shared:
    """A shared count in virtual time, and the gateways that ask it."""

    def __init__(self, rate: float, burst: int, n_gateways: int) -> None:
        self.count = Gcra(rate, burst)
        self.part = Part(1.0 / n_gateways, shared=True)
        self.quotas = [Quota(rate, burst, self.part, 0.0) for _ in range(n_gateways)]
        self.open: list[Ask | None] = [None] * n_gateways
        self.accepted = 0

    def take(self, number: int, now_s: float) -> None:
        quota = self.quotas[number]
        self.accepted += quota.take(self.part, now_s) == 0.0
        if quota.due(now_s) and self.open[number] is None:
            self.open[number] = quota.ask(now_s)

    def answer(self, number: int, now_s: float) -> None:
        asked = self.open[number]
        if asked is not None:
            granted, room = self.count.spend(asked.owed, asked.want, now_s)
            self.quotas[number].answered(granted, room, self.part, now_s)
            self.open[number] = None

    def lose(self, number: int) -> None:
        if self.open[number] is not None:
            self.quotas[number].unanswered()
            self.open[number] = None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "many", "answer", "lose"]),
        st.integers(0, 3),
        st.floats(0, 0.3, allow_nan=False),
    ),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(rate=st.floats(0.5, 2000), burst=st.integers(1, 300), steps=STEPS)
@example(rate=20.0, burst=2, steps=[("many", 0, 0.0), ("answer", 0, 0.0), ("take", 0, 0.0)])
def test_one_gateway_never_accepts_more_than_the_limit(
    rate: float, burst: int, steps: list[tuple[str, int, float]]
) -> None:
    """Whatever is asked and answered when: burst and the rate times the time, and no more."""
    shared = Shared(rate, burst, 1)
    now_s = 0.0
    for what, _, wait_s in steps:
        now_s += wait_s
        if what == "answer":
            shared.answer(0, now_s)
        elif what == "lose":
            shared.lose(0)
        else:
            for _ in range(1 if what == "take" else 40):
                shared.take(0, now_s)
        assert shared.accepted <= burst + rate * now_s + 1e-6


@settings(max_examples=200, deadline=None)
@given(rate=st.floats(0.5, 2000), burst=st.integers(1, 300), steps=STEPS)
def test_several_gateways_are_bounded_however_late_the_answers(
    rate: float, burst: int, steps: list[tuple[str, int, float]]
) -> None:
    """Each runs ahead by its share or by one, and is debited for it with the next answer."""
    shared = Shared(rate, burst, 4)
    now_s = 0.0
    for what, number, wait_s in steps:
        now_s += wait_s
        if what in {"answer", "lose"}:
            # An answer that is lost is one that every gateway waits for no longer.
            shared.answer(number, now_s)
        else:
            for _ in range(1 if what == "take" else 40):
                shared.take(number, now_s)
        # A gateway that hears nothing may each time be one ahead, at the full rate.
        assert shared.accepted <= 2 * burst + 4 * rate * now_s + 4


@given(rate=st.floats(0.5, 2000), burst=st.integers(4, 300), gaps=st.lists(st.floats(0, 1)))
def test_without_answers_the_gateways_together_keep_the_limit(
    rate: float, burst: int, gaps: list[float]
) -> None:
    part = Part(0.25, shared=False)
    quotas = [Quota(rate, burst, part, 0.0) for _ in range(4)]
    accepted, now_s = 0, 0.0
    for gap_s in gaps:
        now_s += gap_s
        for quota in quotas:
            accepted += sum(quota.take(part, now_s) == 0.0 for _ in range(50))
            quota.due(now_s)
            quota.unanswered()
    assert accepted <= burst + rate * now_s + 1e-6


def test_an_idle_caller_gets_its_whole_burst_at_once() -> None:
    shared = Shared(100.0, 50, 1)
    for _ in range(60):
        shared.take(0, 10.0)
    assert shared.accepted == 50


def test_a_steady_rate_at_the_limit_is_never_refused() -> None:
    shared = Shared(100.0, 5, 2)
    for number in range(500):
        now_s = number / 100.0
        shared.take(0, now_s)
        shared.answer(0, now_s + 0.001)
    assert shared.accepted == 500, "the other gateway's share is free, and the count says so"


def test_a_slow_rate_is_not_starved_by_the_number_of_gateways() -> None:
    shared = Shared(1.0, 1, 4)
    for second in range(20):
        shared.take(second % 4, float(second))
        for number in range(4):
            shared.answer(number, second + 0.001)
    assert shared.accepted >= 19


def test_what_a_quiet_gateway_holds_is_not_added_to_a_burst() -> None:
    quota = Quota(1000.0, 64, ONE, 0.0)
    count = Gcra(1000.0, 64)
    assert quota.take(ONE, 0.0) == 0.0
    asked = quota.ask(0.0)
    quota.answered(*count.spend(asked.owed, asked.want, 0.0), ONE, 0.0)
    later_s = LEASE_S + 1.0
    got = sum(quota.take(ONE, later_s) == 0.0 for _ in range(500))
    assert got == 64


def test_the_wait_that_is_told_is_enough() -> None:
    quota = Quota(2.0, 1, ALONE, 0.0)
    assert quota.take(ALONE, 0.0) == 0.0
    wait_s = quota.take(ALONE, 0.1)
    assert math.isclose(wait_s, 0.4)
    assert quota.take(ALONE, 0.1 + wait_s + 1e-9) == 0.0


def test_key_and_tenant_are_counted_and_a_refusal_spends_nothing() -> None:
    limits = Limits(tenant_rate_per_s=1.0, tenant_burst=2)
    limits.take(caller(1.0, 10), 0.0)
    limits.take(caller(1.0, 10, "key:2"), 0.0)
    for _ in range(5):
        with pytest.raises(errors.RateLimitedError) as refused:
            limits.take(caller(1.0, 10), 0.0)
    assert refused.value.retry_after_s == 1.0
    # Nine of the key's ten are left: the tenant's refusals cost it nothing.
    other = caller(1.0, 10, tenant="globex")
    limits.take(other, 0.0)
    owed = {name: quota.owed for name, quota in limits.due().items()}
    assert owed["acme/key:1"] == 1
    assert owed["acme"] == 2


def test_many_are_spent_together_or_not_at_all() -> None:
    limits = Limits(tenant_rate_per_s=1.0, tenant_burst=6)
    ada = caller(1.0, 10)
    assert limits.at_once(ada, 100) == 6
    assert limits.at_once(access.ANONYMOUS, 5) == 5
    limits.take(ada, 0.0, 4)
    with pytest.raises(errors.RateLimitedError) as refused:
        limits.take(ada, 0.0, 4)
    assert refused.value.retry_after_s == 2.0, "as long as it takes until all of them fit"
    limits.take(ada, 0.0, 2)
    limits.take(ada, 2.0, 2)
    assert {name: quota.owed for name, quota in limits.due().items()} == {
        "acme/key:1": 8,
        "acme": 8,
    }


def test_leased_ones_count_where_many_are_spent() -> None:
    quota = Quota(100.0, 50, ONE, 0.0)
    count = Gcra(100.0, 50)
    asked = quota.ask(0.0)
    quota.answered(*count.spend(asked.owed, asked.want, 0.0), ONE, 0.0)
    assert quota.take(ONE, 0.0, 51) == pytest.approx(0.01)
    assert quota.take(ONE, 0.0, 50) == 0.0
    assert quota.take(ONE, 0.0) == pytest.approx(0.01)


def writer(tokens_per_min: int) -> access.Principal:
    limits = m.Limits(tokens_per_min=tokens_per_min)
    return access.principal("acme", "key:1", ["infer:*"], limits=limits)


def test_tokens_are_charged_when_they_are_known() -> None:
    limits = Limits()
    ada = writer(600)
    for _ in range(3):
        limits.check_tokens(ada, 0.0)
    limits.charge(ada, 900, 0.0)
    with pytest.raises(errors.RateLimitedError) as refused:
        limits.check_tokens(ada, 0.0)
    assert refused.value.retry_after_s == pytest.approx(30.1), "300 too many, at 10 a second"
    limits.take(ada, 0.0)
    limits.check_tokens(ada, 30.2)
    assert {name: quota.owed for name, quota in limits.due().items()} == {"acme/key:1#tokens": 900}


def test_the_tokens_of_a_tenant_are_those_of_all_its_keys() -> None:
    limits = Limits(tenant_tokens_per_min=60)
    ada, bob = writer(0), access.principal("acme", "key:2", ["infer:*"])
    limits.check_tokens(ada, 0.0)
    limits.charge(ada, 100, 0.0)
    for caller_ in (ada, bob):
        with pytest.raises(errors.RateLimitedError):
            limits.check_tokens(caller_, 0.0)
    limits.check_tokens(access.ANONYMOUS, 0.0)


def test_owed_tokens_reach_the_shared_count_whole() -> None:
    quota = Quota(10.0, 600, ONE, 0.0, ahead=False)
    count = Gcra(10.0, 600)
    quota.charge(2000, ONE, 0.0)
    assert quota.due(0.0)
    asked = quota.ask(0.0)
    assert asked == Ask(owed=2000, want=0)
    quota.answered(*count.spend(asked.owed, asked.want, 0.0), ONE, 0.0)
    assert quota.owed == 0
    assert quota.wait_s(ONE, 0.0) == pytest.approx(140.1)
    assert quota.wait_s(ONE, 140.2) == 0.0


def test_who_has_no_limit_costs_nothing() -> None:
    limits = Limits()
    for _ in range(1000):
        limits.take(access.ANONYMOUS, 0.0)
    assert not limits.due()
    assert not limits._quotas


@pytest.mark.parametrize("shared", [False, True])
def test_nobody_is_forgiven_by_being_idle(shared: bool) -> None:  # noqa: FBT001
    """A client that comes back every 72 s gets in ten hours what its limits say, and no more."""
    limits = Limits()
    limits.part.shared = shared
    slow = caller(1 / 3600, 1)
    talker = access.principal("t", "key:2", ["infer:*"], limits=m.Limits(tokens_per_min=60))
    counts: dict[str, Gcra] = {}
    n_requests = n_tokens = 0
    now_s = 0.0
    while now_s < 36_000:
        with contextlib.suppress(errors.RateLimitedError):
            limits.take(slow, now_s)
            n_requests += 1
        with contextlib.suppress(errors.RateLimitedError):
            limits.check_tokens(talker, now_s)
            limits.charge(talker, 2000, now_s)
            n_tokens += 2000
        if shared:
            for name, quota in limits.due().items():
                count = counts.setdefault(name, Gcra(quota.rate_per_s, quota.burst))
                asked = quota.ask(now_s)
                quota.answered(
                    *count.spend(asked.owed, asked.want, now_s), limits.part, now_s + 0.01
                )
        for later_s in range(10, 72, 10):
            limits.forget_idle(now_s + later_s)
        now_s += 72
    assert n_requests == 10
    assert 36_000 <= n_tokens <= 36_000 + 60 + 2000
    limits.forget_idle(now_s + 3600)
    assert not limits._quotas


def test_a_changed_limit_holds_at_once_and_idle_ones_are_forgotten() -> None:
    limits = Limits()
    limits.take(caller(1.0, 1), 0.0)
    with pytest.raises(errors.RateLimitedError):
        limits.take(caller(1.0, 1), 0.0)
    limits.take(caller(5.0, 5), 0.0)
    limits.forget_idle(30.0)
    assert limits._quotas
    limits.forget_idle(61.0)
    assert not limits._quotas
    assert not limits.due()
