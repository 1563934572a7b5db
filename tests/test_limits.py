"""The table of limits accepts only rows that both stores enforce."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import get_args

import pytest

from gateway.billing import counted_limits, quota
from gateway.images import Amounts, Principal
from gateway.limits import LIMITS, Limit, Period, Unit, check_limits
from gateway.store.batch import Batch
from gateway.store.protocol import Store
from tests.conftest import OpenStore
from tests.principals import make_principal

ATTEMPTS = 8
MAXIMUM = 4
AMOUNTS = Amounts(images=2, tokens=2, usd_micros=2)
"""The reservation and charge of each purchase, which also counts as one request and purchase."""

EVERY_ROW = [
    Limit("a_limit", unit, period, at_admission=at_admission)
    for unit, period, at_admission in itertools.product(
        get_args(Unit), get_args(Period), (False, True)
    )
]


def passes_check(*rows: Limit) -> bool:
    try:
        check_limits(rows)
    except ValueError:
        return False
    return True


@dataclass
class LimitedClient:
    """Sends requests for a limited key, each with its own purchase."""

    store: Store
    principal: Principal

    async def buy(self, purchase: str, *, settles: bool) -> bool:
        """Returns whether the request was admitted and its purchase reserved."""
        batch = Batch(self.store)
        admission = quota.admit(batch, self.principal)
        await batch.execute()
        if admission.value.denied is not None:
            return False
        batch = Batch(self.store)
        reservation = quota.reserve(
            batch, self.principal, purchase, worker="w", estimate=AMOUNTS, payload=b""
        )
        if settles:
            quota.settle(batch, purchase, AMOUNTS, record=None)
        await batch.execute()
        return reservation.value.denied is None


async def purchases_of(store: Store, rows: list[Limit], *, settles: bool) -> int:
    """How many of the attempts succeed under limits of `MAXIMUM`."""
    key_id = f"{rows[0].unit} {rows[0].period} {rows[0].at_admission} {settles}"
    limits = {row.name: MAXIMUM for row in rows}
    client = LimitedClient(store, make_principal(key_id, limits))
    bought = [await client.buy(f"{key_id} {number}", settles=settles) for number in range(ATTEMPTS)]
    return sum(bought)


async def is_enforced(store: Store, rows: list[Limit]) -> bool:
    """Whether a limit of `MAXIMUM` allows exactly as many purchases as it should."""
    unit, period = rows[0].unit, rows[0].period
    allowed = MAXIMUM // (1 if unit in ("requests", "purchases") else 2)
    try:
        while_open = await purchases_of(store, rows, settles=False)
        in_a_row = await purchases_of(store, rows, settles=True)
    except KeyError:  # no reservation has this unit
        return False
    return while_open == allowed and in_a_row == (ATTEMPTS if period == "concurrency" else allowed)


@pytest.mark.timeout(120)
async def test_exactly_the_rows_that_pass_the_check_are_enforced(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    enforced = {}
    async with open_store() as store:
        for row in EVERY_ROW:
            monkeypatch.setattr(counted_limits, "LIMITS", {row.name: row})
            enforced[row] = await is_enforced(store, [row])

    assert enforced == {row: passes_check(row) for row in EVERY_ROW}
    assert 0 < sum(enforced.values()) < len(EVERY_ROW)


async def test_two_limits_of_one_counter_would_count_everything_twice(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Limit("one", "images", "day"), Limit("two", "images", "day")]
    monkeypatch.setattr(counted_limits, "LIMITS", {row.name: row for row in rows})
    async with open_store() as store:
        assert not await is_enforced(store, rows)
    assert not passes_check(*rows)


async def test_all_limits_of_the_table_are_enforced_together(open_store: OpenStore) -> None:
    async with open_store() as store:
        for limited in LIMITS.values():
            limits = dict.fromkeys(LIMITS, 10**6) | {limited.name: MAXIMUM}
            key_id = f"key of {limited.name}"
            client = LimitedClient(store, make_principal(key_id, limits))
            bought = [await client.buy(f"{key_id} {i}", settles=False) for i in range(ATTEMPTS)]
            allowed = MAXIMUM // (1 if limited.unit in ("requests", "purchases") else 2)
            assert bought == [True] * allowed + [False] * (ATTEMPTS - allowed), limited


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [Limit("x", "image", "day")],  # type: ignore[arg-type]
            (
                "limit 'x': unknown unit 'image'; "
                "use one of requests, images, tokens, usd_micros, purchases"
            ),
        ),
        (
            [Limit("x", "images", "hour")],  # type: ignore[arg-type]
            "limit 'x': unknown period 'hour'; use one of minute, day, week, month, concurrency",
        ),
        (
            [Limit("x", "images", "minute", at_admission=True)],
            "limit 'x': an admission counts requests, not images; set at_admission to False",
        ),
        (
            [Limit("x", "requests", "minute")],
            "limit 'x': a purchase reserves no requests; set at_admission to True",
        ),
        (
            [Limit("x", "requests", "day", at_admission=True)],
            "limit 'x': an admission takes from token buckets only; use period 'minute', not 'day'",
        ),
        (
            [Limit("x", "requests", "concurrency", at_admission=True)],
            (
                "limit 'x': an admission takes from token buckets only; "
                "use period 'minute', not 'concurrency'"
            ),
        ),
        (
            [Limit("x", "purchases", "month")],
            (
                "limit 'x': a settled purchase is charged images, tokens and money, so purchases "
                "are counted only while they are open; use period 'minute' or 'concurrency'"
            ),
        ),
        (
            [Limit("x", "images", "day"), Limit("x", "images", "month")],
            "limit 'x': another row has this name",
        ),
        (
            [Limit("x", "images", "day"), Limit("y", "images", "day")],
            "limit 'y': 'x' limits images by day too",
        ),
    ],
)
def test_a_row_that_limits_nothing_is_refused_with_the_reason(
    rows: list[Limit], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^limit ") as refused:
        check_limits(rows)
    assert str(refused.value) == message
