"""Encoders of `commands.journals`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

from gateway.store import commands
from gateway.store.redis.commands.counters import consumption_arguments, read_index, read_states
from gateway.store.redis.commands.encoding import (
    SECOND,
    Argument,
    RedisCommand,
    encode,
    flatten,
    microseconds,
    no_result,
    optional,
    pairs,
    read_texts,
    script_command,
)
from gateway.store.redis.keys import Keys
from gateway.store.redis.windows import window_name


@encode.register
def _reserve(command: commands.Reserve, keys: Keys) -> RedisCommand:
    return _reserving("reserve", command, keys)


@encode.register
def _reroute(command: commands.Reroute, keys: Keys) -> RedisCommand:
    return _reserving("reroute", command, keys)


def _reserving(
    script: str, command: commands.Reserve | commands.Reroute, keys: Keys
) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.Reservation:
        denied, states, now, reserved_at, exceeded, turn = reply
        return commands.Reservation(
            read_index(denied),
            read_states(states),
            now / SECOND,
            reserved_at=reserved_at / SECOND,
            exceeded=tuple(exceeded),
            turn=commands.Turn(turn[0].decode(), turn[1], turn[2] / SECOND),
        )

    arguments: list[Argument] = [
        command.purchase,
        command.worker,
        command.payload,
        keys.calendar,
        _scopes(command.subjects, command.amounts),
        _place(command.place),
        *consumption_arguments(command.consumptions),
    ]
    return script_command(script, [keys.books], arguments, read=read)


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
    arguments: list[Argument] = [command.purchase, command.payload]
    return script_command("receive", [keys.books], arguments, read=bytes.decode)


@encode.register
def _settle(command: commands.Settle, keys: Keys) -> RedisCommand:
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

    lost = command.lost
    arguments = (
        command.purchase,
        int(command.presumed),
        int(command.correct),
        *optional(command.record),
        keys.calendar,
        command.attempt,
        b"" if lost is None else _scopes_of_lost(lost, command.charge, keys),
        b"" if lost is None else lost.record,
        orjson.dumps(command.totals),
        command.saved_micros,
        *flatten(command.charge.items()),
    )
    return script_command("settle", [keys.books], arguments, read=read)


def _read_charge(flat: Sequence[Any]) -> dict[str, int]:
    return {unit.decode(): amount for unit, amount in pairs(flat)}


def _scopes(subjects: Sequence[str], amounts: Mapping[str, int], **more: object) -> bytes:
    """Subjects and amounts as `shared/journals.lua` reads them: numbers are text."""
    as_text = {unit: str(amount) for unit, amount in amounts.items()}
    return orjson.dumps({"subjects": subjects, "amounts": as_text, **more})


def _scopes_of_lost(lost: commands.LostReservation, charge: Mapping[str, int], keys: Keys) -> bytes:
    """The same for a lost reservation, which reserves nothing any more, with its windows."""
    windows = [
        (window_name(period, window.label), f"{window.ends_at:.0f}000000")
        for period, window in keys.day_at(lost.reserved_at).windows.items()
    ]
    return _scopes(lost.subjects, dict.fromkeys(charge, 0), windows=windows)


@encode.register
def _open_journals(command: commands.OpenJournals, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> Sequence[commands.Journal]:
        fields = iter(reply)
        return [
            commands.Journal(
                purchase.decode(),
                worker.decode(),
                state.decode(),
                payload,
                int(at or 0) / SECOND,
                **_reserved(packed, scopes),
            )
            for purchase, worker, state, payload, at, packed, scopes in zip(
                *[fields] * 7, strict=True
            )
        ]

    workers = () if command.worker is None else (command.worker,)
    arguments = (command.limit, command.text, *workers)
    return script_command("open_journals", [keys.books], arguments, read=read)


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

    return RedisCommand(("HGET", keys.journal(command.purchase), "state"), read)


@encode.register
def _take_turns(command: commands.TakeTurns, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.Turns:
        taken, waiting, next_in = reply
        return commands.Turns(tuple(sorted(read_texts(taken))), waiting, next_in / SECOND)

    rates = _or_none(command.images_per_minute, command.concurrent)
    arguments = (command.account, command.worker, *rates, *command.seen)
    return script_command("take_turns", [keys.books], arguments, read=read)


@encode.register
def _read_turns(command: commands.ReadTurns, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> Sequence[commands.Turn]:
        return [
            commands.Turn(state.decode(), position, wait / SECOND)
            for state, position, wait in reply
        ]

    rates = _or_none(command.images_per_minute, command.concurrent)
    arguments = (command.account, *rates, *command.purchases)
    return script_command("read_turns", [keys.books], arguments, read=read)


@encode.register
def _correct_account(command: commands.CorrectAccount, keys: Keys) -> RedisCommand:
    arguments = (
        command.account,
        *_or_none(command.images_per_minute, command.remaining),
        microseconds(command.stop_seconds),
    )
    return script_command("correct_account", [keys.books], arguments, read=no_result)


def _or_none(*numbers: int | None) -> Sequence[Argument]:
    return ["" if number is None else number for number in numbers]
