"""Journals: a purchase is reserved, received and settled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, cast

import orjson

from gateway.images import decode_fields
from gateway.limits import CALENDAR_PERIODS, CalendarPeriod, Period
from gateway.store import commands
from gateway.store.commands import (
    CLOSED_JOURNAL_SECONDS,
    FREE_JOURNAL_SECONDS,
    WINDOW_GRACE_SECONDS,
    Consumption,
    Counter,
    WindowName,
)
from gateway.store.sqlite.arithmetic import UNITS, window_at
from gateway.store.sqlite.commands.counters import (
    consume_from_buckets,
    end_future_buckets,
    judge,
    read_consumed,
    read_counter,
)
from gateway.store.sqlite.commands.ledger import append_record
from gateway.store.sqlite.commands.queues import (
    MAX_TAKEN,
    NO_TURN,
    Account,
    Ticket,
    count_tickets,
    decide_turn,
    in_order,
    is_passed,
    is_queued,
    join_queue,
    leave_queue,
    may_go,
    open_account,
    read_turn,
    remove_closed,
    slow_workers,
    take_ticket,
    time_until_own,
    write_account,
)
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.commands.running_totals import add_to_total
from gateway.store.sqlite.commands.workers import record_heartbeat
from gateway.store.sqlite.transaction import Transaction

SHOWN_STATE: Final = (
    "CASE WHEN state = 'reserved' AND purchase IN (SELECT purchase FROM account_queue)"
    " THEN 'queued' ELSE state END"
)
"""A queued journal is stored as `reserved`, and in the table of the queue."""


@dataclass(frozen=True, slots=True)
class _Reserved:
    """One consumption of a reservation, with the window that it was reserved in."""

    subject: str
    unit: str
    period: Period
    amount: int
    maximum: int | None = None
    window: str = ""
    ends_at: float | None = None
    """None for a window that never ends."""

    @property
    def counter(self) -> Counter:
        return Counter(self.subject, self.unit, self.period, self.maximum)


@dataclass(frozen=True, slots=True)
class _Scopes:
    """The subjects in all of whose calendar windows a reservation counts."""

    subjects: tuple[str, ...] = ()
    amounts: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[CalendarPeriod, tuple[str, float]] = field(default_factory=dict)
    """Label and end by period."""

    def reserved(self) -> Iterator[_Reserved]:
        """The counters."""
        for subject in self.subjects:
            for period, (label, ends_at) in self.windows.items():
                for unit, amount in self.amounts.items():
                    yield _Reserved(
                        subject, unit, period, amount=amount, window=label, ends_at=ends_at
                    )


@dataclass(frozen=True, slots=True)
class _Journal:
    """A journal, as far as settling it needs it."""

    is_settled: bool
    consumptions: tuple[_Reserved, ...]
    scopes: _Scopes
    charge: Mapping[str, int]
    presumed: bool
    reserved_at: float | None = None
    attempt: str = ""
    corrected_from: Mapping[str, int] | None = None
    is_unreserved: bool = False


@writes(commands.Reserve)
def reserve(tx: Transaction, command: commands.Reserve) -> commands.Reservation:
    consumptions = command.consumptions
    if (journal := _read_journal(tx, command.purchase)) is not None:
        reserved_at = tx.now if journal.reserved_at is None else journal.reserved_at
        turn = commands.Turn("queued" if is_queued(tx, command.purchase) else "taken")
        states = read_consumed(tx, consumptions)
        return commands.Reservation(None, states, tx.now, reserved_at, turn=turn)
    denied, exceeded = judge(tx, consumptions)
    if denied is not None:
        end_future_buckets(tx, consumptions)
        states = read_consumed(tx, consumptions, denied=denied)
        return commands.Reservation(denied, states, tx.now, tx.now)
    turn, account = decide_turn(tx, command.place)
    if turn.state == "refused":
        states = read_consumed(tx, consumptions)
        return commands.Reservation(None, states, tx.now, tx.now, turn=turn)
    consume_from_buckets(tx, consumptions, exceeded)
    _open_journal(tx, command, turn, account)
    states = read_consumed(tx, consumptions)
    return commands.Reservation(None, states, tx.now, tx.now, exceeded, turn)


def _open_journal(
    tx: Transaction,
    command: commands.Reserve | commands.Reroute,
    turn: commands.Turn,
    account: Account | None,
) -> None:
    """Reserves in the windows, takes the turn or joins the queue, and writes the journal."""
    reserved = [_in_window(tx, one) for one in command.consumptions]
    if account is not None and command.place is not None:
        if turn.state == "taken":
            reserved += take_account(account, command.place.images)
        else:
            worker = command.worker
            join_queue(tx, account, command.place, purchase=command.purchase, worker=worker)
        write_account(tx, account)
    scopes = _scopes_at(tx, command.subjects, command.amounts, tx.now)
    _add_to_windows(tx, [(one, 0, one.amount) for one in _counters(reserved, scopes)])
    tx.execute(
        "INSERT OR REPLACE INTO journals"
        " (purchase, worker, state, payload, consumptions, windows, charge, presumed,"
        " remove_after, reserved_at)"
        " VALUES (?, ?, 'reserved', ?, ?, ?, '{}', 0, ?, ?)",
        (
            command.purchase,
            command.worker,
            command.payload,
            orjson.dumps(reserved).decode(),
            orjson.dumps(scopes).decode(),
            math.inf,
            tx.now,
        ),
    )
    # A worker with an open journal is always registered, so that others can find it.
    record_heartbeat(tx, command.worker)


def take_account(account: Account, images: int) -> list[_Reserved]:
    """Takes an account's tokens. Returns with what the journal holds the account, if anything."""
    if account.rate is not None:
        account.level -= images * UNITS
    if account.max_open is None:
        return []
    held = _Reserved(
        account.subject, "purchases", "concurrency", amount=1, maximum=account.max_open
    )
    return [held]


