"""`docs/reference/webhooks.md`: events, fields and delivery are those of the code."""

import re
from dataclasses import fields

from gateway.billing.alert_watch import LOOK_EVERY_SECONDS
from gateway.billing.alerts import MAX_REASON, RETIRES_DAYS
from gateway.events import EVENT_KINDS, Webhook
from gateway.limits import CALENDAR_PERIODS, LIMITS
from gateway.webhooks.outbox import MAX_ENTRIES
from gateway.webhooks.sender import (
    BACK_OFF_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_REST_SECONDS,
    REMOVED_SECONDS,
    SenderSettings,
)
from tests.docs.pages import code, codes, read_page, rows_with

PAGE = read_page("webhooks.md")


def test_events():
    rows = rows_with(PAGE, "event", "is sent when", "once for each")
    assert [code(row["event"]) for row in rows] == [*EVENT_KINDS]


def test_fields_of_a_webhook():
    rows = rows_with(PAGE, "field", "default", "meaning")
    assert [code(row["field"]) for row in rows] == [field.name for field in fields(Webhook)]


def test_budgets():
    (sentence,) = re.findall(r"A budget is a limit of a calendar window: ([^.]+)\.", PAGE)
    budgets = [limit.name for limit in LIMITS.values() if limit.period in CALENDAR_PERIODS]
    assert codes(sentence) == budgets


def test_delivery():
    rules = {row["subject"]: row["rule"] for row in rows_with(PAGE, "subject", "rule")}
    numbers = [int(number) for number in re.findall(r"\d+", rules["repeated"])]
    assert numbers == [*BACK_OFF_SECONDS, BACK_OFF_SECONDS[-1]]
    assert f"{MAX_ANSWER_BYTES // 1024} KiB" in rules["accepted"]
    assert f"{SenderSettings().timeout_seconds:.0f} seconds" in rules["failed"]
    assert f"for {MAX_REST_SECONDS:.0f} seconds" in rules["pause"]
    assert f"{MAX_ENTRIES:,} " in rules["bound"]
    assert f"{REMOVED_SECONDS / 60:.0f} minutes" in rules["a webhook that was removed"]


def test_numbers():
    assert f"every {LOOK_EVERY_SECONDS:.0f} seconds" in PAGE
    assert f"up to {MAX_REASON} characters" in PAGE
    today, nearest, near, far = RETIRES_DAYS
    assert today == 0
    assert f"retires in {far}, {near} or {nearest} days, or today" in PAGE
