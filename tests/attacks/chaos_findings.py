"""What must hold after chaos: books, cache, store and upstream tell the same story."""

from __future__ import annotations

import secrets
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.cache.idempotency_keys import SPACE
from gateway.cache.idempotency_results import IdempotentRequest, decode_result
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import AcquireLease, Counter, GetValue, OpenJournals, PeekCounters
from gateway.wiring.stores import open_store
from tests.gateways import Client, Processes, Reply, Upstream

SHARED = frozenset({"plain", "hit", "variation", "stream", "keyed"})
"""The kinds of requests that are answered with the images of other requests."""

MARGIN_SECONDS = 15.0
"""How long after a pause its consequences last: time-outs, renewals, a restarted worker."""

UNLIMITED = "dave"
"""The key that buys while the store is unavailable (docs/reference/cache.md)."""


@dataclass(frozen=True)
class Ask:
    """A request; each prompt always comes with the same body."""

    kind: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    variation: int = 0
    order: str = ""
    """The gateway key and the idempotency key, if it has one."""

    @property
    def n(self) -> int:
        return int(self.body.get("n", 1))

    @property
    def slots(self) -> range:
        return range(self.variation, self.variation + self.n)


@dataclass
class Sent:
    """A request that was sent, and what came back."""

    key: str
    ask: Ask
    user: str
    """Names this very request to upstream and in the ledger."""
    started_at: float
    ended_at: float = 0.0
    status: int | None = None
    """None: no complete answer."""
    images: tuple[str, ...] = ()
    fingerprint: str = ""
    cache_status: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the gateway has said that all its images are in the cache."""
        is_whole = self.status == 200 and len(self.images) == self.ask.n
        return is_whole and any(
            word in self.cache_status for word in ("hit", "stored", "collapsed")
        )

    def received(self, reply: Reply) -> None:
        self.status = reply.status
        ids = reply.headers.get("x-gateway-image-ids", "")
        self.images = tuple(part.strip() for part in ids.split(",") if part.strip())
        status = reply.headers.get("Cache-Status", "")
        self.fingerprint, self.cache_status = status.partition('key="')[2][:-1], status[:60]


class Chaos:
    """All that was sent and broken."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.pauses: list[list[float]] = []
        self.kills: list[float] = []
        self._began_at = time.time()
        self._notes: list[str] = []

    def start(self, key: str, ask: Ask) -> Sent:
        sent = Sent(key, ask, f"user-{len(self.sent)}-{secrets.token_hex(3)}", time.time())
        self.sent.append(sent)
        return sent

    def note(self, text: str) -> None:
        self._notes.append(f"{time.time() - self._began_at:6.1f} s  {text}")

    def killed(self, pid: int) -> None:
        self.kills.append(time.time())
        self.note(f"killed worker {pid}")

    def pause_begins(self, seconds: float) -> None:
        self.pauses.append([time.time(), time.time() + seconds])
        self.note(f"store pauses for {seconds:g} s")

    def pause_ends(self) -> None:
        self.pauses[-1][1] = time.time()

    def history(self) -> str:
        return "\n".join(self._notes[-40:])

    def summary(self) -> str:
        statuses = Tally(str(sent.status) for sent in self.sent)
        kinds = Tally(sent.ask.kind for sent in self.sent)
        return (
            f"{len(self.sent)} requests {dict(kinds)}; statuses {dict(statuses)}; "
            f"{len(self.kills)} kills, {len(self.pauses)} pauses"
        )

    def is_beside_pause(self, at: float, until: float | None = None) -> bool:
        """Whether the store paused then, or shortly before."""
        end = at if until is None else until
        return any(begin <= end and at <= ends + MARGIN_SECONDS for begin, ends in self.pauses)

    def is_loss_told(self, sent: Sent) -> bool:
        """Whether the documented loss may have met it.

        A key without limits buys while the store is unavailable, and its worker is killed before
        the store is back.
        """
        return sent.key == UNLIMITED and any(
            begin - 5 <= kill <= end + MARGIN_SECONDS
            and sent.started_at <= end + MARGIN_SECONDS
            and begin - 5 <= (sent.ended_at or end)
            for begin, end in self.pauses
            for kill in self.kills
        )

    async def probe_hits(self, probe: Callable[[Sent], Awaitable[int]]) -> list[str]:
        """Requests that were answered with images from the cache, which are no hits now."""
        findings, seen = [], set()
        for sent in self.sent:
            name = (sent.ask.body["prompt"], sent.ask.variation)
            if sent.ask.kind not in SHARED or not sent.is_stored or name in seen:
                continue
            seen.add(name)
            if (status := await probe(sent)) != 200:
                at = sent.started_at - self._began_at
                findings.append(f"acknowledged, but no hit ({status}): at {at:.1f} s {sent}")
        return findings


