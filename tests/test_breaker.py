"""The circuit breaker as a machine of its own: every sequence of ends and pauses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.breaker import TRIAL_SECONDS, Breaker, Pass, Refused

FAILURES, OPEN_SECONDS = 3, 10.0


def opened(*, failures: int = FAILURES, now: float = 0.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(failures=failures, open_seconds=OPEN_SECONDS)
    for _ in range(failures):
        breaker.fail(let_in(breaker, now), now)
    assert breaker.is_open
    return breaker


def let_in(breaker: Breaker, now: float) -> Pass:
    entered = breaker.enter(now)
    assert isinstance(entered, Pass)
    return entered


def test_it_opens_at_the_last_failure_of_a_row_and_not_before() -> None:
    breaker = Breaker(failures=FAILURES, open_seconds=OPEN_SECONDS)
    for _ in range(FAILURES):
        assert not breaker.is_open
        breaker.fail(let_in(breaker, 5.0), 5.0)
    assert breaker.enter(5.0) == Refused(OPEN_SECONDS)


def test_a_success_in_between_begins_the_row_anew() -> None:
    breaker = Breaker(failures=2, open_seconds=OPEN_SECONDS)
    for _ in range(10):
        breaker.fail(let_in(breaker, 0.0), 0.0)
        let_in(breaker, 0.0)
        breaker.succeed()
    assert not breaker.is_open


def test_zero_failures_are_a_breaker_that_never_opens() -> None:
    breaker = Breaker(failures=0, open_seconds=OPEN_SECONDS)
    for _ in range(100):
        breaker.fail(let_in(breaker, 0.0), 0.0)
    assert not breaker.is_open


def test_a_refusal_says_how_long_it_still_lasts() -> None:
    breaker = opened()
    assert breaker.enter(7.5) == Refused(2.5)
    assert breaker.enter(9.75) == Refused(0.25)


def test_one_tries_and_the_others_wait_for_it() -> None:
    breaker = opened()
    assert let_in(breaker, OPEN_SECONDS).trial == 1
    assert breaker.enter(OPEN_SECONDS) == Refused(OPEN_SECONDS)
    assert breaker.enter(OPEN_SECONDS + 30) == Refused(OPEN_SECONDS)
    assert breaker.is_open


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = opened()
    let_in(breaker, 10.0)
    breaker.succeed()
    assert breaker.enter(10.0) == Pass()


def test_a_trial_that_fails_opens_it_for_as_long_again() -> None:
    breaker = opened()
    breaker.fail(let_in(breaker, 10.0), 15.0)
    assert breaker.enter(15.0) == Refused(OPEN_SECONDS)
    assert let_in(breaker, 25.0).trial == 2


def test_a_trial_that_is_cancelled_lets_the_next_one_try_at_once() -> None:
    breaker = opened()
    breaker.abandon(let_in(breaker, 10.0), 12.0)
    assert let_in(breaker, 12.0).trial == 2


def test_a_trial_that_never_ends_does_not_keep_the_others_out() -> None:
    breaker = opened()
    lost = let_in(breaker, 10.0)
    assert breaker.enter(10.0 + TRIAL_SECONDS - 1) == Refused(1.0)
    second = let_in(breaker, 10.0 + TRIAL_SECONDS)
    breaker.fail(lost, 11.0 + TRIAL_SECONDS)
    breaker.abandon(lost, 11.0 + TRIAL_SECONDS)
    assert isinstance(breaker.enter(11.0 + TRIAL_SECONDS), Refused)
    breaker.fail(second, 12.0 + TRIAL_SECONDS)
    assert breaker.enter(12.0 + TRIAL_SECONDS) == Refused(OPEN_SECONDS)


@pytest.mark.parametrize("end", ["fail", "abandon"])
def test_those_who_were_sent_before_it_opened_do_not_keep_it_open(end: str) -> None:
    breaker = Breaker(failures=2, open_seconds=OPEN_SECONDS)
    sent = [let_in(breaker, 0.0) for _ in range(3)]
    breaker.fail(sent[0], 0.0)
    breaker.fail(sent[1], 0.0)
    getattr(breaker, end)(sent[2], 9.0)
    assert breaker.enter(9.0) == Refused(1.0)


def test_whoever_was_sent_before_it_opened_may_still_show_that_the_service_is_there() -> None:
    breaker = opened()
    breaker.succeed()
    assert breaker.enter(1.0) == Pass()


# ── any sequence ────────────────────────────────────────────────────────────────────────────


@dataclass
class Model:
    """The same in as many words as the contract has for it."""

    state: Literal["closed", "resting", "trying"] = "closed"
    row: int = 0
    since: float = 0.0
    trier: int = -1
    """Index of the request that tries."""
    under_way: list[int] = field(default_factory=list)

    def may_enter(self, now: float) -> bool:
        if self.state == "closed":
            return True
        patience = OPEN_SECONDS if self.state == "resting" else TRIAL_SECONDS
        return now >= self.since + patience

    def entered(self, who: int, now: float) -> None:
        self.under_way.append(who)
        if self.state != "closed":
            self.state, self.since, self.trier = "trying", now, who

    def ended(self, who: int, how: str, now: float) -> None:
        self.under_way.remove(who)
        decides = self.state == "trying" and who == self.trier
        if how == "succeed":
            self.state, self.row = "closed", 0
        elif how == "fail" and self.state == "closed":
            self.row += 1
            if self.row == FAILURES:
                self.state, self.since = "resting", now
        elif how == "fail" and decides:
            self.state, self.since = "resting", now
        elif how == "abandon" and decides:
            self.state, self.since = "resting", now - OPEN_SECONDS


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([1, 5, 9, 10, 11, 60])),
        st.tuples(st.sampled_from(["fail", "fail", "succeed", "abandon"]), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_does_what_the_model_does(steps: list[tuple[str, int]]) -> None:
    breaker = Breaker(failures=FAILURES, open_seconds=OPEN_SECONDS)
    model, passes, now = Model(), list[Pass](), 0.0
    for step, number in steps:
        if step == "wait":
            now += number
        elif step == "enter":
            entered = breaker.enter(now)
            assert isinstance(entered, Pass) == model.may_enter(now)
            if isinstance(entered, Pass):
                model.entered(len(passes), now)
                passes.append(entered)
            else:
                assert 0 < entered.seconds <= OPEN_SECONDS
        elif model.under_way:
            who = model.under_way[number % len(model.under_way)]
            end(breaker, passes[who], how=step, now=now)
            model.ended(who, step, now)
        assert breaker.is_open == (model.state != "closed")
    assert isinstance(breaker.enter(now + TRIAL_SECONDS), Pass)  # nobody is kept out for ever


def end(breaker: Breaker, entered: Pass, *, how: str, now: float) -> None:
    if how == "succeed":
        breaker.succeed()
    elif how == "fail":
        breaker.fail(entered, now)
    else:
        breaker.abandon(entered, now)
