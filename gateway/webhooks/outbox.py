"""The outbox: events that are to be sent, and the claims that make each of them unique.

An event is claimed and put into the outbox in one step, so it is sent once however many workers
notice it, and it is not lost if the worker dies. There is an entry for each webhook that wants the
event. An entry names its webhook by a hash: URLs and secrets stay in the configuration.

The space `alert_claims` has a record for each event by `Event.once`, `outbox` the entries by time.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import orjson
import structlog

from gateway.events import Event, Webhook
from gateway.images import decode_fields
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import read_stored

CLAIMS: Final = "alert_claims"
OUTBOX: Final = "outbox"

MAX_ENTRIES: Final = 1000
"""Entries of the outbox. Beyond it, the oldest ones make room."""
KEEP_SECONDS: Final = 86_400.0
"""How long an entry is tried."""
CLAIM_GRACE_SECONDS: Final = 86_400.0
"""How long a claim outlives its window: longer than late settlements are looked at."""
MAX_KNOWN_CLAIMS: Final = 10_000
"""Claims that a worker remembers, so that it need not read them again."""
CLAIM_ATTEMPTS: Final = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event for one webhook."""

    name: str
    """In the outbox: names are in the order of time."""
    webhook: str
    """Its webhook's name of `webhooks_by_id`."""
    event_id: str
    """The same for all webhooks and all attempts."""
    kind: str
    created_at: float
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0
    due_at: float = 0.0
    """Unix seconds of the next attempt."""
    stored: bytes = field(default=b"", compare=False, repr=False)
    """Its bytes in the store, as they were read."""

    def encode(self) -> bytes:
        """The entry's bytes in the store."""
        fields = asdict(self)
        del fields["stored"]
        return orjson.dumps(fields)

    @staticmethod
    def decode(data: bytes) -> Entry:
        """The inverse of `encode`."""
        # Compared with the stored bytes later: an entry of a newer gateway may have more fields.
        return replace(decode_fields(Entry, orjson.loads(data)), stored=data)


def webhook_id(webhook: Webhook) -> str:
    """Names a webhook in the store. It says nothing of the URL, which may be a secret."""
    return hashlib.sha256(f"{webhook.format} {webhook.url}".encode()).hexdigest()[:24]


def webhooks_by_id(webhooks: Sequence[Webhook]) -> list[tuple[str, Webhook]]:
    """Each webhook with its name in the store.

    Those of one URL and one format that have one secret are one receiver with one name. With
    several secrets, the name of each says which: every receiver gets requests that it can verify.
    """
    names = [webhook_id(webhook) for webhook in webhooks]
    secrets_of: dict[str, set[str | None]] = defaultdict(set)
    for name, webhook in zip(names, webhooks, strict=True):
        secrets_of[name].add(webhook.secret)
    return [
        (_own_name(name, webhook) if len(secrets_of[name]) > 1 else name, webhook)
        for name, webhook in zip(names, webhooks, strict=True)
    ]


def _own_name(name: str, webhook: Webhook) -> str:
    return hashlib.sha256(f"{name} {webhook.secret}".encode()).hexdigest()[:24]


