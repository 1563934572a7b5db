"""The store's language: what the gateway can ask of it, as data.

A verb is a frozen dataclass that says what is asked and, by its type parameter, what comes back.
Each verb is one atomic step on the store's own clock, checks everything before its first write,
and may be repeated with the same ids without doing its work twice. `Batch` sends several in one
round trip, in order; a batch as a whole is not atomic.

Here is only the language. `sqlite` and `redis` speak it; `tests/store` proves that they agree.
All times are Unix seconds (float) on the store's clock, all durations seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, cast

R = TypeVar("R")

LAYOUT_VERSION: Final = 2
"""Stamped into every store. An older one is upgraded by whoever may create it, else refused; a
newer one is always refused."""

CLOSED_JOURNAL_SECONDS: Final = 7 * 86_400
"""How long a settled journal stays, so that a repeated settlement finds it."""

APPENDED_SECONDS: Final = 3600
"""How long the id of an append is remembered."""

WINDOW_GRACE_SECONDS: Final = 7 * 86_400
"""How long a calendar window's counters outlive the window, for purchases settled late."""


MOST_VICTIMS: Final = 1000
"""How many digests `Shelve`, `Shrink` and `Oldest` answer at most, so that none takes long."""


class Verb(Generic[R]):
    """Something the store does in one atomic step, answered with an `R`."""

    __slots__ = ()


# ── records: small documents by space and name, never expiring ──────────────────────────────


@dataclass(frozen=True, slots=True)
class Get(Verb[bytes | None]):
    """The record `name` of `space`; None if there is none.

    With `through`, `name` is looked up in that space first and what stands there is the name in
    `space`: one trip from a secret's hash to the key's record.
    """

    space: str
    name: str
    through: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a `Put`: write `value` (None deletes) if the record now equals `expect`.

    `expect` None means: there must be no such record.
    """

    space: str
    name: str
    value: bytes | None
    expect: bytes | None


@dataclass(frozen=True, slots=True)
class Put(Verb[int | None]):
    """Makes all changes or none. Answers the index of the first whose `expect` did not hold."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Scan(Verb[Mapping[str, bytes]]):
    """All records of a space, by name."""

    space: str


# ── entries: the slots of a fingerprint, and who is filling them ────────────────────────────


@dataclass(frozen=True, slots=True)
class Slot:
    """What one slot holds: `data` is the room's own encoding, opaque here."""

    picture: str
    """The picture's id; storing the same id twice changes nothing."""
    expires_at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """The slots of a fingerprint at the store's time `now`; expired slots are among them."""

    now: float
    slots: Mapping[int, Slot]