# ── the findings ────────────────────────────────────────────────────────────────────────────


async def find_all(
    chaos: Chaos,
    processes: Processes,
    upstream: Upstream,
    clients: Mapping[str, Client],
    *,
    probed: list[str],
) -> list[str]:
    """Everything that does not hold."""
    records = await processes.ledger()
    calls = [call for call in await upstream.calls() if call["method"] == "POST"]
    by_user = {sent.user: sent for sent in chaos.sent}
    return [
        *[found async for found in _open_state(chaos, processes, clients, records)],
        *[found async for found in _books(processes, clients, records)],
        *_calls(chaos, by_user, records, calls),
        *_corrections(records),
        *_bought_twice(chaos, by_user, records),
        *_orders(chaos, by_user, records),
        *probed,
    ]


def _purchases(records: list[Record]) -> list[Record]:
    kinds = ("bought", "partial", "failed")
    return [r for r in records if r.outcome in kinds and r.corrects is None]


async def _open_state(
    chaos: Chaos, processes: Processes, clients: Mapping[str, Client], records: list[Record]
) -> Any:
    """Reservations, journals, leases, locks."""
    async with open_store(processes.settings) as (store, _):
        for journal in await execute(store, OpenJournals()):
            yield f"open journal: {journal.purchase} of {journal.worker}, {journal.state}"
        for fingerprint in {r.fingerprint for r in records if r.fingerprint}:
            slots = tuple(range(8))
            found = await execute(store, AcquireLease(fingerprint, slots, "a-probe", 0.001))
            if found.leased:
                yield f"lease left: {fingerprint} {dict(found.leased)}"
        for order in {sent.ask.order for sent in chaos.sent if sent.ask.order}:
            key, _, name = order.partition(" ")
            request = IdempotentRequest.of(clients[key].key_id, name, request=())
            value = await execute(store, GetValue(SPACE, request.name))
            result = None if value is None else decode_result(value)
            if result is not None and result.encoded is None:
                yield f"lock left: {order} {value!r}"


async def _books(processes: Processes, clients: Mapping[str, Client], records: list[Record]) -> Any:
    """The sums of the ledger are the windows, to the micro-dollar."""
    today = datetime.now(UTC).date()
    async with open_store(processes.settings) as (store, _):
        for name, client in clients.items():
            own = [r for r in records if r.key_id == client.key_id]
            if any(datetime.fromtimestamp(r.time, UTC).date() != today for r in own):
                continue  # the run crossed midnight
            sums = {
                "usd_micros": sum(r.cost_micros for r in own),
                "images": sum(r.images for r in own),
                "tokens": sum(sum(r.tokens.values()) for r in own),
            }
            scope = f"key:{client.key_id}"
            counters = tuple(Counter(scope, unit, "day") for unit in sums)
            states = await execute(store, PeekCounters(counters))
            for (unit, total), state in zip(sums.items(), states, strict=True):
                if state.used != total:
                    yield f"{name}: ledger {unit} {total}, window {state.used}"
                if state.reserved:
                    yield f"{name}: {unit} still reserved {state.reserved}"
            open_purchases = Counter(scope, "purchases", "concurrency")
            (state,) = await execute(store, PeekCounters((open_purchases,)))
            if state.reserved:
                yield f"{name}: purchases still open {state.reserved}"


