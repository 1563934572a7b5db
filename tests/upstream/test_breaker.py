"""The circuit breaker as a state machine: any sequence of outcomes and pauses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.breaker import PROBE_SECONDS, Breaker, Permit, Rejected

FAILURES, OPEN_SECONDS = 3, 10.0


def opened(*, failures: int = FAILURES, now: float = 0.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(failures=failures, open_seconds=OPEN_SECONDS)
    for _ in range(failures):
        breaker.fail(acquire(breaker, now), now)
    assert breaker.is_open
    return breaker


def acquire(breaker: Breaker, now: float) -> Permit:
    permit = breaker.acquire(now)
    assert isinstance(permit, Permit)
    return permit


def test_it_opens_at_the_last_failure_in_succession_and_not_before() -> None:
    breaker = Breaker(failures=FAILURES, open_seconds=OPEN_SECONDS)
    for _ in range(FAILURES):
        assert not breaker.is_open
        breaker.fail(acquire(breaker, 5.0), 5.0)
    assert breaker.acquire(5.0) == Rejected(OPEN_SECONDS)


def test_a_success_resets_the_count_of_failures() -> None:
    breaker = Breaker(failures=2, open_seconds=OPEN_SECONDS)
    for _ in range(10):
        breaker.fail(acquire(breaker, 0.0), 0.0)
        acquire(breaker, 0.0)
        breaker.succeed()
    assert not breaker.is_open


def test_with_zero_failures_it_never_opens() -> None:
    breaker = Breaker(failures=0, open_seconds=OPEN_SECONDS)
    for _ in range(100):
        breaker.fail(acquire(breaker, 0.0), 0.0)
    assert not breaker.is_open


def test_a_rejection_says_when_to_retry() -> None:
    breaker = opened()
    assert breaker.acquire(7.5) == Rejected(2.5)
    assert breaker.acquire(9.75) == Rejected(0.25)


def test_half_open_permits_one_probe_and_rejects_the_others() -> None:
    breaker = opened()
    assert acquire(breaker, OPEN_SECONDS).probe == 1
    assert breaker.acquire(OPEN_SECONDS) == Rejected(OPEN_SECONDS)
    assert breaker.acquire(OPEN_SECONDS + 30) == Rejected(OPEN_SECONDS)
    assert breaker.is_open


def test_a_successful_probe_closes_it() -> None:
    breaker = opened()
    acquire(breaker, 10.0)
    breaker.succeed()
    assert breaker.acquire(10.0) == Permit()


def test_a_failed_probe_reopens_it_for_the_whole_time() -> None:
    breaker = opened()
    breaker.fail(acquire(breaker, 10.0), 15.0)
    assert breaker.acquire(15.0) == Rejected(OPEN_SECONDS)
    assert acquire(breaker, 25.0).probe == 2


def test_a_cancelled_probe_permits_the_next_one_at_once() -> None:
    breaker = opened()
    breaker.abandon(acquire(breaker, 10.0), 12.0)
    assert acquire(breaker, 12.0).probe == 2


def test_a_probe_that_never_ends_does_not_block_purchases_for_ever() -> None:
    breaker = opened()
    lost = acquire(breaker, 10.0)
    assert breaker.acquire(10.0 + PROBE_SECONDS - 1) == Rejected(1.0)
    second = acquire(breaker, 10.0 + PROBE_SECONDS)
    breaker.fail(lost, 11.0 + PROBE_SECONDS)
    breaker.abandon(lost, 11.0 + PROBE_SECONDS)
    assert isinstance(breaker.acquire(11.0 + PROBE_SECONDS), Rejected)
    breaker.fail(second, 12.0 + PROBE_SECONDS)
    assert breaker.acquire(12.0 + PROBE_SECONDS) == Rejected(OPEN_SECONDS)


@pytest.mark.parametrize("end", ["fail", "abandon"])
def test_purchases_sent_before_it_opened_do_not_prolong_it(end: str) -> None:
    breaker = Breaker(failures=2, open_seconds=OPEN_SECONDS)
    sent = [acquire(breaker, 0.0) for _ in range(3)]
    breaker.fail(sent[0], 0.0)
    breaker.fail(sent[1], 0.0)
    getattr(breaker, end)(sent[2], 9.0)
    assert breaker.acquire(9.0) == Rejected(1.0)


def test_a_response_to_a_purchase_sent_before_it_opened_closes_it() -> None:
    breaker = opened()
    breaker.succeed()
    assert breaker.acquire(1.0) == Permit()


# ── any sequence ────────────────────────────────────────────────────────────────────────────


@dataclass
class Model:
    """The documented behaviour, written as plainly as possible."""

    state: Literal["closed", "open", "half-open"] = "closed"
    failures: int = 0
    since: float = 0.0
    probe: int = -1
    """Index of the purchase that probes."""
    running: list[int] = field(default_factory=list)

    def may_send(self, now: float) -> bool:
        if self.state == "closed":
            return True
        wait = OPEN_SECONDS if self.state == "open" else PROBE_SECONDS
        return now >= self.since + wait

    def acquired(self, purchase: int, now: float) -> None:
        self.running.append(purchase)
        if self.state != "closed":
            self.state, self.since, self.probe = "half-open", now, purchase

    def ended(self, purchase: int, how: str, now: float) -> None:
        self.running.remove(purchase)
        decides = self.state == "half-open" and purchase == self.probe
        if how == "succeed":
            self.state, self.failures = "closed", 0
        elif how == "fail" and self.state == "closed":
            self.failures += 1
            if self.failures == FAILURES:
                self.state, self.since = "open", now
        elif how == "fail" and decides:
            self.state, self.since = "open", now
        elif how == "abandon" and decides:
            self.state, self.since = "open", now - OPEN_SECONDS


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([1, 5, 9, 10, 11, 60])),
        st.tuples(st.sampled_from(["fail", "fail", "succeed", "abandon"]), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(STEPS)
def test_any_sequence_agrees_with_the_model(steps: list[tuple[str, int]]) -> None:
    breaker = Breaker(failures=FAILURES, open_seconds=OPEN_SECONDS)
    model, permits, now = Model(), list[Permit](), 0.0
    for step, number in steps:
        if step == "wait":
            now += number
        elif step == "acquire":
            permit = breaker.acquire(now)
            assert isinstance(permit, Permit) == model.may_send(now)
            if isinstance(permit, Permit):
                model.acquired(len(permits), now)
                permits.append(permit)
            else:
                assert 0 < permit.retry_after_seconds <= OPEN_SECONDS
        elif model.running:
            purchase = model.running[number % len(model.running)]
            end(breaker, permits[purchase], how=step, now=now)
            model.ended(purchase, step, now)
        assert breaker.is_open == (model.state != "closed")
    assert isinstance(breaker.acquire(now + PROBE_SECONDS), Permit)  # it never blocks for ever


def end(breaker: Breaker, permit: Permit, *, how: str, now: float) -> None:
    if how == "succeed":
        breaker.succeed()
    elif how == "fail":
        breaker.fail(permit, now)
    else:
        breaker.abandon(permit, now)