@dataclass(frozen=True, slots=True)
class ReadEntry(Verb[Entry]):
    """All slots of a fingerprint that hold a picture. Writes nothing."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """Who has which of the slots that were asked for; every asked slot is in exactly one."""

    now: float
    held: Mapping[int, Slot]
    """Slots with a picture that has not expired."""
    mine: tuple[int, ...]
    """Slots that the asking flight has claimed, by this verb or before."""
    others: Mapping[int, str]
    """Slots that another live flight has claimed: slot → flight."""


@dataclass(frozen=True, slots=True)
class Claim(Verb[Claimed]):
    """Claims, for `flight`, those of `slots` that hold no live picture and no live claim.

    A claim lives `lease_seconds`. The flight's id is the fencing token: `Extend`, `Keep` and
    `Release` touch only claims that still carry it.
    """

    fingerprint: str
    slots: tuple[int, ...]
    flight: str
    lease_seconds: float
    ignoring: tuple[str, ...] = ()
    """Ids of pictures that count as none: a slot that holds one of them is empty for this claim."""


@dataclass(frozen=True, slots=True)
class Extend(Verb[bool]):
    """Sets the lease of every claim of `flight` anew. False (and no change) if none is alive."""

    fingerprint: str
    flight: str
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Release(Verb[None]):
    """Gives back every claim of `flight`."""

    fingerprint: str
    flight: str


@dataclass(frozen=True, slots=True)
class Keep(Verb[Mapping[int, int]]):
    """Puts pictures into their slots and gives back every claim of `flight`.

    `slots` maps each wanted slot to its picture. A picture whose id the entry already holds, in
    whatever slot, stays where it is (so the verb is repeatable). A wanted slot that holds
    another live picture, or that another live flight has claimed, is left alone and the picture
    goes to the lowest slot that is free of both; beyond slot 63 it is dropped.
    `lifetime_seconds` is how long the picture counts as fresh: its `expires_at` becomes now +
    that, on the store's clock, whatever `Slot.expires_at` says. The whole entry lives at least
    `linger_seconds` beyond the last expiry. Answers wanted slot → slot it lies in.

    With `displaces` a wanted slot is taken although it holds another live picture (unless that is
    one of `slots` itself), which moves to the lowest slot that is free when all of `slots` lie;
    beyond slot 63 it is dropped. Claims of others are respected.
    """

    fingerprint: str
    flight: str
    slots: Mapping[int, Slot]
    lifetime_seconds: float
    linger_seconds: float
    displaces: bool = False


@dataclass(frozen=True, slots=True)
class Clear(Verb[None]):
    """Empties slots whose picture is damaged or gone: slot → the id of the picture meant.

    A slot that meanwhile holds another picture is left alone.
    """

    fingerprint: str
    pictures: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class EntriesPage:
    """Some entries, and where the next page begins."""

    entries: Mapping[str, Mapping[int, Slot]]
    """Fingerprint → slots, expired ones among them."""
    after: str | None
    """What the next `ScanEntries` says; None at the end."""


@dataclass(frozen=True, slots=True)
class ScanEntries(Verb[EntriesPage]):
    """About `limit` entries from the mark `after` ("" = the start), in any order.

    An entry that is there from the first page to the last is on at least one of them.
    """

    after: str = ""
    limit: int = 200


# ── notes and lists: small things with a life of their own ──────────────────────────────────


@dataclass(frozen=True, slots=True)
class Note(Verb[bool]):
    """Writes a small value under a name. False (and no change) if `is_new` and one lives there.

    It lives `lifetime_seconds` from now; None: until it is dropped.
    """

    space: str
    name: str
    value: bytes
    lifetime_seconds: float | None
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class ReadNote(Verb[bytes | None]):
    """What stands under a name, or None."""

    space: str
    name: str


@dataclass(frozen=True, slots=True)
class DropNote(Verb[None]):
    """Removes it, if it is there."""

    space: str
    name: str


@dataclass(frozen=True, slots=True)
class Enlist(Verb[None]):
    """Puts members onto a list, which is a set; the whole list lives at least so long from now."""

    space: str
    name: str
    members: tuple[str, ...]
    lifetime_seconds: float


@dataclass(frozen=True, slots=True)
class ReadList(Verb[Sequence[str]]):
    """The members of a list, in any order; none when there is no such list."""

    space: str
    name: str


@dataclass(frozen=True, slots=True)
class Strike(Verb[None]):
    """Takes members off a list."""

    space: str
    name: str
    members: tuple[str, ...]


# ── the shelf: which picture bytes there are, how large, and when they were last used ───────


@dataclass(frozen=True, slots=True)
class Shelve(Verb[Sequence[str]]):
    """Puts bytes onto the shelf, or prolongs their stay, as used just now.

    What is least recently used goes until the shelf holds at most `most_bytes` or nothing but
    this: answers the digests that went, oldest first. `MOST_VICTIMS` go at most; whoever is
    answered so many asks `Shrink` for the rest. Bytes whose stay is over are no longer on the
    shelf and are not among them. The bytes themselves lie elsewhere (`BlobStore`); the caller
    removes those that went *before* it stores its own, and then the bound holds for them too.
    """

    digest: str
    size_bytes: int
    lifetime_seconds: float
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Shrink(Verb[Sequence[str]]):
    """As `Shelve`, putting nothing."""

    most_bytes: int


@dataclass(frozen=True, slots=True)
class Touch(Verb[None]):
    """These were used just now, in this order; those that are not on the shelf stay off it.

    Needs no room: works in a store whose memory is full.
    """

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unshelve(Verb[None]):
    """Takes them off the shelf. Works also where there is no room left."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Oldest(Verb[Sequence[str]]):
    """The least recently used that together have at least `size_bytes`, oldest first.

    `MOST_VICTIMS` at most; without what is past its time, which takes no room any more. Writes
    nothing, so that a store whose memory is full can still answer it.
    """

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """How much lies on it."""

    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ReadShelf(Verb[Shelf]):
    """How much lies on the shelf, without what is past its time."""