def _calls(
    chaos: Chaos,
    by_user: Mapping[str, Sent],
    records: list[Record],
    calls: list[dict[str, Any]],
) -> Iterator[str]:
    """Each call of upstream has one record; a record without a call is told to be presumed."""
    called = Tally(call["body"]["user"] for call in calls if call["body"])
    recorded: defaultdict[str, list[Record]] = defaultdict(list)
    for record in _purchases(records):
        recorded[record.user or ""].append(record)
    for user in called.keys() | recorded.keys():
        own, count = recorded[user], called[user]
        sent = by_user.get(user)
        if count > len(own) and not (sent is not None and chaos.is_loss_told(sent)):
            yield f"{count} calls, {len(own)} records: {sent} {_short(own)}"
        unsent = [r for r in own if not r.cost_micros or "presumed" in r.flags]
        if len(own) > count + len(unsent):
            yield f"{len(own)} records, {count} calls: {sent} {_short(own)}"


def _corrections(records: list[Record]) -> Iterator[str]:
    ids = Tally(record.id for record in records)
    yield from (f"{count} records with the id {name}" for name, count in ids.items() if count > 1)
    known = {record.id: record for record in records}
    for record in records:
        if record.corrects is not None:
            if record.corrects not in known:
                yield f"corrects nothing: {_short([record])}"
            elif known[record.corrects].cost_micros + record.cost_micros < 0:
                yield f"corrected below zero: {_short([known[record.corrects], record])}"


def _bought_twice(
    chaos: Chaos, by_user: Mapping[str, Sent], records: list[Record]
) -> Iterator[str]:
    """Of shared requests each slot is bought once, unless a death or a pause explains it."""
    slots: defaultdict[str, set[int]] = defaultdict(set)
    bought: defaultdict[str, list[Record]] = defaultdict(list)
    explained: set[str] = set()
    for sent in chaos.sent:
        if sent.ask.kind in SHARED and sent.fingerprint:
            slots[sent.fingerprint] |= set(sent.ask.slots)
    for record in records:
        sender, fingerprint = by_user.get(record.user or ""), record.fingerprint or ""
        if sender is None or sender.ask.kind not in SHARED:
            continue
        slots[fingerprint] |= set(sender.ask.slots)
        # An image that was charged and not delivered leaves its slot empty.
        if {"presumed", "undelivered"} & set(record.flags) or record.corrects is not None:
            explained.add(fingerprint)
        # Each worker buys for itself while the store is unavailable.
        if sender.key == UNLIMITED and chaos.is_beside_pause(sender.started_at, sender.ended_at):
            explained.add(fingerprint)
        if record.outcome in ("bought", "partial"):
            bought[fingerprint].append(record)
    for fingerprint, own in bought.items():
        images = sum(record.images for record in own)
        if images > len(slots[fingerprint]) and fingerprint not in explained:
            senders = [by_user[record.user or ""] for record in own]
            times = [f"{s.started_at - chaos._began_at:.1f} s {s.key} {s.ask}" for s in senders]
            yield f"{images} images for {len(slots[fingerprint])} slots: {_short(own)} {times}"


def _orders(chaos: Chaos, by_user: Mapping[str, Sent], records: list[Record]) -> Iterator[str]:
    """An idempotency key is charged once, and always gets the same images."""
    charged: defaultdict[str, Tally[str]] = defaultdict(Tally)
    for record in records:
        sender = by_user.get(record.user or "")
        if sender is not None and sender.ask.order:
            charged[sender.ask.order][record.corrects or record.id] += record.cost_micros
    for order, costs in charged.items():
        if len([cost for cost in costs.values() if cost]) > 1:
            own = [
                r
                for r in records
                if (sent := by_user.get(r.user or "")) is not None and sent.ask.order == order
            ]
            yield f"{order} charged {dict(costs)}: {_short(own)}"
    shown: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for sent in chaos.sent:
        if sent.ask.order and sent.status == 200 and not sent.ask.body.get("stream"):
            shown[sent.ask.order].add(sent.images)
    yield from (f"{order} shown {images}" for order, images in shown.items() if len(images) > 1)


def _short(records: list[Record]) -> str:
    return str(
        [
            f"{r.id[:8]} {r.key} {r.outcome} {'+'.join(r.flags)} {r.images} images "
            f"{r.cost_micros} µ$ {r.status} at {r.time:.1f}"
            for r in records
        ]
    )
