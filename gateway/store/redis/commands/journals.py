"""Encoders of `commands.journals`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, cast

import orjson

from gateway.store import commands
from gateway.store.redis.commands.counters import (
    consumption_arguments,
    counter_keys,
    packed_consumptions,
    read_index,
    read_states,
    shadows_argument,
)
from gateway.store.redis.commands.encoding import (
    SECOND,
    Argument,
    RedisCommand,
    encode,
    microseconds,
    pairs,
    plain_command,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys
from gateway.store.redis.layouts import MAX_LAYOUTS, Layout
from gateway.store.redis.plans import (
    PLANNED,
    Planned,
    plan_reservation,
    read_planned_states,
    reserve_arguments,
    settle_arguments,
    settle_keys,
)
from gateway.store.redis.windows import window_name

MAX_JOURNALS: Final = 200
"""Journals that one script reads."""


@encode.register
def _reserve(command: commands.Reserve, keys: Keys) -> RedisCommand:
    plan = plan_reservation(command, keys)
    shadows = shadows_argument(command.consumptions)
    arguments: list[Argument] = [command.purchase, command.worker, command.payload, keys.calendar]
    if plan is None:
        packed = packed_consumptions(command.consumptions)
        scopes = _scopes(command.subjects, command.amounts)
        arguments += (_place(command.place), packed, scopes, shadows, "")
        return _reserving("reserve", command, keys, arguments)
    arguments += ("", plan.consumptions, plan.scopes, shadows, *reserve_arguments(plan))
    topic, planned = _purchase_topic(command.purchase), Planned(plan)
    return script_command(
        "reserve",
        (keys.journal(command.purchase), *_shared_keys(plan.layout, command.worker, keys)),
        arguments,
        read=partial(_read_planned, planned),
        recalls=(topic,),
        teaches=topic,
        planned=planned,
    )


# Cached: all purchases of a key on a day have one layout.
@lru_cache(maxsize=MAX_LAYOUTS)
def _shared_keys(layout: Layout, worker: str, keys: Keys) -> Sequence[str]:
    """The keys of the worker and of the plan. On another day, the script asks for its windows."""
    of_worker = (keys.open_purchases(worker), keys.reserved(worker), keys.workers)
    return (*of_worker, *layout.counter_keys)


@encode.register
def _reroute(command: commands.Reroute, keys: Keys) -> RedisCommand:
    arguments: list[Argument] = [
        command.purchase,
        command.worker,
        command.payload,
        keys.calendar,
        _scopes(command.subjects, command.amounts),
        _place(command.place),
        *consumption_arguments(command.consumptions),
    ]
    return _reserving("reroute", command, keys, arguments)


def _reserving(
    script: str,
    command: commands.Reserve | commands.Reroute,
    keys: Keys,
    arguments: Sequence[Argument],
) -> RedisCommand:
    place = command.place if command.place and command.place.is_limited else None
    return script_command(
        script,
        _journal_keys(command, keys),
        arguments,
        read=_read_reservation,
        recalls=(*_queue_topic(place), _purchase_topic(command.purchase)),
        teaches=_purchase_topic(command.purchase),
        offers=() if place is None else (keys.tickets(place.account, place.key),),
        asked_often=keys.asked_often,
    )


def _read_planned(planned: Planned, reply: Sequence[Any]) -> commands.Reservation:
    if reply[0] != PLANNED:
        return _read_reservation(reply)
    planned.at = now = reply[1]
    states = read_planned_states(planned.plan.layout, reply[2:], now)
    return commands.Reservation(None, states, now / SECOND, reserved_at=now / SECOND)


def _read_reservation(reply: Sequence[Any]) -> commands.Reservation:
    denied, states, now, reserved_at, exceeded, turn = reply
    return commands.Reservation(
        read_index(denied),
        read_states(states),
        now / SECOND,
        reserved_at=reserved_at / SECOND,
        exceeded=tuple(exceeded),
        turn=commands.Turn(turn[0].decode(), turn[1], turn[2] / SECOND),
    )


def _journal_keys(command: commands.Reserve | commands.Reroute, keys: Keys) -> list[str]:
    """The keys that a purchase's reservation touches, and later its settlement."""
    worker = command.worker
    touched = [keys.journal(command.purchase), keys.open_purchases(worker), keys.reserved(worker)]
    touched.append(keys.workers)
    touched += counter_keys((c.counter for c in command.consumptions), keys)
    for subject in command.subjects:
        touched += keys.calendar_windows(subject)
    place = command.place
    if place is not None and place.is_limited:
        touched += keys.account(place.account)
        touched.append(keys.tickets(place.account, place.key))
        touched.append(keys.taken_turns(place.account, worker))
    return list(dict.fromkeys(touched))