class Outbox:
    """Claims events, and keeps them until they are sent."""

    def __init__(
        self,
        store: Store,
        webhooks: Callable[[], Sequence[Webhook]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._webhooks = webhooks
        self._clock = clock
        self._known: OrderedDict[str, float] = OrderedDict()
        """Claims in the store by name, with the time until which they hold."""

    # ── claims ──────────────────────────────────────────────────────────────────────────────

    @property
    def has_webhooks(self) -> bool:
        """Whether any event is sent anywhere."""
        return bool(self._webhooks())

    def is_wanted(self, kind: str, team: str | None = None) -> bool:
        """Whether any webhook gets such an event."""
        return any(_wants(webhook, kind, team) for webhook in self._webhooks())

    async def is_claimed(self, once: str, *, repeats: bool = False) -> bool:
        """Whether an event was sent, or is to be. Raises `StoreUnavailable`."""
        if once not in self._known or (repeats and self._known[once] <= self._clock()):
            found = await execute(self._store, Get(CLAIMS, once))
            if found is None:
                return False
            self._remember(once, _claim_end(found))
        return not repeats or self._known[once] > self._clock()

    async def publish(self, event: Event) -> bool:
        """Puts an event into the outbox for every webhook that wants it; whether it is new.

        An event that no webhook wants is not claimed. Raises `StoreUnavailable`.
        """
        wanted = [
            name
            for name, webhook in webhooks_by_id(self._webhooks())
            if _wants(webhook, event.kind, event.team)
        ]
        if not wanted or await self.is_claimed(event.once, repeats=event.repeats):
            return False
        entries = self._entries(event, wanted)
        await self._make_room(len(entries))
        writes = [Write(OUTBOX, entry.name, entry.encode(), expected=None) for entry in entries]
        return await self._claim(event, writes)

    async def _claim(self, event: Event, writes: Iterable[Write]) -> bool:
        for _ in range(CLAIM_ATTEMPTS):
            before = await execute(self._store, Get(CLAIMS, event.once))
            if before is not None:
                self._remember(event.once, _claim_end(before))
                if not event.repeats or _claim_end(before) > self._clock():
                    return False
            value = orjson.dumps({"until": event.until, "time": event.time})
            claim = Write(CLAIMS, event.once, value, expected=before)
            # In one step: a worker that dies after it has lost nothing, and one that dies before it
            # has claimed nothing.
            if await execute(self._store, CompareAndSet((claim, *writes))) is None:
                self._remember(event.once, event.until)
                return True
        return False

    def _entries(self, event: Event, webhooks: Iterable[str]) -> list[Entry]:
        now, event_id = self._clock(), f"evt_{secrets.token_hex(12)}"
        return [
            Entry(
                name=f"{int(now * 1000):015}-{event_id[4:]}-{number}",
                webhook=webhook,
                event_id=event_id,
                kind=event.kind,
                created_at=event.time,
                text=event.text,
                data=event.data,
                due_at=now,
            )
            for number, webhook in enumerate(dict.fromkeys(webhooks))
        ]

    def _remember(self, once: str, until: float) -> None:
        self._known[once] = until
        self._known.move_to_end(once)
        if len(self._known) > MAX_KNOWN_CLAIMS:
            self._known.popitem(last=False)

    async def forget_claims(self) -> int:
        """Deletes the claims of windows that are over; returns how many."""
        before, deleted = self._clock() - CLAIM_GRACE_SECONDS, 0
        async for page in scan_records(self._store, CLAIMS):
            for once, data in page.items():
                if _claim_end(data) <= before:
                    write = Write(CLAIMS, once, None, expected=data)
                    deleted += await execute(self._store, CompareAndSet((write,))) is None
        return deleted

    # ── entries ─────────────────────────────────────────────────────────────────────────────

    async def read(self) -> list[Entry]:
        """All entries, oldest first. Unreadable ones are removed."""
        found: dict[str, Entry] = {}
        async for page in scan_records(self._store, OUTBOX):
            for name, data in page.items():
                entry = read_stored("outbox_entry", data, Entry.decode, name=name)
                if entry is not None:
                    found[name] = entry
                    continue
                write = Write(OUTBOX, name, None, expected=data)
                await execute(self._store, CompareAndSet((write,)))
        return [found[name] for name in sorted(found)]

    async def take(self, entry: Entry, *, due_at: float) -> Entry | None:
        """Counts an attempt and sets the time of the next one, before the attempt is made.

        If this worker dies meanwhile, another one tries again then. None: another worker was first.
        """
        taken = replace(entry, attempts=entry.attempts + 1, due_at=due_at)
        taken = replace(taken, stored=taken.encode())
        write = Write(OUTBOX, entry.name, taken.stored, expected=entry.stored)
        return taken if await execute(self._store, CompareAndSet((write,))) is None else None

    async def put_back(self, entry: Entry, *, due_at: float) -> None:
        """Sets the time of the next attempt, after one that failed."""
        waiting = replace(entry, due_at=due_at)
        write = Write(OUTBOX, entry.name, waiting.encode(), expected=entry.stored)
        await execute(self._store, CompareAndSet((write,)))

    async def remove(self, entry: Entry) -> None:
        """Removes an entry that was sent, or given up."""
        write = Write(OUTBOX, entry.name, None, expected=entry.stored)
        await execute(self._store, CompareAndSet((write,)))

    async def drop_expired(self) -> None:
        """Removes entries that are too old, also while there is no webhook."""
        for entry in await self.read():
            if self._clock() - entry.created_at > KEEP_SECONDS:
                log_dropped(entry, "a_day_old")
                await self.remove(entry)

    async def _make_room(self, count: int) -> None:
        entries = await self.read()
        surplus = len(entries) + count - MAX_ENTRIES
        for entry in entries[: max(0, surplus)]:
            log_dropped(entry, "outbox_full")
            await self.remove(entry)


def log_dropped(entry: Entry, reason: str) -> None:
    """Logs that a webhook does not get an event."""
    log.error(
        "webhook_dropped",
        reason=reason,
        webhook=entry.webhook,
        event_id=entry.event_id,
        kind=entry.kind,
        attempts=entry.attempts,
    )


def _wants(webhook: Webhook, kind: str, team: str | None) -> bool:
    has_kind = webhook.events is None or kind in webhook.events
    return has_kind and (webhook.teams is None or team in webhook.teams)


def _claim_end(data: bytes) -> float:
    """Until when a claim holds. One that cannot be read is over, and still a claim."""
    end = read_stored("alert_claim", data, lambda claim: float(orjson.loads(claim)["until"]))
    return end or 0.0