@dataclass(frozen=True, slots=True)
class OnShelf(Verb[Sequence[bool]]):
    """Whether each of these is on the shelf, in the order asked."""

    digests: tuple[str, ...]


# ── bytes that travel with a batch ──────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PutBlob(Verb[None]):
    """Stores bytes as `BlobStore.put` does, but for `StoreFull`: a few always find room.

    So no verb behind it is done without it; whether the store is full, those say. Only for a store
    in which the bytes lie too: `BlobStore.add` adds it where it is known.
    """

    digest: str
    data: bytes
    lifetime_seconds: float


# ── flights: the small events of a purchase under way ───────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Publish(Verb[None]):
    """Appends an event to a flight and wakes everyone who watches it.

    `event_id` makes it repeatable: a second event of the same id in one flight is dropped.
    The flight's events live `lifetime_seconds` from the last one.
    """

    flight: str
    event_id: str
    event: bytes
    lifetime_seconds: float


@dataclass(frozen=True, slots=True)
class ReadEvents(Verb[Sequence[bytes]]):
    """The events of a flight in order, from index `after` (0 = all)."""

    flight: str
    after: int = 0


# ── workers ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Beat(Verb[None]):
    """This worker lives."""

    worker: str


@dataclass(frozen=True, slots=True)
class DeadWorkers(Verb[Sequence[str]]):
    """Workers that have neither beaten nor reserved for `after_seconds`."""

    after_seconds: float


@dataclass(frozen=True, slots=True)
class Retire(Verb[bool]):
    """Forgets a worker. False (and no change) while it holds open journals."""

    worker: str


# ── the books: meters, journals, ledger ─────────────────────────────────────────────────────
#
# Meters, takes and states are tuples: every request makes one of each for every limit there is.


class Meter(NamedTuple):
    """A counter of a scope, with the most it may show.

    `period`:
    `minute` is a token bucket that holds `maximum` and refills `maximum` a minute;
    `day` and `month` are UTC calendar windows with two counters, spent and reserved;
    `open` is a window without end: what is reserved right now.
    `maximum` None counts without a limit (a bucket without a limit is not kept).
    Units are `requests`, `images`, `tokens`, `micros`, `purchases`.
    """

    scope: str
    """Whose counter: `key:<id>`, later `team:<name>` and `everyone`."""
    unit: str
    period: Literal["minute", "day", "month", "open"]
    maximum: int | None = None


class MeterState(NamedTuple):
    """What a meter shows after the verb; for a bucket `used` is what is missing from full."""

    used: int
    reserved: int
    resets_in: float
    """Seconds until the window ends; for a bucket, until it is full; 0 for `open`."""
    retry_in: float = 0.0
    """Only on a refused bucket: seconds until it holds what was asked for."""


class Take(NamedTuple):
    """An amount taken from a meter; 0 only looks."""

    meter: Meter
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """`refused` is the index of the first take that would pass its maximum, None if admitted.

    `record` is the key's record as it is now when it differs from the expected one (b"" if it is
    gone); then nothing was taken. `states` has one element a take; it is empty when stale.
    """

    refused: int | None
    record: bytes | None
    states: tuple[MeterState, ...]