def _purchase_topic(purchase: str) -> str:
    return f"purchase {purchase}"


def _queue_topic(place: commands.Place | None) -> Sequence[str]:
    return () if place is None else (f"queue {place.account}",)


def _place(place: commands.Place | None) -> bytes:
    """A place as `shared/queues.lua` reads it: numbers are text."""
    if place is None or not place.is_limited:
        return b""
    max_wait = None if place.max_wait is None else microseconds(place.max_wait)
    numbers = {
        "images": place.images,
        "priority": place.priority,
        "rate": place.images_per_minute,
        "concurrent": place.concurrent,
        "max_wait": max_wait,
    }
    as_text = {name: "" if number is None else str(number) for name, number in numbers.items()}
    return orjson.dumps({"account": place.account, "key": place.key, **as_text})


@encode.register
def _receive(command: commands.Receive, keys: Keys) -> RedisCommand:
    journal = keys.journal(command.purchase)
    return script_command("receive", [journal], [command.payload], read=bytes.decode)


@encode.register
def _settle(command: commands.Settle, keys: Keys) -> RedisCommand:
    lost, record = command.lost, command.record
    has_record, if_lost = int(record is not None), b"" if lost is None else lost.record
    if record and if_lost.endswith(record[1:]):
        # As mostly. Each purchase sends it, and hardly any ever uses it.
        has_record, if_lost = 2, if_lost[: len(if_lost) - len(record) + 1]
    arguments = (
        command.purchase,
        int(command.presumed),
        int(command.correct),
        has_record,
        record or b"",
        keys.calendar,
        command.attempt,
        b"" if lost is None else _scopes_of_lost(lost, command.charge, keys),
        if_lost,
        orjson.dumps(command.totals),
        command.saved_micros,
        orjson.dumps([part for unit, n in command.charge.items() for part in (unit, str(n))]),
    )

    def read(reply: Sequence[Any]) -> commands.Settlement:
        status, presumed, charged, states, now, attempt, before, is_unreserved = reply
        return commands.Settlement(
            status=status.decode(),
            charged=_read_charge(charged),
            presumed=bool(presumed),
            states=read_states(states),
            now=now / SECOND,
            attempt=attempt.decode(),
            corrected_from=_read_charge(before) if before else None,
            is_unreserved=bool(is_unreserved),
        )

    planned: Planned | None = keys.planned.get(command.purchase)
    further = settle_arguments(planned, command, keys) if planned is not None else None
    if planned is None or further is None:
        return script_command(
            "settle",
            _settle_keys(command, keys),
            (*arguments, ""),
            read=read,
            recalls=(_purchase_topic(command.purchase),),
        )

    plan = planned.plan

    def read_planned(reply: Sequence[Any]) -> commands.Settlement:
        if reply[0] != PLANNED:
            return read(reply)
        return commands.Settlement(
            "settled",
            dict(command.charge),
            presumed=False,
            states=read_planned_states(plan.layout, reply[2:], reply[1]),
            now=reply[1] / SECOND,
            attempt=command.attempt,
        )

    # If the plan does not hold, the script asks for the further keys that it needs without it.
    touched = settle_keys(plan, command, keys)
    return script_command("settle", touched, (*arguments, *further), read=read_planned)


def _settle_keys(command: commands.Settle, keys: Keys) -> Sequence[str]:
    lost = command.lost
    touched = [keys.journal(command.purchase), keys.running_totals]
    if command.record is not None or lost is not None:
        touched += keys.ledger_end("charged", "free")
    if lost is not None:
        day = keys.day_at(lost.reserved_at)
        for subject in lost.subjects:
            touched += keys.calendar_windows(subject)
            touched += (
                keys.window(subject, window_name(period, window.label))
                for period, window in day.windows.items()
            )
    return list(dict.fromkeys(touched))


