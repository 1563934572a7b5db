"""Virtual keys over both stores: names, lives, and what a worker remembers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from gateway.access.keys import Keys, parse_spec
from gateway.errors import GatewayError, IncorrectKey, InvalidRequest
from tests.conftest import OpenStore


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(open_store: OpenStore, clock: Clock) -> AsyncIterator[Keys]:
    async with open_store() as store:
        yield Keys(store, clock=clock)


@pytest.fixture
async def elsewhere(open_store: OpenStore, clock: Clock) -> AsyncIterator[Keys]:
    """The keys as another worker sees them."""
    async with open_store() as store:
        yield Keys(store, clock=clock)


async def test_a_key_expires_and_lives_again_when_its_end_is_lifted(
    keys: Keys, elsewhere: Keys, clock: Clock
) -> None:
    record, secret = await keys.create(parse_spec({"name": "a", "expires_at": int(clock.now) + 10}))
    assert (await elsewhere.authenticate(secret)).account.key_name == "a"
    clock.now += 11
    with pytest.raises(IncorrectKey):
        await elsewhere.authenticate(secret)
    await keys.change(record.id, {"expires_at": None})
    assert (await elsewhere.authenticate(secret)).account.key_name == "a"


async def test_a_name_is_free_when_its_key_is_over_and_cannot_be_taken_back(
    keys: Keys, clock: Clock
) -> None:
    old, _ = await keys.create(parse_spec({"name": "b", "expires_at": int(clock.now) + 10}))
    clock.now += 11
    await keys.create(parse_spec({"name": "b"}))
    with pytest.raises(GatewayError) as refused:
        await keys.change(old.id, {"expires_at": None})
    assert refused.value.code == "name_taken"
    revived = await keys.change(old.id, {"expires_at": None, "name": "b2"})
    assert revived.name == "b2"
    await keys.change(old.id, {"name": "b3"})
    await keys.create(parse_spec({"name": "b2"}))


async def test_a_revoked_key_gives_its_name_up_and_opens_nothing(
    keys: Keys, elsewhere: Keys
) -> None:
    record, secret = await keys.create(parse_spec({"name": "c"}))
    await elsewhere.authenticate(secret)
    await keys.revoke(record.id)
    with pytest.raises(IncorrectKey):
        await elsewhere.confirm(secret)
    await keys.create(parse_spec({"name": "c"}))
    with pytest.raises(GatewayError) as gone:
        await keys.change(record.id, {"name": "d"})
    assert gone.value.status == 404


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("requests_per_minute", 10**13, "too large"),
        ("images_per_day", 2**60, "too large"),
        ("usd_per_month", 1e300, "too large"),
        ("usd_per_month", 0.0000001, "US dollars"),
        ("usd_per_month", float("inf"), "US dollars"),
        ("images_per_day", -1, "0 or more"),
        ("images_per_day", True, "whole number"),
        ("images_per_day", "5", "whole number"),
    ],
)
def test_a_limit_that_no_store_could_count_exactly_is_refused(
    limit: str, value: object, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse_spec({"name": "x", "limits": {limit: value}})
