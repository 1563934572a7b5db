"""The outbox, on both stores."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from gateway.events import Event, Webhook
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Write
from gateway.webhooks import kept_events
from gateway.webhooks import outbox as module
from gateway.webhooks.outbox import CLAIM_GRACE_SECONDS, OUTBOX, Outbox

ALL = Webhook("https://all.example/hook")
ART = Webhook("https://art.example/hook", teams=frozenset({"art"}))
SPIKES = Webhook("https://spikes.example/hook", events=frozenset({"spike"}))


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Setting:
    clock: Clock = field(default_factory=Clock)

    def event(self, once: str = "limit_crossed|key:1|usd_per_day|2027-01-15|0.5", **given) -> Event:
        fields = {
            "kind": "limit_crossed",
            "until": self.clock.now + 3600,
            "time": self.clock.now,
            "text": "half",
            "data": {"threshold": 0.5},
        }
        return Event(once=once, **{**fields, **given})


@pytest.fixture
def setting() -> Setting:
    return Setting()


def open_outbox(store, setting: Setting, *webhooks: Webhook) -> Outbox:
    return Outbox(store, lambda: webhooks, clock=setting.clock)


async def test_of_many_workers_that_notice_an_event_one_puts_it_into_the_outbox(
    open_store, setting
):
    async with open_store() as first, open_store() as second:
        boxes = [open_outbox(store, setting, ALL, ART) for store in (first, second) * 4]
        event = setting.event(team="art")
        published = await asyncio.gather(*(box.publish(event) for box in boxes))
        assert published.count(True) == 1
        entries = await boxes[0].read()
        assert len(entries) == 2
        assert len({entry.event_id for entry in entries}) == 1
        assert len({entry.webhook for entry in entries}) == 2
        assert [entry.data for entry in entries] == [{"threshold": 0.5}] * 2


async def test_an_event_that_was_sent_is_not_sent_again_after_a_restart(open_store, setting):
    async with open_store() as store:
        box = open_outbox(store, setting, ALL)
        assert await box.publish(setting.event())
        (entry,) = await box.read()
        await box.remove(entry)
    async with open_store() as store:
        box = open_outbox(store, setting, ALL)
        assert await box.is_claimed(setting.event().once)
        assert not await box.publish(setting.event())
        assert await box.read() == []
        assert await box.publish(setting.event("another"))


async def test_a_webhook_gets_the_kinds_and_teams_that_it_names(open_store, setting):
    async with open_store() as store:
        box = open_outbox(store, setting, ART, SPIKES)
        assert await box.publish(setting.event("1"))
        assert await box.publish(setting.event("2", team="sales"))
        assert await box.publish(setting.event("3", team="art"))
        assert await box.publish(setting.event("4", kind="spike"))
        assert await box.publish(setting.event("5", kind="spike", team="art"))
        kinds = [entry.kind for entry in await box.read()]
        assert sorted(kinds) == ["limit_crossed", "spike", "spike", "spike"]


async def test_an_event_that_no_webhook_wants_is_kept_and_sent_to_a_later_one(open_store, setting):
    async with open_store() as store:
        boxes = [open_outbox(store, setting) for _ in range(2)]
        assert await boxes[0].publish(setting.event())
        assert not await boxes[1].publish(setting.event())
        assert await boxes[0].is_claimed(setting.event().once)
        assert not await boxes[0].is_claimed(setting.event().once, to_send=True)
        sender = open_outbox(store, setting, ALL)
        assert await sender.publish(setting.event())
        assert not await sender.publish(setting.event())
        assert not await boxes[0].publish(setting.event())
        assert len(await sender.read()) == 1
        kept, after = await sender.kept.read(limit=10)
        assert ([event.kind for event in kept], after) == (["limit_crossed"], None)


async def test_events_are_kept_newest_first_and_in_pages(open_store, setting):
    async with open_store() as store:
        box = open_outbox(store, setting)
        for number in range(5):
            setting.clock.now += 1
            kind = "spike" if number % 2 else "limit_crossed"
            await box.publish(setting.event(str(number), kind=kind, text=str(number)))
        first, after = await box.kept.read(limit=3)
        rest, end = await box.kept.read(limit=3, after=after)
        assert [event.text for event in (*first, *rest)] == ["4", "3", "2", "1", "0"]
        assert end is None
        spikes, _ = await box.kept.read(limit=3, kinds={"spike"})
        assert [event.text for event in spikes] == ["3", "1"]
        assert await box.kept.read(limit=5) == ([*first, *rest], None)


async def test_kept_events_are_bounded_by_number_and_age(open_store, setting, monkeypatch):
    monkeypatch.setattr(kept_events, "MAX_KEPT", 3)
    monkeypatch.setattr(module, "TRIM_EVERY", 5)
    async with open_store() as store:
        box = open_outbox(store, setting)
        for number in range(5):
            setting.clock.now += 1
            await box.publish(setting.event(str(number), text=str(number)))
        kept, _ = await box.kept.read(limit=10)
        assert [event.text for event in kept] == ["4", "3", "2"]
        setting.clock.now += kept_events.KEEP_SECONDS - 1.5
        assert await box.kept.trim() == 1
        kept, _ = await box.kept.read(limit=10)
        assert [event.text for event in kept] == ["4", "3"]


async def test_only_an_event_that_repeats_is_sent_again_after_its_time(open_store, setting):
    async with open_store() as store:
        boxes = [open_outbox(store, setting, ALL) for _ in range(2)]
        once, repeated = setting.event("once"), setting.event("again", repeats=True)
        assert await boxes[0].publish(once)
        assert await boxes[0].publish(repeated)
        setting.clock.now += 3599
        assert not await boxes[1].publish(setting.event("again", repeats=True))
        setting.clock.now += 2
        assert not await boxes[1].publish(setting.event("once"))
        assert await boxes[1].publish(setting.event("again", repeats=True))
        assert not await boxes[0].publish(setting.event("again", repeats=True))


async def test_claims_are_deleted_some_time_after_their_window(open_store, setting):
    async with open_store() as store:
        box = open_outbox(store, setting, ALL)
        await box.publish(setting.event())
        setting.clock.now += 3600 + CLAIM_GRACE_SECONDS - 1
        assert await box.forget_claims() == 0
        setting.clock.now += 2
        assert await box.forget_claims() == 1
        assert await box.forget_claims() == 0


async def test_the_outbox_is_bounded_and_loses_its_oldest_entries(open_store, setting, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    async with open_store() as store:
        box = open_outbox(store, setting, ALL)
        with capture_logs() as logs:
            for number in range(5):
                setting.clock.now += 1
                await box.publish(setting.event(str(number), data={"number": number}))
        assert [entry.data["number"] for entry in await box.read()] == [2, 3, 4]
        assert [line["reason"] for line in logs] == ["outbox_full"] * 2


async def test_of_two_workers_one_takes_an_entry(open_store, setting):
    async with open_store() as store:
        boxes = [open_outbox(store, setting, ALL) for _ in range(2)]
        await boxes[0].publish(setting.event())
        (entry,) = await boxes[0].read()
        due_at = setting.clock.now + 30
        taken = await asyncio.gather(*(box.take(entry, due_at=due_at) for box in boxes))
        assert [found.attempts for found in taken if found is not None] == [1]
        (left,) = await boxes[1].read()
        assert (left.attempts, left.due_at) == (1, due_at)
        await boxes[1].remove(left)
        assert await boxes[0].read() == []


async def test_entries_of_other_versions_are_read_and_unreadable_ones_removed(open_store, setting):
    async with open_store() as store:
        box = open_outbox(store, setting, ALL)
        await box.publish(setting.event())
        (entry,) = await box.read()
        newer = entry.encode().replace(b'{"name"', b'{"new":1,"name"')
        writes = (
            Write(OUTBOX, entry.name, newer, expected=entry.stored),
            Write(OUTBOX, "damaged", b"[", expected=None),
        )
        assert await execute(store, CompareAndSet(writes)) is None
        (found,) = await box.read()
        assert found == entry
        taken = await box.take(found, due_at=0.0)
        assert taken is not None
        await box.remove(taken)
        assert await box.read() == []


def test_an_entry_names_no_url():
    assert "slack" not in module.webhook_id(Webhook("https://hooks.slack.example/T0/secret"))
    assert "secret" not in repr(Webhook("https://hooks.slack.example/T0/secret", secret="whsec_x"))
