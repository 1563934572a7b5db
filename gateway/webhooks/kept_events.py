"""The events of the last months, for people who look: also those that no webhook gets.

Each is a record of the space `kept_events`, written in the same step as its claim. Names are in the
order of time. They are bounded by number and age.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from gateway.events import Event
from gateway.images import decode_fields
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import read_stored

SPACE: Final = "kept_events"
MAX_KEPT: Final = 1000
KEEP_SECONDS: Final = 90 * 86_400.0
MAX_REMOVED: Final = 100
"""Events that are removed in one step."""


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event as it is kept."""

    id: str
    """As webhooks get it."""
    kind: str
    time: float
    """Unix seconds."""
    text: str
    data: Mapping[str, Any]
    once: str = ""
    until: float = 0.0
    """The end of its window, in Unix seconds."""
    team: str | None = None

    def public(self) -> dict[str, Any]:
        """The event for the admin API."""
        shown = ("id", "kind", "time", "team", "text", "data")
        return {name: getattr(self, name) for name in shown}


class KeptEvents:
    """Reads the events that are kept, and removes old ones."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def read(
        self, *, limit: int, after: str | None = None, kinds: Collection[str] = ()
    ) -> tuple[list[KeptEvent], str | None]:
        """Up to `limit` events, newest first, and where the next page begins; None on the last.

        `after` is what the previous page said. Raises `StoreUnavailable`.
        """
        before = after or "~"
        found: dict[str, KeptEvent] = {}
        async for page in scan_records(self._store, SPACE):
            for name, data in page.items():
                event = _decode(name, data) if name < before else None
                if event is not None and (not kinds or event.kind in kinds):
                    found[name] = event
            # One more, to know whether another page follows.
            found = {name: found[name] for name in heapq.nlargest(limit + 1, found)}
        names = list(found)
        has_more = len(names) > limit
        return [found[name] for name in names[:limit]], names[limit - 1] if has_more else None

    async def trim(self) -> int:
        """Removes the events that are too old or too many; returns how many."""
        stored: dict[str, bytes] = {}
        async for page in scan_records(self._store, SPACE):
            stored |= page
        names = sorted(stored)
        oldest = _time_name(self._clock() - KEEP_SECONDS)
        surplus = max(0, len(names) - MAX_KEPT)
        ended = [name for index, name in enumerate(names) if index < surplus or name < oldest]
        for start in range(0, len(ended), MAX_REMOVED):
            part = ended[start : start + MAX_REMOVED]
            writes = (Write(SPACE, name, None, expected=stored[name]) for name in part)
            await execute(self._store, CompareAndSet(tuple(writes)))
        return len(ended)


def kept_event_write(event: Event, event_id: str, *, now: float) -> Write:
    """The write that keeps an event, for the step that claims it."""
    kept = KeptEvent(
        event_id,
        event.kind,
        event.time,
        event.text,
        event.data,
        once=event.once,
        until=event.until,
        team=event.team,
    )
    name = f"{_time_name(now)}-{event_id.removeprefix('evt_')}"
    return Write(SPACE, name, orjson.dumps(asdict(kept)), expected=None)


def is_event_cursor(text: str) -> bool:
    """Whether it may be what a page said."""
    moment, _, rest = text.partition("-")
    return len(moment) == _DIGITS and moment.isdecimal() and rest.isalnum() and len(text) < 64


_DIGITS: Final = 15


def _time_name(moment: float) -> str:
    """The start of the names of events at a time, of a fixed width."""
    return f"{int(max(moment, 0.0) * 1000):0{_DIGITS}}"


def _decode(name: str, data: bytes) -> KeptEvent | None:
    return read_stored(
        "kept_event", data, lambda d: decode_fields(KeptEvent, orjson.loads(d)), name=name
    )


def unfinished(events: Sequence[KeptEvent], now: float) -> list[KeptEvent]:
    """Those whose window is not over."""
    return [event for event in events if event.until > now]