def _read_charge(flat: Sequence[Any]) -> dict[str, int]:
    return {unit.decode(): amount for unit, amount in pairs(flat)}


def _scopes(subjects: Sequence[str], amounts: Mapping[str, int], **more: object) -> bytes:
    """Subjects and amounts as `shared/journals.lua` reads them: numbers are text."""
    as_text = {unit: str(amount) for unit, amount in amounts.items()}
    return orjson.dumps({"subjects": subjects, "amounts": as_text, **more})


def _scopes_of_lost(lost: commands.LostReservation, charge: Mapping[str, int], keys: Keys) -> bytes:
    """The same for a lost reservation, which reserves nothing any more, with its windows."""
    day = keys.day_at(lost.reserved_at)
    return _scopes_on(day.starts_at, tuple(lost.subjects), tuple(charge), keys)


# Cached: every settlement sends them, and those of a key on a day are the same. To make them took
# ten times as long.
@lru_cache(maxsize=MAX_LAYOUTS)
def _scopes_on(
    starts_at: int, subjects: tuple[str, ...], units: tuple[str, ...], keys: Keys
) -> bytes:
    windows = [
        (window_name(period, window.label), f"{window.ends_at:.0f}000000")
        for period, window in keys.day_at(starts_at).windows.items()
    ]
    return _scopes(subjects, dict.fromkeys(units, 0), windows=windows)


@encode.register
def _open_journals(command: commands.OpenJournals, keys: Keys) -> RedisCommand:
    # In two steps, because the journals are known only by then. One that is closed in between is
    # left out.
    def read_each(found: Sequence[bytes]) -> Sequence[RedisCommand]:
        journals = [keys.journal(purchase.decode()) for purchase, _ in pairs(found)]
        return [
            script_command(
                "read_journals", journals[i : i + MAX_JOURNALS], [command.text], read=unchanged
            )
            for i in range(0, len(journals), MAX_JOURNALS)
        ]

    def read(replies: Sequence[Any]) -> Sequence[commands.Journal]:
        found, *pages = replies
        journals = [journal for page in pages for journal in page]
        rows = zip(pairs(found), journals, strict=True)
        journals = [_read_journal(*owner, *fields) for owner, fields in rows if fields]
        return journals[: command.limit]

    workers = () if command.worker is None else (command.worker,)
    limit: Argument = "" if command.text else command.limit
    touched = [keys.workers, *(keys.open_purchases(worker) for worker in workers)]
    return script_command(
        "open_journals", touched, (limit, *workers), read=read, follow_up=read_each
    )


def _read_journal(
    purchase: bytes,
    worker: bytes,
    state: bytes,
    payload: bytes,
    at: bytes | None,
    packed: bytes,
    scopes: bytes,
) -> commands.Journal:
    return commands.Journal(
        purchase.decode(),
        worker.decode(),
        cast(Any, state.decode()),
        payload,
        int(at or 0) / SECOND,
        **_reserved(packed, scopes),
    )


def _reserved(packed: bytes, packed_scopes: bytes) -> dict[str, Any]:
    """The reserved amounts and their subjects, from packed consumptions and scopes."""
    with suppress(ValueError, TypeError, LookupError, AttributeError):
        consumptions = [(one[0], one[1], int(one[4])) for one in orjson.loads(packed)]
        scopes = orjson.loads(packed_scopes)
        in_scopes = [
            (subject, unit, int(amount))
            for subject in scopes["subjects"]
            for unit, amount in scopes["amounts"].items()
        ]
        return commands.reserved_by_unit([*in_scopes, *consumptions])
    return {}


@encode.register
def _read_journal_state(command: commands.ReadJournalState, keys: Keys) -> RedisCommand:
    def read(reply: bytes | None) -> str:
        return "unknown" if reply is None else reply.decode()

    return plain_command("HGET", keys.journal(command.purchase), "state", read=read)
