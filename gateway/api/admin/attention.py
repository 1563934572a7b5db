"""What needs an operator's attention, and what to do about it. Pure.

Each function judges one part of what `api.admin.overview` has read. An action names a view of the
dashboard and its query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal

from gateway.api.inspection import ShownFinding
from gateway.api.services import ExpiringKey
from gateway.billing.alerts import Alert, amount_in_unit, clean
from gateway.billing.counted_limits import LimitState
from gateway.billing.verification import Verified
from gateway.purchasing.upstream_health import UpstreamState
from gateway.webhooks.kept_events import KeptEvent

Level = Literal["warning", "fault"]

MAX_SHOWN: Final = 20
MAX_TEXT: Final = 600
RETIRES_DAYS: Final = 60
"""A model in use that retires within so many days."""
EXPIRES_SECONDS: Final = 7 * 86_400.0
"""A key that was used within so long, and expires within so long."""
UNVERIFIED_SECONDS: Final = 3 * 3600.0
"""The books are verified once an hour."""
MIN_CROSSED: Final = 0.5
"""A threshold up to this one is no reason to act."""
LIMIT_EVENTS: Final = frozenset({"limit_crossed", "limit_exhausted", "projected_over"})

_TITLES: Final = {
    "limit_crossed": "A budget is nearly used",
    "limit_exhausted": "A budget is used up",
    "projected_over": "A budget will not last",
}


@dataclass(frozen=True, slots=True)
class Attention:
    """One thing that needs attention."""

    level: Level
    title: str
    text: str
    action: Mapping[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        """The JSON object of the overview."""
        return {
            "level": self.level,
            "title": self.title,
            "text": self.text[:MAX_TEXT],
            "action": self.action,
        }


def in_order(found: Iterable[Attention]) -> list[Attention]:
    """Faults first; at most `MAX_SHOWN`."""
    return sorted(found, key=lambda one: one.level != "fault")[:MAX_SHOWN]


def open_view(label: str, view: str, **query: str) -> Mapping[str, Any]:
    """An action that opens a view."""
    return {"label": label, "view": view, "query": query}


SEE_SETTINGS: Final = open_view("Open settings", "settings")


# ── the store, upstream, the books ──────────────────────────────────────────────────────────


def of_store(reason: str | None) -> Attention:
    """The store is unavailable."""
    why = reason or "The store does not answer."
    text = f"{why} Keys with limits are refused until it is back; hits in memory are served."
    return Attention("fault", "The store is unavailable", text, SEE_SETTINGS)


def of_room(*, are_books_low: bool, is_nearly_full: bool) -> Iterator[Attention]:
    """Memory or disk is running out."""
    remedy = "Raise Redis' maxmemory or free disk space, or shorten billing.keep_records."
    if is_nearly_full:
        text = f"A store without room refuses every purchase. {remedy}"
        yield Attention("fault", "The store is nearly full", text, SEE_SETTINGS)
    elif are_books_low:
        text = f"Keys, counters, ledger and totals use most of their memory. {remedy}"
        yield Attention("warning", "The memory of the books is low", text, SEE_SETTINGS)


def of_upstream(state: UpstreamState) -> Attention | None:
    """Purchases fail."""
    if not state.is_failing:
        return None
    text, failures = text_of_upstream(state), open_view("Show failures", "requests")
    action = {**failures, "query": {"outcome": "failed"}}
    if state.open_breakers:
        return Attention("fault", f"Purchases from {state.name} are paused", text, action)
    return Attention("fault", f"Purchases from {state.name} fail", text, action)


def text_of_upstream(state: UpstreamState) -> str:
    """How purchases go, in a sentence or two."""
    if (cause := state.cause) is not None:
        said = f" It said: “{clean(cause.message, 200)}”" if cause.message else ""
        return f"{cause.explanation}{said}"
    if state.open_breakers:
        return "Too many purchases failed in a row, so none is sent for some seconds."
    if state.last_success_at is None and not state.failures:
        return "Nothing was bought yet."
    if state.failures_since_success:
        return "The last purchase failed, for a reason that concerns only that request."
    return "Purchases succeed."


def of_books(verified: Verified | None, *, now: float, is_in_use: bool) -> Attention | None:
    """The books do not balance, or were not verified lately."""
    if verified is None:
        if not is_in_use:
            return None
        text = "The books were never verified. Look for `job_failed` in the log."
        return Attention("warning", "The books are not verified", text)
    if not verified.is_balanced:
        text = f"{text_of_books(verified)} Run `gateway ledger verify`, and see the runbook."
        return Attention("fault", "The books do not balance", text)
    if now - verified.time > UNVERIFIED_SECONDS:
        hours = (now - verified.time) / 3600
        text = f"The last check was {hours:,.0f} hours ago. Look for `job_failed` in the log."
        return Attention("warning", "The books are not verified", text)
    return None


def text_of_books(verified: Verified | None) -> str:
    """The result of the last verification."""
    if verified is None:
        return "Not checked yet."
    if verified.is_balanced:
        return "Balanced."
    first = verified.shown[0]
    return (
        f"{verified.differences:,} differences, the first in {first.book} of "
        f"{clean(first.subject)}, {first.window}: expected {first.expected:,} {first.unit}, but "
        f"found {first.found:,}."
    )


# ── configuration ───────────────────────────────────────────────────────────────────────────


def of_policy(fault: str | None) -> Attention | None:
    """A changed file is faulty, so the old one is still used."""
    if fault is None:
        return None
    text = f"The last good version is still used. {' '.join(fault.split())}"
    return Attention("fault", "A configuration file is faulty", text, SEE_SETTINGS)


def of_findings(findings: Iterable[ShownFinding]) -> Iterator[Attention]:
    """What the settings alone show."""
    for finding in findings:
        if finding.level == "fault":
            yield Attention("fault", f"Fault: {finding.name}", finding.message, SEE_SETTINGS)
        elif finding.level == "warning":
            yield Attention("warning", f"Check: {finding.name}", finding.message, SEE_SETTINGS)


def of_models(
    retiring: Mapping[str, date], used: Iterable[str], *, today: date
) -> Iterator[Attention]:
    """Models in use that retire soon, or did."""
    for model in used:
        shutdown = retiring.get(model)
        if shutdown is None or (days := (shutdown - today).days) > RETIRES_DAYS:
            continue
        if days < 0:
            title, when = f"{model} has retired", f"retired on {shutdown}"
        else:
            when = f"retires on {shutdown}, {_in_days(days)}"
            title = f"{model} retires soon"
        text = (
            f"{model} {when}, and was used in the last 30 days. Move its users to another model, "
            "or give it an alias in models.yaml."
        )
        action = open_view("Show who uses it", "spend", model=model, by="key")
        yield Attention("warning", title, text, action)


def _in_days(days: int) -> str:
    return {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")


# ── keys and limits ─────────────────────────────────────────────────────────────────────────


def of_limit(alert: Alert, state: LimitState) -> Attention | None:
    """A budget that is used up, nearly used, or will not last."""
    threshold = alert.data.get("threshold")
    if threshold is not None and threshold <= MIN_CROSSED:
        return None
    is_refused = alert.kind == "limit_exhausted" and state.is_enforced
    return Attention(
        "fault" if is_refused else "warning",
        _TITLES[alert.kind],
        alert.text,
        _open_scope("Raise the limit", state.scope, limit=state.limit.name),
    )


def _open_scope(label: str, scope: str, **query: str) -> Mapping[str, Any]:
    kind, _, name = scope.partition(":")
    if kind == "everyone":
        return open_view(label, "teams", scope=scope, **query)
    return open_view(label, f"{kind}s", search=name, **query)


def of_keys(expiring: Iterable[ExpiringKey], *, now: float) -> Iterator[Attention]:
    """Keys in use that expire soon."""
    for key in sorted(expiring, key=lambda key: key.expires_at):
        hours = max(0, round((key.expires_at - now) / 3600))
        when = f"{hours} hours" if hours < 48 else f"{hours // 24} days"
        text = (
            f"{key.name} was used in the last seven days and expires in {when}. Give it a later "
            "expiry, or its owner another key."
        )
        action = open_view("Open the key", "keys", search=key.name)
        yield Attention("warning", f"Key {key.name} expires soon", text, action)


def of_events(events: Iterable[KeptEvent], raised: Mapping[str, float]) -> Iterator[Attention]:
    """Events that ask for an answer. `raised` has the maximum of limits by scope and name."""
    for event in events:
        scope = str(event.data.get("scope", ""))
        if event.kind == "revoked_key_in_use":
            action = open_view("Open the key", "keys", search=_name_of(scope), state="revoked")
            yield Attention("warning", "A revoked key is in use", _first_line(event), action)
        elif event.kind == "asked_for_more" and not _is_answered(event, raised):
            limit = str(event.data.get("limit", ""))
            action = _open_scope("Raise the limit", scope, limit=limit)
            yield Attention("warning", "A key asks for more", _first_line(event), action)
        elif event.kind == "spike":
            action = open_view("Show the day", "spend", **_filter_of(scope))
            yield Attention("warning", "Spending is unusual", _first_line(event), action)


def limit_key(scope: str, limit: str) -> str:
    """The name of a limit of a scope in `raised`."""
    return f"{scope} {limit}"


def maxima_of(states: Sequence[LimitState]) -> dict[str, float]:
    """The maximum of each limit, by scope and name."""
    return {
        limit_key(state.scope, state.limit.name): amount_in_unit(state.limit, state.maximum)
        for state in states
    }


def _is_answered(event: KeptEvent, raised: Mapping[str, float]) -> bool:
    """Whether the limit was raised since the key asked."""
    scope, limit = str(event.data.get("scope", "")), str(event.data.get("limit", ""))
    now = raised.get(limit_key(scope, limit))
    then = [row.get("max") for row in event.data.get("limits", ()) if row.get("scope") == scope]
    return now is not None and any(isinstance(old, int | float) and now > old for old in then)


def _first_line(event: KeptEvent) -> str:
    # The others name the top spenders.
    return event.text.partition("\n")[0]


def _name_of(scope: str) -> str:
    return scope.partition(":")[2]


def _filter_of(scope: str) -> dict[str, str]:
    kind, _, name = scope.partition(":")
    return {kind: name} if name else {}


def of_over_estimates(count: int) -> Attention | None:
    """Bills that were higher than what was reserved for them."""
    if not count:
        return None
    bills = "A purchase" if count == 1 else f"{count} purchases"
    text = (
        f"{bills} of the last 24 hours cost more than the estimate, so a budget can be exceeded by "
        "the difference. Compare the prices in models.yaml with upstream's."
    )
    action = open_view("Show them", "requests", flag="over_estimate", outcome="bought")
    return Attention("warning", "Bills were higher than estimated", text, action)
