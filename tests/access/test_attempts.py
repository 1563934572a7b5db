"""Failed attempts to authenticate: the bucket of each client."""

from __future__ import annotations

import asyncio

import pytest

from gateway.access.attempts import MAX_CLIENTS, Attempts
from gateway.access.token_bucket import TokenBucket
from gateway.errors import GatewayError, IncorrectKey, StoreUnavailable
from tests.waiting import turns


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempts(clock: Clock) -> Attempts:
    return Attempts(clock)


class LookUp:
    """A look-up of a key that ends when the test says so."""

    def __init__(self, error: Exception | None = None, *, is_held: bool = False) -> None:
        self.count = 0
        self.error = error
        self.go_on = asyncio.Event()
        if not is_held:
            self.go_on.set()

    async def __call__(self) -> str:
        self.count += 1
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return "a key"


def statuses(results: list[object]) -> list[int]:
    return [r.status if isinstance(r, GatewayError) else 200 for r in results]


# ── the bucket ──────────────────────────────────────────────────────────────────────────────


def test_a_bucket_starts_full_and_refills_with_time():
    bucket = TokenBucket.full(2, per_second=0.5, now=0)
    assert [bucket.take(0), bucket.take(0), bucket.take(0)] == [True, True, False]
    assert bucket.seconds_until_next(0) == 2
    assert [bucket.take(1.9), bucket.take(2.0), bucket.take(2.0)] == [False, True, False]
    assert [bucket.take(1000), bucket.take(1000), bucket.take(1000)] == [True, True, False]


def test_a_bucket_never_holds_more_than_its_capacity():
    bucket = TokenBucket.full(1, per_second=1, now=0)
    bucket.give_back()
    assert [bucket.take(0), bucket.take(0)] == [True, False]


def test_a_clock_that_goes_back_gives_nothing():
    bucket = TokenBucket.full(1, per_second=1, now=10)
    assert bucket.take(10)
    assert not bucket.take(5)
    assert not bucket.take(10.5)
    assert bucket.take(11)


# ── attempts ────────────────────────────────────────────────────────────────────────────────


def test_the_61st_failed_attempt_in_a_minute_is_429(attempts: Attempts, clock: Clock):
    for _ in range(60):
        attempts.fail("203.0.113.9")
    with pytest.raises(GatewayError) as refused:
        attempts.fail("203.0.113.9")
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == "1"
    attempts.fail("203.0.113.10")
    clock.now += 1
    attempts.fail("203.0.113.9")
    with pytest.raises(GatewayError):
        attempts.fail("203.0.113.9")


async def test_many_wrong_keys_at_once_are_looked_up_60_times(attempts: Attempts):
    look_up = LookUp(IncorrectKey("gk-wrong"), is_held=True)
    guesses = [asyncio.create_task(attempts.look_up("a", look_up)) for _ in range(500)]
    await turns()
    assert look_up.count == 60
    look_up.go_on.set()
    results = await asyncio.gather(*guesses, return_exceptions=True)
    assert sorted(statuses(results)) == [401] * 60 + [429] * 440
    assert look_up.count == 60


async def test_any_number_of_valid_keys_at_once_are_looked_up(attempts: Attempts):
    look_up = LookUp(is_held=True)
    found = [asyncio.create_task(attempts.look_up("a", look_up)) for _ in range(500)]
    await turns()
    assert look_up.count == 60
    look_up.go_on.set()
    assert await asyncio.gather(*found) == ["a key"] * 500


async def test_a_look_up_that_the_store_cannot_answer_is_no_attempt(attempts: Attempts):
    look_up = LookUp(StoreUnavailable())
    results = await asyncio.gather(
        *(attempts.look_up("a", look_up) for _ in range(200)), return_exceptions=True
    )
    assert statuses(results) == [503] * 200


async def test_a_cancelled_look_up_blocks_no_other(attempts: Attempts):
    held, other = LookUp(is_held=True), LookUp()
    running = [asyncio.create_task(attempts.look_up("a", held)) for _ in range(60)]
    waiting = [asyncio.create_task(attempts.look_up("a", other)) for _ in range(3)]
    await turns()
    waiting[0].cancel()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert await asyncio.gather(*waiting[1:]) == ["a key"] * 2


async def test_the_least_recently_seen_clients_are_forgotten(attempts: Attempts):
    for number in range(MAX_CLIENTS):
        attempts.fail(f"client {number}")
    for _ in range(59):
        attempts.fail("client 0")
    attempts.fail("another client")
    assert len(attempts) == MAX_CLIENTS
    with pytest.raises(GatewayError):
        attempts.fail("client 0")
    assert "client 1" not in attempts._clients