@writes(commands.Reroute)
def reroute(tx: Transaction, command: commands.Reroute) -> commands.Reservation:
    journal = _read_journal(tx, command.purchase)
    row = tx.fetch_one("SELECT state FROM journals WHERE purchase = ?", (command.purchase,))
    if journal is None or row != ("reserved",):
        return commands.Reservation(None, read_consumed(tx, command.consumptions), tx.now, 0.0)
    released = _counters(journal.consumptions, journal.scopes)
    # So that the new reservation is judged without the old one.
    tx.execute("SAVEPOINT released")
    _add_to_windows(tx, [(one, 0, -one.amount) for one in released])
    more = _less_given(command.consumptions, journal.consumptions)
    denied, exceeded = judge(tx, more)
    turn, account = NO_TURN, None
    if denied is None:
        turn, account = decide_turn(tx, command.place)
    if denied is not None or turn.state == "refused":
        tx.execute("ROLLBACK TO released")
        end_future_buckets(tx, more)
        states = read_consumed(tx, more, denied=denied)
        tx.execute("RELEASE released")
        return commands.Reservation(denied, states, tx.now, tx.now, turn=turn)
    tx.execute("RELEASE released")
    consume_from_buckets(tx, more, exceeded)
    leave_queue(tx, command.purchase)
    _open_journal(tx, command, turn, account)
    states = read_consumed(tx, command.consumptions)
    return commands.Reservation(None, states, tx.now, tx.now, exceeded, turn)


def _less_given(
    consumptions: Iterable[Consumption], before: Iterable[_Reserved]
) -> tuple[Consumption, ...]:
    """The consumptions without what token buckets have given this purchase before."""
    given: dict[tuple[str, str], int] = {}
    for one in before:
        if one.period == "minute":
            name = one.subject, one.unit
            given[name] = given.get(name, 0) + one.amount
    found = []
    for consumption in consumptions:
        counter, amount, _ = consumption
        if counter.period == "minute":
            had = given.get((counter.subject, counter.unit), 0)
            given[counter.subject, counter.unit] = max(0, had - amount)
            amount = max(0, amount - had)
        found.append(consumption._replace(amount=amount))
    return tuple(found)


def _in_window(tx: Transaction, consumption: Consumption) -> _Reserved:
    """A consumption with the window of now that it counts in."""
    counter, amount, _ = consumption
    window = window_at(counter.period, tx.now, tx.calendar)
    return _Reserved(
        counter.subject,
        counter.unit,
        counter.period,
        amount=amount,
        maximum=counter.maximum,
        window=window.label,
        ends_at=None if math.isinf(window.ends_at) else window.ends_at,
    )