@dataclass(frozen=True, slots=True)
class Admit(Verb[Admission]):
    """Takes from every bucket or from none, provided the record still equals `expect`."""

    space: str
    name: str
    expect: bytes
    takes: tuple[Take, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """`refused` as in `Admission`; then nothing was reserved and there is no journal."""

    refused: int | None
    states: tuple[MeterState, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Reserve(Verb[Reservation]):
    """Reserves every amount or none, and opens the purchase's journal in state `reserved`.

    A window refuses when spent + reserved + amount > maximum. Windows are those of this moment;
    the journal remembers them. A journal that exists already is left as it is and answered as
    reserved. `payload` is what the purchase needs to be finished by somebody else. A worker that
    reserves lives, whether it has ever beaten or not.
    """

    purchase: str
    worker: str
    takes: tuple[Take, ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Receive(Verb[Literal["received", "settled", "unknown"]]):
    """Moves a journal from `reserved` to `received` and replaces its payload.

    Answers the state the journal is in afterwards: `settled` (nothing changed) when somebody
    closed it meanwhile.
    """

    purchase: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """`settled`: by this verb. `already`: by an earlier one. `corrected`: see `Settle`."""

    status: Literal["settled", "already", "corrected", "unknown"]
    charged: Mapping[str, int]
    """Unit → what the journal stands charged with now."""
    presumed: bool
    """The charge is a presumption that a late answer may still correct."""
    states: tuple[MeterState, ...]
    """One for each take of the reservation, as it shows now (empty when unknown)."""


@dataclass(frozen=True, slots=True)
class Settle(Verb[Settlement]):
    """Closes a journal: counters, ledger record and state in one step, exactly once.

    Reserved amounts are given back, `charge` (unit → amount) is added to spent in the windows
    of the reservation, `record` (None: no record) is appended to the ledger. On a journal that is
    closed nothing happens, except with `correct=True` on one closed as `presumed`: then the
    windows move by the difference, `record` is appended, and the charge is no longer presumed.
    Buckets are never given back. A purchase without a journal is closed all the same (`unknown`):
    a reservation that nobody waits for any more and that runs late then reserves nothing.
    """

    purchase: str
    charge: Mapping[str, int]
    record: bytes | None
    presumed: bool = False
    correct: bool = False


@dataclass(frozen=True, slots=True)
class Journal:
    """An open purchase."""

    purchase: str
    worker: str
    state: Literal["reserved", "received"]
    payload: bytes


@dataclass(frozen=True, slots=True)
class OpenJournals(Verb[Sequence[Journal]]):
    """The open journals of a worker, or of all."""

    worker: str | None = None


@dataclass(frozen=True, slots=True)
class ReadMeters(Verb[Sequence[MeterState]]):
    """What meters show now."""

    meters: tuple[Meter, ...]


@dataclass(frozen=True, slots=True)
class Append(Verb[None]):
    """Adds records to the ledger, in order, under the day of now.

    `batch_id` makes it repeatable for an hour: records of an id that was appended are dropped.
    """

    records: tuple[bytes, ...]
    batch_id: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass(frozen=True, slots=True)
class ReadLedger(Verb[Sequence[tuple[str, bytes]]]):
    """Up to `limit` ledger records after the id `after` ("" = from the start), oldest first.

    Ids are strings that grow with time: `<yyyy-mm-dd>/<position>`.
    """

    after: str = ""
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class Sweep(Verb[int]):
    """Removes up to `limit` things whose time is over; answers how many.

    Redis does it itself for all but the shelf.
    """

    limit: int = 1000


# ── the store itself ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a store says of itself."""

    kind: Literal["sqlite", "redis"]
    now: float
    """Its clock."""
    eviction_policy: str | None
    """What it does when its memory is full, in Redis' words; None: it evicts nothing of itself."""
    maxmemory_bytes: int | None
    """The most it may hold; None: as much as there is room."""
    is_durable: bool
    """Whether it writes every change to disk."""


@dataclass(frozen=True, slots=True)
class Inspect(Verb[StoreFacts]):
    """How the store is set up. Writes nothing, so that a full one answers too."""


# ── asking ──────────────────────────────────────────────────────────────────────────────────


class Watch(Protocol):
    """Wakes whoever waits for something to be published on one flight."""

    async def wait(self, timeout_seconds: float) -> None:
        """Returns after a publication since the last wait, or after the time."""


class Store(Protocol):
    """Where state lives. Opened by `open_store`, shared by a whole process."""

    name: str
    """What a person is told about where it is, without secrets."""

    async def run(self, verbs: Sequence[Verb[Any]]) -> list[Any]:
        """Runs verbs in order, in one round trip; their answers in the same order.

        Raises `errors.StoreUnavailable` when the store cannot be reached or does not answer
        within two seconds; what was asked may then still happen later. Raises `errors.StoreFull`
        when a verb needed room and there is none: the others of the batch may have been done.
        """

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """Watches a flight. Enter it *before* the look-up that decides to wait."""


class BlobStore(Protocol):
    """Where picture bytes live, by content hash."""

    async def put(self, digest: str, data: bytes, lifetime_seconds: float) -> None:
        """Stores bytes for at least `lifetime_seconds` from now; repeating it only prolongs.

        Raises `errors.StoreFull` when there is no room left; whatever was there is unharmed.
        """

    def add(self, batch: Batch, digest: str, data: bytes, lifetime_seconds: float) -> bool:
        """Has a batch do what `put` does, as its next verb; False where it cannot.

        It can where batches go to the place in which the bytes lie, and the bytes are few enough
        to hold up nobody else's verb, and to fit into a place that is full.
        """

    async def get(self, digest: str) -> bytes | None:
        """The bytes, or None when they are gone."""

    async def delete(self, digest: str) -> None:
        """Removes them, if they are there; works also where there is no room left."""

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """About `limit` digests with their sizes in bytes, from the mark `after` ("" = the start).

        Answers the mark of the next page, None at the end. Whatever stays from the first page to
        the last is on at least one of them.
        """

    async def capacity_bytes(self) -> int | None:
        """How much may lie here when nobody has said; None when the place has no limit of its own.

        In a Redis half of its `maxmemory`, or 1 GiB where that is not set (CONTRACT §3).
        """

    def passing(self) -> BlobStore:
        """A place of its own beside this one, for bytes that live for minutes: no scan finds them.

        What lies there is in nobody's books; its end is all that bounds it.
        """


class Handle(Generic[R]):
    """The answer to one verb of a batch, there once the batch was sent."""

    __slots__ = ("_answer", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._answer: R | None = None

    @property
    def answer(self) -> R:
        """What the store answered; an error before the batch was sent."""
        if not self._is_set:
            raise RuntimeError("the batch was not sent")
        return cast(R, self._answer)

    def set(self, answer: R) -> None:
        """Called by the batch."""
        self._answer = answer
        self._is_set = True


@dataclass(slots=True)
class Batch:
    """Verbs that travel together: rooms add, a story sends."""

    store: Store
    _asked: list[tuple[Verb[Any], Handle[Any]]] = field(default_factory=list)

    def add(self, verb: Verb[R]) -> Handle[R]:
        """Adds a verb; its handle has the answer after `send`."""
        handle: Handle[R] = Handle()
        self._asked.append((verb, handle))
        return handle

    async def send(self) -> None:
        """One round trip for all that was added since the last."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        answers = await self.store.run([verb for verb, _ in asked])
        for (_, handle), answer in zip(asked, answers, strict=True):
            handle.set(answer)


async def ask(store: Store, verb: Verb[R]) -> R:
    """One verb on its own."""
    return cast(R, (await store.run([verb]))[0])
