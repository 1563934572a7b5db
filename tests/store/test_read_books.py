"""Windows, running totals, open purchases and the end of the ledger at one moment."""

from __future__ import annotations

import time

from gateway.calendar import UTC_CALENDAR
from gateway.store.batch import execute
from gateway.store.commands import (
    LEDGER_END,
    Append,
    Books,
    Consumption,
    Counter,
    ReadBooks,
    ReadLedger,
    Reserve,
    RunningTotal,
    Settle,
    TrimLedger,
    WindowAmounts,
    WindowName,
)
from gateway.store.protocol import Store

AMOUNTS = {"images": 2, "usd_micros": 500}
TODAY = UTC_CALENDAR.day_at(time.time()).windows
WINDOWS = tuple(
    WindowName(subject, period, TODAY[period].label)
    for subject in ("key:a", "everyone")
    for period in ("day", "month")
)
OPEN = WindowName("key:a", "concurrency", "")


async def reserve(store: Store, purchase: str) -> None:
    consumptions = (
        Consumption(Counter("key:a", "purchases", "concurrency", 9), 1),
        Consumption(Counter("key:a", "usd_micros", "day", 10**6), 500),
        Consumption(Counter("key:a", "images", "minute", 100), 2),
    )
    await execute(
        store,
        Reserve(
            purchase, "w", consumptions, b"payload", subjects=("key:a", "everyone"), amounts=AMOUNTS
        ),
    )


async def read(store: Store, *, most: int = 10) -> Books:
    return await execute(store, ReadBooks((*WINDOWS, OPEN), ("everyone", "nobody"), most))


async def test_an_empty_store_has_empty_books(store: Store) -> None:
    books = await read(store)
    assert (books.ledger_end, books.purchases) == ("", [])
    assert (books.removed_to, books.free_removed_to) == ("", "")
    assert books.windows == [WindowAmounts({}, {})] * 5
    assert books.totals == [RunningTotal(), RunningTotal()]
    assert abs(books.now - time.time()) < 60


async def test_books_have_what_is_reserved_and_by_which_purchase(store: Store) -> None:
    await reserve(store, "p")
    books = await read(store)
    assert books.windows == [WindowAmounts({}, AMOUNTS)] * 4 + [WindowAmounts({}, {"purchases": 1})]
    assert books.purchases is not None
    (purchase,) = books.purchases
    assert (purchase.purchase, purchase.worker) == ("p", "w")
    assert purchase.reserved is not None
    asked = {window: purchase.reserved[window] for window in (*WINDOWS, OPEN)}
    assert asked == {**dict.fromkeys(WINDOWS, AMOUNTS), OPEN: {"purchases": 1}}
    assert len(purchase.reserved) == 2 * 3 + 1


async def test_books_end_with_the_last_record_of_either_kind(store: Store) -> None:
    await reserve(store, "p")
    await execute(store, Settle("p", AMOUNTS, b"charged", totals=("everyone",)))
    await execute(store, Append((b"free",)))
    books = await read(store)
    ids = [position for position, _ in await execute(store, ReadLedger())]
    assert books.ledger_end == ids[-1]
    assert books.windows == [WindowAmounts(AMOUNTS, {})] * 4 + [WindowAmounts({}, {})]
    assert books.totals == [RunningTotal(500), RunningTotal()]
    assert await execute(store, ReadLedger(charged_only=True)) == [(ids[0], b"charged")]
    assert await execute(store, ReadLedger(ids[0], charged_only=True)) == []


async def test_too_many_open_purchases_are_not_read(store: Store) -> None:
    for name in "abc":
        await reserve(store, name)
    assert (await read(store, most=2)).purchases is None
    assert len((await read(store, most=3)).purchases or ()) == 3


async def test_books_know_the_last_record_of_each_kind_that_was_removed(store: Store) -> None:
    for name in "ab":
        await reserve(store, name)
        await execute(store, Settle(name, AMOUNTS, b"charged"))
    ids = [position for position, _ in await execute(store, ReadLedger())]
    await execute(store, Append((b"free",)))
    await execute(store, TrimLedger(0, 10**6, 10**6, 10**6, ids[0]))
    books = await read(store)
    assert (books.removed_to, books.free_removed_to) == (ids[0], "")
    await execute(store, TrimLedger(0, 0, 10**6, 10**6, LEDGER_END))
    books = await read(store)
    assert books.removed_to == ids[1]
    assert books.free_removed_to == books.ledger_end > ids[1]
