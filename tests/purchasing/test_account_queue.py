"""An account's rate without the store, and what upstream says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError, StoreUnavailable
from gateway.purchasing.account_queue import AccountQueue, LocalTurn, QueueWait, Rate
from gateway.purchasing.account_rates import ReportedRate, parse_go_duration, read_reported_rate
from gateway.store.commands import MAX_STOP_SECONDS, Turn
from gateway.store.protocol import Command
from tests.scripted_upstream import Clock


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (200, {}, None),
        (200, {"x-ratelimit-remaining-images": "7"}, ReportedRate(7)),
        (200, {"x-ratelimit-remaining-images": "0", "Retry-After": "9"}, ReportedRate(0)),
        (200, {"x-ratelimit-remaining-images": "-5"}, None),
        (200, {"x-ratelimit-remaining-images": "٣"}, None),
        (200, {"x-ratelimit-remaining-images": "9" * 5000}, None),
        (429, {"Retry-After": "12.5"}, ReportedRate(None, 12.5)),
        (429, {"Retry-After": "999999999"}, ReportedRate(None, MAX_STOP_SECONDS)),
        (429, {"Retry-After": "1e9"}, ReportedRate(None, 1.0)),
        (429, {"x-ratelimit-reset-images": "1m30s"}, ReportedRate(None, 90.0)),
        (429, {"x-ratelimit-reset-requests": "120ms"}, ReportedRate(None, 0.12)),
        (429, {"x-ratelimit-reset-images": "99999h"}, ReportedRate(None, MAX_STOP_SECONDS)),
        (429, {}, ReportedRate(None, 1.0)),
        (503, {"Retry-After": "9"}, None),
    ],
)
def test_what_upstream_says(
    status: int, headers: dict[str, str], said: ReportedRate | None
) -> None:
    assert read_reported_rate(status, headers) == said


@settings(max_examples=30)
@given(st.text(max_size=30), st.text(max_size=30))
@example("", "0")
@example("", "0s")
def test_no_header_stops_a_queue_for_longer(remaining: str, value: str) -> None:
    for name in ("Retry-After", "x-ratelimit-reset-images"):
        said = read_reported_rate(429, {"x-ratelimit-remaining-images": remaining, name: value})
        assert said is not None
        assert 0 <= said.stop_seconds <= MAX_STOP_SECONDS
        assert (said.remaining or 0) >= 0
    parse_go_duration(value)


class NoStore:
    """A store that is unavailable."""

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        raise StoreUnavailable


def create_queue(clock: Clock, **rates: Rate) -> AccountQueue:
    store: Any = NoStore()
    return AccountQueue(
        store,
        rates,
        worker="w",
        workers=2,
        max_wait_seconds=30.0,
        clock=lambda: clock.now,
        sleep=clock.sleep,
    )


async def test_without_the_store_a_worker_sends_its_share_of_the_rate() -> None:
    clock = Clock()
    queue = create_queue(clock, a=Rate(images_per_minute=12))
    times, refused = [], []
    for _ in range(10):
        waiting = QueueWait()
        try:
            async with queue.without_store("a", waiting, images=1):
                times.append((clock.now, waiting.text))
        except GatewayError as error:
            refused.append(error)
    async with queue.without_store("unlimited", QueueWait(), images=10**6):
        pass
    assert times[:6] == [(0.0, None)] * 6
    assert times[6:] == [(10.0 * (i + 1), "waited=10.0s") for i in range(4)]
    waiting = QueueWait()
    with pytest.raises(GatewayError) as too_many:
        async with queue.without_store("a", waiting, images=5):
            pass
    assert (too_many.value.status, too_many.value.headers["Retry-After"]) == (429, "50")


async def test_without_the_store_purchases_are_open_one_after_the_other() -> None:
    queue = create_queue(Clock(), a=Rate(concurrent=3))  # its share is one
    async with AsyncExitStack() as first:
        await first.enter_async_context(queue.without_store("a", QueueWait(), images=1))
        second = asyncio.create_task(queue.without_store("a", QueueWait(), images=1).__aenter__())
        await asyncio.sleep(0.01)
        assert not second.done()
    await second


async def test_without_the_store_a_turn_moves_from_one_account_to_the_next() -> None:
    queue = create_queue(Clock(), a=Rate(concurrent=1), b=Rate(images_per_minute=2))
    one, two = (LocalTurn(queue, QueueWait(), images=1) for _ in range(2))
    await one.take("a")
    await one.take("b")
    await two.take("a")  # which the first purchase has left
    await one.take("b")  # it has this one, and takes no second one
    with pytest.raises(GatewayError, match="limited number of images a minute"):
        await two.take("b")
    await one.take("a")  # which the second purchase has left, although it was refused


async def test_purchases_that_wait_go_on_without_the_store() -> None:
    queue = create_queue(Clock(), a=Rate(images_per_minute=1))
    waiting = QueueWait()
    with pytest.raises(StoreUnavailable):
        await queue.wait("p", "a", Turn("queued", 7, 80.0), waiting)
    assert waiting.waited_seconds >= 2.0
    assert (waiting.text or "").startswith("waited=")
    await queue.close()


async def test_a_worker_that_drains_hands_back_what_would_begin_to_wait() -> None:
    """Also if nothing tells for how long: only the account's concurrency makes it wait."""
    queue = create_queue(Clock(), a=Rate(concurrent=1))
    queue.drain()
    with pytest.raises(GatewayError) as drained:
        await queue.wait("p", "a", Turn("queued", 1, 0.0), QueueWait())
    assert (drained.value.status, drained.value.headers["Retry-After"]) == (503, "1")
