"""What needs attention: each rule by itself."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

import pytest

from gateway.api.admin import attention
from gateway.api.admin.attention import Attention
from gateway.api.services import ExpiringKey
from gateway.billing.verification import Verified
from gateway.process.findings import Finding
from gateway.purchasing.upstream_health import FailedPurchase, UpstreamState
from gateway.webhooks.kept_events import KeptEvent

NOW = 1_800_000_000.0
HOUR = 3600.0


def shown(found: Iterable[Attention]) -> list[tuple[str, str]]:
    return [(one.level, one.title) for one in found]


def event(kind: str, scope: str = "key:bob", **data: Any) -> KeptEvent:
    text = f"{scope} has done something.\nTop keys: bob $1.00"
    return KeptEvent("evt_1", kind, NOW, text, {"scope": scope, **data})


def test_faults_come_first_and_their_number_is_bounded() -> None:
    found = [Attention("warning", str(n), "") for n in range(30)]
    found.insert(17, Attention("fault", "worst", "x" * 5000))
    ordered = attention.in_order(found)
    assert (ordered[0].title, ordered[1].title, len(ordered)) == ("worst", "0", 20)
    assert len(ordered[0].public()["text"]) == attention.MAX_TEXT


def test_room_that_runs_out_is_said_once() -> None:
    for low, full, found in (
        (False, False, []),
        (True, False, [("warning", "The memory of the books is low")]),
        (True, True, [("fault", "The store is nearly full")]),
    ):
        assert shown(attention.of_room(are_books_low=low, is_nearly_full=full)) == found


@pytest.mark.parametrize(
    ("verified", "is_in_use", "title"),
    [
        (None, False, None),
        (None, True, "The books are not verified"),
        (Verified(NOW - HOUR, is_full=False), True, None),
        (Verified(NOW - 4 * HOUR, is_full=False), True, "The books are not verified"),
    ],
)
def test_books_must_be_verified(verified: Verified | None, is_in_use: bool, title: str) -> None:
    found = attention.of_books(verified, now=NOW, is_in_use=is_in_use)
    assert (found.title if found is not None else None) == title


def test_only_models_that_are_used_retire() -> None:
    retiring = {
        "old": date(2026, 11, 1),
        "soon": date(2026, 11, 30),
        "later": date(2027, 1, 28),
        "much-later": date(2027, 1, 29),
        "unused": date(2026, 11, 30),
    }
    used = ["old", "soon", "later", "much-later", "other"]
    found = list(attention.of_models(retiring, used, today=date(2026, 11, 29)))
    assert shown(found) == [
        ("warning", "old has retired"),
        ("warning", "soon retires soon"),
        ("warning", "later retires soon"),
    ]
    assert "retires on 2026-11-30, tomorrow" in found[1].text
    assert found[1].action == {
        "label": "Show who uses it",
        "view": "spend",
        "query": {"model": "soon", "by": "key"},
    }


def test_keys_that_expire_are_named_with_the_time_that_is_left() -> None:
    keys = [ExpiringKey("days", NOW + 80 * HOUR), ExpiringKey("hours", NOW + 5 * HOUR)]
    first, second = attention.of_keys(keys, now=NOW)
    assert "expires in 5 hours" in first.text
    assert "expires in 3 days" in second.text


def test_a_request_for_more_is_answered_by_a_raise() -> None:
    asked = event("asked_for_more", limit="usd_per_day", limits=[{"scope": "key:bob", "max": 5}])
    name = attention.limit_key("key:bob", "usd_per_day")
    assert shown(attention.of_events([asked], {name: 5})) == [("warning", "A key asks for more")]
    assert shown(attention.of_events([asked], {})) == [("warning", "A key asks for more")]
    assert shown(attention.of_events([asked], {name: 6})) == []


def test_events_lead_to_what_they_are_about() -> None:
    events = [
        event("revoked_key_in_use"),
        event("spike", "team:art"),
        event("spike", "everyone"),
        event("limit_crossed"),
        event("weekly_digest"),
    ]
    found = list(attention.of_events(events, {}))
    assert [(one.action or {})["query"] for one in found] == [
        {"search": "bob", "state": "revoked"},
        {"team": "art"},
        {},
    ]
    assert found[0].text == "key:bob has done something."


def test_findings_of_the_settings_are_shown_unless_they_are_ok() -> None:
    findings = [
        Finding("plain text", "ok", "nothing"),
        Finding("server.listen", "warning", "Keys travel in plain text."),
        Finding("certificate", "fault", "It has expired."),
    ]
    assert shown(attention.of_findings(findings)) == [
        ("warning", "Check: server.listen"),
        ("fault", "Fault: certificate"),
    ]


def test_upstream_is_described_by_what_concerns_all_purchases() -> None:
    text = attention.text_of_upstream
    assert text(UpstreamState("a")) == "Nothing was bought yet."
    assert text(UpstreamState("a", last_success_at=NOW)) == "Purchases succeed."
    own = FailedPurchase(NOW, "answer", "content_refused", message="no")
    state = UpstreamState("a", NOW - 9, failures_since_success=1, failures=(own,))
    assert attention.of_upstream(state) is None
    assert text(state) == "The last purchase failed, for a reason that concerns only that request."
    refused = FailedPurchase(NOW, "answer", "credential_refused", message="wrong\nkey")
    state = UpstreamState("a", NOW - 9, failures_since_success=1, failures=(refused,))
    found = attention.of_upstream(state)
    assert found is not None
    assert found.title == "Purchases from a fail"
    assert found.text.endswith("It said: “wrong key”")
    paused = UpstreamState("a", open_breakers={"w": NOW})
    found = attention.of_upstream(paused)
    assert found is not None
    assert found.title == "Purchases from a are paused"


def test_a_faulty_file_and_bills_above_their_estimate_are_said() -> None:
    assert attention.of_policy(None) is None
    assert attention.of_over_estimates(0) is None
    fault = attention.of_policy("models.yaml:\n  'modles' is unknown.")
    assert fault is not None
    assert fault.text == "The last good version is still used. models.yaml: 'modles' is unknown."
    bills = attention.of_over_estimates(2)
    assert bills is not None
    assert bills.text.startswith("2 purchases of the last 24 hours cost more")
    assert bills.action is not None
    assert bills.action["query"] == {
        "flag": "over_estimate",
        "outcome": "bought",
    }
