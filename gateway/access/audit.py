"""The audit: who changed what, and when.

Each change of a key, a team or a limit, each purge, take-down and new signing key leaves an event.
A change of records writes its event in the same compare-and-set, so neither exists without the
other. An event never has a secret or a secret's hash. Events are records of the space
`audit:<yyyy-mm>` (UTC), whose names are in the order of time.
"""

from __future__ import annotations

import heapq
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import orjson

from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import read_stored
from gateway.values import DURATION, parse_duration

SPACE: Final = "audit:"
"""Followed by the month."""

KEEP_SECONDS: Final = 400 * 86_400.0
MAX_MONTHS: Final = 240
"""How far back events are looked for: 20 years."""
MAX_VALUE_BYTES: Final = 4096
"""A larger value of a field is cut: an event must stay small, whatever was changed."""
MAX_SECONDS: Final = 253_402_300_799
"""The last second of the year 9999."""
MAX_OBJECT: Final = 256
"""Characters of `object`."""
MAX_DELETED: Final = 200
DEFAULT_LIMIT: Final = 100

_ID: Final = re.compile(r"[0-9]{17}-[0-9a-f]{8}")

Via: TypeAlias = Literal["api", "cli", "dashboard", "file"]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something."""

    via: Via
    """The admin API, a command, the dashboard, or `access.yaml`."""
    by: str
    """`admin`, the user and machine of a command, or the file."""
    address: str | None = None
    """Of the client of the admin API or the dashboard."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One change."""

    actor: Actor
    action: str
    """What was done: `key.create`, `key.change`, `cache.purge`, …"""
    object: str
    """What it was done to: `key:bob`, `team:art`, `everyone`, a fingerprint, …"""
    before: Mapping[str, Any] | None
    """The changed fields as they were; None if it did not exist."""
    after: Mapping[str, Any] | None
    """The changed fields as they are now; None if it does not exist any more."""
    time: float
    """Unix seconds."""

    def encode(self) -> bytes:
        """The event's bytes in the store."""
        return orjson.dumps(self.public())

    def public(self) -> dict[str, Any]:
        """The event for the admin API and the command line."""
        return {
            "time": self.time,
            "action": self.action,
            "object": self.object[:MAX_OBJECT],
            "via": self.actor.via,
            "by": self.actor.by,
            "address": self.actor.address,
            "before": _bounded(self.before),
            "after": _bounded(self.after),
        }

    @staticmethod
    def decode(data: bytes) -> AuditEvent:
        """The inverse of `encode`; unknown fields are ignored."""
        fields = orjson.loads(data)
        return AuditEvent(
            Actor(fields["via"], fields["by"], fields.get("address")),
            fields["action"],
            fields["object"],
            before=fields.get("before"),
            after=fields.get("after"),
            time=float(fields["time"]),
        )


class AuditEntry(NamedTuple):
    """An event in the store."""

    id: str
    """Its record's name; later events have larger ones."""
    event: AuditEvent

    def public(self) -> dict[str, Any]:
        """The event with its id."""
        return {"id": self.id, **self.event.public()}


