"""The watch looks back at windows that are over: by the ledger's totals, on both stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from zoneinfo import ZoneInfo

import pytest

from gateway.billing.alert_watch import CLOSE_SECONDS, PEEKED, AlertWatch
from gateway.billing.alerts import Alerts, span_at
from gateway.billing.totals import Totals, TotalsSettings
from gateway.calendar import Calendar
from gateway.events import Event, Watched
from gateway.images import LimitRule, LimitSubject, Record
from gateway.metrics import Metrics
from gateway.store.batch import execute
from gateway.store.commands import Append
from gateway.store.protocol import Store
from tests.conftest import OpenStore
from tests.processor import longest_pause_seconds
from tests.stores import usually_on

ZONE = "Europe/Berlin"
CALENDAR = Calendar(ZoneInfo(ZONE))
MIDNIGHT = CALENDAR.start_of(date(2026, 3, 30))
"""After a Sunday of 23 hours, at the end of a day and a week."""


@dataclass
class Published:
    """Claims in memory: what is tested here is what is published."""

    events: dict[str, Event] = field(default_factory=dict)
    has_webhooks: bool = True

    def is_wanted(self, kind: str, team: str | None = None) -> bool:
        return True

    async def is_claimed(self, once: str, *, repeats: bool = False, to_send: bool = False) -> bool:
        return once in self.events

    async def publish(self, event: Event) -> bool:
        assert event.once not in self.events
        self.events[event.once] = event
        return True


def subject(number: int, team: str | None = None, **limits: int) -> Watched:
    rules = {name: LimitRule(maximum) for name, maximum in limits.items()}
    return Watched(LimitSubject(f"key:{number}", "key", f"key-{number}", rules), team)


def open_watch(store: Store, published: Published, now: float, *watched: Watched) -> AlertWatch:
    async def list_watched(_at):
        return watched

    async def find_revoked_uses():
        return ()

    return AlertWatch(
        store,
        Totals(store, TotalsSettings(time_zone=ZONE), worker="w", observer=Metrics().money),
        published,
        alerts=Alerts(ZoneInfo(ZONE), ZONE),
        calendar=CALENDAR,
        list_watched=list_watched,
        find_revoked_uses=find_revoked_uses,
        retiring_models=dict,
        worker=f"worker-{now}",
        clock=lambda: now,
    )


async def buy(store: Store, at: float, *, cost: int, number: int = 1) -> None:
    record = Record(
        id=f"req_{at}",
        request_id=f"req_{at}",
        time=at,
        key=f"key-{number}",
        key_id=str(number),
        model="dall-e-2",
        outcome="bought",
        images=2,
        tokens={"text_in": 10, "image_out": 90},
        cost_micros=cost,
    )
    await execute(store, Append((record.encode(),)))


async def test_what_the_last_second_of_a_window_brought_is_told(store):
    await buy(store, MIDNIGHT - 1, cost=900_000)
    await buy(store, MIDNIGHT, cost=5_000_000)  # of the next day
    published = Published()
    watched = subject(
        1, usd_per_day=1_000_000, images_per_day=2, tokens_per_day=1000, usd_per_week=10_000_000
    )
    await open_watch(store, published, MIDNIGHT + 5, watched).look_back()
    assert sorted(published.events) == [
        "limit_crossed|key:1|images_per_day|2026-03-29|0.5",
        "limit_crossed|key:1|images_per_day|2026-03-29|0.8",
        "limit_crossed|key:1|images_per_day|2026-03-29|1.0",
        "limit_crossed|key:1|usd_per_day|2026-03-29|0.5",
        "limit_crossed|key:1|usd_per_day|2026-03-29|0.8",
        "limit_exhausted|key:1|images_per_day|2026-03-29",
    ]
    (spender,) = published.events["limit_exhausted|key:1|images_per_day|2026-03-29"].data["top"][
        "keys"
    ]
    assert spender == {"name": "key-1", "cost_usd": 0.9}


async def test_a_window_is_looked_at_for_an_hour_after_its_end(store):
    await buy(store, MIDNIGHT - 1, cost=900_000)
    published = Published()
    watch = open_watch(store, published, MIDNIGHT + CLOSE_SECONDS, subject(1, usd_per_day=1))
    await watch.look_back()
    assert published.events == {}


async def test_all_counters_are_read_in_steps(store):
    many = [subject(number, images_per_day=5) for number in range(2 * PEEKED + 1)]
    published = Published()
    now = 1_800_000_000.0
    await open_watch(store, published, now, *many).look()
    assert published.events == {}


@pytest.mark.timed
@usually_on("sqlite", "open_store")
async def test_a_look_at_a_thousand_keys_never_holds_the_event_loop(open_store: OpenStore):
    async with open_store() as store:
        records = [
            Record(
                id=f"r{n}",
                request_id=f"r{n}",
                time=MIDNIGHT - 1,
                key=f"key-{n}",
                key_id=str(n),
                team=f"team-{n}",
                model="dall-e-2",
                outcome="bought",
                cost_micros=400_000,
            )
            for n in range(1000)
        ]
        await execute(store, Append(tuple(record.encode() for record in records)))
        many = [subject(n, f"team-{n}", usd_per_day=1_000_000) for n in range(1000)]
        back, ahead = [], []
        for _ in range(3):
            published = Published()
            watch = open_watch(store, published, MIDNIGHT + 5, *many)
            back.append(await longest_pause_seconds(watch.look_back()))
            assert published.events == {}
            for each in many:
                watch.note_refusal(each.subject.name, "usd_per_day")
            ahead.append(await longest_pause_seconds(watch.look()))
            assert len(published.events) == 1000
        assert min(back) < 0.010
        assert min(ahead) < 0.010


async def test_without_webhooks_counters_are_looked_at_every_minute(store):
    published = Published(has_webhooks=False)
    watch = open_watch(store, published, MIDNIGHT + 5, subject(1, usd_per_day=1_000_000))
    await watch.look()
    watch.note_refusal("key:1", "usd_per_day")
    await watch.look()
    assert published.events == {}
    watch._clock = lambda: MIDNIGHT + 66
    await watch.look()
    (event,) = published.events.values()
    assert event.kind == "limit_exhausted"


def test_a_day_begins_when_the_clocks_say_so():
    assert span_at(CALENDAR, "day", MIDNIGHT - 1).label == "2026-03-29"
    assert span_at(CALENDAR, "week", MIDNIGHT - 1).label == "2026-W13"