def _scopes_at(
    tx: Transaction, subjects: tuple[str, ...], amounts: Mapping[str, int], at: float
) -> _Scopes:
    """The calendar windows of the subjects at a time."""
    if not subjects:
        return _Scopes()
    windows: dict[CalendarPeriod, tuple[str, float]] = {}
    for period in CALENDAR_PERIODS:
        label, ends_at = window_at(period, at, tx.calendar)
        windows[period] = label, ends_at  # a plain tuple, which orjson can write
    return _Scopes(subjects, amounts, windows)


def _counters(consumptions: Iterable[_Reserved], scopes: _Scopes) -> list[_Reserved]:
    """Every counter of a window that a reservation counts in, once."""
    found: dict[tuple[str, str, Period, str], _Reserved] = {}
    for one in consumptions:
        if one.period != "minute":
            name = (one.subject, one.unit, one.period, one.window)
            before = found[name].amount if name in found else 0
            found[name] = replace(one, amount=before + one.amount)
    for one in scopes.reserved():
        found.setdefault((one.subject, one.unit, one.period, one.window), one)
    return list(found.values())


def _add_to_windows(tx: Transaction, changes: Iterable[tuple[_Reserved, int, int]]) -> None:
    """Adds to the spent and reserved amounts of counters.

    If the store has lost a window, it is made again, and less may be left of it than a settlement
    releases: an amount is never below 0. A window that has expired is not made again.
    """
    rows = []
    for one, spent, reserved in changes:
        remove_after = math.inf if one.ends_at is None else one.ends_at + WINDOW_GRACE_SECONDS
        if remove_after > tx.now and (spent or reserved):
            counter = (one.subject, one.unit, one.period, one.window)
            rows.append((*counter, spent, reserved, remove_after, spent, reserved))
    tx.execute_many(
        "INSERT INTO windows (subject, unit, period, label, spent, reserved, remove_after)"
        " VALUES (?, ?, ?, ?, max(0, ?), max(0, ?), ?) ON CONFLICT DO UPDATE"
        " SET spent = max(0, spent + ?), reserved = max(0, reserved + ?)",
        rows,
    )


@writes(commands.Receive)
def receive(
    tx: Transaction, command: commands.Receive
) -> Literal["received", "settled", "unknown"]:
    journal = _read_journal(tx, command.purchase)
    if journal is None:
        return "unknown"
    if journal.is_settled:
        return "settled"
    tx.execute(
        "UPDATE journals SET state = 'received', payload = ? WHERE purchase = ?",
        (command.payload, command.purchase),
    )
    return "received"


@writes(commands.Settle)
def settle(tx: Transaction, command: commands.Settle) -> commands.Settlement:
    journal = _read_journal(tx, command.purchase)
    record = command.record
    if journal is None:
        # A reservation of this purchase that runs late finds a settled journal.
        tx.execute(
            "INSERT OR REPLACE INTO journals"
            " (purchase, worker, state, payload, consumptions, charge, presumed, remove_after)"
            " VALUES (?, '', 'settled', x'', '[]', '{}', 0, ?)",
            (command.purchase, tx.now + FREE_JOURNAL_SECONDS),
        )
        if (lost := command.lost) is None:
            return commands.Settlement("unknown", {}, presumed=False, states=(), now=tx.now)
        scopes = _scopes_at(tx, lost.subjects, dict.fromkeys(command.charge, 0), lost.reserved_at)
        journal = _Journal(False, (), scopes, charge={}, presumed=False, is_unreserved=True)
        record = lost.record
    if journal.is_settled and not (command.correct and journal.presumed):
        return _settlement(tx, journal, status="already")
    leave_queue(tx, command.purchase)
    _charge(tx, journal, command)
    if record is not None:
        append_record(tx, record, is_charged=_moves(journal.charge, command.charge))
    settled = replace(
        journal,
        charge=command.charge,
        presumed=command.presumed and not journal.is_settled,
        attempt=command.attempt,
        corrected_from=journal.charge if journal.is_settled else None,
    )
    _write_settled(tx, command.purchase, settled)
    return _settlement(tx, settled, status="corrected" if journal.is_settled else "settled")