def changed_fields(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of both differs; a field that one of them does not have is None there."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {n: before.get(n) for n in names}, {n: after.get(n) for n in names}


def audit_write(event: AuditEvent) -> Write:
    """The write that stores an event, for the compare-and-set of the change itself."""
    # The random part separates events of one microsecond.
    name = f"{_name_at(event.time)}-{secrets.token_hex(4)}"
    return Write(_space_of(event.time), name, event.encode(), expected=None)


def parse_past_time(text: str, *, now: float) -> float:
    """Unix seconds from `30d` before now, a date of UTC, or Unix seconds.

    Raises `ValueError` with what was expected.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal() and 9 <= len(text) <= 12:
        return float(min(int(text), MAX_SECONDS))
    with suppress(ValueError):
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    duration = DURATION.fullmatch(text)
    if duration is None or not duration[2]:
        raise ValueError(
            "a time before now such as 12h or 30d, a date such as 2026-11-29, or Unix seconds"
        )
    return max(0.0, now - parse_duration(text))


class Audit:
    """Stores events of changes that are no compare-and-set, reads events, and removes old ones."""

    def __init__(
        self,
        store: Store,
        *,
        keep_seconds: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._keep_seconds = keep_seconds
        self._clock = clock

    async def record(self, event: AuditEvent) -> None:
        """Stores an event on its own. Raises `StoreUnavailable`."""
        await execute(self._store, CompareAndSet((audit_write(event),)))

    async def note(
        self, actor: Actor, action: str, object: str, after: Mapping[str, Any] | None
    ) -> None:
        """Stores an event of now for something that has no state before, such as a purge."""
        await self.record(AuditEvent(actor, action, object, None, after, time=self._clock()))

    async def read(
        self,
        since: float | None = None,
        until: float | None = None,
        *,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
    ) -> list[AuditEntry]:
        """Up to `limit` events from `since` on and before `until` (Unix seconds), newest first.

        `after` is the id of the last one that the caller has. Unreadable events are left out.
        """
        now = self._clock()
        # Up to a day after now: another machine's clock may be ahead.
        last = min(now + 86_400, math.inf if until is None else until)
        first = max(0.0, now - self._keep_seconds if since is None else since)
        bounds = _name_at(first), min(_name_at(last), after or "~")
        entries: list[AuditEntry] = []
        for space in audit_spaces(first, last):
            entries += await self._read_month(space, bounds, limit - len(entries))
            if len(entries) == limit:
                break
        return entries

    async def _read_month(
        self, space: str, bounds: tuple[str, str], limit: int
    ) -> list[AuditEntry]:
        found: dict[str, AuditEvent] = {}
        async for page in scan_records(self._store, space):
            within = {name: data for name, data in page.items() if bounds[0] <= name < bounds[1]}
            for name in heapq.nlargest(limit, within):
                event = read_stored("audit_event", within[name], AuditEvent.decode, name=name)
                if event is not None:
                    found[name] = event
            found = {name: found[name] for name in heapq.nlargest(limit, found)}
        return [AuditEntry(name, event) for name, event in found.items()]

    async def remove_expired(self) -> int:
        """Removes the events that are past their retention; returns how many."""
        ends_at = self._clock() - self._keep_seconds
        before, removed = _name_at(ends_at), 0
        for space in audit_spaces(ends_at - 366 * 86_400, ends_at):
            async for page in scan_records(self._store, space):
                ended = [(name, data) for name, data in page.items() if name < before]
                for start in range(0, len(ended), MAX_DELETED):
                    part = ended[start : start + MAX_DELETED]
                    writes = (Write(space, name, None, expected=data) for name, data in part)
                    # If another worker has removed one of them, the next round gets the others.
                    if await execute(self._store, CompareAndSet(tuple(writes))) is None:
                        removed += len(part)
        return removed


def is_event_id(text: str) -> bool:
    """Whether it may be the id of an event, so that those before it are known."""
    return _ID.fullmatch(text) is not None


def _name_at(at: float) -> str:
    """The start of the names of events at a time, of a fixed width."""
    return f"{int(max(at, 0.0) * 1_000_000):017}"


def _space_of(at: float) -> str:
    return f"{SPACE}{datetime.fromtimestamp(at, UTC):%Y-%m}"


def audit_spaces(first: float, last: float) -> Iterator[str]:
    """The spaces of the months from the one of `last` back to that of `first`."""
    month = datetime.fromtimestamp(last, UTC).replace(day=1)
    oldest = datetime.fromtimestamp(first, UTC)
    for _ in range(MAX_MONTHS):
        yield f"{SPACE}{month:%Y-%m}"
        if (month.year, month.month) <= (oldest.year, oldest.month):
            return
        month = (month - timedelta(days=1)).replace(day=1)


def _bounded(fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if fields is None:
        return None
    return {name: _cut(value) for name, value in fields.items()}


def _cut(value: object) -> object:
    text = orjson.dumps(value, default=str).decode()
    return value if len(text) <= MAX_VALUE_BYTES else f"{text[: MAX_VALUE_BYTES - 1]}…"
