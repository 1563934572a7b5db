"""`docs/reference/overview.md`: fields and numbers are those of the code."""

from __future__ import annotations

from gateway.api.admin import attention, events, overview, recent
from gateway.api.admin.keys import STATES
from gateway.api.openapi.answers import ANSWERS
from gateway.billing import alert_watch, recent_days, recent_requests
from gateway.webhooks import kept_events
from tests.docs.pages import codes, read_page, rows_below

PAGE = read_page("overview.md")


def test_the_page_has_every_field_of_the_overview() -> None:
    fields = [name for row in rows_below(PAGE, "Overview") for name in codes(row["field"])]
    required = [name for name in ANSWERS["Overview"]["required"] if name != "time_zone"]
    assert fields == required


def test_the_fields_of_a_request_are_those_of_the_answer() -> None:
    fields = {name for row in rows_below(PAGE, "Requests") for name in codes(row["field"])}
    assert fields == {"id", "record", "reason", "message", "count"}
    assert fields <= {*ANSWERS["RecentRequest"]["required"]}
    for name in (*recent.PARAMETERS, *STATES):
        assert f"`{name}`" in PAGE, name


def test_the_numbers_are_those_of_the_code() -> None:
    for number, phrase in (
        (recent_days.DAYS, "the last {} days"),
        (overview.PATIENCE_SECONDS * 1000, "longer than {} ms"),
        (attention.MAX_SHOWN, "at most {}."),
        (attention.MIN_CROSSED * 100, "Thresholds of {} %"),
        (attention.RETIRES_DAYS, "within {} days"),
        (recent.DEFAULT_LIMIT, "({}, at most"),
        (recent.MAX_LISTED, "at most {})"),
        (recent_requests.MAX_SCANNED, "at most\n{}, for a second"),
        (kept_events.MAX_KEPT, "at most {}, newest first"),
        (kept_events.KEEP_SECONDS / 86_400, "of the last {} days"),
        (alert_watch.LOOK_KEPT_SECONDS, "every {} seconds instead"),
        (alert_watch.LOOK_EVERY_SECONDS, "instead of every {}"),
    ):
        shown = phrase.format(f"{number:,.0f}")
        assert shown in PAGE, shown
    assert events.MAX_LISTED == recent.MAX_LISTED
    assert attention.UNVERIFIED_SECONDS == 3 * 3600
    assert attention.EXPIRES_SECONDS == overview.USED_SECONDS == 7 * 86_400