def _moves(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Whether two charges differ in any unit: a record of such a settlement is charged."""
    return any(before.get(unit, 0) != after.get(unit, 0) for unit in (*before, *after))


def _charge(tx: Transaction, journal: _Journal, command: commands.Settle) -> None:
    """Releases the reserved amounts, and moves windows and running totals to a new charge."""
    changes = []
    for one in _counters(journal.consumptions, journal.scopes):
        spent = command.charge.get(one.unit, 0) - journal.charge.get(one.unit, 0)
        changes.append(
            (
                one,
                0 if one.period == "concurrency" else spent,
                0 if journal.is_settled else -one.amount,
            )
        )
    _add_to_windows(tx, changes)
    usd_micros = command.charge.get("usd_micros", 0) - journal.charge.get("usd_micros", 0)
    for name in command.totals:
        add_to_total(
            tx,
            name,
            charged=max(0, usd_micros),
            corrected=max(0, -usd_micros),
            saved=0 if journal.is_settled else command.saved_micros,
        )


def _write_settled(tx: Transaction, purchase: str, journal: _Journal) -> None:
    before = journal.corrected_from
    # Nothing corrects a final charge.
    scopes = journal.scopes if journal.presumed else _Scopes()
    # A correction from a charge to nothing is kept long too: its purchase is not free to make.
    is_free = not journal.presumed and not any((*journal.charge.values(), *(before or {}).values()))
    tx.execute(
        "UPDATE journals SET state = 'settled', payload = x'', windows = ?, charge = ?,"
        " presumed = ?, attempt = ?, corrected_from = ?, unreserved = ?, remove_after = ?"
        " WHERE purchase = ?",
        (
            orjson.dumps(scopes).decode(),
            orjson.dumps(dict(journal.charge)).decode(),
            journal.presumed,
            journal.attempt,
            None if before is None else orjson.dumps(dict(before)).decode(),
            journal.is_unreserved,
            tx.now + (FREE_JOURNAL_SECONDS if is_free else CLOSED_JOURNAL_SECONDS),
            purchase,
        ),
    )


def _settlement(
    tx: Transaction, journal: _Journal, *, status: Literal["settled", "already", "corrected"]
) -> commands.Settlement:
    return commands.Settlement(
        status,
        dict(journal.charge),
        journal.presumed,
        tuple(read_counter(tx, reserved.counter) for reserved in journal.consumptions),
        now=tx.now,
        attempt=journal.attempt,
        corrected_from=journal.corrected_from,
        is_unreserved=journal.is_unreserved,
    )


def _read_journal(tx: Transaction, purchase: str) -> _Journal | None:
    row = tx.fetch_one(
        "SELECT state, consumptions, windows, charge, presumed, reserved_at, attempt,"
        " corrected_from, unreserved FROM journals WHERE purchase = ? AND remove_after > ?",
        (purchase, tx.now),
    )
    if row is None:
        return None
    state, consumptions, windows, charge, presumed, reserved_at, attempt, before, lost = row
    return _Journal(
        state == "settled",
        tuple(decode_fields(_Reserved, one) for one in orjson.loads(consumptions)),
        decode_fields(_Scopes, orjson.loads(windows)),
        charge=orjson.loads(charge),
        presumed=bool(presumed),
        reserved_at=reserved_at,
        attempt=attempt,
        corrected_from=None if before is None else orjson.loads(before),
        is_unreserved=bool(lost),
    )


@reads(commands.OpenJournals)
def open_journals(tx: Transaction, command: commands.OpenJournals) -> Sequence[commands.Journal]:
    columns = (
        f"SELECT purchase, worker, {SHOWN_STATE}, payload, coalesce(reserved_at, 0), consumptions,"  # noqa: S608
        " windows FROM journals WHERE state != 'settled'"
    )
    arguments: list[object] = []
    if command.text:
        columns += " AND instr(payload, ?)"
        arguments.append(command.text)
    if command.worker is None:
        columns += " ORDER BY worker, rowid LIMIT ?"
    else:
        columns += " AND worker = ? ORDER BY rowid LIMIT ?"
        arguments.append(command.worker)
    rows = tx.fetch_all(columns, (*arguments, command.limit))
    return [commands.Journal(*row, **_reserved(packed, scopes)) for *row, packed, scopes in rows]


def _reserved(packed: str, packed_scopes: str) -> dict[str, Any]:
    """The reserved amounts and their subjects, from packed consumptions and scopes."""
    with suppress(ValueError, TypeError, LookupError, AttributeError):
        consumptions = [
            (one["subject"], one["unit"], one["amount"]) for one in orjson.loads(packed)
        ]
        scopes = orjson.loads(packed_scopes)
        in_scopes = [
            (subject, unit, amount)
            for subject in scopes["subjects"]
            for unit, amount in scopes["amounts"].items()
        ]
        return commands.reserved_by_unit([*in_scopes, *consumptions])
    return {}


def read_windows(packed: str, packed_scopes: str) -> Mapping[WindowName, Mapping[str, int]] | None:
    """The amounts of a journal by window and unit; None if it cannot be read."""
    found: dict[WindowName, dict[str, int]] = {}
    try:
        consumptions = [decode_fields(_Reserved, one) for one in orjson.loads(packed)]
        scopes = decode_fields(_Scopes, orjson.loads(packed_scopes))
        for one in _counters(consumptions, scopes):
            window = WindowName(one.subject, cast(Any, one.period), one.window)
            found.setdefault(window, {})[one.unit] = one.amount
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return found


@reads(commands.ReadJournalState)
def read_journal_state(
    tx: Transaction, command: commands.ReadJournalState
) -> Literal["queued", "reserved", "received", "settled", "unknown"]:
    row = tx.fetch_one(
        f"SELECT {SHOWN_STATE} FROM journals WHERE purchase = ? AND remove_after > ?",  # noqa: S608
        (command.purchase, tx.now),
    )
    return "unknown" if row is None else row[0]


@writes(commands.TakeTurns)
def take_turns(tx: Transaction, command: commands.TakeTurns) -> commands.Turns:
    worker, name = command.worker, command.account
    tx.execute_many(
        "DELETE FROM account_grants WHERE purchase = ? AND worker = ?",
        [(purchase, worker) for purchase in command.seen],
    )
    account = open_account(tx, name, command.images_per_minute, command.concurrent)
    slow = slow_workers(tx, account, asking=worker)
    order, taken = in_order(tx, account, slow), 0
    while taken < MAX_TAKEN:
        ticket = next(order, None)
        if ticket is None and not slow:
            remove_closed(tx, name)
        if ticket is None or not may_go(tx, account, ticket.images):
            break
        if ticket.worker == worker:
            _take(tx, account, ticket)
            taken += 1
        elif is_passed(tx, account, ticket):
            slow.append(ticket.worker)
            tx.execute("INSERT OR IGNORE INTO account_slow_workers VALUES (?, ?)", (name, slow[-1]))
            order = in_order(tx, account, slow)
        else:
            break
    write_account(tx, account)
    rows = tx.fetch_all(
        "SELECT purchase FROM account_grants WHERE account = ? AND worker = ? ORDER BY purchase",
        (name, worker),
    )
    next_in = time_until_own(tx, account, slow, worker=worker) / 1e6
    return commands.Turns(tuple(one for (one,) in rows), count_tickets(tx, name), next_in)


def _take(tx: Transaction, account: Account, ticket: Ticket) -> None:
    """Turns a queued journal into a reserved one."""
    held = take_account(account, ticket.images)
    if held:
        (packed,) = tx.fetch_one(
            "SELECT consumptions FROM journals WHERE purchase = ?", (ticket.purchase,)
        )
        tx.execute(
            "UPDATE journals SET consumptions = ? WHERE purchase = ?",
            (orjson.dumps([*orjson.loads(packed), *held]).decode(), ticket.purchase),
        )
        _add_to_windows(tx, [(one, 0, one.amount) for one in held])
    take_ticket(tx, account, ticket)


@reads(commands.ReadTurns)
def read_turns(tx: Transaction, command: commands.ReadTurns) -> Sequence[commands.Turn]:
    account = open_account(tx, command.account, command.images_per_minute, command.concurrent)
    return [read_turn(tx, account, purchase) for purchase in command.purchases]


@writes(commands.CorrectAccount)
def correct_account(tx: Transaction, command: commands.CorrectAccount) -> None:
    account = open_account(tx, command.account, command.images_per_minute, None)
    if command.remaining is not None:
        account.level = min(account.level, max(0, command.remaining) * UNITS)
    stop = math.ceil(min(command.stop_seconds, commands.MAX_STOP_SECONDS) * 1e6)
    account.stopped_until = max(account.stopped_until, tx.steady_micros + stop)
    write_account(tx, account)
