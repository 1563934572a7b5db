"""The audit on both stores: order, pages, bounds and retention."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.access.audit import (
    KEEP_SECONDS,
    MAX_VALUE_BYTES,
    Actor,
    Audit,
    AuditEvent,
    changed_fields,
)
from tests.access.conftest import NOW, Clock
from tests.conftest import OpenStore

ADMIN = Actor("api", "admin", "192.0.2.1")


@pytest.fixture
async def audit(open_store: OpenStore, clock: Clock) -> AsyncIterator[Audit]:
    async with open_store() as store:
        yield Audit(store, clock=clock)


def event(at: float, name: str = "a") -> AuditEvent:
    return AuditEvent(ADMIN, "key.change", f"key:{name}", {"team": None}, {"team": "art"}, at)


async def test_events_are_read_newest_first_and_in_pages_over_months(audit: Audit):
    times = [NOW - days * 86_400 - part for days in range(0, 100, 9) for part in (0.0, 0.000_01)]
    for number, at in enumerate(reversed(times)):
        await audit.record(event(at, str(number)))
    whole = await audit.read(limit=1000)
    assert [entry.event.time for entry in whole] == times
    paged, after = [], None
    while page := await audit.read(limit=5, after=after):
        paged += page
        after = page[-1].id
    assert paged == whole


async def test_a_period_has_its_first_moment_and_not_its_last(audit: Audit):
    for at in (NOW - 20, NOW - 10, NOW):
        await audit.record(event(at))
    assert [e.event.time for e in await audit.read(NOW - 20, NOW)] == [NOW - 10, NOW - 20]
    assert await audit.read(NOW + 1, NOW + 2) == []


async def test_an_event_comes_back_as_it_was_stored(audit: Audit):
    await audit.record(event(NOW, "ä"))
    (entry,) = await audit.read()
    assert entry.event == event(NOW, "ä")
    assert entry.public() == {
        "id": entry.id,
        "time": NOW,
        "action": "key.change",
        "object": "key:ä",
        "via": "api",
        "by": "admin",
        "address": "192.0.2.1",
        "before": {"team": None},
        "after": {"team": "art"},
    }


async def test_a_large_value_is_cut(audit: Audit):
    large = AuditEvent(ADMIN, "key.create", "key:a", None, {"models": ["m" * 9] * 9999}, NOW)
    await audit.record(large)
    (entry,) = await audit.read()
    assert entry.event.after is not None
    assert len(entry.event.after["models"]) == MAX_VALUE_BYTES


async def test_events_past_their_retention_are_removed_and_no_others(audit: Audit, clock: Clock):
    for number in range(450):
        await audit.record(event(NOW - number / 10))
    clock.now = NOW + KEEP_SECONDS - 20
    assert await audit.remove_expired() == 249
    assert await audit.remove_expired() == 0
    assert len(await audit.read(0.0, limit=1000)) == 201


def test_only_fields_that_differ_are_changed():
    before = {"name": "a", "team": "art", "scope": "key"}
    assert changed_fields(before, {"name": "a", "scope": "team", "reuse": "never"}) == (
        {"team": "art", "scope": "key", "reuse": None},
        {"team": None, "scope": "team", "reuse": "never"},
    )
