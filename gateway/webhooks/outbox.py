"""The outbox: events that are to be sent, and the claims that make each of them unique.

An event is claimed and put into the outbox in one step, so it is sent once however many workers
notice it, and it is not lost if the worker dies. There is an entry for each webhook that wants the
event. An entry names its webhook by a hash: URLs and secrets stay in the configuration. Every event
is kept too (`webhooks.kept_events`), whether or not a webhook wants it.

The space `alert_claims` has a record for each event by `Event.once`, `outbox` the entries by time.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

import orjson
import structlog

from gateway.events import Event, Webhook
from gateway.images import decode_fields
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import read_stored
from gateway.webhooks.kept_events import KeptEvents, kept_event_write

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
TRIM_EVERY: Final = 50
"""New events of a worker after which it removes the oldest that are kept."""

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


class _Claim(NamedTuple):
    """A claim in the store."""

    until: float
    """Unix seconds until which it holds."""
    is_sent: bool
    """A webhook wanted the event; else it is only kept."""


class Outbox:
    """Claims events, keeps them, and holds those that webhooks want until they are sent."""

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
        self.kept = KeptEvents(store, clock=clock)
        self._known: OrderedDict[str, _Claim] = OrderedDict()
        """Claims in the store by name."""
        self._published = 0

    # ── claims ──────────────────────────────────────────────────────────────────────────────

    @property
    def has_webhooks(self) -> bool:
        """Whether any event is sent anywhere."""
        return bool(self._webhooks())

    def is_wanted(self, kind: str, team: str | None = None) -> bool:
        """Whether any webhook gets such an event."""
        return any(_wants(webhook, kind, team) for webhook in self._webhooks())

    async def is_claimed(self, once: str, *, repeats: bool = False, to_send: bool = False) -> bool:
        """Whether an event was kept, and with `to_send` also that it was sent, or is to be.

        Raises `StoreUnavailable`.
        """
        known = self._known.get(once)
        is_over = repeats and known is not None and known.until <= self._clock()
        if known is None or is_over or (to_send and not known.is_sent):
            found = await execute(self._store, Get(CLAIMS, once))
            if found is None:
                return False
            known = _decode_claim(found)
            self._remember(once, known)
        if to_send and not known.is_sent:
            return False
        return not repeats or known.until > self._clock()

    async def publish(self, event: Event) -> bool:
        """Keeps an event, and puts it into the outbox for every webhook that wants it.

        Whether it is new, or new to a webhook. Raises `StoreUnavailable`.
        """
        wanted = [
            name
            for name, webhook in webhooks_by_id(self._webhooks())
            if _wants(webhook, event.kind, event.team)
        ]
        if await self.is_claimed(event.once, repeats=event.repeats, to_send=bool(wanted)):
            return False
        event_id = f"evt_{secrets.token_hex(12)}"
        entries = self._entries(event, event_id, wanted)
        if entries:
            await self._make_room(len(entries))
        writes = [Write(OUTBOX, entry.name, entry.encode(), expected=None) for entry in entries]
        is_new = await self._claim(event, event_id, writes)
        self._published += is_new
        if self._published >= TRIM_EVERY:
            self._published = 0
            await self.kept.trim()
        return is_new

    async def _claim(self, event: Event, event_id: str, writes: Sequence[Write]) -> bool:
        kept = kept_event_write(event, event_id, now=self._clock())
        for _ in range(CLAIM_ATTEMPTS):
            before = await execute(self._store, Get(CLAIMS, event.once))
            known = None if before is None else _decode_claim(before)
            holds = known is not None and not (event.repeats and known.until <= self._clock())
            if known is not None and holds and (known.is_sent or not writes):
                self._remember(event.once, known)
                return False
            value = {"until": event.until, "time": event.time, "is_sent": bool(writes)}
            claim = Write(CLAIMS, event.once, orjson.dumps(value), expected=before)
            # It was kept when there was no webhook yet.
            more = writes if holds else (kept, *writes)
            # In one step: a worker that dies after it has lost nothing, and one that dies before it
            # has claimed nothing.
            if await execute(self._store, CompareAndSet((claim, *more))) is None:
                self._remember(event.once, _Claim(event.until, bool(writes)))
                return True
        return False

    def _entries(self, event: Event, event_id: str, webhooks: Iterable[str]) -> list[Entry]:
        now = self._clock()
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

    def _remember(self, once: str, claim: _Claim) -> None:
        self._known[once] = claim
        self._known.move_to_end(once)
        if len(self._known) > MAX_KNOWN_CLAIMS:
            self._known.popitem(last=False)

    async def forget_claims(self) -> int:
        """Deletes the claims of windows that are over; returns how many."""
        before, deleted = self._clock() - CLAIM_GRACE_SECONDS, 0
        async for page in scan_records(self._store, CLAIMS):
            for once, data in page.items():
                if _decode_claim(data).until <= before:
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


def _decode_claim(data: bytes) -> _Claim:
    """A claim. One that cannot be read is over, and still a claim."""

    def decode(claim: bytes) -> _Claim:
        found = orjson.loads(claim)
        # Those of older gateways were all sent.
        return _Claim(float(found["until"]), found.get("is_sent") is not False)

    return read_stored("alert_claim", data, decode) or _Claim(0.0, is_sent=True)
