"""The queue of an account at upstream, for purchases that its rate or its concurrency makes wait.

Keys take turns. A key has a tag: where it is in a virtual time in which every key of priority 1 is
given one image a round. A ticket's size is its part of that time. The ticket whose tag (that of its
key, plus its own size) is the smallest is next; between equal tags the key's rank decides, which
grows with every key that joins. A key joins at the tag of the latest turn.

`score` is the sum of the sizes of all tickets of the key so far: the order of their arrival. The
Redis store does the same in `lua/shared/queues.lua`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from gateway.store.commands import HEAD_SECONDS, MAX_QUEUED, MAX_STOP_SECONDS, Place, Turn
from gateway.store.sqlite.arithmetic import UNITS, Bucket, refill
from gateway.store.sqlite.transaction import Transaction

ROUND: Final = 2520
"""The size of one image of priority 1: divisible by every priority."""

MAX_TAKEN: Final = 50
"""Turns of one command."""

MAX_KEYS: Final = 50
"""Keys that are looked at for the next turn, and whose purchases are counted for an estimate."""

_MAX_SCORE: Final = 2**62

MAX_STEPS: Final = 16
"""Tickets that are looked ahead."""

MICROS: Final = 1_000_000

NO_TURN: Final = Turn()


@dataclass(slots=True)
class Account:
    """An account's bucket and queue, as they are now."""

    name: str
    rate: int | None
    """Images a minute."""
    max_open: int | None
    """Of open purchases; None: any number."""
    level: int
    """Of the bucket, in units; below 0 after a request larger than the minute."""
    latest: int
    """The tag of the latest turn."""
    joined: int
    stopped_until: int
    head: str
    """The ticket of another worker whose turn it is, since `head_since`."""
    head_since: int

    @property
    def subject(self) -> str:
        return f"upstream:{self.name}"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A purchase that waits."""

    purchase: str
    key: str
    worker: str
    images: int
    size: int
    score: int


def open_account(tx: Transaction, name: str, rate: int | None, max_open: int | None) -> Account:
    """Reads an account and refills its bucket."""
    row = tx.fetch_one(
        "SELECT level, updated_at, latest, joined, stopped_until, head, head_since"
        " FROM account_buckets WHERE account = ?",
        (name,),
    )
    level, updated_at, latest, joined, stopped, head, since = row or (None, 0, 0, 0, 0, "", 0)
    now = tx.steady_micros
    bucket = None if level is None else Bucket(level, min(updated_at, now))
    level = None if rate is None else refill(bucket, rate, now=now).level
    stopped = min(stopped, now + MAX_STOP_SECONDS * MICROS)
    return Account(name, rate, max_open, level or 0, latest, joined, stopped, head, since)


def write_account(tx: Transaction, account: Account) -> None:
    """Stores an account."""
    tx.execute(
        "INSERT OR REPLACE INTO account_buckets (account, level, updated_at, latest, joined,"
        " stopped_until, head, head_since) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            account.name,
            None if account.rate is None else account.level,
            tx.steady_micros,
            account.latest,
            account.joined,
            account.stopped_until,
            account.head,
            account.head_since,
        ),
    )


def time_until(tx: Transaction, account: Account, images: int, *, ahead: int = 0) -> int:
    """Microseconds until the account may be sent so many images, after `ahead` others.

    A request larger than the minute goes when the bucket is full. 0 also while only the concurrency
    makes it wait: a purchase may end at any time.
    """
    stopped = max(0, account.stopped_until - tx.steady_micros)
    if account.rate is None:
        return stopped
    if account.rate == 0:
        return MAX_STOP_SECONDS * MICROS
    missing = (ahead + min(images, account.rate)) * UNITS - account.level
    return max(stopped, -(-max(0, missing) // account.rate))


def may_go(tx: Transaction, account: Account, images: int) -> bool:
    """Whether the account may be sent so many images now."""
    if account.max_open is not None and _open_purchases(tx, account) >= account.max_open:
        return False
    return account.rate != 0 and time_until(tx, account, images) == 0


def _open_purchases(tx: Transaction, account: Account) -> int:
    row = tx.fetch_one(
        "SELECT reserved FROM windows WHERE subject = ? AND unit = 'purchases'"
        " AND period = 'concurrency' AND label = ''",
        (account.subject,),
    )
    return 0 if row is None else int(row[0])


def decide_turn(tx: Transaction, place: Place | None) -> tuple[Turn, Account | None]:
    """Decides for a new purchase, and writes nothing yet."""
    if place is None or not place.is_limited:
        return NO_TURN, None
    account = open_account(tx, place.account, place.images_per_minute, place.concurrent)
    waiting = tx.fetch_one(
        "SELECT 1 FROM account_queue WHERE account = ? LIMIT 1", (place.account,)
    )
    if waiting is None and may_go(tx, account, place.images):
        return NO_TURN, account
    position, ahead = _foresee(tx, account, place)
    wait = time_until(tx, account, place.images, ahead=ahead) / MICROS
    is_long = place.max_wait is not None and wait > place.max_wait
    is_refused = is_long or count_tickets(tx, place.account) >= MAX_QUEUED
    return Turn("refused" if is_refused else "queued", position, wait), account


def remove_closed(tx: Transaction, account: str) -> None:
    """Removes the purchases that a gateway of an earlier version has closed."""
    tx.execute(
        "DELETE FROM account_queue WHERE account = ?"
        " AND purchase NOT IN (SELECT purchase FROM journals WHERE state = 'reserved')",
        (account,),
    )


def count_tickets(tx: Transaction, account: str) -> int:
    """How many purchases wait for an account."""
    row = tx.fetch_one("SELECT count(*) FROM account_queue WHERE account = ?", (account,))
    return int(row[0])


def _foresee(tx: Transaction, account: Account, place: Place) -> tuple[int, int]:
    """The place that a new ticket would get: its position, and the images before it."""
    found = tx.fetch_one(
        "SELECT tag, rank FROM account_keys WHERE account = ? AND key = ?",
        (account.name, place.key),
    )
    tag, rank = found or (account.latest, account.joined + 1)
    own, own_images, waiting = _before(tx, account, place.key)
    end = tag + waiting + size_of(place)
    count, images = _count_ahead(tx, account, place.key, end, rank, besides=own_images)
    return own + count + 1, own_images + images


def _before(
    tx: Transaction, account: Account, key: str, last: int | None = None
) -> tuple[int, int, int]:
    """How many tickets of a key wait, their images and their sizes; those up to a score `last`.

    Reads the index alone. The images are exact if the key had the same priority all the time.
    """
    head = first_ticket(tx, account, key)
    if head is None:
        return 0, 0, 0
    count, score = tx.fetch_one(
        "SELECT count(*), max(score) FROM account_queue"
        " WHERE account = ? AND key = ? AND score <= ?",
        (account.name, key, _MAX_SCORE if last is None else last),
    )
    size = score - head.score + head.size if count else 0
    return count, -(-size * head.images // head.size), size


def _count_ahead(
    tx: Transaction, account: Account, own_key: str, tag: int, rank: int, *, besides: int
) -> tuple[int, int]:
    """The tickets of all other keys that are before a tag, and their images.

    With more than `MAX_KEYS` other keys it is an estimate, as if each had priority 1; at most the
    images that wait `besides` the key's own.
    """
    keys = tx.fetch_all(
        "SELECT key, tag, rank FROM account_keys WHERE account = ? AND key != ? LIMIT ?",
        (account.name, own_key, MAX_KEYS + 1),
    )
    if len(keys) > MAX_KEYS:
        (others,) = tx.fetch_one(
            "SELECT count(*) FROM account_keys WHERE account = ?", (account.name,)
        )
        images = (tag - account.latest) * others // ROUND
        count, waiting = tx.fetch_one(
            "SELECT count(*), coalesce(sum(images), 0) FROM account_queue WHERE account = ?",
            (account.name,),
        )
        images = min(images, max(0, waiting - besides))
        return min(count, images), images
    count = images = 0
    for key, other_tag, other_rank in keys:
        head = first_ticket(tx, account, key)
        if head is not None:
            last = head.score - head.size + tag - other_tag - (other_rank > rank)
            found, more, _ = _before(tx, account, key, last)
            count, images = count + found, images + more
    return count, images


def size_of(place: Place) -> int:
    return place.images * ROUND // place.priority


def first_ticket(
    tx: Transaction, account: Account, key: str, *, passed: Sequence[str] = (), after: int = 0
) -> Ticket | None:
    """The oldest ticket of a key, without those of the workers that are passed over.

    `after` is the score of a ticket behind which it is.
    """
    marks = ", ".join("?" * len(passed))
    row = tx.fetch_one(
        "SELECT purchase, key, worker, images, size, score FROM account_queue"  # noqa: S608
        f" WHERE account = ? AND key = ? AND score > ? AND worker NOT IN ({marks})"
        # A gateway of an earlier version may have closed the journal.
        " AND EXISTS (SELECT 1 FROM journals WHERE journals.purchase = account_queue.purchase"
        " AND state = 'reserved')"
        " ORDER BY score LIMIT 1",
        (account.name, key, after, *passed),
    )
    return None if row is None else Ticket(*row)


def join_queue(
    tx: Transaction, account: Account, place: Place, *, purchase: str, worker: str
) -> None:
    """Adds a purchase to the queue."""
    account.joined += 1
    size = size_of(place)
    (score,) = tx.fetch_one(
        "SELECT coalesce(max(score), 0) FROM account_queue WHERE account = ? AND key = ?",
        (account.name, place.key),
    )
    tx.execute(
        "INSERT INTO account_queue (purchase, account, key, worker, images, size, score)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (purchase, account.name, place.key, worker, place.images, size, score + size),
    )
    tx.execute(
        "INSERT OR IGNORE INTO account_keys (account, key, tag, rank) VALUES (?, ?, ?, ?)",
        (account.name, place.key, account.latest, account.joined),
    )


def is_queued(tx: Transaction, purchase: str) -> bool:
    """Whether a purchase waits for its turn."""
    query = "SELECT 1 FROM account_queue WHERE purchase = ?"
    return tx.fetch_one(query, (purchase,)) is not None


def leave_queue(tx: Transaction, purchase: str) -> None:
    """Removes a purchase from its queue, or the turn that it has taken."""
    tx.execute("DELETE FROM account_grants WHERE purchase = ?", (purchase,))
    row = tx.fetch_one("SELECT account, key FROM account_queue WHERE purchase = ?", (purchase,))
    if row is not None:
        tx.execute("DELETE FROM account_queue WHERE purchase = ?", (purchase,))
        tx.execute(
            "DELETE FROM account_keys WHERE account = ? AND key = ? AND NOT EXISTS"
            " (SELECT 1 FROM account_queue WHERE account = ? AND key = ?)",
            (*row, *row),
        )


def read_turn(tx: Transaction, account: Account, purchase: str) -> Turn:
    """Where a purchase is in the queue."""
    row = tx.fetch_one(
        "SELECT purchase, key, worker, images, size, score FROM account_queue"
        " WHERE purchase = ? AND account = ?",
        (purchase, account.name),
    )
    if row is None:
        is_open = "SELECT 1 FROM journals WHERE purchase = ? AND state != 'settled'"
        return NO_TURN if tx.fetch_one(is_open, (purchase,)) else Turn("refused")
    ticket = Ticket(*row)
    tag, rank = tx.fetch_one(
        "SELECT tag, rank FROM account_keys WHERE account = ? AND key = ?",
        (account.name, ticket.key),
    )
    own, own_images, waiting = _before(tx, account, ticket.key, ticket.score - ticket.size)
    end = tag + waiting + ticket.size
    besides = own_images + ticket.images
    count, images = _count_ahead(tx, account, ticket.key, end, rank, besides=besides)
    wait = time_until(tx, account, ticket.images, ahead=own_images + images)
    return Turn("queued", own + count + 1, wait / MICROS)


def slow_workers(tx: Transaction, account: Account, *, asking: str) -> list[str]:
    """The workers whose turns are passed over; the one that asks is not slow any more."""
    where = "account = ? AND worker = ?"
    tx.execute(f"DELETE FROM account_slow_workers WHERE {where}", (account.name, asking))  # noqa: S608
    rows = tx.fetch_all(
        "SELECT worker FROM account_slow_workers WHERE account = ?", (account.name,)
    )
    return [worker for (worker,) in rows]


def in_order(tx: Transaction, account: Account, passed: Sequence[str]) -> Iterator[Ticket]:
    """The tickets in the order of their turns, without those of the workers that are passed."""
    heads: list[tuple[int, int, Ticket]] = []
    keys = tx.fetch_all(
        "SELECT key, tag, rank FROM account_keys WHERE account = ? ORDER BY tag, rank LIMIT ?",
        (account.name, MAX_KEYS),
    )
    for key, tag, rank in keys:
        if (first := first_ticket(tx, account, key, passed=passed)) is not None:
            heappush(heads, (tag + first.size, rank, first))
    while heads:
        tag, rank, ticket = heappop(heads)
        yield ticket
        later = first_ticket(tx, account, ticket.key, passed=passed, after=ticket.score)
        if later is not None:
            heappush(heads, (tag + later.size, rank, later))


def take_ticket(tx: Transaction, account: Account, ticket: Ticket) -> None:
    """Moves the key on by a ticket whose turn has come, and names it to its worker."""
    key = (account.name, ticket.key)
    tx.execute(
        "UPDATE account_keys SET tag = tag + ? WHERE account = ? AND key = ?", (ticket.size, *key)
    )
    (tag,) = tx.fetch_one("SELECT tag FROM account_keys WHERE account = ? AND key = ?", key)
    account.latest = max(account.latest, tag)
    leave_queue(tx, ticket.purchase)
    tx.execute(
        "INSERT OR REPLACE INTO account_grants (purchase, account, worker) VALUES (?, ?, ?)",
        (ticket.purchase, account.name, ticket.worker),
    )


def is_passed(tx: Transaction, account: Account, ticket: Ticket) -> bool:
    """Whether the turn of another worker is to be passed over."""
    if account.head != ticket.purchase:
        account.head, account.head_since = ticket.purchase, tx.steady_micros
    # The clock may have been set back.
    account.head_since = min(account.head_since, tx.steady_micros)
    return tx.steady_micros - account.head_since >= HEAD_SECONDS * MICROS


def time_until_own(tx: Transaction, account: Account, passed: Sequence[str], *, worker: str) -> int:
    """Microseconds until a worker's first ticket, as far as `MAX_STEPS` tickets tell."""
    ahead = 0
    for step, ticket in enumerate(in_order(tx, account, passed)):
        if ticket.worker == worker:
            return time_until(tx, account, ticket.images, ahead=ahead)
        if step == MAX_STEPS:
            return time_until(tx, account, 1, ahead=ahead)
        ahead += ticket.images
    return 0
