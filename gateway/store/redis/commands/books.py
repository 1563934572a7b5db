"""Encoders of `commands.books`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from gateway.store import commands
from gateway.store.commands import OpenPurchase, RunningTotal, WindowAmounts, WindowName
from gateway.store.redis.commands.encoding import (
    SECOND,
    Argument,
    RedisCommand,
    encode,
    pairs,
    script_command,
)
from gateway.store.redis.commands.ledger import ledger_id_of
from gateway.store.redis.keys import Keys
from gateway.store.redis.windows import window_name


@encode.register
def _read_books(command: commands.ReadBooks, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.Books:
        now, end, removed, free_removed, windows, totals, journals = reply
        amounts = iter(totals)
        return commands.Books(
            now=now / SECOND,
            ledger_end=ledger_id_of(*end),
            removed_to=ledger_id_of(*removed),
            free_removed_to=ledger_id_of(*free_removed),
            windows=[_read_window(window) for window in windows],
            totals=[RunningTotal(*three) for three in zip(*[amounts] * 3, strict=True)],
            purchases=_read_purchases(journals),
        )

    arguments: list[Argument] = [command.max_purchases, len(command.windows)]
    touched = [keys.workers, keys.running_totals, *keys.ledger]
    for window in command.windows:
        arguments += (window.subject, _name(window))
        touched.append(keys.window(window.subject, _name(window)))
    for name in command.totals:
        arguments += (f"{name}:{kind}" for kind in RunningTotal._fields)
    # Of those with purchases the keys follow from the workers, which rarely change.
    recalls = ("workers",) if command.max_purchases else ()
    return script_command("read_books", touched, arguments, read=read, recalls=recalls)


def _name(window: WindowName) -> str:
    if window.period == "concurrency":
        return window.period
    return window_name(window.period, window.label)


def _read_window(flat: Sequence[bytes]) -> WindowAmounts:
    amounts: dict[str, dict[str, int]] = {"spent": {}, "reserved": {}}
    for field, amount in pairs(flat):
        unit, _, kind = field.decode().partition(":")
        if int(amount):
            amounts[kind][unit] = int(amount)
    return WindowAmounts(**amounts)


def _read_purchases(reply: Any) -> Sequence[OpenPurchase] | None:
    if reply == b"":
        return None
    return [
        OpenPurchase(
            purchase.decode(),
            worker.decode(),
            int(at or 0) / SECOND,
            _read_reserved(packed, scopes),
        )
        for purchase, worker, at, packed, scopes in reply
    ]


def _read_reserved(
    packed: bytes, packed_scopes: bytes
) -> Mapping[WindowName, Mapping[str, int]] | None:
    """As `shared/journals.lua` counts a journal in: each counter once."""
    found: dict[WindowName, dict[str, int]] = defaultdict(dict)
    try:
        for subject, unit, period, _, amount, name, *_ in orjson.loads(packed):
            if period != "minute":
                units = found[_parse(subject, name)]
                units[unit] = units.get(unit, 0) + int(amount)
        scopes = orjson.loads(packed_scopes)
        for subject in scopes["subjects"]:
            for name, _ in scopes["windows"]:
                units = found[_parse(subject, name)]
                for unit, amount in scopes["amounts"].items():
                    units.setdefault(unit, int(amount))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return found


def _parse(subject: str, name: str) -> WindowName:
    period, _, label = name.partition(":")
    return WindowName(subject, cast(Any, period), label)
